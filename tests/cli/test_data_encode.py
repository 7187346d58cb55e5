"""`wamjax data encode`, and training on what it makes, which is training on the dataset."""

import itertools
import json
import math
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from wamjax.cli import _encoded, _experiment
from wamjax.cli.main import main
from wamjax.data.episode import Episode
from wamjax.data.latents import Encoded
from wamjax.data.mixture import of_split, open_stores
from wamjax.data.records import describe
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video import encode
from wamjax.errors import UserError
from wamjax.policies.contract import Batch
from wamjax.sharding.mesh import make_mesh
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.lineage import on_device
from wamjax.training.precomputed import Making
from wamjax.training.samples import lineage
from wamjax.training.step import encode_and_draw, mean_losses

TRAIN = """
    optimizer = {"learning_rate": 3e-3, "warmup_steps": 0, "ema": 0.0}
    train = {"steps": 3, "batch_size": 4, "log_every": 1, "validate_every": 3, "checkpoint_every": 3}
    return ConfigDict({"policy": policy, "train": train | {"optimizer": optimizer}} | more)
"""
WAN = (
    '''
from ml_collections import ConfigDict


def get_config():
    """A tiny Wan."""
    dit = {"width": 32, "mlp": 64, "heads": 2, "layers": 1, "inputs": 12, "outputs": 12, "text": 16, "text_length": 2}
    policy = {
        "kind": "wan_video", "network": dit, "camera": "corner2", "first_frame": 0.5,
        "recipe": {"frames": 5, "fps": 10.0, "height": 16, "width": 16, "steps": 2, "guidance": 2.0},
        "frames": {"kind": "patches", "patch": 4, "components": 3}, "text": {"kind": "words", "width": 16},
    }
    more = {"name": "tiny_wan"}
'''
    + TRAIN
)
SMALL = (
    '''
from ml_collections import ConfigDict


def get_config():
    """A tiny SmallWAM without augmentation."""
    policy = {
        "kind": "small_wam", "width": 32, "layers": 1, "heads": 2, "mlp": 32, "language_width": 16,
        "codec": {"patch": 4, "channels": 3}, "shift_pixels": 0, "state_noise": 0.0,
    }
    more = {
        "name": "tiny",
        "clip": {"cameras": ("corner2", "gripperPOV"), "frame_offsets": (0, 2, 4), "action_horizon": 4},
        "data": {"selection": {"min_steps": 12}},
    }
'''
    + TRAIN
)
CONFIGS = {"wan": WAN, "small": SMALL}


def episode(seed: int, length: int = 14, language: tuple[str, ...] = ("a square moves", "it moves", "go")) -> Episode:
    """A square moves over a plain; several instructions hold."""
    made = np.random.default_rng(seed)
    frames = np.full((2, length, 16, 16, 3), 60, np.uint8)
    for step, x in enumerate(np.clip(6 + made.uniform(-1, 1) * np.arange(length), 4, 11).astype(int)):
        frames[:, step, 6:10, x : x + 4] = (220, 120, 40)
    steps = {
        "observation/cartesian_position": made.normal(size=(length, 3)).astype(np.float32),
        "observation/gripper_position": made.random((length, 1)).astype(np.float32),
        "action": made.normal(size=(length, 4)).astype(np.float32),
    }
    videos = {camera: encode(frames[view], 20.0) for view, camera in enumerate(("corner2", "gripperPOV"))}
    return Episode(steps, videos, language, {"fps": 20.0, "source": f"{seed}"})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encode") / "data"
    write_shard(folder, "train", "a", [episode(seed) for seed in range(3)] + [episode(3, 9), episode(4, 13, ("go",))])
    write_shard(folder, "validation", "a", [episode(100)])
    finish(folder, name="squares")
    return folder


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("configs")
    for name, text in CONFIGS.items():
        (folder / f"{name}.py").write_text(text)
    return {name: str(folder / f"{name}.py") for name in CONFIGS}


@pytest.fixture(scope="module")
def encoded(data, configs, tmp_path_factory) -> dict[str, Path]:
    """Both policies' encodings of the dataset, in single precision, in several shards."""
    folder = tmp_path_factory.mktemp("encoded")
    for name, config in configs.items():
        options = ["--dtype", "float32", "--shard", "16", "--batch", "4", "--out", str(folder / name)]
        assert main(["data", "encode", "--config", config, "--data", str(data), *options]) == 0
    return {name: folder / name for name in configs}


