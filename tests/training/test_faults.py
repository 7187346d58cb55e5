"""Runs that are killed at any moment, told to stop, out of disk or robbed of a checkpoint end as if undisturbed."""

import contextlib
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import wamjax
from wamjax.cli.main import main
from wamjax.sharding.processes import LOST
from wamjax.training import checkpoint
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.samples import lineage

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops failed reads

ROOT = Path(wamjax.__file__).parents[1]
BATCH, CLIPS, STEPS = 4, 8 * 14, 60
SMALL = (
    *("policy.width=16", "policy.mlp=32", "policy.layers=2", "policy.heads=2"),
    *("policy.codec.patch=8", "policy.codec.channels=12", f"train.batch_size={BATCH}"),
    *("train.log_every=1", "train.validate_every=1000", "train.checkpoint_every=2", "train.keep=3"),
    "train.watch.log_samples=True",
)


def arguments(dataset: Path, run: Path, steps: int) -> list[str]:
    """Of the command line."""
    options = [x for override in (*SMALL, f"train.steps={steps}") for x in ("--set", override)]
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


def assert_equal_runs(run: Path, undisturbed: Path) -> None:
    """The same bits, from the same samples: every one once in each epoch."""
    jax.tree.map(np.testing.assert_array_equal, everything(run), everything(undisturbed))
    samples = lineage(run)
    assert samples == lineage(undisturbed)
    read = [sample for _, batch in samples for sample in batch]
    assert len(read) >= CLIPS
    for epoch in range(len(read) // CLIPS):
        assert sorted(read[epoch * CLIPS : (epoch + 1) * CLIPS]) == list(range(CLIPS))


def finished(run: Path) -> list[Path]:
    """Folders of checkpoints under their names, the newest last."""
    found = [path for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def cut_short(run: Path) -> None:
    """Halves the largest file of the newest checkpoint, where there is one before it."""
    if len(finished(run)) > 1:
        files = [file for file in finished(run)[-1].rglob("*") if file.is_file()]
        largest = max(files, key=lambda file: file.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)


@pytest.fixture(autouse=True)
def dropped_now() -> Iterator[None]:
    """What Orbax dropped, and not in some later test."""
    yield
    gc.collect()


class Drill:
    """A training in a process of its own, to which things happen; each fault returns the exit code it expects."""

    def __init__(self, dataset: Path, run: Path, steps: int, moments: random.Random) -> None:
        self.run, self.moments, self.said = run, moments, ""
        self.command = [sys.executable, "-m", "wamjax.cli.main", *arguments(dataset, run, steps)]

    def start(self) -> None:
        """Starts it, and waits until it has saved something new."""
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        before = {path.name for path in finished(self.run)}
        self.wait(lambda: {path.name for path in finished(self.run)} - before)

    def wait(self, happens: Callable[[], object]) -> None:
        """Waits until something happens or the process has ended."""
        deadline = time.monotonic() + 300
        while self.process.poll() is None and not happens():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def end(self, number: int | None) -> int:
        """Sends it a signal, waits for its end and returns the exit code."""
        assert self.process.poll() is None, "the run was over before the fault: give it more steps"
        if number is not None:
            self.process.send_signal(number)
        self.said += self.process.communicate(timeout=300)[0]
        return self.process.returncode

    def killed(self) -> None:
        """At any moment."""
        time.sleep(self.moments.uniform(0, 0.3))
        assert self.end(signal.SIGKILL) == -signal.SIGKILL

    def killed_while_writing(self) -> None:
        """As soon as a checkpoint is begun, or a little later."""
        folder = self.run / "checkpoints"
        self.wait(lambda: any(not path.name.isdigit() for path in folder.glob("*tmp*")))
        time.sleep(self.moments.choice((0, 0.01, 0.03)))
        assert self.end(signal.SIGKILL) == -signal.SIGKILL

    def killed_and_robbed(self) -> None:
        """At any moment, and then the newest checkpoint loses half of a file."""
        self.killed()
        cut_short(self.run)

    def told_to_stop(self) -> None:
        """By SIGTERM: it saves, and asks to be started again."""
        assert self.end(signal.SIGTERM) == LOST
        assert "told to stop: what was done is saved" in self.said

    def out_of_disk(self) -> None:
        """The disk is full until the process has noticed."""
        with full(self.run):
            assert self.end(None) == 2
        assert "the disk" in self.said
        assert "full" in self.said


@contextlib.contextmanager
def full(run: Path) -> Iterator[None]:
    """A disk without room."""
    filler = run.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of a few megabytes, which only root can mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system, to fill it")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("faults") / "undisturbed"
    assert main(arguments(dataset, run, STEPS)) == 0
    return run


def test_kills_and_notices_change_nothing(dataset, undisturbed, tmp_path):
    drill = Drill(dataset, tmp_path / "run", STEPS, random.Random(0))
    for fault in (drill.killed_while_writing, drill.told_to_stop):
        drill.start()
        fault()
    assert main(arguments(dataset, drill.run, STEPS)) == 0
    assert_equal_runs(drill.run, undisturbed)


def test_a_full_disk_changes_nothing(dataset, undisturbed, small_disk, capfd):
    run = small_disk / "run"
    run.mkdir()
    with full(run):
        assert main(arguments(dataset, run, STEPS)) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "full" in error
    assert main(arguments(dataset, run, STEPS)) == 0
    assert_equal_runs(run, undisturbed)


@pytest.mark.slow
def test_twenty_faults_of_every_kind_change_nothing(dataset, tmp_path, small_disk):
    steps, run, moments = 500, small_disk / "run", random.Random(0)
    assert main(arguments(dataset, tmp_path / "undisturbed", steps)) == 0
    drill = Drill(dataset, run, steps, moments)
    kinds = (drill.killed, drill.killed_while_writing, drill.killed_and_robbed, drill.out_of_disk, drill.told_to_stop)
    faults = [*kinds[:3] * 7, *kinds[3:] * 2]  # 21 kills, and both others twice
    moments.shuffle(faults)
    for number, fault in enumerate(faults):
        drill.start()
        fault()
        print(f"{number + 1:2} {fault.__name__:20} newest checkpoint {finished(run)[-1].name}", flush=True)
    assert main(arguments(dataset, run, steps)) == 0
    assert drill.said.count("moved to") >= 3
    assert_equal_runs(run, tmp_path / "undisturbed")


@pytest.mark.parametrize(("sealed", "name"), [(True, ""), (False, ""), (False, "state/_METADATA")])
def test_a_checkpoint_cut_short_is_set_aside_loudly(dataset, undisturbed, tmp_path, capfd, sealed, name):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "summary.json").unlink()
    if name:
        os.truncate(run / "checkpoints/60" / name, (run / "checkpoints/60" / name).stat().st_size // 2)
    else:
        cut_short(run)
    if not sealed:
        (run / "checkpoints/60/sizes.json").unlink()
    capfd.readouterr()
    assert main(arguments(dataset, run, STEPS)) == 0
    said = capfd.readouterr().out
    assert "WARNING" in said
    assert "60.damaged" in said
    assert "going on from" in said
    assert_equal_runs(run, undisturbed)
