"""The ``wamjax`` command.

A verb is a module of this package with ``HELP`` (one line), ``add_arguments(parser)`` and
``run(args) -> int | None``; its docstring is the text of ``wamjax <verb> --help``. Verbs import what they
need inside ``run``, so help is immediate.
"""

import argparse
import errno
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from wamjax import __version__, cli
from wamjax.errors import UserError

# Reading order of the help page: the order in which a newcomer meets the verbs.
ORDER = (
    *("data", "train", "evaluate", "imagine", "report", "serve"),
    *("import", "export", "plan", "flops", "latency", "bench"),
)

USAGE = "wamjax <verb> [options]"

DESCRIPTION = """World-Action Models in JAX: robot policies that imagine the future and act.

verbs:
{verbs}

`wamjax <verb> --help` explains one verb. `bash launch/demo.sh` runs all of them on a small simulated robot.
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes exact option names and whose mistakes are one line (a `UserError`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def verbs() -> list[str]:
    """Names of the verbs that exist: the modules beside this one, in reading order."""
    names = [m.name.removesuffix("_") for m in pkgutil.iter_modules(cli.__path__)]
    names = [name for name in names if name != "main" and not name.startswith("_")]
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def verb_module(name: str) -> ModuleType:
    """The module of a verb; a verb that is a Python keyword (``import``) lives in ``import_.py``."""
    suffix = "_" if name == "import" else ""
    return importlib.import_module(f"wamjax.cli.{name}{suffix}")


def add_config_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The options every configured verb shares: ``--config FILE`` and repeatable ``--set key=value``."""
    text = "experiment file, e.g. configs/metaworld_joint.py"
    parser.add_argument("--config", metavar="FILE", required=required, help=text)
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="change one key of the configuration, e.g. --set train.steps=100 (repeatable)",
    )


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of verbs that run as several processes (`wamjax.sharding.processes`)."""
    several = parser.add_argument_group("several processes", "found by themselves on TPU pods, GKE and SLURM")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens; the same for all")
    several.add_argument("--processes", type=int, metavar="N", help="how many there are (1: this one alone)")
    several.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; only the module of the verb that is asked for gets imported."""
    known = verbs()
    if not argv or argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:<10} {verb_module(name).HELP}" for name in known)
        parser = Parser(prog="wamjax", usage=USAGE, description=DESCRIPTION.format(verbs=lines))
        parser.add_argument("--version", action="store_true", help="print the version and exit")
        parser.print_help()
        raise SystemExit(0)
    if argv[0] == "--version":
        print(f"wamjax {__version__}")
        raise SystemExit(0)
    parser = Parser(prog="wamjax", usage=USAGE)
    if argv[0] not in known:
        raise UserError(f"unknown verb '{argv[0]}': the verbs are {', '.join(known)} (see `wamjax --help`)")
    module = verb_module(argv[0])
    subparsers = parser.add_subparsers()
    verb = subparsers.add_parser(argv[0], prog=f"wamjax {argv[0]}", description=module.__doc__ or module.HELP)
    verb.set_defaults(run=module.run)
    module.add_arguments(verb)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0 done, 2 a user's mistake (one line), 130 interrupted."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        return args.run(args) or 0
    except (Exception, KeyboardInterrupt) as error:
        return report(error)


def report(error: BaseException) -> int:
    """Prints what a user can put right as one line, and returns the exit code; raises a bug again."""
    if isinstance(error, UserError):
        return _complain(str(error))
    if isinstance(error, KeyboardInterrupt):
        print("wamjax: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):  # the reader of a pipe (`wamjax ... | head`) has gone: not a mistake
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f" while writing {error.filename}" if error.filename else ""
        return _complain(f"the disk is full{place}: free some space and run the same command again to go on")
    raise error


def _complain(message: str) -> int:
    """Prints a user's mistake as one line and returns its exit code."""
    print(f"wamjax: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
