"""The closed loop: scheduling, padding, controls without sight, failures of workers."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from toy import LIMIT, Looker, Toy, ToyConfig

from wamjax.data.episode import Episode, Video
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video import decode
from wamjax.errors import UserError
from wamjax.evaluation.actors import SwapImages, ZeroImages
from wamjax.evaluation.environment import Observation
from wamjax.evaluation.processes import worker_pools
from wamjax.evaluation.runner import Trials, evaluate, run_episodes

SEEDS = list(range(13))
Pools = list[ProcessPoolExecutor]


def expected(seed: int) -> tuple[int, bool, int]:
    """Seed, success and decisions of an episode whose every decision is right."""
    return (seed, False, LIMIT) if seed % 7 == 6 else (seed, True, seed % 3 + 1)


def test_every_seed_runs_once_and_ends_at_success_or_limit(pools: Pools) -> None:
    seen = []
    results, latencies = run_episodes("toy", SEEDS, Looker(), ToyConfig(), pools, slots=4, done=seen.append)
    assert [(r.seed, r.success, r.decisions) for r in results] == [expected(seed) for seed in SEEDS]
    assert sorted(r.seed for r in seen) == SEEDS
    assert all(r.instance == (np.random.default_rng(r.seed).integers(1, 256) / 255,) for r in results)
    assert all(seconds > 0 for seconds in latencies)


def test_results_do_not_depend_on_processes_or_slots(pools: Pools) -> None:
    outcomes = []
    for used, slots in ((pools, 4), (pools[:1], 4), (pools, 3), (pools, 1)):
        actor = Looker(execute=3)
        results, _ = run_episodes("toy", SEEDS, actor, ToyConfig(), used, slots=slots)
        outcomes.append((results, actor.calls if slots == 4 else None))
    assert outcomes[0] == outcomes[1]  # even the batches are the same
    assert outcomes[0][0] == outcomes[2][0] == outcomes[3][0]


@pytest.mark.parametrize("count", [1, 3, 13])
def test_batches_have_a_fixed_size_and_new_rows_are_announced(pools: Pools, count: int) -> None:
    actor = Looker()
    run_episodes("toy", SEEDS[:count], actor, ToyConfig(), pools, slots=5)
    assert {len(call) for call in actor.calls} == {5}
    begun = [seeds[row] for rows, seeds in actor.resets for row in np.flatnonzero(rows)]
    assert sorted(begun) == SEEDS[:count]
    assert actor.resets[0][0].tolist() == [i < count for i in range(5)]


def test_an_actor_without_sight_fails(pools: Pools) -> None:
    seeds = [seed for seed in SEEDS if seed % 7 != 6]
    for blind in (ZeroImages(Looker()), SwapImages(Looker())):
        results, _ = run_episodes("toy", seeds, blind, ToyConfig(), pools, slots=4)
        assert not any(result.success for result in results)


def test_swapped_images_come_from_another_episode(pools: Pools) -> None:
    class Watch(Looker):
        def act(self, observations: list[Observation]) -> np.ndarray:
            for o in observations[:2]:  # with two seeds the other rows are padding
                own = np.random.default_rng(int(o.state[0])).integers(1, 256)
                assert o.frames[0, 0, 0, 0] != own
            return super().act(observations)

    run_episodes("toy", [0, 1], SwapImages(Watch()), ToyConfig(), pools, slots=5)
    run_episodes("toy", SEEDS, SwapImages(Watch()), ToyConfig(), pools, slots=3)


def test_expert_and_random(pools: Pools) -> None:
    results, latencies = run_episodes("toy", SEEDS, "expert", ToyConfig(), pools)
    assert [(r.seed, r.success, r.decisions) for r in results] == [expected(seed) for seed in SEEDS]
    assert latencies == []
    first, _ = run_episodes("toy", SEEDS, "random", ToyConfig(), pools)
    again, _ = run_episodes("toy", SEEDS, "random", ToyConfig(), pools[:1])
    assert first == again
    assert sum(r.success for r in first) < 3
    with pytest.raises(UserError, match="unknown actor 'exprt'"):
        run_episodes("toy", SEEDS, "exprt", ToyConfig(), pools)


def test_actions_of_a_wrong_shape_are_refused(pools: Pools) -> None:
    class Short(Looker):
        def act(self, observations: list[Observation]) -> np.ndarray:
            return super().act(observations)[:, :1]

    with pytest.raises(ValueError, match="at least 2"):
        run_episodes("toy", SEEDS, Short(), ToyConfig(), pools, slots=4)


def test_a_dead_worker_is_an_error_and_leaves_nothing_behind() -> None:
    before = set(multiprocessing.active_children())
    started = time.monotonic()
    with pytest.raises(UserError, match="simulator process died"), worker_pools(2) as own:
        run_episodes("toy", SEEDS, Looker(), ToyConfig(crash_at=7), own, slots=4)
    assert time.monotonic() - started < 30
    assert set(multiprocessing.active_children()) == before


def test_workers_end_when_the_actor_fails() -> None:
    class Broken(Looker):
        def act(self, observations: list[Observation]) -> np.ndarray:
            raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt), worker_pools(1) as own:
        run_episodes("toy", SEEDS, Broken(), ToyConfig(), own, slots=4)
    assert set(multiprocessing.active_children()) == before


def test_workers_end_when_their_parent_is_killed() -> None:
    script = (
        "import os, time\n"
        "from wamjax.evaluation.processes import worker_pools\n"
        "if __name__ == '__main__':\n"
        "    with worker_pools(1) as (pool,):\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 600).result()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment())
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_summary_of_an_evaluation(tmp_path: Path) -> None:
    out = tmp_path / "run" / "evaluation" / "held_out_b.json"
    config = Trials(("a", "b"), ToyConfig(), episodes_per_task=6, slots=4, videos_per_task=2)
    summary = evaluate(Looker(), config, variant="joint", processes=1, out=out, progress=False)
    assert json.loads(out.read_text()) == summary
    outcomes = [expected(20_000 + i) for i in range(6)]
    wins = sum(success for _, success, _ in outcomes)
    assert 0 < wins < 6
    assert {t: (s["successes"], s["episodes"]) for t, s in summary["tasks"].items()} == {
        "a": (wins, 6),
        "b": (wins, 6),
    }
    assert summary["successes"] == 2 * wins
    assert summary["episodes_total"] == 12
    assert summary["mean_success"] == pytest.approx(wins / 6)
    low, high = summary["interval"]
    assert 0 < low < wins / 6 < high < 1
    assert [(e["seed"], e["success"], e["decisions"]) for e in summary["episodes"]] == 2 * outcomes
    filmed = [e for e in summary["episodes"] if e["video"]]
    assert [(e["task"], e["seed"]) for e in filmed] == [(t, s) for t in ("a", "b") for s in (20_000, 20_001)]
    for e in filmed:
        data = (out.parent / e["video"]).read_bytes()
        film = decode(Video(data, e["decisions"] + 1, 16, 32))
        assert abs(film.astype(int) - np.random.default_rng(e["seed"]).integers(1, 256)).max() <= 3
    assert summary["latency_ms"]["batch"] == 4
    assert summary["latency_ms"]["p50"] <= summary["latency_ms"]["p95"]
    assert {"python", "jax", "mujoco", "metaworld", "numpy"} == summary["versions"].keys()


def test_training_instances_are_refused(tmp_path: Path) -> None:
    toy = Toy(ToyConfig())
    toy.reset(20_001)
    metadata = {"fps": 10.0, "task": "toy", "seed": 5, "instance": list(toy.instance)}
    write_shard(tmp_path, "train", "toy", [Episode(steps={"action": np.zeros((2, 1))}, metadata=metadata)])
    finish(tmp_path)
    store = EpisodeStore(tmp_path)
    config = Trials(("toy",), ToyConfig(), episodes_per_task=4)
    with pytest.raises(UserError, match="instance of toy, seed 20001, is in the training data"):
        evaluate("expert", config, variant="expert", processes=1, store=store, progress=False)
    with pytest.raises(UserError, match="instance of toy, seed 5, is in the training data"):
        evaluate(
            "expert",
            Trials(("toy",), ToyConfig(), "train", 6),
            variant="expert",
            store=store,
            progress=False,
        )


def test_settings_that_make_no_sense_are_refused() -> None:
    config = Trials(("toy",), ToyConfig(), episodes_per_task=1)
    with pytest.raises(UserError, match="at least 2 slots and 2 episodes"):
        evaluate(Looker(), config, variant="joint", images="swap", progress=False)
    with pytest.raises(UserError, match="use true, zero or swap"):
        evaluate(Looker(), config, variant="joint", images="swapped", progress=False)
    with pytest.raises(UserError, match="looks at no images"):
        evaluate("expert", config, variant="expert", images="zero", progress=False)
    with pytest.raises(UserError, match="unknown seed set 'held_out_c'"):
        Trials(("toy",), ToyConfig(), "held_out_c")
    with pytest.raises(UserError, match="at least one task"):
        Trials((), ToyConfig())
