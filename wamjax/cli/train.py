"""Train a policy on a dataset, or go on where an earlier start was interrupted.

The run folder receives config.json (everything resolved), checkpoints/, metrics.jsonl, tensorboard/ and, at the
end, summary.json. Starting again with the same folder continues from the newest checkpoint and gives the very
parameters that an undisturbed run gives.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "train a policy on a dataset (resumes by itself)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from wamjax.cli.main import add_config_arguments

    add_config_arguments(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset folder, e.g. from `wamjax data collect`")
    parser.add_argument("--out", required=True, metavar="DIR", help="run folder; an interrupted run in it goes on")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax import config as configuration
    from wamjax.cli import _experiment
    from wamjax.data.files import write_json
    from wamjax.data.store import EpisodeStore
    from wamjax.sharding.mesh import make_mesh
    from wamjax.training.checkpoint import fingerprint
    from wamjax.training.host_memory import keep_freed_memory
    from wamjax.training.loop import train

    keep_freed_memory()
    experiment = _experiment.load(args.config, args.overrides)
    store, out = EpisodeStore(args.data), Path(args.out)
    resolved = configuration.to_dict(experiment)
    source = {"dataset": store.fingerprint}
    out.mkdir(parents=True, exist_ok=True)
    if (out / "config.json").exists():
        _same(json.loads((out / "config.json").read_text()), resolved, out)
        if (out / "summary.json").exists():
            print(f"{out} is finished: {experiment.train.steps} steps; see {out / 'summary.json'}")
            return
    write_json(out / "config.json", resolved)
    system = _experiment.system(experiment)
    policy = system.policy(experiment, system.shapes(experiment, store))
    frozen = system.frozen(experiment, store, policy)
    source["frozen"] = fingerprint(frozen)
    validation = None
    if "validation" in store.splits:
        validation = system.loader(experiment, EpisodeStore(args.data, "validation"), policy)
    mesh = make_mesh(experiment.mesh)
    summary = train(
        policy,
        frozen,
        experiment.train,
        mesh=mesh,
        rules=system.rules,
        batches=system.loader(experiment, store, policy),
        validation=validation,
        run=out,
        initial=system.initial(experiment, policy),
        meta={"config": resolved, "shapes": configuration.to_dict(policy.shapes), "source": source},
    )
    write_json(out / "summary.json", summary)
    minutes = summary["wall_seconds"] / 60
    print(f"trained {experiment.name}: {summary['steps']} steps in {minutes:.1f} min; results in {out}")


def _same(old: dict, new: dict, out: Path) -> None:
    """Refuses to go on with another configuration."""
    from wamjax.errors import UserError

    for path, value in _flat(new).items():
        before = _flat(old).get(path)
        if before != value:
            raise UserError(
                f"{out} holds a run with {path}={before!r}, not {value!r}: give another --out or the same configuration"
            )


def _flat(tree: dict, where: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, dict) else {f"{where}{key}": value}
    return flat
