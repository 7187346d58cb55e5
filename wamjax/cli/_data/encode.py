"""Encode a dataset once, for trainings that read latents and text features instead of frames and prompts.

    wamjax data encode --config configs/dreamzero_14b_droid.py --data runs/droid --weights weights --out runs/latents
    wamjax train --config configs/dreamzero_14b_droid.py --data runs/latents --out runs/dreamzero

What the policy's frozen networks make of every sample (or of those at every --stride-th step) is written, shard by
shard; what they make of a prompt, once for all samples that have it. A job that was killed goes on when the command
is given again; finished shards are kept, and the result is the same, byte for byte. Started on several machines, as
`wamjax train` is, each process encodes shards of its own on its own devices, into a folder that all share.

Datasets that are to be mixed are encoded one by one. Where codecs are fitted to a dataset, or numbers normalised with
its statistics, --mixture says with which others, as `wamjax train` will be told:

    wamjax data encode --config CONFIG --data runs/a --mixture runs/a=3 --mixture runs/b=1 --out encoded/a
    wamjax data encode --config CONFIG --data runs/b --mixture runs/a=3 --mixture runs/b=1 --out encoded/b
    wamjax train --config CONFIG --data encoded/a=3 --data encoded/b=1 --out runs/mixed

Augmentation is drawn anew in every step and cannot be encoded: it is left out. docs/data.md says more.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wamjax.data.encode import Encoder, Job
    from wamjax.data.samples import Batch, EpisodeReader

HELP = "run a policy's frozen networks over a dataset once, for trainings that read the result; resumes by itself"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    from wamjax.cli.main import add_config_arguments, add_process_arguments

    add_config_arguments(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset folder")
    text = "all datasets of the mixture that this one is for (repeatable; default: it is trained on alone)"
    parser.add_argument("--mixture", action="append", metavar="DIR[=WEIGHT]", help=text)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; what is in it already is kept")
    parser.add_argument("--weights", metavar="DIR", help="pretrained networks (default: the configuration's)")
    parser.add_argument(
        "--stride", type=int, default=1, metavar="N", help="of an episode, encode samples at every N-th step (1)"
    )
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="latents and features (bfloat16)"
    )
    parser.add_argument("--shard", type=int, default=256, metavar="N", help="samples per file (256)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples that a device encodes at once (1)")
    add_process_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from wamjax.cli.main import report
    from wamjax.errors import UserError
    from wamjax.sharding import processes

    for name in ("stride", "shard", "batch"):
        if (value := getattr(args, name)) < 1:
            raise UserError(f"--{name} {value}: give a number of at least 1")
    processes.start(args.coordinator, args.processes, args.process)
    with processes.together(report):
        job, encoder = prepare(args)
        _work(job, encoder)


def prepare(args: argparse.Namespace) -> tuple[Job, Encoder]:
    """The job, begun or gone on with, and the networks on this process's devices."""
    import jax

    from wamjax.cli import _encoded, _experiment
    from wamjax.data.encode import Job, begin
    from wamjax.data.mixture import open_stores, parts
    from wamjax.data.opened import open_dataset
    from wamjax.data.records import BEGUN
    from wamjax.data.storage import Place
    from wamjax.errors import UserError
    from wamjax.sharding import processes
    from wamjax.sharding.mesh import MeshConfig, make_mesh, place, shardings
    from wamjax.training import precomputed

    experiment = _experiment.load(args.config, args.overrides)
    if args.weights:
        experiment = dataclasses.replace(experiment, weights=args.weights)
    sample, experiment = _encoded.sample(experiment), _experiment.longest(experiment)
    store, system = open_dataset(args.data), _experiment.system(experiment)
    whole = open_stores(args.mixture) if args.mixture else store
    if store.fingerprint not in {one.fingerprint for one, _ in parts(whole)}:
        raise UserError(f"--mixture {' '.join(args.mixture)} does not have --data {args.data}: give all that is mixed")
    policy = system.policy(experiment, system.shapes(experiment, whole))
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1), jax.local_devices())
    frozen: Any = system.frozen(experiment, whole, policy, system.statistics(experiment, whole, policy), mesh)
    frozen = place(frozen, shardings(frozen, system.rules, mesh))
    readers = {
        split: system.reader(experiment, open_dataset(args.data, split), policy) for split in sorted(store.splits)
    }
    batch = {name: [x.dtype.name, list(x.shape)] for name, x in _first(readers["train"]).items()}
    making = precomputed.Making.of(policy, frozen, _encoded.shapes(batch))
    if making.draws:
        processes.say(_encoded.LEFT_OUT)
    rows = args.batch * len(jax.local_devices())
    made_of = {
        "dataset": store.fingerprint,
        "frozen": precomputed.read_fingerprints(frozen, making.frozen),
        "sample": sample,
        "batch": batch,
        "dtype": args.dtype,
        "stride": args.stride,
        "shard": args.shard,
        "rows": rows,
    }
    job = Job(Path(args.out), readers, args.stride, args.shard, made_of, str(Place.of(args.data)))
    processes.agree(what_is_encoded=made_of)
    if processes.first():
        begin(job)
    processes.see(job.folder / BEGUN)
    begin(job)
    return job, precomputed.encoder(policy, frozen, making, _encoded.shapes(batch), rows, args.dtype, mesh)


def _work(job: Job, encoder: Encoder) -> None:
    """This process's part, and at the end of all what makes the cache finished."""
    import jax
    from rich.console import Console
    from rich.progress import Progress

    from wamjax.data.encode import encode_prompts, encode_samples, finish
    from wamjax.sharding import processes

    own, count = jax.process_index(), jax.process_count()
    with Progress(console=Console(stderr=True)) as bars:
        total = sum(len(numbers) for *_, numbers in job.shards()[own::count])
        bar = bars.add_task(f"encoding {job.dataset}", total=total)
        encode_samples(job, encoder, own, count, lambda samples: bars.advance(bar, samples))
    processes.meet("all samples are encoded")
    encode_prompts(job, encoder, own, count)
    processes.meet("all prompts are encoded")
    if processes.first():
        content = finish(job, encoder)
        for split, part in content["splits"].items():
            size = sum(shard["bytes"] for shard in part["shards"]) / 1e6
            print(f"{split:<11} {part['samples']} samples, {part['damaged']} damaged, {size:.1f} MB")
        size = sum(file["bytes"] for file in content["texts"]) / 1e6
        print(f"prompts     {size:.1f} MB")
        print(f"encoded     {job.folder}")


def _first(reader: EpisodeReader) -> Batch:
    """A sound sample."""
    from wamjax.data.episode import BadEpisode
    from wamjax.errors import UserError

    for number in range(reader.clips):
        try:
            return reader.read(number, (0, number))
        except BadEpisode:
            continue
    raise UserError(f"no sample in {reader.store.folder} can be read: collect or convert the dataset again")
