"""Plans of real runs; they need the TPU's compiler: pip install -e '.[plan]'."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wamjax

ROOT = Path(wamjax.__file__).parents[1]
needs_compiler = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="no TPU compiler: pip install -e '.[plan]' plans pods"
)


def planned(folder: Path, *options: str) -> tuple[dict, str]:
    """What `wamjax plan` writes and prints."""
    out = folder / "plan.json"
    command = ["-c", "import sys; from wamjax.cli.main import main; sys.exit(main())", "plan", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, *command, *options], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text()), done.stdout


ISLANDS = {"dreamzero": re.compile(r"/time_(in|out|rows)/"), "wan": re.compile(r"/(time_(in|out|rows)|head)/")}
"""Modules that may have products in float32."""


def check(plan: dict, islands: re.Pattern[str]) -> None:
    """What every plan that fits must show."""
    assert plan["fits"]
    assert plan["hbm_bytes"] < plan["hbm_limit_bytes"]
    # Weights in bfloat16 are gathered twice for every forward pass of two, not reduced; nothing else is as large.
    assert plan["collectives"]["all-gather"] > 2 * 2 * plan["parameters"]
    assert plan["forward_reduced"] < 0.01 * plan["collectives"]["all-gather"]
    # Gradients are scattered as they are summed.
    assert plan["collectives"]["reduce-scatter"] > 1.5 * plan["parameters"]
    assert plan["attention_ratio"] < 1.15
    assert plan["kernels"] > 0
    assert all(islands.search(name) for name in plan["float32"])
    assert plan["processor_seconds"] < 2 * 360
    assert plan["compiler_bytes"] < 8 * 2**30
    assert 0.1 < plan["mfu"] < plan["mfu_best"] < 1
    assert plan["encoding"]["chip_hours"] > 0


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "where", [("v5p:8x8x8",), ("v6e:16x16",), ("v5p:8x8x8", "--slices", "2")], ids=lambda where: "-".join(where)
)
def test_dreamzero_14b_fits_and_moves_what_it_should(where, tmp_path):
    plan, _ = planned(tmp_path, "--config", "configs/dreamzero_14b_droid.py", "--topology", *where)
    assert plan["parameters"] == 16_484_292_448
    check(plan, ISLANDS["dreamzero"])
    assert (plan["dcn_bytes"] > 0) == ("--slices" in where)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("where", ["v5p:8x8x8", "v6e:16x16"])
def test_wan_14b_at_720p_fits_with_its_sequences_over_devices(where, tmp_path):
    options = ("--config", "configs/wan_14b_720p.py", "--topology", where, "--frame", "720x1280")
    plan, _ = planned(tmp_path, *options)
    assert plan["parameters"] == 14_288_491_584
    assert plan["mesh"]["context"] > 1
    check(plan, ISLANDS["wan"])


@pytest.mark.slow
@needs_compiler
def test_a_plan_that_cannot_fit_says_by_how_much_and_what_would_help(tmp_path):
    plan, said = planned(tmp_path, "--config", "configs/dreamzero_14b_droid.py", "--topology", "v5e:4x4")
    assert not plan["fits"]
    assert plan["hbm_bytes"] > plan["hbm_limit_bytes"]
    assert "DOES NOT FIT, by" in said
    assert any("train.portions" in line and "not enough" in line for line in plan["advice"])
    assert "(compiled)" in plan["advice"][-1]


CHANGES = (
    *("policy.network.width=256", "policy.network.mlp=512", "policy.network.heads=2", "policy.network.layers=2"),
    *("policy.recipe.height=256", "policy.recipe.width=256", "policy.recipe.frames=5", "train.batch_size=4"),
)
SMALL = (
    *("--config", "configs/wan_14b_720p.py", "--topology", "v5e:2x2", "--mesh", "fsdp=2,context=2"),
    *("--frame", "256x256", *(word for change in CHANGES for word in ("--set", change))),
)
KEYS = ("fits", "hbm_bytes", "hbm_limit_bytes", "flops_per_step", "collectives", "step_seconds", "mfu", "chip_hours")


@needs_compiler
def test_a_small_run_is_planned(tmp_path):
    """The whole verb on a network of two layers with the TPU's attention kernel."""
    plan, said = planned(tmp_path, *SMALL)
    assert set(KEYS) <= set(plan)
    assert plan["fits"]
    assert plan["kernels"] > 0
    assert plan["attention_ratio"] == pytest.approx(1.0, abs=1e-6)  # 512 tokens are whole blocks
    assert all(ISLANDS["wan"].search(name) for name in plan["float32"])
    assert plan["collectives"]["all-to-all"] > 0
    assert "encoding" in said


@pytest.mark.slow
@needs_compiler
def test_an_optimizer_on_hosts_leaves_room_on_chips(tmp_path):
    here, _ = planned(tmp_path, *SMALL)
    away, _ = planned(tmp_path, *SMALL, "--set", "train.optimizer.offload=True")
    moments = 8 * here["parameters"] / 2  # two in float32, over two devices
    assert here["memory"]["host"] == 0
    assert away["memory"]["host"] == pytest.approx(moments, rel=0.1)
    assert here["hbm_bytes"] - away["hbm_bytes"] > 0.7 * moments


@pytest.mark.slow
@needs_compiler
def test_products_in_8_bits_gather_bytes(tmp_path):
    pytest.importorskip("qwix", reason="pip install 'wamjax[quant]'")
    whole, bytewise = (planned(tmp_path, *SMALL, "--set", f"train.products='{kind}'")[0] for kind in ("", "int8"))
    assert bytewise["collectives"]["all-gather"] < 0.8 * whole["collectives"]["all-gather"]


@pytest.mark.slow
@needs_compiler
def test_a_search_prints_a_table_of_meshes_and_of_what_is_saved(tmp_path):
    _, said = planned(tmp_path, *SMALL, "--search", "2")
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 3
    assert sum("policy.network.remat=" in row for row in rows) == 1
    assert len({row.split("|")[1].partition("policy")[0] for row in rows[2:]}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--topology", "v9:4x4"), "unknown topology 'v9:4x4'"),
        (("--topology", "v5p:8x8x8", "--frame", "big"), "--frame big"),
        (("--topology", "v5p:8x8x8", "--mesh", "fdsp=4"), "--mesh fdsp=4"),
    ],
)
def test_mistakes_are_one_line(options, message, capsys):
    from wamjax.cli.main import main

    assert main(["plan", "--config", str(ROOT / "configs/dreamzero_14b_droid.py"), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
