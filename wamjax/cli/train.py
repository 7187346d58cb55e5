"""Train a policy on a dataset, or go on where an earlier start was interrupted.

The run folder receives config.json (everything resolved), data.json and statistics.json (of the datasets),
checkpoints/, metrics.jsonl, clock.jsonl, tensorboard/ and, at the end, summary.json. Starting again with the same
folder continues from the newest checkpoint and gives the very parameters that an undisturbed run gives; on another mesh
(mesh.*) or number of processes, the same but for rounding.
How a run is watched (train.watch.*) may change as well, by how many workers and with how much memory data are read,
and how the optimizer's moments are kept.

--data given several times, as --data A=0.7 --data B=0.3, mixes datasets: of any ten samples seven are of A. What
`wamjax data encode` made of a dataset is trained on as the dataset itself, without encoding it again, and mixed so.

The same command on every machine trains with all their devices; the folders must be shared by them. Process 0 prints
and writes for all, and an error in one ends all of them.

Exit codes: 0 done; 1 a bug; 2 a mistake; 42 to be started again: told to stop by SIGTERM (what was done is saved), a
lost machine, or no step for train.watch.hang_seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wamjax.data.latents import Encoded
    from wamjax.data.selection import Selection
    from wamjax.data.store import EpisodeStore
    from wamjax.training.clock import Clock

HELP = "train a policy on a dataset (resumes by itself)"

MAY_CHANGE = (
    *("mesh.", "train.watch.", "train.quarantine.", "data.workers", "data.cache_mib"),
    *("train.optimizer.moments", "train.optimizer.offload"),
)
"""What a later start may change: where things lie, who reads, what is looked at, in what numbers moments are kept."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from wamjax.cli.main import add_config_arguments, add_process_arguments

    add_config_arguments(parser)
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="DIR[=WEIGHT]",
        help="dataset folder, e.g. from `wamjax data collect`; several are mixed by their weights",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="run folder; an interrupted run in it goes on")
    parser.add_argument(
        "--compilations", metavar="DIR", help="where compiled programs are kept for the next start (`off`: nowhere)"
    )
    add_process_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    began = time.time()  # before the imports, which count as well
    from wamjax.cli.main import report
    from wamjax.sharding import processes
    from wamjax.training.clock import Clock
    from wamjax.training.host_memory import keep_freed_memory

    keep_freed_memory()
    _keep_compilations(args.compilations)
    processes.start(args.coordinator, args.processes, args.process)
    with processes.together(report):
        ended = _train(args, Clock(began))
    return 0 if ended else processes.LOST


def _keep_compilations(folder: str | None) -> None:
    """Where JAX keeps compiled programs: as told here, or by its own variable, or else in the user's cache."""
    import jax

    if folder is None and jax.config.values["jax_compilation_cache_dir"] is None:
        folder = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wamjax" / "compilations")
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", None if folder == "off" else folder)


def _train(args: argparse.Namespace, clock: Clock) -> bool:
    """Whether the run is at its end."""
    from wamjax import config as configuration
    from wamjax.cli import _encoded, _experiment
    from wamjax.data.files import write_json
    from wamjax.data.mixture import of_split, open_stores, parts
    from wamjax.sharding import processes
    from wamjax.sharding.mesh import make_mesh
    from wamjax.training.checkpoint import fingerprint
    from wamjax.training.loop import train

    experiment = _experiment.load(args.config, args.overrides)
    caches, out = _encoded.Caches.of(args.data), Path(args.out)
    store = caches.store() if caches else open_stores(args.data)
    resolved = configuration.to_dict(experiment)
    data = _described(caches.parts if caches else parts(store), experiment.data.selection)
    if _finished(out, resolved, data):
        processes.say(f"{out} is finished: {experiment.train.steps} steps; see {out / 'summary.json'}")
        return True
    system = _experiment.system(experiment)
    longest = _experiment.longest(experiment)
    policy = system.policy(longest, system.shapes(longest, store))
    mesh = make_mesh(experiment.mesh)
    statistics = _once(out / "statistics.json", lambda: system.statistics(experiment, store, policy))
    frozen = system.frozen(experiment, store, policy, statistics, mesh)
    source = {"dataset": store.fingerprint, "data": data, "frozen": fingerprint(frozen)}
    processes.agree(frozen_parameters=source["frozen"])
    validation = of_split(store, "validation")
    learner, loader = _encoded.feed(caches, experiment, store, policy, frozen)
    alone = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, workers=0))
    summary = train(
        learner,
        frozen,
        experiment.train,
        mesh=mesh,
        rules=system.rules,
        batches=loader(experiment, store),
        validation=loader(alone, validation) if validation else None,
        run=out,
        initial=lambda: system.initial(experiment, policy, mesh),
        meta={
            "config": resolved,
            "shapes": configuration.to_dict(policy.shapes),
            "statistics": statistics,
            "source": source,
        },
        clock=clock,
    )
    if summary is None:
        processes.say(f"told to stop: what was done is saved in {out}, and the same command goes on from there")
        return False
    if processes.first():
        write_json(out / "summary.json", summary)
    minutes = summary["wall_seconds"] / 60
    processes.say(f"trained {experiment.name}: {summary['steps']} steps in {minutes:.1f} min; results in {out}")
    return True


