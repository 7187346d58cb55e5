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
    from wamjax.cli._experiment import Experiment
    from wamjax.planning.encoding import Encoding
    from wamjax.planning.plan import Plan
    from wamjax.planning.program import Subject
    from wamjax.planning.topology import Topology
    from wamjax.planning.variants import Keys
    from wamjax.sharding.mesh import MeshConfig

STATE = {"moments": "moments", "state": "offload"}
"""Keys of the optimizer's configuration that save memory, by the names of `wamjax.planning.variants.Keys`."""

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
    text = "also compile N other meshes and choices of what is saved, and print all, best first"
    parser.add_argument("--search", type=int, default=0, metavar="N", help=text)
    text = "where the plan does not fit, compile up to N remedies until one does (default: 3)"
    parser.add_argument("--tries", type=int, default=3, metavar="N", help=text)
    parser.add_argument("--frame", default="180x320", metavar="HxW", help="size of a camera's frame (default: 180x320)")
    parser.add_argument("--json", metavar="FILE", help="write the plan")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax.planning.topology import Topology, quiet_compiler

    quiet_compiler()
    from wamjax.cli import _experiment
    from wamjax.data.files import write_json
    from wamjax.planning.plan import plan
    from wamjax.planning.variants import Variant, advise, search

    experiment, topology = _experiment.load(args.config, args.overrides), Topology.parse(args.topology, args.slices)
    if len(frames := experiment.data.frames) > 1:
        lengths = ", ".join(map(str, frames))
        print(f"films of {lengths} frames: steps are planned as those of the longest; encoding in them comes on top")
    build, keys = _Build(args), _keys(experiment)
    subject = build()
    variant = Variant(topology, _mesh(args, topology, subject))
    best = dataclasses.replace(plan(subject, topology, variant.mesh), encoding=_encoding(args, experiment, topology))
    print("\n".join(_lines(best)), flush=True)
    if not best.fits:
        advice, fitting = advise(build, variant, keys, args.tries, _say)
        best = dataclasses.replace(best, advice=advice)
        print("\n".join(f"  would help   {line}" for line in advice))
        if fitting is not None:
            print("\n".join(_lines(fitting)))
    elif args.search:
        plans = search(build, best, variant, keys, args.search, _say)
        print("\n" + "\n".join(_table(plans)))
        best = dataclasses.replace(plans[0], encoding=best.encoding)
    if args.json:
        write_json(Path(args.json), dataclasses.asdict(best))
        print(f"wrote {args.json}")


@dataclasses.dataclass(frozen=True)
class _Build:
    """What is trained, after some changes of the configuration."""

    args: argparse.Namespace

    def __call__(self, changes: tuple[str, ...] = ()) -> Subject:
        import jax

        from wamjax.cli import _experiment
        from wamjax.planning.program import Subject
        from wamjax.training.cached import Cached

        experiment = _experiment.load(self.args.config, [*self.args.overrides, *changes])
        sketch = _experiment.sketch(_experiment.longest(experiment), self.args.frame)
        one = jax.eval_shape(sketch.encode, sketch.frozen, sketch.batch)
        rows = experiment.train.batch_size
        encoded = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), one)
        rules = _experiment.system(experiment).rules
        return Subject.of(Cached(sketch.policy), encoded, sketch.frozen, experiment.train, rules)


def _encoding(args: argparse.Namespace, experiment: Experiment, topology: Topology) -> Encoding:
    """The job that makes latents and features of the whole run."""
    from wamjax.cli import _experiment
    from wamjax.planning.encoding import encoding

    sketch = _experiment.sketch(_experiment.longest(experiment), args.frame)
    samples = experiment.train.steps * experiment.train.batch_size
    return encoding(sketch.encode, sketch.frozen, sketch.batch, samples, topology)


def _keys(experiment: Experiment) -> Keys:
    """Where the configuration says what saves memory."""
    from wamjax.config import to_dict
    from wamjax.planning.variants import Keys

    def found(tree: Any, where: str, name: str) -> tuple[str, ...]:
        if not isinstance(tree, dict):
            return ()
        here = (f"{where}.{name}",) if name in tree else ()
        return sum((found(inner, f"{where}.{part}", name) for part, inner in tree.items()), here)

    policy, optimizer = to_dict(experiment.policy), to_dict(experiment.train.optimizer)
    inside = {name: found(policy, "policy", name) for name in ("remat", "offload")}
    here = {ours: (f"train.optimizer.{name}",) for ours, name in STATE.items() if name in optimizer}
    return Keys(**inside, **here)


