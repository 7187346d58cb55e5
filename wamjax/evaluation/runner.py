"""The closed loop: a policy against many environments at once, and the summary of an evaluation.

Environments run in worker processes, the policy in this one. All running episodes advance in lock step: one
call of the policy on a fixed number of slots (so that it compiles once), then every slot carries out its
actions. A slot whose episode has ended takes the next seed. Which slot gets which seed depends on the
outcomes only, so results are the same for any number of processes.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from wamjax.config import to_dict
from wamjax.data.files import write_json
from wamjax.data.store import EpisodeStore
from wamjax.data.video import encode
from wamjax.errors import UserError
from wamjax.evaluation.actors import Actor, SwapImages, ZeroImages
from wamjax.evaluation.environment import EnvironmentConfig, Observation, seeds_of
from wamjax.evaluation.intervals import wilson
from wamjax.evaluation.processes import default_processes, progress_bar, worker_pools
from wamjax.evaluation.slots import Begin, Command, EpisodeResult, Reply, advance, play

SCRIPTED = ("expert", "random")
Done = Callable[[EpisodeResult], None]


@dataclass(frozen=True)
class Trials:
    """Which episodes an evaluation runs, and how a policy acts in them."""

    tasks: tuple[str, ...]
    environment: EnvironmentConfig
    seed_set: str = "held_out_b"  # of wamjax.evaluation.environment.SEED_SETS
    episodes_per_task: int = 25
    slots: int = 8  # episodes that run at once: the policy's batch size
    videos_per_task: int = 1
    execute: int = 4  # decisions of a chunk that are carried out before the next chunk is asked for
    sampling_seed: int = 0  # of the policy's noise

    def __post_init__(self) -> None:
        if not self.tasks or self.slots < 1:
            raise UserError("evaluation needs at least one task and one slot")
        seeds_of(self.seed_set, self.episodes_per_task)


def run_episodes(
    task: str,
    seeds: Sequence[int],
    actor: Actor | str,
    config: EnvironmentConfig,
    pools: list[ProcessPoolExecutor],
    *,
    slots: int = 8,
    film: int = 0,
    done: Done = lambda result: None,
) -> tuple[list[EpisodeResult], list[float]]:
    """Runs one episode per seed; `actor` is a policy, "expert" or "random".

    `pools` come from `worker_pools(n)`: n processes, which keep their environments from call to call. The
    first `film` seeds are filmed. `done` is called with each result as it comes. Returns the results in the
    order of the seeds, and the seconds that each call of the policy took.
    """
    latencies: list[float] = []
    films = {seed: i < film for i, seed in enumerate(seeds)}
    if isinstance(actor, str):
        if actor not in SCRIPTED:
            raise UserError(f"unknown actor {actor!r}: use one of {', '.join(SCRIPTED)}, or a trained policy")
        found = _run_scripted(task, films, actor, config, pools, done)
    else:
        found = _run_actor(task, films, actor, config, pools, slots, done, latencies)
    return [found[seed] for seed in seeds], latencies


def _run_scripted(
    task: str,
    films: dict[int, bool],
    actor: str,
    config: EnvironmentConfig,
    pools: list[ProcessPoolExecutor],
    done: Done,
) -> dict[int, EpisodeResult]:
    """Episodes that need no images of the policy's: each runs whole inside a worker."""
    futures = [
        pools[i % len(pools)].submit(play, config, task, seed, actor, film)
        for i, (seed, film) in enumerate(films.items())
    ]
    found = {}
    for future in as_completed(futures):
        result = future.result()
        found[result.seed] = result
        done(result)
    return found


def _run_actor(
    task: str,
    films: dict[int, bool],
    actor: Actor,
    config: EnvironmentConfig,
    pools: list[ProcessPoolExecutor],
    slots: int,
    done: Done,
    latencies: list[float],
) -> dict[int, EpisodeResult]:
    queue = deque(films.items())
    seen: dict[int, Observation] = {}  # the latest observation of every slot that was ever used
    running: set[int] = set()
    found: dict[int, EpisodeResult] = {}
    while queue or running:
        free = [slot for slot in range(slots) if slot not in running]
        begin: dict[int, Command] = {slot: Begin(*queue.popleft()) for slot in free[: len(queue)]}
        seen |= {slot: reply.observation for slot, reply in _send(pools, config, task, begin).items()}
        running |= begin.keys()
        # Rows that ended keep their last observation, rows never used repeat others: padding is valid input.
        batch = [seen[slot % len(seen)] for slot in range(slots)]
        if begin:
            actor.reset(batch, np.array([slot in begin for slot in range(slots)]))
        started = time.perf_counter()
        chunk = np.asarray(actor.act(batch))
        latencies.append(time.perf_counter() - started)
        if chunk.ndim != 3 or len(chunk) != slots or chunk.shape[1] < actor.execute:
            wanted = f"({slots}, at least {actor.execute}, a)"
            raise ValueError(f"the policy returned actions of shape {chunk.shape} where {wanted} is needed")
        for slot, reply in _send(pools, config, task, {slot: chunk[slot, : actor.execute] for slot in running}).items():
            seen[slot] = reply.observation
            if reply.result is not None:
                running.remove(slot)
                found[reply.result.seed] = reply.result
                done(reply.result)
    return found


def _send(
    pools: list[ProcessPoolExecutor], config: EnvironmentConfig, task: str, commands: dict[int, Command]
) -> dict[int, Reply]:
    """Has every worker advance its slots (slot modulo workers) and waits for all of them."""
    futures = []
    for i, pool in enumerate(pools):
        share = {slot: command for slot, command in commands.items() if slot % len(pools) == i}
        if share:
            futures.append(pool.submit(advance, config, task, share))
    replies: dict[int, Reply] = {}
    for future in futures:
        replies |= future.result()
    return dict(sorted(replies.items()))


