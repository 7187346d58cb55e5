"""Evaluate a trained policy, or a scripted actor, and write a JSON summary.

Closed loop (the default): held-out instances of every task in simulation, with Wilson intervals.
Open loop (--open-loop): action error, and imagined against recorded frames, on the dataset's validation split.

  wamjax evaluate --checkpoint runs/demo/joint --data runs/demo/data --out joint.json
  wamjax evaluate --actor expert --config configs/metaworld_joint.py --out expert.json

A finished summary is kept: delete the file, or give another --out, to evaluate again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HELP = "try a policy out, in simulation or against recorded episodes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from wamjax.cli.main import add_config_arguments

    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--checkpoint", metavar="RUN", help="run folder of `wamjax train`")
    who.add_argument("--actor", choices=("random", "expert"), help="a scripted actor instead of a policy")
    add_config_arguments(parser, required=False)  # --config goes with --actor; a checkpoint carries its own
    parser.add_argument("--data", metavar="DIR", help="training dataset; its instances are refused as test instances")
    parser.add_argument(
        "--seeds",
        default="held_out_b",
        metavar="SET",
        help="held_out_a (for tuning) or held_out_b (for reporting; the default)",
    )
    parser.add_argument(
        "--images",
        default="true",
        choices=("true", "zero", "swap"),
        help="what the policy sees: its own images, black ones, or another instance's",
    )
    parser.add_argument("--open-loop", action="store_true", help="against recorded episodes instead of in simulation")
    parser.add_argument("--processes", type=int, metavar="N", help="simulator processes (default: one per core)")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax.errors import UserError

    out = Path(args.out)
    if out.exists():
        print(f"{out} is there already: {_headline(json.loads(out.read_text()))}")
        return
    if args.open_loop and not (args.checkpoint and args.data):
        raise UserError("--open-loop needs --checkpoint and --data")
    if args.actor and not args.config:
        raise UserError("--actor needs --config: the experiment file that names tasks and environment")
    summary = _open_loop(args, out) if args.open_loop else _closed_loop(args, out)
    print(f"{_headline(summary)}; written to {out}")


def _closed_loop(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    from wamjax.cli import _experiment
    from wamjax.data.opened import open_dataset
    from wamjax.evaluation.policy_actor import PolicyActor
    from wamjax.evaluation.runner import evaluate

    store = open_dataset(args.data) if args.data else None
    if args.actor:
        experiment, variant = _experiment.load(args.config, args.overrides), args.actor
    else:
        loaded = _experiment.trained(args.checkpoint, args.overrides)
        experiment, variant = loaded.experiment, loaded.experiment.name
    trials = _experiment.trials(experiment, args.seeds)
    actor: Any = args.actor
    images = args.images
    if not args.actor:
        actor = PolicyActor(loaded.policy, loaded.params, loaded.frozen, trials.execute, trials.sampling_seed)
        blind = experiment.clip is not None and experiment.clip.images == "zero"
        images = "zero" if blind else args.images  # trained blind, tried out blind
    return evaluate(actor, trials, variant=variant, images=images, processes=args.processes, store=store, out=out)


def _open_loop(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    from wamjax.cli import _experiment
    from wamjax.data.files import write_json
    from wamjax.data.opened import open_dataset

    loaded = _experiment.trained(args.checkpoint, args.overrides)
    store = open_dataset(args.data, "validation")
    measured = _experiment.system(loaded.experiment).open_loop(loaded, store, out.parent)
    summary = {"variant": loaded.experiment.name, **measured}
    write_json(out, summary)
    return summary


def _headline(summary: dict[str, Any]) -> str:
    """One line about a summary."""
    if "tasks" in summary:
        low, high = summary["interval"]
        return (
            f"{summary['variant']}: {summary['successes']} of {summary['episodes_total']} episodes succeeded "
            f"(95% interval {100 * low:.0f}-{100 * high:.0f}%)"
        )
    parts = [f"{summary['variant']}: action error {summary['action_mae']:.3f}"]
    if "later" in summary:
        parts.append("after an action {action_mae:.3f} against {copy_last:.3f} copying it".format(**summary["later"]))
        parts.append("{imagined:.1f} dB imagined against {copy_last:.1f} dB standing still".format(**summary["psnr"]))
        return ", ".join(parts)
    for camera, value in summary.get("psnr", {}).get("imagined", {}).items():
        parts.append(
            f"{camera} {value:.1f} dB imagined against {summary['psnr']['copy_last'][camera]:.1f} dB standing still"
        )
    return ", ".join(parts)
