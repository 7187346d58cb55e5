"""Bad steps: which ones are, and that stopping, skipping and going back do what they say, to the bit."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.data.pipeline import SAMPLE
from wamjax.errors import NonFiniteLoss, UserError
from wamjax.sharding.mesh import MeshConfig, make_mesh
from wamjax.training import meter
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.guard import Guard, GuardConfig, Rewind, batch_of, fresh, judge, without
from wamjax.training.loop import TrainConfig, train
from wamjax.training.optimizer import OptimizerConfig
from wamjax.training.samples import lineage
from wamjax.training.watch import WatchConfig


class Line:
    """A policy that fits a line, with noise that depends on the step."""

    def init(self, key):
        return {"kernel": jnp.zeros((3, 1))}

    def encode(self, frozen, key, batch):
        return {"x": batch["x"], "y": batch["y"] + frozen["shift"]}

    def draw(self, key, encoded):
        return 1e-2 * jax.random.normal(key, (4, 1))

    def loss(self, params, frozen, encoded, draws):
        error = encoded["x"] @ params["kernel"] + draws - encoded["y"]
        return {"fit": (jnp.sum(error**2), jnp.float32(error.size))}

    def passes(self, mode, frames=None):
        return []


def batch(number: int, bad=()) -> dict[str, np.ndarray]:
    x = np.random.default_rng(number).standard_normal((4, 3)).astype(np.float32)
    y = x.sum(1, keepdims=True)
    factor = dict(bad).get(number, 1.0)
    return {"x": factor * x, "y": factor * y, SAMPLE: np.arange(4) + 4 * number}


def loader(bad=(), only=lambda number: True):
    """Batches, some of them multiplied by something; only certain ones, as if the others had never been."""

    def batches(first, rows):
        numbers = [number for number in range(100) if only(number)]
        return (batch(number, bad) for number in numbers[first:])

    return batches


CONFIG = TrainConfig(
    steps=12,
    batch_size=4,
    optimizer=OptimizerConfig(learning_rate=0.1, warmup_steps=1, ema=0.9),
    watch=WatchConfig(log_samples=True),
    log_every=1,
    checkpoint_every=4,
)


@pytest.fixture(autouse=True)
def no_measurement(monkeypatch):
    """Of the processor's peak rate, which takes a second."""
    monkeypatch.setattr(meter, "peak", lambda: meter_peak)


@dataclasses.dataclass(frozen=True)
class _Peak:
    flops: float = 1.0
    source: str = "none"


meter_peak = _Peak()


def run(folder: Path, batches, config=CONFIG, **guard):
    config = dataclasses.replace(config, guard=GuardConfig(**guard))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    folder.mkdir(exist_ok=True)
    options = {"mesh": mesh, "rules": (), "validation": None, "run": folder, "meta": {}}
    return train(Line(), {"shift": jnp.zeros(1)}, config, batches=batches, **options)


def params(folder: Path):
    return Checkpoints(folder).params(12)[0]["kernel"]


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


NAN = [(6, np.nan)]
SPIKE = [(6, 1e3)]


def test_a_spike_is_told_by_the_median_of_the_good_steps():
    config = GuardConfig("skip", spike=4.0, window=5)
    guard, told = fresh(config), []
    decide = jax.jit(lambda guard, loss, norm: judge(guard, 4.0, loss, norm))
    norms = [9.0, 1.0, 100.0, 3.9, 4.1, 1.0, 1.0, 1.0, 100.0, 1.0, np.nan, 4.1, 1.0]
    losses = [0.0] * 12 + [np.inf]
    for loss, norm in zip(losses, norms, strict=True):
        bad, guard = decide(guard, jnp.float32(loss), jnp.float32(norm))
        told.append(bool(bad))
    # Before three good steps nothing is a spike; then the median is 9, 3.9, 4.1, 3.9, 1, 1, ...
    assert told == [False] * 8 + [True, False, True, True, True]
    np.testing.assert_array_equal(guard.norms, np.float32([4.1, 1, 1, 1, 1]))
    assert fresh(GuardConfig()) is None
    assert fresh(GuardConfig(spike=3.0)) is not None


def test_batches_that_are_left_out_shift_the_others():
    left_out = [0, 3, 4, 9]
    numbers = [batch_of(step, left_out) for step in range(6)]
    assert numbers == [1, 2, 5, 6, 7, 8]
    follow = without(({"x": np.array(n)} for n in range(2, 20)), 2, left_out)
    assert [number for number, _ in follow][:5] == [2, 5, 6, 7, 8]


@pytest.mark.parametrize("bad", [NAN, SPIKE])
def test_stopping_names_the_step_and_the_last_good_checkpoint(tmp_path, bad):
    with pytest.raises(NonFiniteLoss, match=r"step 7: loss .* the last good checkpoint is .*checkpoints/4"):
        run(tmp_path, loader(bad), spike=10.0, window=3)
    assert Checkpoints(tmp_path).latest == 4


