"""`wamjax flops` and `wamjax latency`: tables, JSON, files of one's own, and one line for a mistake."""

import json
import shutil
from pathlib import Path

import pytest

from wamjax.cli.main import main
from wamjax.compute.files import DATA

ROOT = Path(__file__).parents[2]
SMALL = str(ROOT / "configs" / "dreamzero_small.py")


def said(capsys, *arguments: str) -> str:
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_systems_are_listed_and_told_apart(capsys):
    assert "| dreamzero-14b " in said(capsys, "flops")
    text = said(capsys, "flops", "dreamzero-14b", "--chip", "v5p", "--chips", "256", "--price", "4.2", "--watts", "600")
    assert "16,484,292,448" in text
    assert "76,576,484" in text
    row = next(line for line in text.splitlines() if line.startswith("| action tuning"))
    assert [cell.strip() for cell in row.split("|")][5:8] == ["17.8", "24.7", "9"]
    assert "money" in text
    assert "kWh" in text


def test_published_numbers_as_a_table_and_as_json(capsys):
    text = said(capsys, "flops", "--published")
    row = next(line for line in text.splitlines() if line.startswith("| DreamZero, action tuning"))
    assert [cell.strip() for cell in row.split("|")][2:8] == ["9", "8.99", "17.78", "24.74", "1.98", "2.75"]
    found = json.loads(said(capsys, "flops", "--published", "--json"))
    by_name = {row["name"]: row for row in found["post"] + found["recipes"]}
    assert by_name["UniPi"]["model"] == pytest.approx(90, rel=0.01)
    assert by_name["Cosmos Policy: LIBERO"]["mfu"] == pytest.approx(0.144, abs=1e-3)


def test_a_recipe_of_ones_own_and_chips_of_ones_own(capsys, tmp_path):
    chips = tmp_path / "chips.json"
    chips.write_text(json.dumps({"chips": {"toy": {"flops": 1e12, "bandwidth": 1e9, "memory": 1e9}}}))
    given = ("--chip", "toy", "--chips-file", str(chips), "--batch", "10", "--steps", "100", "--mfu", "0.5", "--json")
    found = json.loads(said(capsys, "flops", "cosmos-policy", *given))
    assert {one["samples"] for one in found["trainings"].values()} == {1000}
    text = said(capsys, "latency", "cosmos-policy", "--chip", "toy", "--chips-file", str(chips), "--steps", "1")
    assert "LIBERO: 1 step, 16 actions, one device" in text


