"""`wamjax bench` as a user types it, with tiny networks."""

import json
from pathlib import Path

import pytest

from wamjax.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = (
    *("policy.network.dit.width=48", "policy.network.dit.mlp=64", "policy.network.dit.heads=4"),
    *("policy.network.dit.layers=2", "policy.network.dit.text=32", "policy.network.dit.text_length=12"),
    *("policy.network.dit.image=32", "policy.network.hidden=24", "policy.text.length=12", "policy.blocks=2"),
    *("policy.text.encoder.width=32", "policy.text.encoder.layers=1", "policy.text.encoder.heads=2"),
    *("policy.text.encoder.mlp=32", "policy.text.encoder.vocabulary=99", "policy.canvas.height=16"),
    "policy.canvas.width=16",
    *("policy.image.image=28", "policy.image.width=32", "policy.image.heads=4", "policy.image.mlp=48"),
)
VAE = ("policy.frames.vae.width=8", "policy.frames.vae.decoder_width=8")
LINEAR = ("policy.frames={'kind': 'patches', 'patch': 8, 'components': 4}",)
STAGES = (
    "text encoder",
    "image encoder",
    "encode, condition",
    "encode, block",
    "prefill",
    "denoise, one run",
    "decode",
)


def bench(*options: str, name: str = "dreamzero_bench", overrides: tuple[str, ...] = TINY) -> int:
    changes = [part for override in overrides for part in ("--set", override)]
    return main(
        ["bench", "--config", str(CONFIGS / f"{name}.py"), "--repeats", "2", "--frame", "18x32", *options, *changes]
    )


@pytest.mark.parametrize(
    ("frames", "codec"), [(LINEAR, "codec"), pytest.param(VAE, "VAE", marks=pytest.mark.slow)], ids=["linear", "vae"]
)
def test_the_table_has_the_stages_and_the_file_the_numbers(frames, codec, tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    assert bench("--json", str(out), "--sessions", "2", overrides=TINY + frames) == 0
    printed = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("|· ").removeprefix(f"{codec} ") for line in printed.splitlines()}
    whole = {"reset", "observe, window not full", "observe, window full (restart)", "act"}
    assert rows >= {*whole, *STAGES}
    assert "one chunk: " in printed
    numbers = json.loads(out.read_text())
    assert {"device", "versions", "peak", "weights", "rows", "config", "sessions"} <= set(numbers)
    by_name = {row["name"]: row for row in numbers["rows"]}
    assert by_name["denoise, one run"]["per_chunk"] == 8
    assert by_name["image encoder"]["per_chunk"] == 0.5  # a window of two blocks begins anew at every second chunk
    assert all(len(row["seconds"]) == 2 and 0 < row["least"] <= row["median"] for row in by_name.values())
    chunk = sum(row["median"] * row["per_chunk"] for row in by_name.values() if not row["part"])
    assert numbers["chunk_seconds"] == pytest.approx(chunk)
    assert by_name["denoise, one run"]["flops"] > by_name["prefill"]["flops"] > 0


SMALL = ("policy.network.dit.width=48", "policy.network.dit.layers=1", "policy.sampling.window=slide")


def test_stages_that_a_policy_lacks_are_not_there(capsys):
    """The demo's DreamZero: linear frames, hashed words, no image."""
    assert bench(name="dreamzero_small", overrides=(*SMALL, "policy.sampling.reuse=dynamic")) == 0
    printed = capsys.readouterr().out
    assert "prefill" in printed
    assert "(slide) | " in printed
    assert "at most so many runs" in printed
    assert not any(stage in printed for stage in ("text encoder", "image encoder", "VAE", "condition"))


@pytest.mark.slow
def test_a_training_step_is_timed(tmp_path, capsys):
    out = tmp_path / "bench.json"
    options = ("--train", "--train-batch", "2", "--json", str(out))
    assert bench(*options, name="dreamzero_small", overrides=SMALL) == 0
    assert "MFU" in capsys.readouterr().out
    # Twice seven latent frames of 32 tokens, and three blocks of eight actions and a state, for both samples.
    assert json.loads(out.read_text())["train"]["tokens"] == 2 * (2 * 7 * 32 + 3 * 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", str(CONFIGS / "dreamzero_bensh.py")], "did you mean 'dreamzero_bench.py'?"),
        (["--config", str(CONFIGS / "metaworld_joint.py")], "takes its sizes from a dataset"),
        (["--config", str(CONFIGS / "dreamzero_bench.py"), "--frame", "180"], "write height and width"),
        (["--config", str(CONFIGS / "dreamzero_bench.py"), "--repeats", "0"], "at least 1"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