class Fed:
    """A training up to where its loop would begin."""

    def __init__(self, config: str, *folders: Path | str, overrides: tuple[str, ...] = ()):
        addresses = [str(folder) for folder in folders]
        self.experiment = _experiment.load(config, overrides)
        self.caches = _encoded.Caches.of(addresses)
        self.store = self.caches.store() if self.caches else open_stores(addresses)
        system = _experiment.system(self.experiment)
        longest = _experiment.longest(self.experiment)
        self.policy = system.policy(longest, system.shapes(longest, self.store))
        statistics = system.statistics(self.experiment, self.store, self.policy)
        mesh = make_mesh(self.experiment.mesh)
        self.frozen = system.frozen(self.experiment, self.store, self.policy, statistics, mesh)
        options = (self.caches, self.experiment, self.store, self.policy, self.frozen)
        self.learner, self.loader = _encoded.feed(*options)

    def batches(self, count: int, rows=range(4), first: int = 0) -> list[Batch]:
        return list(itertools.islice(self.loader(self.experiment, self.store)(first, rows), count))

    def losses(self, batches: list[Batch]) -> list[float]:
        params = jax.jit(self.policy.init)(jax.random.key(0))

        @jax.jit
        def loss(params, frozen, batch, key):
            encoded, draws = encode_and_draw(self.learner, frozen, key, batch, key)
            return mean_losses(self.learner, params, frozen, encoded, draws)[0]

        keys = [jax.random.key(step) for step in range(len(batches))]
        return [float(loss(params, self.frozen, on_device(b), k)) for b, k in zip(batches, keys, strict=True)]


@pytest.fixture(scope="module")
def fed(data, configs, encoded) -> dict[str, tuple[Fed, Fed]]:
    """Both policies' trainings, on the dataset and on its encoding."""
    return {name: (Fed(configs[name], data), Fed(configs[name], encoded[name])) for name in CONFIGS}


def test_a_dataset_of_another_format_is_encoded_where_it_lies(data, configs, tmp_path):
    other, cache, moved = (str(tmp_path / name) for name in ("lerobot", "cache", "moved"))
    assert main(["data", "convert", str(data), other, "--to", "lerobot"]) == 0
    assert main(["data", "encode", "--config", configs["wan"], "--data", other, "--out", cache]) == 0
    fed = Fed(configs["wan"], cache)
    assert fed.store.folder == Path(other)
    (batch,) = fed.batches(1)
    np.testing.assert_array_equal(batch["sample"], Fed(configs["wan"], other).batches(1)[0]["sample"])
    shutil.move(other, moved)
    with pytest.raises(UserError, match=f"was made of {other}, which is not there"):
        Fed(configs["wan"], cache)


@pytest.mark.parametrize("name", ["small", pytest.param("wan", marks=pytest.mark.slow)])
def test_losses_are_those_of_the_dataset(name, fed):
    frames, latents = (each.batches(3) for each in fed[name])
    here, there = (each.losses(batches) for each, batches in zip(fed[name], (frames, latents), strict=True))
    np.testing.assert_allclose(there, here, rtol=1e-6)
    assert len(set(here)) == 3


@pytest.mark.parametrize("name", CONFIGS)
def test_the_order_is_that_of_the_dataset(name, fed):
    for one, other in zip(*(each.batches(12) for each in fed[name]), strict=True):
        np.testing.assert_array_equal(one["sample"], other["sample"])


def test_it_is_the_same_for_any_rows_and_any_beginning(fed):
    latents = fed["wan"][1]
    whole, part = latents.batches(3), latents.batches(2, rows=(1, 2), first=1)
    for one, other in zip(whole[1:], part, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name][1:3], other[name], strict=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Another dataset, with instructions and numbers of its own."""
    folder = tmp_path_factory.mktemp("encode") / "other"
    write_shard(folder, "train", "a", [episode(seed, 15, ("stop", "go")) for seed in (20, 21)])
    write_shard(folder, "validation", "a", [episode(120)])
    finish(folder, name="others")
    return folder


@pytest.fixture(scope="module")
def mixed(data, other, configs, tmp_path_factory) -> dict[Path, Path]:
    """SmallWAM's encodings of both datasets, whose statistics and codec are those of the mixture."""
    folder = tmp_path_factory.mktemp("mixed")
    verb = ["data", "encode", "--config", configs["small"], "--dtype", "float32", "--batch", "4"]
    verb += ["--mixture", f"{data}=3", "--mixture", f"{other}=1"]
    for one in (data, other):
        assert main([*verb, "--data", str(one), "--out", str(folder / one.name)]) == 0
    return {one: folder / one.name for one in (data, other)}


