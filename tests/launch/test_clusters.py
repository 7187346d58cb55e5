"""Starting on clusters: what the scripts would run, and what they do when machines are taken away."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

import wamjax
from wamjax.cli.main import parse

ROOT = Path(wamjax.__file__).parents[1]
TRAIN = ["--config", "configs/dreamzero_14b_droid.py", "--data", "/shared/droid", "--out", "/shared/run"]
TRAIN += ["--set", "train.lora={'full': ('(state|action)_\\w+/.*',)}"]  # no shell on the way may touch it
TPU = ["--name", "pod", "--zone", "us-east5-a", "--type", "v5p-1024"]
GKE = [*TPU, "--cluster", "pods"]


def script(name: str, *arguments: str, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | variables
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    command = ["bash", f"launch/{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)


def shown(name: str, *arguments: str) -> list[list[str]]:
    """The commands that --dry-run prints, in words."""
    done = script(name, "--dry-run", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_one_machine_sets_itself_up_and_trains():
    setup, train = shown("train.sh", "--extra", "cuda", *TRAIN)
    assert setup == ["bash", "launch/setup.sh", "--extra", "cuda"]
    assert train == [".venv/bin/wamjax", "train", *TRAIN]
    assert parse(train[1:]).overrides == [TRAIN[-1]]
    assert shown("train.sh", *TRAIN)[0] == ["bash", "launch/setup.sh"]


def test_slurm_starts_one_process_for_every_gpu():
    setup, train = shown("slurm.sbatch", *TRAIN)
    assert setup == ["bash", "launch/setup.sh", "--extra", "cuda"]
    assert train[0] == "srun"
    assert train[train.index(".venv/bin/wamjax") :] == [".venv/bin/wamjax", "train", *TRAIN]
    options = [
        line.split()[1] for line in (ROOT / "launch/slurm.sbatch").read_text().splitlines() if "#SBATCH" in line[:7]
    ]
    values = dict(option.removeprefix("--").partition("=")[::2] for option in options)
    assert values["ntasks-per-node"] == values["gpus-per-node"]
    assert "requeue" in values
    assert "gpus-per-task" not in values  # each process would see one GPU, and JAX would look for the one of its rank


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (2, False), (42, True), (137, True)])
def test_slurm_queues_again_what_was_done_to_a_run(tmp_path, status, requeued):
    """In a copy of the scripts, with a set-up, srun and scontrol that only tell of themselves."""
    (tmp_path / "launch").mkdir()
    for name in ("slurm.sbatch", "steps.sh"):
        (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    (tmp_path / "launch/setup.sh").write_text("echo setup $*")
    for name, code in (("srun", status), ("scontrol", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} $*\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    done = script("slurm.sbatch", *TRAIN, path=tmp_path, SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == (0 if requeued else status)
    assert ("scontrol requeue 7" in done.stdout) == requeued
    assert done.stdout.startswith("setup --extra cuda\nsrun --label")


def test_gke_runs_what_is_committed_through_xpk():
    *copying, create = shown("gke.sh", *GKE, "--slices", "2", "--storage", "droid", "--project", "robots", *TRAIN)
    assert ["git", "archive"] in [words[:2] for words in copying]
    assert create[:3] == ["xpk", "workload", "create"]
    assert {"--tpu-type=v5p-1024", "--num-slices=2", "--storage=droid", "--max-restarts=100"} < set(create)
    assert create[create.index("--project") + 1] == "robots"
    command = shlex.split(create[create.index("--command") + 1])
    assert command == ["bash", "launch/train.sh", "--extra", "tpu", *TRAIN]
    (delete,) = shown("gke.sh", *GKE, "--delete")
    assert delete[:3] == ["xpk", "workload", "delete"]


def test_tpu_machines_are_asked_for_set_up_and_used_together():
    create, *_, copy, setup, train = shown("tpu_vm.sh", *TPU, "--spot", "--prepare", "sudo mount /shared", *TRAIN)
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod"]
    assert {"--node-id=pod", "--accelerator-type=v5p-1024", "--runtime-version=v2-alpha-tpuv5", "--spot"} < set(create)
    for words in (copy, setup, train):
        assert {"--node=all", "--worker=all", "--batch-size=all"} < set(words)
    prepare, setting_up = (next(w for w in words if w.startswith("--command=")) for words in (setup, train))
    assert "sudo mount /shared" in prepare
    assert "launch/setup.sh --extra tpu" in prepare
    command = shlex.split(setting_up.removeprefix("--command="))
    assert command == ["bash", "wamjax/launch/train.sh", "--extra", "tpu", *TRAIN]


def test_several_slices_are_one_request():
    create = shown("tpu_vm.sh", *TPU, "--slices", "2", *TRAIN)[0]
    assert {"--node-count=2", "--node-prefix=pod"} < set(create)
    assert not any(word.startswith("--node-id") for word in create)


GCLOUD = """#!/bin/bash
# Takes the machines away during the first training; the second one ends with the exit code in "last", others well.
cd "$(dirname "$0")"
echo "$4 ${*: -1}" >>calls
case $4 in
  create) echo ACTIVE >state ;;
  delete) rm state ;;
  describe) [ ! -f state ] || cat state ;;
  ssh)
    case $* in *train.sh*) ;; *) exit 0 ;; esac
    if [ -f again ]; then code=$(cat last); echo 0 >last; exit "$code"; fi
    touch again
    echo SUSPENDED >state
    exit 255
    ;;
esac
"""


@pytest.mark.parametrize("last", [0, 1, 42])
def test_machines_that_were_taken_away_are_asked_for_again(tmp_path, last):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "last").write_text(str(last))
    done = script("tpu_vm.sh", *TPU, "--spot", *TRAIN, path=tmp_path)
    assert done.returncode == (2 if last == 1 else 0)
    assert "pod was taken away: asking for it again" in done.stdout
    assert ("the training failed" in done.stderr) == (last == 1)
    verbs = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    changes = [verb for verb in verbs if verb in ("create", "delete", "scp", "ssh")]
    again = ["scp", "ssh", "ssh"]
    assert changes == ["create", *again, "delete", "create", *again, *(again if last == 42 else [])]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train.sh", [], "say what to train"),
        ("slurm.sbatch", [], "say what to train"),
        ("slurm.sbatch", TRAIN, "submit this with sbatch"),
        ("gke.sh", TRAIN, "give --name, --cluster and --zone"),
        ("gke.sh", [*GKE[:4], "--cluster", "pods", *TRAIN], "give --type"),
        ("tpu_vm.sh", [*TPU[:2], *TRAIN], "give --name and --zone"),
        ("tpu_vm.sh", TPU, "say what to train"),
        ("setup.sh", ["--extra", "rocm"], "the only ones are --extra tpu and --extra cuda"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, name, arguments, message):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    done = script(name, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
