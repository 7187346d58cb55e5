"""Plan a run on a TPU pod before renting it: compile its real training step for a named topology, on this machine.

Says whether it fits and with what margin, what each chip computes and moves in a step, and what the run takes and
costs. Latents and features count as made beforehand. Times come from a roofline, not from a machine: `best` has
everything overlap at the chip's peak, the other figure has nothing overlap and products at 0.6 of the peak.

  wamjax plan --config configs/dreamzero_14b_droid.py --topology v5p:8x8x8
  wamjax plan --config configs/dreamzero_14b_droid.py --topology v5p:8x8x8 --slices 2 --json plan.json
  wamjax plan --config configs/dreamzero_14b_droid.py --topology v6e:16x16 --search 4
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wamjax.planning.plan import Plan
    from wamjax.planning.topology import Topology
    from wamjax.sharding.mesh import MeshConfig

HELP = "plan a run on a TPU pod: fit, time and cost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from wamjax.cli.main import add_config_arguments

    add_config_arguments(parser)
    parser.add_argument("--topology", required=True, metavar="NAME", help="e.g. v5p:8x8x8, v6e:16x16, v5e:4x4")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="slices, joined by the network (default: 1)")
    parser.add_argument(
        "--mesh", metavar="KEY=N,...", help="e.g. fsdp=64,context=4 (default: chosen from the topology)"
    )
    parser.add_argument("--search", type=int, default=0, metavar="N", help="also try N other layouts, best first")
    parser.add_argument("--frame", default="180x320", metavar="HxW", help="size of a camera's frame (default: 180x320)")
    parser.add_argument("--json", metavar="FILE", help="write the plan")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax.planning.topology import Topology, quiet_compiler

    quiet_compiler()
    from wamjax.cli import _experiment
    from wamjax.data.files import write_json
    from wamjax.planning.plan import plan
    from wamjax.training.cached import Cached

    experiment, topology = _experiment.load(args.config, args.overrides), Topology.parse(args.topology, args.slices)
    policy = _experiment.policy_without_data(experiment, args.frame)
    encoded = _encoded(policy, experiment.train.batch_size)
    rules = _experiment.system(experiment).rules
    plans = []
    for mesh in _layouts(args, topology, experiment, policy):
        plans.append(plan(Cached(policy), encoded, {}, experiment.train, topology, mesh, rules))
        print("\n".join(_lines(plans[-1])), flush=True)
    best = min(plans, key=lambda one: (not one.fits, one.step_seconds))
    if len(plans) > 1:
        print(f"\nbest: {_mesh_words(best)}, {best.step_seconds:.3g} s a step")
    if args.json:
        write_json(Path(args.json), dataclasses.asdict(best))
        print(f"wrote {args.json}")


def _encoded(policy: Any, batch: int) -> Any:
    """Shapes of a batch of latents and features."""
    import jax
    import numpy as np

    from wamjax.policies.dreamzero import stages

    frames = np.zeros((1, 8, 8, 3), np.uint8)  # nothing is fitted on them: all weights are given, as shapes
    frozen = policy.freeze(frames, stages.statistics(policy), stages.pretrained_shapes(policy))
    one = jax.eval_shape(policy.encode, frozen, jax.random.key(0), stages.batch(policy, 1))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), one)


def _layouts(args: argparse.Namespace, topology: Topology, experiment: Any, policy: Any) -> list[MeshConfig]:
    """The mesh asked for, or the default one and others near it."""
    from wamjax.errors import UserError
    from wamjax.planning.topology import default_mesh, other_meshes
    from wamjax.sharding.mesh import MeshConfig

    heads = policy.passes("train")[0].network.stack.heads
    if args.mesh:
        pairs = dict(part.partition("=")[::2] for part in args.mesh.split(","))
        known = {field.name for field in dataclasses.fields(MeshConfig)}
        if not set(pairs) <= known or not all(value.lstrip("-").isdigit() for value in pairs.values()):
            raise UserError(f"--mesh {args.mesh}: write KEY=N,... of {', '.join(sorted(known))}")
        return [MeshConfig(**{name: int(value) for name, value in pairs.items()})]
    first = default_mesh(topology, experiment.train.batch_size, heads)
    return [first, *other_meshes(first, heads)[: args.search]]


def _mesh_words(plan: Plan) -> str:
    return " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one device"


def _lines(plan: Plan) -> list[str]:
    """A plan in words."""
    gib = 2**30
    margin = (plan.hbm_limit_bytes - plan.hbm_bytes) / gib
    verdict = f"fits with {margin:.2f} GiB to spare" if plan.fits else f"DOES NOT FIT, by {-margin:.2f} GiB"
    lines = [
        f"\n{plan.topology}: {_mesh_words(plan)}",
        f"  memory       {plan.hbm_bytes / gib:.2f} of {plan.hbm_limit_bytes / gib:.2f} GiB a chip: {verdict}",
    ]
    if plan.error:
        return [*lines, f"  compiler     {plan.error}", *(f"  would help   {line}" for line in plan.advice)]
    parts = ", ".join(f"{name} {size / gib:.2f}" for name, size in plan.memory.items() if size)
    moved = ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in sorted(plan.collectives.items()))
    terms = ", ".join(f"{name} {seconds:.3g}" for name, seconds in plan.terms.items() if seconds)
    return [
        *lines,
        f"  parts        {parts} (GiB)",
        f"  step         {plan.flops_per_step / 1e15:.2f} PFLOP; executed {plan.executed_per_step / 1e15:.2f}; "
        f"{plan.parameters:,} parameters; attention computes {plan.attention_ratio:.3f} x the visible pairs",
        f"  moved        {moved} (a chip and step)",
        f"  seconds      {terms} (each alone)",
        f"  step time    {plan.step_seconds:.3g} s, MFU {plan.mfu:.0%}; at best {plan.step_seconds_best:.3g} s, "
        f"{plan.mfu_best:.0%}",
        f"  whole run    {plan.days:.1f} days, {plan.chip_hours:,.0f} chip-hours",
        f"  float32      {sum(plan.float32.values())} products: {', '.join(sorted(_where(plan)))}",
        f"  compiled in {plan.compile_seconds:.0f} s",
        *(f"  would help   {line}" for line in plan.advice),
    ]


def _where(plan: Plan) -> set[str]:
    """Modules that have products in float32."""
    return {name.split("/")[-2] for name in plan.float32 if "/" in name}
