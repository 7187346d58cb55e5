"""The account of a run's time: every second once, and what was done in vain as such."""

import json
import time

import pytest

from wamjax.training.clock import PHASES, Clock, Ledger, per_step


def test_laps_are_all_the_time_there_was():
    clock = Clock(time.time() - 5)
    with clock.spend("restore"):
        time.sleep(0.02)
    now, lap = clock.lap()
    assert lap["restore"] >= 0.02
    assert sum(lap.values()) == pytest.approx(now - clock.began, abs=1e-6)
    assert lap["start"] > 4.9
    with clock.spend("data"):
        time.sleep(0.01)
    later, lap = clock.lap()
    assert sum(lap.values()) == pytest.approx(later - now, abs=1e-6)
    assert lap["start"] == lap["restore"] == 0
    assert 5 < sum(clock.spent.values()) <= clock.elapsed + 1e-3


def line(step, time, began, **spent):
    return json.dumps({"step": step, "time": time, "began": began, "spent": spent})


def test_what_is_done_again_was_lost_and_gaps_were_down(tmp_path):
    lines = [
        line(0, 110.0, 100.0, start=10.0),
        line(4, 130.0, 100.0, compile=5.0, compute=14.0, checkpoint=1.0),
        line(6, 137.0, 100.0, compute=6.0, data=1.0),
        line(8, 144.0, 100.0, compute=7.0)[:-9],  # killed while it wrote this
        line(4, 160.0, 150.0, start=8.0, restore=2.0),  # 13 seconds after the last line
        line(6, 166.0, 150.0, compute=6.0),
        line(8, 172.0, 150.0, compute=6.0),
        line(6, 174.0, 150.0, restore=2.0),  # back within the same process
        line(8, 180.0, 150.0, compute=5.0, other=1.0),
    ]
    (tmp_path / "clock.jsonl").write_text("\n".join(lines) + "\n")
    ledger = Ledger(tmp_path)
    causes = {cause: seconds for cause, seconds in ledger.causes.items() if seconds}
    assert causes == {
        **{"start": 18.0, "restore": 4.0, "compile": 5.0, "compute": 25.0, "checkpoint": 1.0, "other": 1.0},
        **{"lost": 7.0 + 6.0, "down": 13.0},
    }
    assert sum(causes.values()) == 180 - 100
    assert ledger.goodput == 25 / 80


def test_a_later_start_adds_to_the_account(tmp_path):
    with (tmp_path / "clock.jsonl").open("w") as file:
        file.write(line(0, 110.0, 100.0, start=10.0)[:-4])
    for began in (time.time() - 2, time.time()):
        ledger, clock = Ledger(tmp_path), Clock(began)
        ledger.write(0, clock)
        with clock.spend("compute"):
            time.sleep(0.01)
        lap = ledger.write(1, clock)
    assert set(lap) == set(PHASES)
    assert per_step(lap, 2)["time/compute"] == lap["compute"] / 2
    read = Ledger(tmp_path)
    for cause, seconds in ledger.causes.items():
        assert read.causes[cause] == pytest.approx(seconds, abs=2e-3)
    assert read.causes["lost"] > 0  # the first start's step 1 was done again
    assert 0 < read.goodput < 1
