"""What `wamjax flops` and `wamjax latency` are asked about: a system of the field, a file, or an experiment."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from wamjax.cli import _experiment
from wamjax.cli._experiment import Experiment
from wamjax.compute import systems
from wamjax.compute.flops import Flops
from wamjax.compute.own import Counts, counts, passes_of, stages_of
from wamjax.compute.systems import System
from wamjax.data.opened import open_dataset
from wamjax.errors import UserError
from wamjax.policies.contract import Params, Policy
from wamjax.policies.dreamzero import stages
from wamjax.policies.dreamzero.policy import DreamZero
from wamjax.policies.small_wam import SmallWAMConfig
from wamjax.sharding.mesh import make_mesh
from wamjax.training.lora import Adapted, LoRAConfig, split


def add_subject_arguments(parser: argparse.ArgumentParser) -> None:
    """Which system or experiment, and how the answer is given."""
    text = "a system (see `wamjax flops`), a system file (.json), or an experiment (configs/NAME.py, RUN/config.json)"
    parser.add_argument("subject", nargs="?", metavar="SYSTEM|CONFIG", help=text)
    parser.add_argument("--chips-file", default="", metavar="FILE", help="chips of your own: JSON as in compute/data")
    parser.add_argument("--frame", default="180x320", metavar="HxW", help="an experiment's camera (default: 180x320)")
    parser.add_argument("--data", metavar="FOLDER", help="an experiment's dataset, where it takes its sizes from one")
    text = "change one key of the experiment (repeatable)"
    parser.add_argument("--set", metavar="KEY=VALUE", dest="overrides", action="append", default=[], help=text)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def subject(args: argparse.Namespace) -> System | Experiment:
    """What is asked about.

    Raises:
        UserError: neither a system nor a file.
    """
    path = Path(args.subject)
    if path.suffix == ".py" or (path.suffix == ".json" and "policy" in _keys(path)):
        return _experiment.load(path, args.overrides)
    if args.overrides:
        raise UserError(f"--set changes an experiment, and '{args.subject}' is none: edit a copy of the system's file")
    if path.suffix == ".json" and not path.is_file():
        raise UserError(f"no file {path}: name a system or give the path of a file")
    return systems.find(args.subject)


def _keys(path: Path) -> set[str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return set()
    return set(found) if isinstance(found, dict) else set()


@dataclasses.dataclass(frozen=True)
class Subject:
    """An experiment's policy with what its programs read, as shapes where nothing else is needed.

    Attributes:
        policy: the policy. frozen: its frozen parameters. batch: one training sample.
    """

    policy: Policy
    frozen: Params
    batch: Any


def build(args: argparse.Namespace, experiment: Experiment) -> Subject:
    """The policy of an experiment, for `--frame` or for a dataset."""
    if not isinstance(experiment.policy, SmallWAMConfig):
        import jax
        import numpy as np

        sketch = _experiment.sketch(experiment, args.frame)
        batch = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), sketch.batch)
        return Subject(sketch.policy, sketch.frozen, batch)
    if not args.data:
        raise UserError(f"'{experiment.name}' takes its sizes from a dataset: give its folder as --data FOLDER")
    store, system = open_dataset(args.data), _experiment.system(experiment)
    policy = system.policy(experiment, system.shapes(experiment, store))
    batch = next(system.loader(experiment, store, policy)(0, [0]))
    statistics = system.statistics(experiment, store, policy)
    return Subject(policy, system.frozen(experiment, store, policy, statistics, make_mesh(experiment.mesh)), batch)


def training(args: argparse.Namespace, experiment: Experiment) -> tuple[Counts, float]:
    """What training on a sample computes, and its tokens: means over all steps, where these have several lengths."""
    lengths, shares = _experiment.system(experiment).lengths(experiment), experiment.data.shares
    tokens, found = 0.0, Counts(0, Flops(), 0.0, 0.0, 0.0)
    for one, share in zip(lengths, shares or [1.0] * len(lengths), strict=True):
        subject, part = build(args, one), share / sum(shares or [len(lengths)])
        each = _training_counts(subject, experiment.train.lora)
        tokens += part * sum(one.plan.length for one in subject.policy.passes("train"))
        found = Counts(
            each.parameters,
            found.model + each.model * part,
            found.executed + each.executed * part,
            found.frozen + each.frozen * part,
            found.program + each.program * part,
        )
    return found, tokens


def _training_counts(found: Subject, lora: LoRAConfig | None) -> Counts:
    """What training on a sample computes, of all parameters or of adapters."""
    import jax

    if lora is None:
        return counts(found.policy, found.frozen, found.batch)
    key, name = jax.random.key(0), "base"
    base = jax.eval_shape(lambda: split(found.policy.init(key), lora, key)[1])
    frozen = {"policy": found.frozen, "base": {name: base}}
    return counts(Adapted(found.policy, lora, name), frozen, found.batch)


def chunk_costs(found: Subject) -> list[tuple[str, float, Any]]:
    """The parts of an action chunk of one session: (name, how often, cost)."""
    import jax

    policy: Any = found.policy
    if not isinstance(policy, DreamZero):
        return passes_of(policy)
    params, b = jax.eval_shape(policy.init, jax.random.key(0)), found.batch
    seen = {"frames": b["frames"][:, :, 0], "language": b["language"], "state": b["state"][:, 0]}
    session = jax.eval_shape(policy.reset, params, found.frozen, seen)
    draws = jax.eval_shape(lambda key: policy.draw_act(key, 1), jax.random.key(0))
    return stages_of(stages.stages(policy), params, found.frozen, session, seen, draws)
