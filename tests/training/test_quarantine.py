"""Replaced samples: on record once per step of the surviving run, counted, and too many of them stop it."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.test_guard import CONFIG, dataclasses, loader, no_measurement, records, run  # noqa: F401
from wamjax.data.pipeline import REPLACED
from wamjax.errors import UserError
from wamjax.sharding import processes
from wamjax.training.quarantine import Quarantine, QuarantineConfig


def entry(row: int, number: int) -> dict:
    where = {"row": row, "dataset": "droid", "sample": 10 * number, "episode": number, "at": 0}
    return {**where, "reason": "'state' has numbers that are not finite", "instead": 3}


def damaged(bad: dict[int, list[int]], stop: int | None = None):
    """Batches with replaced rows in some; a crash before number `stop`."""

    def batches(first, rows):
        for number, batch in enumerate(loader()(first, rows), first):
            if number == stop:
                raise RuntimeError("the machine is gone")
            if number in bad:
                told = json.dumps([entry(row, number) for row in bad[number]]).encode()
                batch[REPLACED] = np.frombuffer(told, np.uint8)
            yield batch

    return batches


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "quarantine/0.jsonl").read_text().splitlines()]


BAD = {1: [0], 5: [2, 3], 6: [1], 10: [0, 0]}


def test_an_interrupted_run_leaves_the_lines_of_an_undisturbed_one(tmp_path):
    with pytest.raises(RuntimeError, match="gone"):
        run(tmp_path / "run", damaged(BAD, stop=7))
    assert [line["step"] for line in log(tmp_path / "run")] == [1, 5, 5, 6]
    summary = run(tmp_path / "run", damaged(BAD))
    assert summary["replaced_samples"] == 6
    assert log(tmp_path / "run") == [
        {"step": number, "batch": number, **entry(row, number)} for number, rows in BAD.items() for row in rows
    ]
    counted = {record["step"]: record.get("replaced_samples") for record in records(tmp_path / "run")}
    assert [counted[step] for step in range(4, 9)] == [1, 1, 3, 4, 4]
    clean = run(tmp_path / "clean", loader())
    assert "replaced_samples" not in clean
    assert not (tmp_path / "clean/quarantine").exists()


def test_too_many_bad_samples_stop_the_run(tmp_path):
    few = dataclasses.replace(CONFIG, quarantine=QuarantineConfig(limit=2, within=8))
    assert run(tmp_path / "few", damaged({1: [0], 2: [0], 4: [0], 5: [1]}), few)["replaced_samples"] == 4
    with pytest.raises(
        UserError, match=r"more than 2 of 8 samples in a row are bad; the last, sample 50 of droid: 'state'"
    ):
        run(tmp_path / "many", damaged({4: [0], 5: [2, 3]}), few)
    assert len(log(tmp_path / "many")) == 3
    with pytest.raises(UserError, match="within=0"):
        QuarantineConfig(within=0)


def test_what_others_read_counts_as_well(tmp_path, monkeypatch):
    """Two processes that read rows 0 to 3 and 2 to 5 of batches of six, of which the other tells at records."""
    elsewhere = [[0, 3, 0], [1, 4, 0], [1, 2, 0], [1, 2, 1]]  # number of the batch, row, drawn before
    joined = lambda rows: np.concatenate([rows, np.array(elsewhere, np.int32).reshape(-1, 3)])  # noqa: E731
    monkeypatch.setattr(processes, "total", lambda value: value + len(elsewhere))
    monkeypatch.setattr(processes, "joined", joined)
    held = Quarantine(tmp_path, 0, QuarantineConfig(limit=4, within=12), batch_size=6)

    def read(step: int, *rows: int) -> None:
        told = json.dumps([entry(row, step) for row in rows]).encode()
        held.take(step, step, {REPLACED: np.frombuffer(told, np.uint8)} if rows else {})

    read(0, 3)
    read(1, 2, 2)
    held.ask(2)
    read(2)  # of which the record of two steps does not tell
    assert held.counts(2) == {"replaced_samples": 4}
    assert held.counts(2) == {"replaced_samples": 4}
    elsewhere[:] = [[3, 5, 0]]
    read(3, 0)
    assert held.counts(4) == {"replaced_samples": 6}
    elsewhere[:] = [[4, 1, 0], [4, 2, 0]]
    with pytest.raises(UserError, match="more than 4 of 12 samples in a row are bad; the last, sample 40 of droid"):
        read(4, 0, 1, 2)
    with pytest.raises(UserError, match="more than 4 of 12"):
        held.counts(5)
    held.close()
