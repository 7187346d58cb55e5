"""Runs that are killed at any moment, and whose newest checkpoint is cut short, end as if nothing had happened."""

import gc
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import wamjax
from wamjax.cli.main import main
from wamjax.training import checkpoint
from wamjax.training.checkpoint import Checkpoints

ROOT = Path(wamjax.__file__).parents[1]
SMALL = (
    *("policy.width=16", "policy.mlp=32", "policy.layers=2", "policy.heads=2"),
    *("policy.codec.patch=8", "policy.codec.channels=12", "train.batch_size=4", "train.steps=24"),
    *("train.log_every=1", "train.validate_every=100", "train.checkpoint_every=2", "train.keep=3"),
)


def arguments(dataset: Path, run: Path) -> list[str]:
    """Of the command line."""
    options = [x for override in SMALL for x in ("--set", override)]
    return [
        "train",
        *("--config", str(ROOT / "configs/metaworld_joint.py")),
        *("--data", str(dataset), "--out", str(run), *options),
    ]


def everything(run: Path):
    """All arrays of the newest checkpoint."""
    checkpoints = Checkpoints(run)
    step = checkpoints.latest
    return step, checkpoint._read(checkpoints.path(step) / "state"), checkpoint._read(checkpoints.path(step) / "frozen")


def cut_short(run: Path) -> None:
    """Halves the largest file of the newest checkpoint."""
    steps = [path for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
    if len(steps) > 1:
        newest = max(steps, key=lambda path: int(path.name))
        largest = max((file for file in newest.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_and_broken_checkpoints_change_nothing(dataset, tmp_path, kills):
    assert main(arguments(dataset, tmp_path / "undisturbed")) == 0
    moments, run = random.Random(0), tmp_path / "run"
    command = [sys.executable, "-m", "wamjax.cli.main", *arguments(dataset, run)]
    said = ""
    for kill in range(kills):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        before = set((run / "checkpoints").glob("*"))
        deadline = time.monotonic() + 240
        while process.poll() is None and set((run / "checkpoints").glob("*")) <= before:  # until it works, or writes
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        said += process.communicate()[0]
        if kill % 2:
            cut_short(run)
    assert main(arguments(dataset, run)) == 0
    assert "moved to" in said or list(run.glob("checkpoints/*.damaged"))
    jax.tree.map(np.testing.assert_array_equal, everything(run), everything(tmp_path / "undisturbed"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops the reads that fail
@pytest.mark.parametrize("sealed", [True, False])
def test_a_checkpoint_cut_short_is_set_aside_loudly(dataset, tmp_path, capfd, sealed):
    run = tmp_path / "run"
    assert main(arguments(dataset, run)) == 0
    (run / "summary.json").unlink()
    expected = everything(run)
    cut_short(run)
    if not sealed:
        (run / "checkpoints/24/sizes.json").unlink()
    capfd.readouterr()
    assert main(arguments(dataset, run)) == 0
    gc.collect()  # now, and not in some later test
    said = capfd.readouterr().out
    assert "WARNING" in said
    assert "24.damaged" in said
    assert "going on from" in said
    jax.tree.map(np.testing.assert_array_equal, everything(run), expected)