def _mesh(args: argparse.Namespace, topology: Topology, subject: Subject) -> MeshConfig:
    """The mesh asked for, or the default one."""
    from wamjax.errors import UserError
    from wamjax.planning.topology import default_mesh
    from wamjax.sharding.mesh import MeshConfig

    if not args.mesh:
        heads = subject.learner.passes("train")[0].network.stack.heads
        return default_mesh(topology, subject.config.batch_size, heads)
    pairs = dict(part.partition("=")[::2] for part in args.mesh.split(","))
    known = {field.name for field in dataclasses.fields(MeshConfig)}
    if not set(pairs) <= known or not all(value.lstrip("-").isdigit() for value in pairs.values()):
        raise UserError(f"--mesh {args.mesh}: write KEY=N,... of {', '.join(sorted(known))}")
    return MeshConfig(**{name: int(value) for name, value in pairs.items()}).over(topology.chips)


def _say(line: str) -> None:
    print(line, flush=True)


def _mesh_words(plan: Plan) -> str:
    return " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one device"


def _lines(plan: Plan) -> list[str]:
    """A plan in words."""
    gib, margin = 2**30, plan.margin / 2**30
    verdict = f"fits with {margin:.2f} GiB to spare" if plan.fits else f"DOES NOT FIT, by {-margin:.2f} GiB"
    lines = [
        f"\n{plan.topology}: {' '.join((_mesh_words(plan), *plan.changes))}",
        f"  memory       {plan.hbm_bytes / gib:.2f} of {plan.hbm_limit_bytes / gib:.2f} GiB a chip: {verdict}",
    ]
    if plan.error:
        return [*lines, f"  compiler     {plan.error}"]
    parts = ", ".join(f"{name} {size / gib:.2f}" for name, size in plan.memory.items() if size)
    moved = ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in sorted(plan.collectives.items()))
    across = f"; to other slices {plan.dcn_bytes / 1e9:.2f} GB of gradients" if plan.dcn_bytes else ""
    terms = ", ".join(f"{name} {seconds:.3g}" for name, seconds in plan.terms.items() if seconds)
    return [
        *lines,
        f"  parts        {parts} (GiB)",
        f"  step         {plan.flops_per_step / 1e15:.2f} PFLOP; executed {plan.executed_per_step / 1e15:.2f}; "
        f"{plan.parameters:,} parameters; attention computes {plan.attention_ratio:.3f} x the visible pairs",
        f"  moved        {moved} (a chip and step){across}",
        f"  seconds      {terms} (each alone)",
        f"  step time    {plan.step_seconds:.3g} s, MFU {plan.mfu:.0%}; at best {plan.step_seconds_best:.3g} s, "
        f"{plan.mfu_best:.0%}",
        f"  whole run    {plan.days:.1f} days, {plan.chip_hours:,.0f} chip-hours",
        *_encoding_lines(plan),
        f"  float32      {sum(plan.float32.values())} products: {', '.join(sorted(_where(plan)))}",
        f"  compiled in {plan.compile_seconds:.0f} s ({plan.processor_seconds:.0f} s of processor time), with at most "
        f"{plan.compiler_bytes / gib:.1f} GiB of this machine's memory",
    ]


def _encoding_lines(plan: Plan) -> list[str]:
    """The job beside the training."""
    job = plan.encoding
    if job is None:
        return []
    made = f"{job.samples * job.bytes_per_sample / 1e12:.2f} TB for {job.samples:,} samples"
    return [
        f"  encoding     {job.flops_per_sample / 1e12:.1f} TFLOP a sample beforehand: {job.seconds / 3600:.1f} hours, "
        f"{job.chip_hours:,.0f} chip-hours, {made}"
    ]


def _table(plans: list[Plan]) -> list[str]:
    """Plans beside each other, best first."""
    head = ("layout", "GiB a chip", "fits", "s a step", "MFU", "at best", "chip-hours")
    rows = [
        (
            " ".join((_mesh_words(plan), *plan.changes)),
            f"{plan.hbm_bytes / 2**30:.1f}",
            "yes" if plan.fits else "no",
            *((f"{plan.step_seconds:.3g}", f"{plan.mfu:.0%}", f"{plan.mfu_best:.0%}") if plan.fits else ("", "", "")),
            f"{plan.chip_hours:,.0f}" if plan.fits else "",
        )
        for plan in plans
    ]
    return ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]


def _where(plan: Plan) -> set[str]:
    """Modules that have products in float32."""
    return {name.split("/")[-2] for name in plan.float32 if "/" in name}
