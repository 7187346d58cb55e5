"""A training on a mixture, with worker processes and augmentation: killed and resumed it is as if undisturbed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.conftest import synthetic_episode
from tests.training.test_faults import ROOT, SMALL, everything, finished
from wamjax.cli.main import main
from wamjax.data.store import finish, write_shard
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.samples import lineage

STEPS = 40


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("second")
    write_shard(folder, "train", "square", [synthetic_episode(seed) for seed in range(50, 53)])
    finish(folder, name="more squares")
    return folder


def arguments(data: list[str], run: Path, *changes: str) -> list[str]:
    sets = (*SMALL, f"train.steps={STEPS}", "train.augment={'crop': 0.8}", "train.watch.hang_seconds=0", *changes)
    return [
        *("train", "--config", str(ROOT / "configs/metaworld_joint.py"), "--out", str(run)),
        *(x for one in data for x in ("--data", one)),
        *(x for one in sets for x in ("--set", one)),
    ]


def workers_of(parent: int) -> list[int]:
    """Processes that a process has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and ") Z " not in status.read_text()


@pytest.mark.slow
def test_a_killed_run_on_a_mixture_goes_on_without_workers_bit_for_bit(dataset, second, tmp_path, capsys):
    data = [f"{dataset}=0.75", f"{second}=0.25"]
    assert main(arguments(data, tmp_path / "undisturbed")) == 0
    command = [sys.executable, "-m", "wamjax.cli.main", *arguments(data, tmp_path / "run", "data.workers=2")]
    moments = random.Random(0)
    process = subprocess.Popen(command, cwd=ROOT)
    deadline, children = time.monotonic() + 200, []
    while not finished(tmp_path / "run"):
        children = workers_of(process.pid) or children
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(moments.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    assert Checkpoints(tmp_path / "run").latest < STEPS
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.05)

    capsys.readouterr()
    assert main(arguments([data[0], f"{second}=0.5"], tmp_path / "run")) == 2
    assert f"holds a run on other data ({dataset}=0.75 {second}=0.25" in capsys.readouterr().err
    assert main(arguments(data, tmp_path / "run", "data.workers=0")) == 0
    jax.tree.map(np.testing.assert_array_equal, everything(tmp_path / "run"), everything(tmp_path / "undisturbed"))
    samples = lineage(tmp_path / "run")
    assert samples == lineage(tmp_path / "undisturbed")
    assert len(samples) == STEPS
    first = 8 * 14  # samples of the first dataset
    of_second = np.cumsum([number >= first for _, batch in samples for number in batch])
    assert np.abs(of_second - 0.25 * np.arange(1, len(of_second) + 1)).max() < 1
    meta = Checkpoints(tmp_path / "run").meta(STEPS)
    assert [one["weight"] for one in meta["source"]["data"]["datasets"]] == [0.75, 0.25]