def test_skipping_leaves_everything_as_it_was(tmp_path):
    summary = run(tmp_path / "skipped", loader(NAN), on_bad_step="skip")
    assert summary["skipped_steps"] == 1
    state = Checkpoints(tmp_path / "skipped")
    assert np.isfinite(state.params(12)[0]["kernel"]).all()
    assert records(tmp_path / "skipped")[-1]["skipped_steps"] == 1
    spiked = run(tmp_path / "spiked", loader(SPIKE), on_bad_step="skip", spike=10.0, window=3)
    assert spiked["skipped_steps"] == 1
    np.testing.assert_array_equal(params(tmp_path / "skipped"), params(tmp_path / "spiked"))
    let_be = run(tmp_path / "let be", loader(SPIKE), on_bad_step="skip")
    assert "skipped_steps" not in let_be
    assert np.abs(params(tmp_path / "let be") - params(tmp_path / "spiked")).max() > 0
    assert [number for number, _ in lineage(tmp_path / "spiked")] == list(range(12))


@pytest.mark.parametrize(("leave_out", "gone"), [(1, {6}), (9, {4, 5, 6})])
def test_going_back_gives_what_a_run_without_those_batches_gives(tmp_path, leave_out, gone):
    summary = run(tmp_path / "back", loader(NAN), on_bad_step="rewind", leave_out=leave_out)
    assert summary["batches_left_out"] == len(gone)
    run(tmp_path / "without", loader(only=lambda number: number not in gone), on_bad_step="rewind")
    np.testing.assert_array_equal(params(tmp_path / "back"), params(tmp_path / "without"))
    numbers = [number for number, _ in lineage(tmp_path / "back")]
    assert numbers == sorted(set(range(12 + len(gone))) - gone)
    ours, theirs = ([(r["step"], r["loss"]) for r in records(tmp_path / name)] for name in ("back", "without"))
    assert ours == theirs
    assert summary["seconds"]["lost"] > 0


def test_an_interrupted_run_goes_back_alike(tmp_path):
    """After it went back twice it is interrupted before the next checkpoint, and then after it."""
    bad = [(2, np.nan), (6, np.nan)]
    run(tmp_path / "undisturbed", loader(bad), on_bad_step="rewind")
    begun = []

    def failing(first, rows):
        begun.append(first)
        for number, each in enumerate(loader(bad)(first, rows), first):
            if number == {3: 8, 5: 11}.get(len(begun)):
                raise RuntimeError("power cut")
            yield each

    for _ in range(2):
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path / "run", failing, on_bad_step="rewind")
    run(tmp_path / "run", loader(bad), on_bad_step="rewind")
    np.testing.assert_array_equal(params(tmp_path / "run"), params(tmp_path / "undisturbed"))
    assert lineage(tmp_path / "run") == lineage(tmp_path / "undisturbed")
    assert Checkpoints(tmp_path / "run").meta(12)["data"] == {"next_step": 12, "next_batch": 14}


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_too_many_bad_steps_stop_the_run(tmp_path, policy):
    bad = [(number, np.nan) for number in range(6, 100)]
    with pytest.raises(NonFiniteLoss, match=r"after 3 bad steps within 1000; the last good checkpoint is"):
        run(tmp_path, loader(bad), on_bad_step=policy, limit=3)


def test_bad_steps_long_ago_do_not_count():
    values = {"loss": np.nan, "grad_norm": 1.0}
    guard = Guard(GuardConfig("skip", limit=1, within=10), {"skipped": [3]}, 0)
    guard.look(13, values, True, str)
    with pytest.raises(NonFiniteLoss, match="after 1 bad steps within 10"):
        guard.look(14, values, True, str)
    with pytest.raises(Rewind):
        Guard(GuardConfig("rewind"), {}, 0).look(1, values, False, str)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"spike is 0.5: it must be above 1"):
        GuardConfig(spike=0.5)
    with pytest.raises(UserError, match=r"guard.limit is 0"):
        GuardConfig(limit=0)


def test_a_notice_to_stop_saves_and_the_run_goes_on_to_the_same_bits(tmp_path):
    run(tmp_path / "undisturbed", loader())

    def noticed(first, rows):
        for number, each in enumerate(loader()(first, rows), first):
            if number == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield each

    before = signal.getsignal(signal.SIGTERM)
    assert run(tmp_path / "run", noticed) is None
    assert signal.getsignal(signal.SIGTERM) is before
    assert Checkpoints(tmp_path / "run").latest == 6  # the step under way, and not one more
    assert run(tmp_path / "run", loader())["steps"] == 12
    np.testing.assert_array_equal(params(tmp_path / "run"), params(tmp_path / "undisturbed"))
    assert lineage(tmp_path / "run") == lineage(tmp_path / "undisturbed")