def evaluate(
    actor: Actor | str,
    trials: Trials,
    *,
    variant: str,
    images: str = "true",
    processes: int | None = None,
    store: EpisodeStore | None = None,
    out: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs all episodes of an evaluation and summarises them; `out` receives the summary, films go beside it.

    `actor`: a policy, "expert" or "random". `images`: what the policy sees, "true", "zero" or "swap" (see
    `actors`). `store`: the training data. Errors (UserError): an instance that occurs in the training data,
    unknown `images`, an action that is not finite, a simulator process that died.
    """
    started = time.perf_counter()
    actor = _with_images(actor, images, trials)
    _refuse_training_seeds(trials, store)
    workers = min(processes or default_processes(), trials.slots)
    with progress_bar(progress) as bar, worker_pools(workers) as pools:
        films = trials.videos_per_task if out else 0
        episodes, latencies = _run_tasks(actor, trials, pools, films, store, bar, variant)
    summary = {
        "variant": variant,
        "images": images,
        "seed_set": trials.seed_set,
        **_successes(episodes),
        "episodes": [_row(result, out) for result in episodes],
        "latency_ms": _latency(latencies, trials.slots),
        "wall_seconds": time.perf_counter() - started,
        "versions": versions(),
        "trials": to_dict(trials),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, summary)
    return summary


def _run_tasks(
    actor: Actor | str,
    trials: Trials,
    pools: list[ProcessPoolExecutor],
    films: int,
    store: EpisodeStore | None,
    bar: Any,
    title: str,
) -> tuple[list[EpisodeResult], list[float]]:
    """All tasks one after another: a batch holds one task, so that swapped images are of another instance."""
    seeds = seeds_of(trials.seed_set, trials.episodes_per_task)
    row = bar.add_task(title, total=len(trials.tasks) * len(seeds))

    def done(result: EpisodeResult) -> None:
        bar.update(row, advance=1, description=f"{title}: {result.task}")

    episodes: list[EpisodeResult] = []
    latencies: list[float] = []
    for task in trials.tasks:
        results, seconds = run_episodes(
            task, seeds, actor, trials.environment, pools, slots=trials.slots, film=films, done=done
        )
        _refuse_training_instances(results, store)
        episodes += results
        latencies += seconds
    return episodes, latencies


def _with_images(actor: Actor | str, images: str, trials: Trials) -> Actor | str:
    if images == "true":
        return actor
    if isinstance(actor, str):
        raise UserError(f"the {actor} actor looks at no images: leave `images` at true")
    if images == "zero":
        return ZeroImages(actor)
    if images != "swap":
        raise UserError(f"unknown images {images!r}: use true, zero or swap")
    if min(trials.slots, trials.episodes_per_task) < 2:
        raise UserError("swapped images need at least 2 slots and 2 episodes per task")
    return SwapImages(actor)


def _refuse_training_seeds(trials: Trials, store: EpisodeStore | None) -> None:
    """The cheap check, before anything runs."""
    seeds = seeds_of(trials.seed_set, trials.episodes_per_task)
    for metadata in _metadata(store):
        if metadata.get("task") in trials.tasks and metadata.get("seed") in seeds:
            raise _seen(metadata["task"], metadata["seed"])


def _refuse_training_instances(results: Sequence[EpisodeResult], store: EpisodeStore | None) -> None:
    """The check that counts: what was randomised, not how it was numbered."""
    trained = {(m.get("task"), _rounded(m["instance"])) for m in _metadata(store) if "instance" in m}
    for result in results:
        if (result.task, _rounded(result.instance)) in trained:
            raise _seen(result.task, result.seed)


def _metadata(store: EpisodeStore | None) -> list[dict[str, Any]]:
    return [store.metadata(i) for i in range(len(store))] if store else []


def _rounded(instance: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(x, 9) for x in instance)


def _seen(task: str, seed: int) -> UserError:
    return UserError(f"the instance of {task}, seed {seed}, is in the training data: evaluate on another seed set")


def _successes(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Counts and 95 % Wilson intervals, per task and together; `mean_success` weighs tasks equally."""
    tasks: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(result.task for result in episodes):
        outcomes = [result.success for result in episodes if result.task == task]
        tasks[task] = {
            "successes": sum(outcomes),
            "episodes": len(outcomes),
            "interval": list(wilson(sum(outcomes), len(outcomes))),
        }
    total = sum(result.success for result in episodes)
    return {
        "tasks": tasks,
        "mean_success": float(np.mean([t["successes"] / t["episodes"] for t in tasks.values()])),
        "successes": total,
        "episodes_total": len(episodes),
        "interval": list(wilson(total, len(episodes))),
    }


def _row(result: EpisodeResult, out: Path | None) -> dict[str, Any]:
    """One episode of the summary; a film is written to <out's name>_videos/."""
    video = None
    if result.frames is not None and out is not None:
        path = out.parent / f"{out.stem}_videos" / f"{result.task}-{result.seed}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(result.frames, result.fps).data)
        video = str(path.relative_to(out.parent))
    row = {"task": result.task, "seed": result.seed, "success": result.success, "decisions": result.decisions}
    return row | {"video": video}


def _latency(seconds: Sequence[float], batch: int) -> dict[str, float] | None:
    """Percentiles of a policy call in ms, without the first one, which compiles; None without a policy."""
    if not seconds:
        return None
    p50, p95 = np.percentile(1000 * np.array(seconds[1:] or seconds), (50, 95))
    return {"p50": float(p50), "p95": float(p95), "batch": batch}


def versions() -> dict[str, str]:
    """Versions of what decides the outcome of an episode."""
    found = {"python": platform.python_version()}
    for package in ("jax", "mujoco", "metaworld", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
