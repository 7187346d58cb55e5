"""A Wan through the command line, as a user types it: train on films, go on, imagine, export, begin again."""

import argparse
import json
import shutil
from pathlib import Path

import av
import jax
import numpy as np
import pytest

import wamjax
from wamjax.cli import _experiment, plan
from wamjax.cli.main import main
from wamjax.compute.flops import of_passes
from wamjax.data.episode import Episode
from wamjax.data.films import FilmConfig, film_batches
from wamjax.data.sampling import Interleave
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video import encode
from wamjax.errors import UserError
from wamjax.interop import load
from wamjax.sharding.mesh import make_mesh
from wamjax.training.checkpoint import Checkpoints

ROOT = Path(wamjax.__file__).parents[1]
CONFIG = '''
from ml_collections import ConfigDict


def get_config():
    """A Wan small enough for a test: linear frames, hashed words, a network of two layers."""
    dit = {"width": 32, "mlp": 64, "heads": 2, "layers": 2, "inputs": 12, "outputs": 12, "text": 16, "text_length": 2}
    recipe = {"frames": 5, "fps": 10.0, "height": 16, "width": 16, "steps": 2, "guidance": 2.0}
    policy = {
        "kind": "wan_video", "network": dit, "camera": "front", "recipe": recipe, "first_frame": 0.5,
        "frames": {"kind": "patches", "patch": 4, "components": 3}, "text": {"kind": "words", "width": 16},
    }
    optimizer = {"learning_rate": 3e-3, "warmup_steps": 0, "ema": 0.0}
    train = {"steps": 300, "batch_size": 8, "log_every": 50, "validate_every": 25, "checkpoint_every": 150}
    return ConfigDict({"name": "tiny_wan", "policy": policy, "train": train | {"optimizer": optimizer}})
'''


def captioned(seed: int, length: int = 12) -> Episode:
    """A square moves over a plain; there are neither states nor actions."""
    random = np.random.default_rng(seed)
    frames = np.full((length, 16, 24, 3), 60, np.uint8)
    for step, x in enumerate(np.clip(6 + random.uniform(-1, 1) * np.arange(length), 4, 15).astype(int)):
        frames[step, 6:10, x : x + 4] = (220, 120, 40)
    metadata = {"fps": 20.0, "source": "made up"}
    return Episode({}, {"front": encode(frames, 20.0)}, ("a square moves", "it moves"), metadata)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_shard(folder, "train", "squares", [captioned(seed) for seed in range(6)])
    write_shard(folder, "validation", "squares", [captioned(100)])
    finish(folder, name="squares")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("config") / "tiny_wan.py"
    file.write_text(CONFIG)
    return str(file)


