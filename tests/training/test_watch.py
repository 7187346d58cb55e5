"""Hangs, traces and the log of samples."""

import json
import time
from types import SimpleNamespace

import jax
import pytest

from tests.training.test_guard import CONFIG, batch, dataclasses, loader, no_measurement, run
from wamjax.cli import train as train_verb
from wamjax.errors import UserError
from wamjax.sharding import processes
from wamjax.training import watch
from wamjax.training.samples import SampleLog, lineage
from wamjax.training.watch import WatchConfig, Watchdog

__all__ = ["no_measurement"]


def stuck_in_here(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize("ends", [True, False])
def test_a_hang_leaves_its_stacks(tmp_path, monkeypatch, capfd, ends):
    codes = []
    monkeypatch.setattr(watch.os, "_exit", codes.append)
    monkeypatch.setattr(processes, "GRACE", 0.01)
    with Watchdog(tmp_path, 1.0, ends) as watchdog:
        for _ in range(4):
            watchdog.beat()
            time.sleep(0.3)
        assert not (tmp_path / "hang-0.txt").exists()
        stuck_in_here(1.8)
    dump = (tmp_path / "hang-0.txt").read_text()
    assert "stuck_in_here" in dump
    assert "(most recent call first)" in dump
    assert set(codes) == ({42} if ends else set())
    assert "no step for 1 s (train.watch.hang_seconds): all stacks are in" in capfd.readouterr().err


def test_traces_are_made_where_they_are_asked_for(tmp_path, capsys):
    (tmp_path / "profile").write_text("2\n")
    config = dataclasses.replace(CONFIG, watch=WatchConfig(profile_steps=(6, 6)))
    run(tmp_path, loader(), config)
    said = capsys.readouterr().out
    assert "tracing steps 0 to 1" in said
    assert "tracing steps 6 to 6" in said
    assert not (tmp_path / "profile").exists()
    assert len(list(tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb"))) >= 1
    with pytest.raises(UserError, match=r"profile_steps is \(3,\): give \(first, last\)"):
        WatchConfig(profile_steps=(3,))


def test_records_say_where_the_time_went(tmp_path):
    summary = run(tmp_path, loader())
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    phases = {"data", "host_to_device", "compute", "checkpoint", "validation", "other"}
    assert {name.removeprefix("time/") for name in record if name.startswith("time/")} == phases
    assert record["steps_per_second"] * sum(record[f"time/{p}"] for p in phases) == pytest.approx(1, rel=0.1)
    assert {"mfu", "hfu", "goodput"} <= set(record)
    assert sum(summary["seconds"].values()) >= summary["wall_seconds"]
    assert 0 < summary["goodput"] < 1


def test_the_log_of_samples_is_cut_where_a_run_goes_on_and_proves_the_lineage(tmp_path):
    def write(rows, steps, first=0):
        log = SampleLog(tmp_path, first, rows, asked=True)
        for step in steps:
            log.write(step, step, batch(step)["sample"][rows])
        log.flush()
        log.close()

    write([2, 3], range(5))
    (tmp_path / "samples/0.jsonl").rename(tmp_path / "samples/1.jsonl.aside")
    write([0, 1], range(5))
    (tmp_path / "samples/1.jsonl.aside").rename(tmp_path / "samples/1.jsonl")
    write([0, 1, 2, 3], range(3, 6), first=3)  # one process goes on where there were two
    expected = [(step, tuple(range(4 * step, 4 * step + 4))) for step in range(6)]
    assert lineage(tmp_path) == expected
    with (tmp_path / "samples/1.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "batch": 4, "rows": [0], "samples": [1]}) + "\n")
    with pytest.raises(UserError, match="contradicts the other logs at step 4"):
        lineage(tmp_path)
    SampleLog(tmp_path, 2, [0], asked=False)
    assert lineage(tmp_path) == expected[:2]
    other = tmp_path / "samples/1.jsonl"
    other.write_text(other.read_text().split("\n", 1)[1])
    with pytest.raises(UserError, match="lacks rows of step 0"):
        lineage(tmp_path)
    with pytest.raises(UserError, match="no log of samples"):
        lineage(tmp_path / "elsewhere")


def test_compiled_programs_are_kept_where_somebody_says(monkeypatch, tmp_path):
    """By option, by JAX's own variable, or else in the user's cache."""
    settings = {"jax_compilation_cache_dir": None}
    monkeypatch.setattr(jax, "config", SimpleNamespace(values=settings, update=settings.__setitem__))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for option in (None, "elsewhere", None, "off"):
        train_verb._keep_compilations(option)
        found.append(settings["jax_compilation_cache_dir"])
    assert found == [str(tmp_path / "wamjax/compilations"), "elsewhere", "elsewhere", None]