def test_a_mixture_of_encodings_is_one_of_datasets(mixed, data, other, configs):
    frames = Fed(configs["small"], f"{data}=3", f"{other}=1")
    latents = Fed(configs["small"], f"{mixed[data]}=0.75", f"{mixed[other]}=0.25")
    many = [each.batches(9) for each in (frames, latents)]
    for one, two in zip(*many, strict=True):
        for name in ("sample", "dataset"):
            np.testing.assert_array_equal(one[name], two[name])
        assert sorted(one["dataset"]) == [0, 0, 0, 1]
    here, there = (each.losses(batches[:3]) for each, batches in zip((frames, latents), many, strict=True))
    np.testing.assert_allclose(there, here, rtol=1e-6)
    later = latents.batches(2, rows=(1, 2), first=4)
    for one, two in zip(many[1][4:6], later, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name][1:3], two[name], strict=True)
    validation = (of_split(each.store, "validation") for each in (frames, latents))
    one, two = (
        next(each.loader(each.experiment, store)(0, range(4)))
        for each, store in zip((frames, latents), validation, strict=True)
    )
    np.testing.assert_array_equal(one["sample"], two["sample"])


def test_what_of_encodings_cannot_be_mixed_is_one_line(mixed, encoded, data, other, configs, tmp_path, capsys):
    command = ["train", "--config", configs["small"]]
    one, two = str(mixed[data]), str(mixed[other])
    cases = (
        ((one, other), f"--data {one} is encoded, and {other} is not: encode all datasets of a mixture, or none"),
        ((other, f"{one}=3"), f"--data {one} is encoded, and {other} is not"),
        ((encoded["small"], two), f"{two} was encoded with frozen.action "),
        ((encoded["small"], two), "encode both for their mixture (`wamjax data encode --mixture`)"),
        ((one, encoded["wan"]), f"{encoded['wan']} was encoded with policy.kind wan_video, {one} with small_wam"),
        ((f"{one}=1", f"{two}=1"), f"{one} was encoded with frozen.action "),
        ((one,), f"{one} was encoded with frozen.action "),
        ((f"{one}=0", two), "give positive numbers"),
    )
    for number, (given, message) in enumerate(cases):
        datasets = [x for each in given for x in ("--data", str(each))]
        assert main([*command, "--out", str(tmp_path / f"{number}"), *datasets]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    verb = ["data", "encode", "--config", configs["small"], "--data", str(data), "--out", str(tmp_path / "x")]
    assert main([*verb, "--mixture", str(other)]) == 2
    assert f"does not have --data {data}" in capsys.readouterr().err


def test_encodings_that_differ_are_told_apart_by_name(mixed, data, other):
    parts = [Encoded(mixed[one]) for one in (data, other)]
    for name, value, message in (
        ("dtype", "bfloat16", "was encoded with dtype bfloat16, .* with float32: encode both alike"),
        ("batch", parts[1].made_of["batch"] | {"state": ["float32", [5]]}, "with batch.state .*5.*, .*4.* both alike"),
    ):
        was, parts[1].made_of[name] = parts[1].made_of[name], value
        with pytest.raises(_encoded.UserError, match=message):
            _encoded._alike(*parts)
        parts[1].made_of[name] = was
    _encoded._alike(*parts)


def test_prompts_are_kept_once_and_samples_hold_none(encoded, data):
    cache = Encoded(encoded["wan"])
    told = [json.loads(path.read_text()) for path in cache.folder.glob("texts-*.json")]
    prompts = [prompt for file in told for prompt in file["prompts"].values()]
    assert sorted(prompts) == sorted({"", *(text for i in range(4) for text in EpisodeStore(data)[i].language)})
    assert [name for name, leaf in cache.leaves.items() if leaf.prompt] == ["text"]
    assert sum(leaf.prompt for leaf in Encoded(encoded["small"]).leaves.values()) == 1
    cache.verify()


def test_what_depends_on_what_is_read_off_the_program(fed):
    (wan, _), (small, _) = fed["wan"], fed["small"]
    shapes = _encoded.shapes(Encoded(fed["small"][1].caches.parts[0][0].folder).made_of["batch"])
    making = Making.of(small.policy, small.frozen, shapes)
    assert making.sources["state"] == {"state"}
    assert making.sources["video"] == {"frames"}
    assert making.sources["language"] == {"language"}
    assert making.draws
    kept = making.kept("bfloat16")
    assert (kept["video"].kept, kept["state"].kept, kept["action_mask"].kept) == ("bfloat16", "float32", "bool")
    shapes = _encoded.shapes(fed["wan"][1].caches.parts[0][0].made_of["batch"])
    making = Making.of(wan.policy, wan.frozen, shapes)
    assert not making.draws
    assert making.frozen
    assert not any("negative" in path for path in making.frozen)


@pytest.mark.parametrize(
    ("config", "frame", "once", "each"),
    [
        ("dreamzero_14b_droid", "180x320", {"text"}, 2_952_204),
        ("wan_14b_720p", "720x1280", {"text"}, 9_676_800),
    ],
)
def test_full_size_policies_are_cached_as_plans_assume(config, frame, once, each):
    """Traced only: what is made per prompt, and the bytes of everything else, per sample."""
    sketch = _experiment.sketch(_experiment.load(f"configs/{config}.py"), frame)
    kept = Making.of(sketch.policy, sketch.frozen, sketch.batch).kept("bfloat16")
    assert {name for name, leaf in kept.items() if leaf.prompt} == once
    sizes = [math.prod(leaf.shape) * np.dtype(leaf.kept).itemsize for leaf in kept.values() if not leaf.prompt]
    assert sum(sizes) == each


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("policy.recipe.fps=20.0",), "encoded with policy.recipe.fps 10.0, which is 20.0 here"),
        (("data.selection.min_steps=12",), "encoded with data.selection.min_steps 1, which is 12 here"),
        (("policy.frames.components=2", "policy.network.inputs=8", "policy.network.outputs=8"), "components 3"),
        (("train.augment={}",), "cannot be augmented"),
    ],
)
def test_another_configuration_is_one_line(overrides, message, configs, encoded, tmp_path, capsys):
    options = [part for override in overrides for part in ("--set", override)]
    command = ["train", "--config", configs["wan"], "--data", str(encoded["wan"]), "--out", str(tmp_path / "run")]
    assert main(command + options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_another_training_of_the_same_samples_is_welcome(configs, encoded):
    changes = ("policy.network.layers=2", "policy.shift=3.0", "policy.recipe.steps=9", "train.seed=5")
    assert Fed(configs["wan"], encoded["wan"], overrides=changes).caches is not None
    said_otherwise = ("policy.recipe.frames=9", "data.frames=(5,)")
    assert Fed(configs["wan"], encoded["wan"], overrides=said_otherwise).batches(1)[0]["video"].shape[1] == 2


def test_other_data_and_other_frozen_parameters_are_one_line(configs, encoded, data, tmp_path):
    cache = Encoded(encoded["wan"])
    alone = _encoded.Caches(((cache, 1.0),))
    for key, message in (("dataset", "encoded with dataset"), ("frozen", "encoded with frozen")):
        was, cache.made_of[key] = cache.made_of[key], "another"
        fine = Fed(configs["wan"], data)
        with pytest.raises(_encoded.UserError, match=message):
            _encoded.feed(alone, fine.experiment, fine.store, fine.policy, fine.frozen)
        cache.made_of[key] = was
    cache.leaves["image"] = cache.leaves["video"]
    with pytest.raises(_encoded.UserError, match="encoded with image float32"):
        _encoded.feed(alone, fine.experiment, fine.store, fine.policy, fine.frozen)


def test_inspect_tells_what_is_there(encoded, capsys):
    assert main(["data", "inspect", str(encoded["wan"]), "--verify"]) == 0
    text = capsys.readouterr().out
    assert "samples at every 1. step" in text
    assert "prompt      text float32 [1, 16]" in text
    assert "sample      video float32 [2, 4, 4, 12]" in text
    assert "prompts     4" in text
    assert "split       validation: 6 samples" in text


def test_mistakes_are_one_line(configs, encoded, data, tmp_path, capsys):
    command = ["data", "encode", "--config", configs["wan"], "--data", str(data)]
    assert main([*command, "--out", str(encoded["wan"]), "--dtype", "bfloat16"]) == 2
    assert "was begun with dtype float32, now bfloat16" in capsys.readouterr().err
    assert main([*command, "--out", str(data)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "x"), "--stride", "0"]) == 2
    assert main(["data", "quality", str(encoded["wan"])]) == 2
    assert "holds encoded samples" in capsys.readouterr().err
    assert main(["train", "--config", configs["wan"], "--data", str(encoded["wan"]), "--data", str(data)]) == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_whole_training_on_it_is_one_on_the_dataset(name, data, configs, encoded, tmp_path):
    for kind, folder in (("frames", data), ("latents", encoded[name])):
        assert main(["train", "--config", configs[name], "--data", str(folder), "--out", str(tmp_path / kind)]) == 0
    frames, latents = (losses(tmp_path / kind) for kind in ("frames", "latents"))
    assert len(frames) > 6
    np.testing.assert_allclose(latents, frames, rtol=2e-5)


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [value for record in records for name, value in sorted(record.items()) if "loss" in name]


