"""Time a policy's stages, its action chunks and its training step, with random weights and no dataset.

The table has the median and the least time of every call with a full window of known frames; how often the call runs
in a chunk of a long session; its share of a chunk; and, of the network's passes, the counted rate and its share of the
chip's peak (measured, in float32, on a processor). Stages lie inside `observe`, `act` and `reset`.

  wamjax bench --config configs/dreamzero_bench.py --json bench.json
  wamjax bench --config configs/dreamzero_14b_droid.py --set policy.sampling.reuse=none          (one large GPU)
  wamjax bench --config configs/dreamzero_5b_droid.py --train --train-batch 1 \\
      --set "train.lora={'full': ('(state|action)_\\\\w+/.*',)}"
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wamjax.cli._experiment import Experiment
    from wamjax.evaluation.latency import Row, Subject
    from wamjax.policies.dreamzero.policy import DreamZero

HELP = "time a policy's stages, its chunks and its training step"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from wamjax.cli.main import add_config_arguments

    add_config_arguments(parser)
    parser.add_argument("--sessions", type=int, default=1, metavar="N", help="sessions in a batch (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed calls of each (default: 5)")
    parser.add_argument("--frame", default="180x320", metavar="HxW", help="size of a camera's frame (default: 180x320)")
    parser.add_argument("--train", action="store_true", help="time a training step too")
    parser.add_argument("--train-batch", type=int, default=1, metavar="N", help="its samples (default: 1)")
    text = "count the process's processor time: on one pinned core of a shared machine; means nothing on a GPU or TPU"
    parser.add_argument("--processor-time", action="store_true", help=text)
    parser.add_argument("--json", metavar="FILE", help="write the numbers, the device and the configuration")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax.cli import _experiment
    from wamjax.compute.chips import peak
    from wamjax.compute.flops import parameter_count
    from wamjax.evaluation.latency import chunk_rows
    from wamjax.policies.dreamzero import stages

    experiment = _experiment.load(args.config, args.overrides)
    policy, limit = _policy(args, experiment), peak()
    subject = _subject(policy, args.sessions)
    about = _about(parameter_count(subject.params), experiment.policy, limit)
    about["clock"] = "processor time of this process" if args.processor_time else "wall time"
    for line in about.values():
        print(line)
    rows: list[Row] = []
    for row in chunk_rows(subject, stages.stages(policy), args.repeats, _clock(args)):
        print(f"timed {row.name}: {1e3 * row.timing.median:.1f} ms", flush=True)
        rows.append(row)
    sampling = policy.config.sampling
    note = "; dynamic reuse: at most so many runs, `act` has what it took" if sampling.reuse == "dynamic" else ""
    summary = _summary(rows, args.sessions)
    print("\n" + "\n".join(_table(rows, summary["chunk_seconds"], limit.flops)))
    print(f"\none chunk: {1e3 * summary['chunk_seconds']:.1f} ms for {args.sessions} session(s){note}")
    if args.train:
        del subject
        summary["train"] = _train(args, policy, experiment, limit)
    if args.json:
        _write(Path(args.json), args, experiment, about | summary)


def _clock(args: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if args.processor_time else time.perf_counter


def _policy(args: argparse.Namespace, experiment: Experiment) -> DreamZero:
    """The policy, without files."""
    from wamjax.cli import _experiment
    from wamjax.errors import UserError
    from wamjax.policies.dreamzero.policy import DreamZero

    if min(args.sessions, args.repeats, args.train_batch) < 1:
        raise UserError("--sessions, --repeats and --train-batch must be at least 1")
    policy = _experiment.sketch(experiment, args.frame).policy
    if not isinstance(policy, DreamZero):
        raise UserError(f"'{experiment.name}' has no chunks of actions to time: give a policy of kind 'dreamzero'")
    return policy


def _weights(policy: DreamZero, dtype: str) -> tuple[Any, Any]:
    """Random parameters, and frozen ones."""
    import jax
    import numpy as np

    from wamjax.evaluation.latency import random_like
    from wamjax.policies.dreamzero import stages
    from wamjax.policies.frozen import pretrained_shapes

    rows, columns, _ = policy.latent_size
    factor = policy.config.frames.factor
    frames = np.random.default_rng(0).integers(0, 256, (16, factor * rows, factor * columns, 3), np.uint8)
    given = random_like(pretrained_shapes(policy.config), 1, policy.config.compute)
    frozen = policy.freeze(frames, stages.statistics(policy), given)
    return random_like(jax.eval_shape(policy.init, jax.random.key(0)), 0, dtype), jax.device_put(frozen)


def _subject(policy: DreamZero, sessions: int) -> Subject:
    """What is timed."""
    import jax

    from wamjax.evaluation.latency import Subject
    from wamjax.policies.dreamzero import stages

    config = policy.config
    params, frozen = _weights(policy, config.compute)
    data = jax.device_put(stages.batch(policy, sessions))
    seen = {"frames": data["frames"][:, :, 0], "language": data["language"], "state": data["state"][:, 0]}
    block = data["frames"][:, :, 1 : 1 + policy.embodiment.frames_per_chunk]
    return Subject(policy, params, frozen, seen, block, config.blocks - 1, restarts=config.sampling.window == "restart")


def _about(parameters: int, policy: Any, limit: Any) -> dict[str, str]:
    """Lines on what is timed, and where."""
    import jax

    import wamjax

    weights = f"{parameters:,} random parameters and frozen networks in {policy.compute}"
    versions = f"wamjax {wamjax.__version__}, jax {jax.__version__}"
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    rate = f"peak {limit.flops / 1e12:.3g} TFLOP/s ({limit.source})"
    return {"device": device, "versions": versions, "weights": weights, "peak": rate}


def _table(rows: Sequence[Row], chunk: float, limit: float) -> list[str]:
    """Lines of the table."""
    head = ("stage", "median ms", "min ms", "per chunk", "ms per chunk", "share", "TFLOP/s", "of peak")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        rate = row.flops / row.timing.median
        cells = [
            ("· " if row.part else "") + row.name,
            f"{1e3 * row.timing.median:.1f}",
            f"{1e3 * row.timing.least:.1f}",
            f"{row.per_chunk:g}",
            f"{1e3 * row.seconds:.1f}",
            f"{row.seconds / chunk:.1%}",
            f"{rate / 1e12:.3g}" if rate else "",
            f"{rate / limit:.1%}" if rate else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _summary(rows: Sequence[Row], sessions: int) -> dict[str, Any]:
    """The numbers of the table."""
    chunk = sum(row.seconds for row in rows if not row.part)
    return {
        "sessions": sessions,
        "chunk_seconds": chunk,
        "chunk_flops_counted": sum(row.flops * row.per_chunk for row in rows),
        "rows": [
            {
                **{"name": row.name, "part": row.part, "per_chunk": row.per_chunk, "flops": row.flops},
                **{"median": row.timing.median, "least": row.timing.least, "seconds": list(row.timing.seconds)},
            }
            for row in rows
        ],
    }


def _train(args: argparse.Namespace, policy: DreamZero, experiment: Experiment, limit: Any) -> dict[str, Any]:
    """Times the training step and prints its line."""
    from wamjax.cli import _experiment
    from wamjax.evaluation.latency import train_row
    from wamjax.policies.dreamzero import stages
    from wamjax.sharding.mesh import make_mesh

    train = experiment.train
    params, frozen = _weights(policy, policy.config.compute if train.lora else "float32")
    batch, rules = stages.batch(policy, args.train_batch), _experiment.system(experiment).rules
    mesh = make_mesh(experiment.mesh)
    row, tokens = train_row(policy, params, frozen, batch, train, mesh, rules, args.repeats, _clock(args))
    mfu = row.flops / row.timing.median / limit.flops
    print(
        f"train step: {1e3 * row.timing.median:.1f} ms (least {1e3 * row.timing.least:.1f}), {args.train_batch} "
        f"sample(s), {tokens / row.timing.median:.0f} tokens/s, MFU {mfu:.1%} (frozen encoders run, but do not count)"
    )
    return {"median": row.timing.median, "least": row.timing.least, "tokens": tokens, "flops": row.flops, "mfu": mfu}


def _write(out: Path, args: argparse.Namespace, experiment: Experiment, numbers: dict[str, Any]) -> None:
    from wamjax import config as configuration
    from wamjax.data.files import replacing

    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.write_text(json.dumps(numbers | {"config": configuration.to_dict(experiment)}, indent=1) + "\n")
    print(f"wrote {out}")
