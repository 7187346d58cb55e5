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


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "where", [("v5p:8x8x8",), ("v6e:16x16",), ("v5p:8x8x8", "--slices", "2")], ids=lambda where: "-".join(where)
)
def test_dreamzero_14b_fits_and_moves_what_it_should(where, tmp_path):
    plan, _ = planned(tmp_path, "--config", "configs/dreamzero_14b_droid.py", "--topology", *where)
    assert plan["fits"]
    assert plan["hbm_bytes"] < plan["hbm_limit_bytes"]
    assert plan["parameters"] == 16_484_292_448
    # Weights in bfloat16 are gathered about twice for every forward pass of two; nothing else is as large.
    assert plan["collectives"]["all-gather"] > 2 * 2 * plan["parameters"]
    assert plan["attention_ratio"] < 1.15
    assert plan["kernels"] > 0
    islands = re.compile(r"/time_(in|out|rows)/")
    assert all(islands.search(name) for name in plan["float32"])
    assert plan["compile_seconds"] < 360


@pytest.mark.slow
@needs_compiler
def test_a_plan_that_cannot_fit_says_by_how_much_and_what_would_help(tmp_path):
    plan, said = planned(tmp_path, "--config", "configs/dreamzero_14b_droid.py", "--topology", "v5e:4x4")
    assert not plan["fits"]
    assert plan["hbm_bytes"] > plan["hbm_limit_bytes"]
    assert "DOES NOT FIT, by" in said
    assert "train.portions" in said


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