def _once(file: Path, compute: Callable[[], dict]) -> dict:
    """What a file of the run says, or else what it takes long to find out, which goes there."""
    from wamjax.data.files import read_sealed, write_sealed
    from wamjax.sharding import processes

    try:
        return read_sealed(file)
    except (OSError, ValueError):
        found = compute()
    if processes.first():
        write_sealed(file, found)
    return found


def _described(given: Sequence[tuple[EpisodeStore | Encoded, float]], selection: Selection) -> dict:
    """The datasets of a run and their weights, and what else decides about its samples beside the configuration."""
    from wamjax.data.mixture import fingerprint

    each = [{"folder": str(one.folder), "fingerprint": one.fingerprint, "weight": w} for one, w in given]
    whole = fingerprint([one.fingerprint for one, _ in given], [w for _, w in given])
    return {"fingerprint": whole, "selection": selection.digest, "datasets": each}


def _finished(out: Path, resolved: dict, data: dict) -> bool:
    """Whether the run folder holds the finished run; else it is made ready, where it is not one begun before."""
    from wamjax.data.files import write_json
    from wamjax.sharding import processes

    begun = _today(json.loads((out / "config.json").read_text())) if (out / "config.json").exists() else None
    finished = begun is not None and (out / "summary.json").exists()
    content = [data["fingerprint"], data["selection"]]
    processes.agree(the_configuration=resolved, the_dataset=content, the_run_folder=(begun, finished))
    if begun is not None:
        _same(begun, resolved, out)
        _same_data(data, out)
    if begun != resolved and processes.first():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "data.json", data)
        write_json(out / "config.json", resolved)
    processes.see(out / "config.json")
    return finished


def _today(begun: dict) -> dict:
    """A configuration with the defaults of what it lacks, as that of an earlier version may."""
    from wamjax import config as configuration
    from wamjax.cli._experiment import Experiment
    from wamjax.errors import UserError

    with contextlib.suppress(UserError):  # compared as it is
        return configuration.to_dict(configuration.build(Experiment, begun))
    return begun


def _same(old: dict, new: dict, out: Path) -> None:
    """Refuses to go on with another configuration, but for what may change."""
    from wamjax.config import flat
    from wamjax.errors import UserError

    for path, value in flat(new).items():
        before = flat(old).get(path)
        if before != value and not path.startswith(MAY_CHANGE):
            raise UserError(
                f"{out} holds a run with {path}={before!r}, not {value!r}: give another --out or the same configuration"
            )


def _same_data(data: dict, out: Path) -> None:
    """Refuses to go on with other data; runs of earlier versions do not say what theirs were."""
    from wamjax.errors import UserError

    file = out / "data.json"
    known = json.loads(file.read_text()) if file.exists() else data
    if any(known[name] != data[name] for name in ("fingerprint", "selection")):
        given = " ".join(f"{one['folder']}={one['weight']:g}" for one in known["datasets"])
        raise UserError(f"{out} holds a run on other data ({given}, as they were then): give those or another --out")
