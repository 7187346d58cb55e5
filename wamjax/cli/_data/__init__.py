"""The subcommands of `wamjax data`: modules with `HELP`, `add_arguments(parser)` and `run(args) -> int | None`."""