@pytest.mark.slow
def test_a_training_on_a_mixture_of_encodings_goes_on_as_if_undisturbed(mixed, data, other, configs, tmp_path, capsys):
    def train(run: str, *given: str) -> int:
        return main(["train", "--config", configs["small"], "--out", str(tmp_path / run), *sets, *given])

    sets = [x for one in ("train.steps=6", "train.watch.log_samples=True") for x in ("--set", one)]
    caches = ["--data", f"{mixed[data]}=3", "--data", f"{mixed[other]}=1"]
    assert train("frames", "--data", f"{data}=3", "--data", f"{other}=1") == 0
    assert train("whole", *caches) == 0
    np.testing.assert_allclose(losses(tmp_path / "whole"), losses(tmp_path / "frames"), rtol=2e-5)
    assert lineage(tmp_path / "whole") == lineage(tmp_path / "frames")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "6")
    (tmp_path / "broken" / "summary.json").unlink()
    assert train("broken", *caches[:3], f"{mixed[other]}=2") == 2
    assert f"holds a run on other data ({mixed[data]}=3 {mixed[other]}=1" in capsys.readouterr().err
    assert train("broken", *caches, "--set", "data.workers=1") == 0
    one, two = (Checkpoints(tmp_path / run).params(6)[0] for run in ("whole", "broken"))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert lineage(tmp_path / "broken") == lineage(tmp_path / "whole")


