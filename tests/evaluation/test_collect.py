"""Collection: what an episode holds, and that neither processes nor interruptions change a byte."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode
from wamjax.errors import UserError
from wamjax.evaluation.collect import CollectConfig, NoiseConfig, collect, jobs, record
from wamjax.evaluation.metaworld import MetaWorldConfig

pytestmark = pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the sim extra")

SMALL = CollectConfig(
    tasks=("button-press-topdown-v3",),
    episodes_per_task=4,
    validation_episodes_per_task=1,
    shard_episodes=1,
    environment=MetaWorldConfig(image_size=32),
)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a dataset."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset, collected by one process."""
    out = tmp_path_factory.mktemp("collect") / "data"
    counts = collect(SMALL, out, processes=1, progress=False)
    assert {split: {t: n for t, (_, n) in tasks.items()} for split, tasks in counts.items()} == {
        "train": dict.fromkeys(SMALL.tasks, 4),
        "validation": dict.fromkeys(SMALL.tasks, 1),
    }
    assert sum(kept for kept, _ in counts["train"].values()) == len(EpisodeStore(out))
    return out


def test_episodes_hold_clean_labels_and_what_was_executed(folder: Path) -> None:
    store = EpisodeStore(folder)
    assert len(store) >= 3
    assert store.cameras == {"corner2": (32, 32), "gripperPOV": (32, 32)}
    for i in range(len(store)):
        episode, metadata = store[i], store.metadata(i)
        action, executed = episode.steps["action"], episode.steps["action_executed"]
        assert action.shape == executed.shape == (len(episode), 4)
        assert max(abs(action).max(), abs(executed).max()) <= 1
        assert (abs(executed - action).max() > 0.05) == (metadata["noise"]["std"] > 0)
        assert episode.steps["success"].sum() == SMALL.success_decisions
        assert episode.steps["success"][-1]
        assert metadata["success"]
        assert metadata["seed"] < 10_000
        assert len(decode(episode.videos["corner2"])) == len(episode)
    assert {store.metadata(i)["noise"]["std"] for i in range(len(store))} - {0.0}


def test_validation_is_undisturbed_and_held_out(folder: Path) -> None:
    train, held_out = EpisodeStore(folder), EpisodeStore(folder, "validation")
    assert len(held_out) == 1
    episode, metadata = held_out[0], held_out.metadata(0)
    np.testing.assert_array_equal(episode.steps["action"], episode.steps["action_executed"])
    assert metadata["noise"] == {"std": 0.0, "start_decisions": 0}
    assert metadata["seed"] == 10_000
    instances = [tuple(s.metadata(i)["instance"]) for s in (train, held_out) for i in range(len(s))]
    assert len(set(instances)) == len(instances)


def test_the_same_seed_gives_the_frames_of_the_recorded_state(folder: Path) -> None:
    """What is stored at step t was seen before the action of step t: the first frame is that of the reset."""
    environment = SMALL.environment.make(SMALL.tasks[0])
    environment.reset(10_000)
    episode = EpisodeStore(folder, "validation")[0]
    recorded = [decode(episode.videos[camera]) for camera in environment.cameras]
    for t in range(3):
        observation = environment.observe()
        for view in range(2):
            assert abs(recorded[view][t].astype(int) - observation.frames[view]).mean() < 4
        np.testing.assert_array_equal(episode.steps["observation/cartesian_position"][t], observation.state[:3])
        environment.step(episode.steps["action_executed"][t])


def test_two_processes_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    collect(SMALL, tmp_path / "data", processes=2, progress=False)
    assert contents(tmp_path / "data") == contents(folder)


def test_a_killed_collection_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    code = (
        "import sys\nfrom pathlib import Path\nfrom test_collect import SMALL, collect\n"
        "if __name__ == '__main__':\n    collect(SMALL, Path(sys.argv[1]), 2, False)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], env=env)
    deadline = time.monotonic() + 60
    while not list(out.glob("*.json")) or not list(out.glob("*.array_record")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "dataset.json").exists()
    with pytest.raises(UserError, match="unfinished dataset"):
        EpisodeStore(out)
    collect(SMALL, out, processes=2, progress=False)
    assert contents(out) == contents(folder)


def test_a_finished_dataset_is_kept_and_other_settings_are_refused(folder: Path) -> None:
    before = {f.name: f.stat().st_mtime_ns for f in folder.glob("*.array_record")}
    collect(SMALL, folder, progress=False)
    assert {f.name: f.stat().st_mtime_ns for f in folder.glob("*.array_record")} == before
    with pytest.raises(UserError, match=r"other settings \(noise\)"):
        collect(CollectConfig(**vars(SMALL) | {"noise": NoiseConfig(stds=(0.1,))}), folder, progress=False)


def test_episodes_that_fail_are_dropped() -> None:
    environment = MetaWorldConfig(image_size=32, max_env_steps=16).make("window-open-v3")
    assert record(environment, "window-open-v3", 0, NoiseConfig(), success_decisions=5) is None


def test_jobs_cover_every_seed_once() -> None:
    config = CollectConfig(episodes_per_task=25, shard_episodes=10, validation_episodes_per_task=3)
    found = [(job.split, job.task, seed) for job in jobs(config) for seed in job.seeds]
    assert len(found) == len(set(found)) == 4 * (25 + 3)
    assert max(len(job.seeds) for job in jobs(config)) == 10
    with pytest.raises(UserError, match="at least one task"):
        CollectConfig(tasks=())
    with pytest.raises(UserError, match="1 to 10000"):
        jobs(CollectConfig(episodes_per_task=10_001))