def test_a_system_of_ones_own(capsys, tmp_path):
    own = tmp_path / "mine.json"
    shutil.copy(DATA / "systems" / "cosmos-policy.json", own)
    system = json.loads(own.read_text())
    system["title"] = "Mine"
    system["runs"]["LIBERO"]["sequence"]["tokens"]["video"] = 3528
    own.write_text(json.dumps(system))
    assert "Mine on h100" in said(capsys, "latency", str(own), "--chip", "h100")
    system["runs"]["LIBERO"]["sequense"] = {}
    own.write_text(json.dumps(system))
    assert "did you mean 'runs.LIBERO.sequence'?" in refused(capsys, "flops", str(own))
    del system["runs"]["LIBERO"]["sequense"]
    system["runs"]["LIBERO"]["network"] = "cosmos-predict-2b"
    own.write_text(json.dumps(system))
    assert "did you mean cosmos-predict2-2b" in refused(capsys, "flops", str(own))
    system["runs"]["LIBERO"] = {
        "network": "cosmos-predict2-2b",
        "sequence": {"kind": "groups", "tokens": {"video": 9}, "computed": ["vido"]},
    }
    own.write_text(json.dumps(system))
    assert "unknown group 'vido': did you mean video?" in refused(capsys, "flops", str(own))
    own.write_text("{")
    assert "not valid JSON" in refused(capsys, "flops", str(own))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipes": [{"name": "r", "batch": 3}]}, "needs batch and steps, or tokens and trained passes"),
        (
            {"recipes": [{"name": "r", "batch": 3, "steps": 1, "trained": {"pas": 1}}]},
            "unknown run 'pas': did you mean pass?",
        ),
        ({"runs": {"clip": {"network": "wan-vae-2.1", "clip": [7, 64, 64]}}}, "give 4 n or 4 n + 1 frames"),
        (
            {
                "runs": {
                    "b": {
                        "network": "gemma-2b",
                        "sequence": {"kind": "groups", "tokens": {"x": 1, "y": 1}, "experts": {"x": 1}},
                    }
                }
            },
            "neighbours",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(capsys, tmp_path, change, says):
    base = {
        "title": "Mine",
        "paradigm": "VLA",
        "runs": {"pass": {"network": "gemma-2b", "sequence": {"kind": "groups", "tokens": {"x": 9}}}},
    }
    own = tmp_path / "mine.json"
    own.write_text(json.dumps(base | change))
    assert says in refused(capsys, "flops", str(own))


def test_latency_stands_beside_what_was_measured_and_the_law(capsys):
    text = said(capsys, "latency", "dreamzero-14b", "--chip", "gb200")
    assert "34.1%" in text
    assert "(steps + 1) x 66.7 ms + 16.7 ms" in text
    assert "With 5 steps: 417 ms by the law." in said(
        capsys, "latency", "dreamzero-14b", "--chip", "gb200", "--steps", "5"
    )
    found = json.loads(said(capsys, "latency", "dreamzero-14b", "--chip", "v5p", "--steps", "4", "--json"))
    assert sum(one["seconds"] for one in found["4 steps on two"]) == pytest.approx(0.637, rel=0.03)
    rows = said(capsys, "latency", "fast-wam").splitlines()
    assert next(row for row in rows if row.startswith("| v5p")).split("|")[2].strip() == "12.4"


def test_an_experiment_is_counted_and_its_programs_are_read(capsys):
    found = json.loads(said(capsys, "flops", SMALL, "--chip", "v5e", "--price", "1", "--json"))
    model = found["model"]["matmul"] + found["model"]["attention"]
    assert found["parameters"] == 1_225_140
    assert model < found["executed"] < 2 * model
    # The program also embeds texts and noise levels, and encodes actions: little, but not nothing at this size.
    assert 1.2 * model < found["program"] < 2 * model
    assert found["money"] == pytest.approx(found["chip_hours"])
    # Adapters need no products for their base's weights: of 4 passes' worth, recomputation included, one is left out.
    low = json.loads(said(capsys, "flops", SMALL, "--json", "--set", "train.lora={'rank': 1}"))
    assert low["parameters"] < 0.05 * found["parameters"]
    assert low["model"]["matmul"] == pytest.approx(2 / 3 * found["model"]["matmul"])
    assert low["program"] == pytest.approx(3 / 4 * found["program"], rel=0.1)
    assert low["model"]["attention"] == found["model"]["attention"]
    assert found["executed"] - low["executed"] == pytest.approx(found["model"]["matmul"] / 3)
    text = said(capsys, "latency", SMALL, "--chip", "v5e")
    assert "| denoise, one run" in text
    assert "| prefill" in text


def test_mistakes_are_one_line_with_the_nearest_names(capsys):
    assert "did you mean dreamzero-5b or dreamzero-14b?" in refused(capsys, "flops", "dreamzer")
    assert "did you mean h100" in refused(capsys, "latency", "fast-wam", "--chip", "h-100")
    assert "did you mean 'policy.network.state'?" in refused(capsys, "flops", SMALL, "--set", "policy.network.stat=3")
    assert "did you mean 'dreamzero_small.py'?" in refused(capsys, "flops", SMALL.replace("small", "smal"))
    assert "no file" in refused(capsys, "latency", "nothing.json", "--chip", "h100")
    assert "must be at least 1" in refused(capsys, "flops", "fast-wam", "--batch", "0")
    assert "--mfu 2.0" in refused(capsys, "flops", "fast-wam", "--mfu", "2")
    assert "no published way" in refused(capsys, "latency", "wan-14b", "--chip", "h100")
    assert "name a system" in refused(capsys, "latency")
    assert "--set changes an experiment" in refused(capsys, "flops", "fast-wam", "--set", "a=1")
    assert "give its folder as --data" in refused(capsys, "flops", str(ROOT / "configs" / "metaworld_joint.py"))


def test_an_experiment_may_take_its_sizes_from_a_dataset(capsys, dataset):
    joint = str(ROOT / "configs" / "metaworld_joint.py")
    found = json.loads(said(capsys, "latency", joint, "--data", str(dataset), "--chip", "v5e", "--json"))
    assert [one["times"] for one in found] == [1, 6]
    assert found[1]["name"].endswith("of language, state, observation, video, action")
    assert found[1]["cost"]["cache"] > 0