@pytest.fixture(scope="module")
def run(films, config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wan") / "run"
    assert main(["train", "--config", config, "--data", str(films), "--out", str(out)]) == 0
    return out


def test_films_are_cut_at_the_rate_asked_for_and_are_the_same_for_any_rows(films):
    store = EpisodeStore(films)
    options = {"batch_size": 4, "seed": 3, "tokenize": lambda text: np.array([len(text)], np.float32)}
    batch = next(film_batches(store, FilmConfig("front", 5, 10.0), **options))
    assert batch["frames"].shape == (4, 1, 5, 16, 24, 3)
    assert set(batch["language"].ravel()) <= {len("a square moves"), len("it moves")}
    rows = next(film_batches(store, FilmConfig("front", 5, 10.0), rows=(2, 3), **options))
    jax.tree.map(np.testing.assert_array_equal, rows, {name: x[2:] for name, x in batch.items()})
    every = next(film_batches(store, FilmConfig("front", 9, 20.0), **options))["frames"]
    halves = {frames[0, ::2].tobytes() for frames in every}
    assert halves <= {
        f[0].tobytes()
        for f in next(film_batches(store, FilmConfig("front", 5, 10.0), **options | {"batch_size": 24}))["frames"]
    }


@pytest.mark.parametrize(
    ("film", "message"),
    [(FilmConfig("front", 5, 2.0), "has 41 steps"), (FilmConfig("side", 5, 10.0), "no camera 'side'")],
)
def test_films_that_a_dataset_does_not_have_are_refused(films, film, message):
    with pytest.raises(UserError, match=message):
        next(film_batches(EpisodeStore(films), film, batch_size=1, seed=0, tokenize=len))


def test_it_learns(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["validation/loss/video"] for r in records if "validation/loss/video" in r}
    assert losses[300] < 0.8 * losses[25]


@pytest.mark.slow
def test_going_on_is_as_if_nothing_had_happened(films, config, run, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    shutil.rmtree(broken / "checkpoints" / "300")
    (broken / "summary.json").unlink()
    assert main(["train", "--config", config, "--data", str(films), "--out", str(broken)]) == 0
    one, other = (Checkpoints(path).params(300)[0] for path in (run, broken))
    jax.tree.map(np.testing.assert_array_equal, one, other)


BUCKETS = ("policy.recipe.fps=20", "data.frames=5,9", "data.shares=2,1", "policy.network.layers=1")
SHORT = ("train.steps=9", "train.checkpoint_every=4", "train.validate_every=9", "train.watch.log_samples=True")


def test_steps_of_several_lengths_come_in_order_and_are_counted_as_what_they_are(films, config, tmp_path):
    sets = [part for one in (*BUCKETS, *SHORT) for part in ("--set", one)]
    command = ["train", "--config", config, "--data", str(films), *sets, "--out"]
    assert main([*command, str(tmp_path / "run")]) == 0
    order = [Interleave((2, 1))[step][0] for step in range(9)]
    assert sorted(order) == [0] * 6 + [1] * 3
    log = [json.loads(line) for line in (tmp_path / "run" / "samples" / "0.jsonl").read_text().splitlines()]
    assert [set(line["datasets"]) for line in log] == [{length} for length in order]
    policy = _experiment.trained(tmp_path / "run").policy
    each = [8 * of_passes(policy.passes("train", frames)).total for frames in (5, 9)]
    assert 1.5 < each[1] / each[0] < 2  # two and three latent frames
    assert each[0] == 8 * of_passes(policy.passes("train")).total
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["flops"] == pytest.approx(6 * each[0] + 3 * each[1])
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "run", broken)
    shutil.rmtree(broken / "checkpoints" / "9")
    (broken / "summary.json").unlink()
    assert main([*command, str(broken)]) == 0
    one, other = (Checkpoints(path).params(9)[0] for path in (tmp_path / "run", broken))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    again = json.loads((broken / "summary.json").read_text())
    assert (again["flops"], again["final_loss"]) == (summary["flops"], summary["final_loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("data.frames=5,8",), "4 n + 1 frames, and 8 is no such number"),
        (("data.frames=5,5",), "give each length once"),
        (("data.frames=5,9", "data.shares=1,2,3"), "give each length a positive one, or none"),
        (("data.shares=1,2",), "for data.frames=()"),
        (("data.frames=5,33",), "has 65 steps, which 33 frames at 10 per second take"),
        (("data.frame=5,33",), "did you mean 'data.frames'?"),
    ],
)
def test_lengths_that_cannot_be_learnt_are_one_line(changes, message, films, config, tmp_path, capsys):
    sets = [part for one in changes for part in ("--set", one)]
    assert main(["train", "--config", config, "--data", str(films), "--out", str(tmp_path / "run"), *sets]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_only_films_have_several_lengths_and_only_those_of_one_are_encoded(films, config, tmp_path, capsys):
    command = ["data", "encode", "--config", config, "--data", str(films), "--out", str(tmp_path / "x")]
    assert main([*command, "--set", "data.frames=5,9"]) == 2
    assert "cannot be encoded" in capsys.readouterr().err
    other = _experiment.load(ROOT / "configs" / "metaworld_joint.py", ["data.frames=5,9"])
    with pytest.raises(UserError, match="only films have several lengths"):
        _experiment.longest(other)


def test_what_a_run_needs_is_told_by_its_longest_films_and_what_it_costs_by_all(capsys):
    large = str(ROOT / "configs" / "wan_14b_720p.py")
    changes = ["data.frames=5,1", "data.shares=1,3"]
    args = argparse.Namespace(config=large, overrides=changes, frame="720x1280")
    assert plan._Build(args)().encoded["video"].shape[:2] == (64, 2)
    assert main(["flops", large, "--frame", "720x1280", *(x for one in changes for x in ("--set", one))]) == 0
    assert f"{(2 + 3 * 1) * 45 * 80 // 4:,} tokens a sample" in capsys.readouterr().out


def test_imagining_shows_the_film_beside_the_recorded_one(films, run, tmp_path):
    out = tmp_path / "film.mp4"
    assert main(["imagine", "--checkpoint", str(run), "--data", str(films), "--out", str(out)]) == 0
    with av.open(str(out)) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 5
    assert frames[0].shape == (16, 32, 3)


def test_an_exported_run_is_what_another_begins_with(config, run, tmp_path):
    assert main(["export", str(run), str(tmp_path / "hub")]) == 0
    trained = Checkpoints(run).params(300)[0]
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "hub", "transformer").params, trained)
    experiment = _experiment.load(config, [f"weights={tmp_path / 'hub'}"])
    policy = _experiment.system(experiment).policy(experiment, _experiment.trained(run).policy.shapes)
    initial = _experiment.system(experiment).initial(experiment, policy, make_mesh(experiment.mesh))
    jax.tree.map(np.testing.assert_array_equal, initial, trained)


def test_what_it_cannot_do_is_said(films, run, tmp_path, capsys):
    command = [
        "evaluate",
        "--checkpoint",
        str(run),
        "--data",
        str(films),
        "--open-loop",
        "--out",
        str(tmp_path / "x.json"),
    ]
    assert main(command) == 2
    assert "predicts no actions" in capsys.readouterr().err
    assert _experiment.trained(run).policy.imagines
