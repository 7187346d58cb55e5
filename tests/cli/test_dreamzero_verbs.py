"""DreamZero through the command line, as a user types it: train, go on, evaluate on recordings, imagine, adapt."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import jax
import numpy as np
import pytest

import wamjax
from tests.interop.test_dreamzero import published, read, write
from wamjax.cli import _experiment
from wamjax.cli.main import main
from wamjax.interop import load
from wamjax.training.checkpoint import Checkpoints

ROOT = Path(wamjax.__file__).parents[1]
SMALL = (
    *("policy.network.dit.width=24", "policy.network.dit.mlp=32", "policy.network.dit.heads=2"),
    *("policy.network.dit.layers=2", "policy.network.dit.inputs=12", "policy.network.dit.outputs=12"),
    *("policy.network.hidden=16", "policy.canvas.height=16", "policy.canvas.width=16"),
    *("policy.frames.patch=8", "policy.frames.components=3", "policy.blocks=2"),
    *("policy.sampling.steps=2", "policy.sampling.reuse=none"),
    *("train.batch_size=4", "train.log_every=1", "train.validate_every=4", "train.checkpoint_every=2"),
)


def train(dataset: Path, out: Path, *overrides: str) -> int:
    options = [x for override in (*SMALL, *overrides) for x in ("--set", override)]
    config = str(ROOT / "configs/dreamzero_small.py")
    return main(["train", "--config", config, "--data", str(dataset), "--out", str(out), *options])


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dreamzero") / "run"
    assert train(dataset, folder, "train.steps=6") == 0
    return folder


def test_a_run_reports_both_losses_with_and_without_gradients(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if "loss" in record]
    assert [record["step"] for record in trained] == [1, 2, 3, 4, 5, 6]
    for record in trained:
        assert record["loss"] == pytest.approx(record["loss/video"] + record["loss/action"], rel=1e-5)
    assert {r["step"] for r in records if "validation/loss/action" in r} == {4, 6}
    meta = Checkpoints(run).meta(6)
    assert meta["data"] == {"next_step": 6, "next_batch": 6}
    assert meta["config"]["policy"]["kind"] == "dreamzero"


def test_going_on_is_as_if_nothing_had_happened(dataset, run, tmp_path):
    """Parameters, optimizer state and data position are saved: a run in two parts is the run in one."""
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    shutil.rmtree(broken / "checkpoints" / "6")
    (broken / "summary.json").unlink()
    assert train(dataset, broken, "train.steps=6") == 0
    one, other = (Checkpoints(path).params(6)[0] for path in (run, broken))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_open_loop_replays_held_out_episodes(dataset, run, tmp_path, capsys):
    out = tmp_path / "open_loop.json"
    command = ["evaluate", "--checkpoint", str(run), "--data", str(dataset), "--open-loop", "--out", str(out)]
    assert main(command) == 0
    summary = json.loads(out.read_text())
    assert summary["chunks"] == 2  # of two episodes of 14 steps, chunks of 8
    assert summary["later"]["chunks"] == 0
    assert summary["action_mae"] > 0
    assert summary["psnr"]["imagined"] > 0
    assert "dB imagined" in capsys.readouterr().out


def test_imagining_along_an_episode_is_a_film(dataset, run, tmp_path):
    out = tmp_path / "film.mp4"
    command = ["imagine", "--checkpoint", str(run), "--data", str(dataset), "--episode", "0", "--out", str(out)]
    assert main(command) == 0
    with av.open(str(out)) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 8
    assert frames[0].shape == (16, 2 * 32, 3)


@pytest.mark.slow
def test_adapters_are_trained_on_a_base_that_stays(dataset, run, tmp_path):
    """LoRA from the command line; the loaded policy has the adapters merged in."""
    folder = tmp_path / "lora"
    lora = "train.lora={'rank': 2, 'full': (r'(state|action)_(encoder|decoder)/.*',)}"
    assert train(dataset, folder, "train.steps=2", lora) == 0
    loaded = _experiment.trained(folder)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(_experiment.trained(run).params)


def test_a_policy_that_reads_through_pretrained_networks_asks_for_them(dataset, tmp_path, capsys):
    wan = "policy.frames={'kind': 'wan', 'vae': {'width': 8, 'decoder_width': 8, 'latent': 12}}"
    sizes = ("policy.canvas.height=64", "policy.canvas.width=64")
    assert train(dataset, tmp_path / "run", "train.steps=1", wan, *sizes) != 0
    assert "pretrained vae: set weights=FOLDER" in capsys.readouterr().err


def test_kinds_of_parts_are_told_apart_by_name(dataset, tmp_path, capsys):
    assert train(dataset, tmp_path / "run", "policy.frames={'kind': 'wavelets'}") != 0
    assert "'policy.frames.kind' must be one of 'wan', 'patches', not 'wavelets'" in capsys.readouterr().err


PRETRAINED = (
    "policy.network={'dit': {'width': 48, 'mlp': 64, 'heads': 4, 'layers': 2, 'inputs': 36, 'text': 32, 'image': 1280},"
    " 'hidden': 24, 'block_actions': 8}",
    "policy.frames={'kind': 'wan', 'vae': {'width': 8, 'decoder_width': 8, 'latent': 16}}",
    "policy.text={'kind': 'umt5', 'length': 8, 'encoder': {'vocabulary': 100, 'width': 32, 'heads': 4, 'head_dim': 8,"
    " 'mlp': 48, 'layers': 2}}",
    "policy.image={'image': 28, 'width': 1280, 'mlp': 48, 'layers': 2, 'used': 1}",
    *("policy.blocks=1", "train.batch_size=2", "train.steps=1", "train.validate_every=10"),
)


@pytest.mark.slow
def test_published_weights_are_trained_on_and_handed_back(dataset, tmp_path, monkeypatch):
    """From a published checkpoint through a step of training to a checkpoint of the same names."""
    monkeypatch.setattr("wamjax.policies.frozen.UMT5Text.tokenize", lambda self, text: np.arange(1, 9))
    source = write(tmp_path / "published", published())
    run, hub = tmp_path / "run", tmp_path / "hub"
    assert train(dataset, run, *PRETRAINED, f"weights={source}", "train.optimizer.learning_rate=1e-6") == 0
    assert main(["export", str(run), str(hub)]) == 0
    found, before = read(hub), published()
    assert found.keys() == before.keys()
    moved = {name for name, tensor in before.items() if not np.array_equal(found[name], tensor)}
    assert moved
    assert all(name.startswith("action_head.model.") for name in moved)
    assert max(np.abs(found[name] - before[name]).max() for name in moved) < 1e-3
    described(hub)
    head = json.loads((hub / "config.json").read_text())["action_head_cfg"]["config"]
    sizes = {"dim": 48, "num_layers": 2, "in_dim": 36, "model_type": "i2v", "frame_seqlen": 2, "text_dim": 32}
    assert sizes.items() <= head["diffusion_model_cfg"].items()
    assert load(hub, "transformer").config == dataclasses.replace(load(source, "transformer").config, block_actions=8)


FIELDS = {"state": {"cartesian_position": 3, "gripper_position": 1}, "action": {"action": 4}}


def described(hub: Path) -> None:
    """Checks what upstream reads beside the weights, every statistic of every field among it."""
    robot = json.loads((hub / "experiment_cfg" / "metadata.json").read_text())["metaworld_sawyer"]
    for part, fields in FIELDS.items():
        assert {key: field["shape"] for key, field in robot["modalities"][part].items()} == {
            key: [size] for key, size in fields.items()
        }
        for key, size in fields.items():
            lengths = {name: len(values) for name, values in robot["statistics"][part][key].items()}
            assert lengths == dict.fromkeys(("max", "min", "mean", "std", "q01", "q99"), size)
    settings = json.loads((hub / "experiment_cfg" / "conf.yaml").read_text())  # JSON is YAML
    steps = settings["transforms"]["metaworld_sawyer"]["transforms"]
    normalised = [step["normalization_modes"] for step in steps if "normalization_modes" in step]
    assert normalised == [{f"{part}.{key}": "q99" for key in fields} for part, fields in FIELDS.items()]


@pytest.mark.slow
def test_eight_devices_train_as_one(dataset, tmp_path):
    """Data, parameters and heads spread over simulated devices give the losses of one device."""

    def losses(name: str, devices: int, *mesh: str) -> np.ndarray:
        code = "import sys; from tests.cli.test_dreamzero_verbs import train; from pathlib import Path; "
        code += "sys.exit(train(Path(sys.argv[1]), Path(sys.argv[2]), 'train.steps=3', *sys.argv[3:]))"
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", code, str(dataset), str(tmp_path / name), *mesh]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | flags, timeout=500)
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return np.array([[r["loss/action"], r["loss/video"]] for r in records if "loss" in r])

    one = losses("one", 1)
    assert len(one) == 3
    mixed = losses("mixed", 8, "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
    np.testing.assert_allclose(mixed, one, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_training_on_encoded_samples_is_training_on_the_dataset(dataset, tmp_path, monkeypatch):
    """Wan's autoencoder, UMT5 and CLIP, with published weights; nothing is augmented."""
    monkeypatch.setattr("wamjax.policies.frozen.UMT5Text.tokenize", lambda self, text: np.arange(1, 9))
    still = (
        "policy.canvas={'height': 16, 'width': 16, 'crop': 1.0, 'brightness': 0.0, 'contrast': 0.0,"
        " 'saturation': 0.0, 'hue': 0.0}",
    )
    changes = (*SMALL, *PRETRAINED, *still)
    source, encoded = write(tmp_path / "published", published()), tmp_path / "encoded"
    verb = ["data", "encode", "--config", str(ROOT / "configs/dreamzero_small.py"), "--data", str(dataset)]
    verb += ["--weights", str(source), "--dtype", "float32", "--out", str(encoded)]
    assert main(verb + [x for change in changes for x in ("--set", change)]) == 0
    losses = []
    for folder in (dataset, encoded):
        run = tmp_path / f"on_{folder.name}"
        assert train(folder, run, *PRETRAINED, *still, f"weights={source}") == 0
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["loss"] for record in records if "loss" in record])
    assert len(losses[0]) == 1
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