@pytest.mark.slow
def test_ten_kills_of_the_verb_change_nothing(data, configs, tmp_path):
    """At random moments, some shards after its start; what it says on beginning a shard tells what it did again."""
    draw, out = np.random.default_rng(0), tmp_path / "out"
    code = "import logging, sys; logging.basicConfig(level=20, stream=sys.stdout, format='%(message)s')\n"
    code += "from wamjax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    verb = ["data", "encode", "--config", configs["wan"], "--data", str(data), "--shard", "2", "--out"]
    assert subprocess.run([sys.executable, "-c", code, *verb, str(tmp_path / "whole")]).returncode == 0
    whole = contents(tmp_path / "whole")
    again: list[str] = []
    for kill in range(11):
        finished = {path.name for path in out.glob("*.array_record") if describe(path)}
        command = [sys.executable, "-u", "-c", code, *verb, str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            lines = []
            if kill < 10:
                wanted = draw.integers(1, 4)
                while sum(line.startswith("encoding ") for line in lines) < wanted and process.poll() is None:
                    lines.append(process.stdout.readline())
                time.sleep(draw.uniform(0, 0.03))
                process.kill()
            lines += process.stdout.readlines()
        shards = [line.split()[1] for line in lines if line.startswith("encoding ")]
        assert not finished & set(shards)
        again += shards
        print(f"start {kill}: {len(finished)} shards finished before, {len(shards)} begun")
    assert process.returncode == 0
    assert contents(out) == whole
    assert len(whole) // 2 - 1 <= len(again) <= len(whole) // 2 + 10


@pytest.mark.slow
def test_two_processes_write_what_one_does(data, configs, tmp_path):
    """They find each other as those of a pod do, and each encodes every other shard."""
    verb = ["-m", "wamjax.cli.main", "data", "encode", "--config", configs["wan"], "--data", str(data), "--shard", "8"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    several = ["--out", str(tmp_path / "two"), "--coordinator", f"localhost:{port}", "--processes", "2", "--process"]
    running = [subprocess.Popen([sys.executable, *verb, *several, str(i)]) for i in range(2)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    assert subprocess.run([sys.executable, *verb, "--out", str(tmp_path / "one")]).returncode == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
