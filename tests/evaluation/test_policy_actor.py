"""A trained policy in the closed loop and in open loop, from the command line's point of view."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from wamjax.cli.main import main
from wamjax.errors import UserError
from wamjax.evaluation.environment import Observation
from wamjax.evaluation.open_loop import Predictor, open_loop, side_by_side
from wamjax.evaluation.policy_actor import PolicyActor
from wamjax.networks.patch_codec import PatchCodec
from wamjax.policies.contract import SampleShapes
from wamjax.policies.small_wam import SmallWAM, SmallWAMConfig

SHAPES = SampleShapes(views=2, height=16, width=16, future=2, horizon=6, state=4, action=3)


@pytest.fixture(scope="module")
def policy(randomise):
    config = SmallWAMConfig(width=16, layers=2, heads=2, mlp=32, codec=PatchCodec(8, 12), language_width=16)
    policy = SmallWAM(config, SHAPES)
    statistics = {"state": {"mean": np.zeros(4), "std": np.ones(4)}, "action": {"q01": -np.ones(3), "q99": np.ones(3)}}
    frames = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    return policy, randomise(policy.init(jax.random.key(0))), policy.freeze(frames, statistics)


def observations(seed: int, count: int = 3) -> list[Observation]:
    random = np.random.default_rng(seed)
    return [
        Observation(
            frames=random.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8),
            state=random.standard_normal(4).astype(np.float32),
            instruction=f"task {i}",
        )
        for i in range(count)
    ]


def batch(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "frames": random.integers(0, 256, (count, 2, 3, 16, 16, 3), dtype=np.uint8),
        "frame_mask": np.array([[True, True, i % 2 == 0] for i in range(count)]),
        "state": random.standard_normal((count, 4)).astype(np.float32),
        "actions": random.standard_normal((count, 6, 3)).astype(np.float32),
        "action_mask": np.ones((count, 6), bool),
        "language": random.standard_normal((count, 16)).astype(np.float32),
    }


def test_chunks_are_finite_and_repeat_with_the_seed(policy):
    chunks = []
    for _ in range(2):
        actor = PolicyActor(*policy, execute=2, seed=3)
        actor.reset(observations(0), np.ones(3, bool))
        chunks.append([actor.act(observations(step)) for step in range(2)])
    np.testing.assert_array_equal(chunks[0], chunks[1])
    assert chunks[0][0].shape == (3, 6, 3)
    assert np.isfinite(chunks[0]).all()


def test_reset_changes_only_the_marked_rows(policy):
    actor = PolicyActor(*policy, execute=2)
    actor.reset(observations(0), np.ones(3, bool))
    actor.act(observations(0))
    other = [Observation(o.frames, o.state, "something else") for o in observations(0)]
    before = actor._state
    actor.reset(other, np.array([False, True, False]))
    after, before = np.asarray(actor._state.language), np.asarray(before.language)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert np.abs(after[1] - before[1]).max() > 0
    assert actor._state.executed.tolist() == [2, 0, 2]


@pytest.mark.parametrize("execute", [0, 7])
def test_more_actions_than_a_chunk_has_are_refused(policy, execute):
    with pytest.raises(UserError, match="1 to 6 actions"):
        PolicyActor(*policy, execute=execute)


def test_open_loop_counts_only_frames_and_actions_that_exist(policy):
    predictor = Predictor(*policy)
    clips = batch(4)
    result = open_loop(predictor, iter([clips]), 1, ("left", "right"))
    predicted = predictor(clips, 0)
    assert result["action_mae"] == pytest.approx(
        float(np.abs(predicted["actions"] - clips["actions"]).mean()), rel=1e-5
    )
    assert set(result["psnr"]) == set(result["ssim"]) == {"imagined", "copy_last", "codec"}
    recorded, still = clips["frames"][:, 1, 1:].astype(float), clips["frames"][:, 1, :1].astype(float)
    mean_square = ((recorded - still) ** 2).mean((2, 3, 4))
    each = 10 * np.log10(255**2 / mean_square)[clips["frame_mask"][:, 1:]]
    assert result["psnr"]["copy_last"]["right"] == pytest.approx(each.mean(), rel=1e-6)
    assert result["psnr"]["codec"]["left"] > result["psnr"]["imagined"]["left"]


def test_films_show_recorded_left_and_imagined_right(policy):
    predictor = Predictor(*policy)
    clips = batch(5)
    film = side_by_side(predictor, clips, seed=0)
    assert film.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(film[:, :16, :16], clips["frames"][:, 0, -1])
    np.testing.assert_array_equal(film[:, 16:, 16:], predictor(clips, 0)["imagined"][:, 1, -1])


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Path:
    """A run of two steps."""
    out = tmp_path_factory.mktemp("runs") / "joint"
    small = ("policy.width=16", "policy.mlp=32", "policy.layers=2", "policy.heads=2", "policy.codec.patch=8")
    small += ("policy.codec.channels=12", "train.steps=2", "train.batch_size=4")
    options = [x for override in small for x in ("--set", override)]
    config = str(Path(__file__).parents[2] / "configs/metaworld_joint.py")
    assert main(["train", "--config", config, "--data", str(dataset), "--out", str(out), *options]) == 0
    return out


def test_open_loop_from_the_command_line(run, dataset, capsys):
    out = run / "open_loop" / "open_loop.json"
    command = ["evaluate", "--checkpoint", str(run), "--open-loop", "--data", str(dataset), "--out", str(out)]
    assert main(command) == 0
    summary = json.loads(out.read_text())
    assert summary["variant"] == "joint"
    assert set(summary["psnr"]["imagined"]) == {"corner2", "gripperPOV"}
    assert summary["clips"]
    assert all((out.parent / clip).stat().st_size > 0 for clip in summary["clips"])
    stamp = out.stat().st_mtime_ns
    assert main(command) == 0
    assert "is there already" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == stamp


def test_a_film_of_the_imagination_from_the_command_line(run, dataset, tmp_path):
    out = tmp_path / "dream.mp4"
    assert main(["imagine", "--checkpoint", str(run), "--data", str(dataset), "--episode", "1", "--out", str(out)]) == 0
    assert out.stat().st_size > 0
    assert main(["imagine", "--checkpoint", str(run), "--data", str(dataset), "--episode", "9", "--out", str(out)]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "nowhere", "--out", "x.json"], "holds no checkpoints"),
        (["--actor", "expert", "--out", "x.json"], "--actor needs --config"),
        (["--checkpoint", "nowhere", "--open-loop", "--out", "x.json"], "--open-loop needs"),
        (["--out", "x.json"], "one of the arguments"),
    ],
)
def test_mistakes_are_one_line(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
