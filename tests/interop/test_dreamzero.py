"""DreamZero's checkpoints: one set of files with all networks, adapters, runs; in and out, bit for bit."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.recipe import DREAMZEROS, FOLDER, draw, weights
from tests.policies.dreamzero.tiny import built, large, statistics
from wamjax.cli._experiment import Experiment
from wamjax.cli._released import Wanted, released
from wamjax.cli._systems import SYSTEMS
from wamjax.cli.main import main
from wamjax.errors import UserError
from wamjax.interop import load
from wamjax.interop.checkpoint import components, of_params
from wamjax.interop.components import BUNDLES, KINDS
from wamjax.interop.dreamzero import keymap
from wamjax.interop.keymap import Source, flatten
from wamjax.networks.clip import CLIPVisionConfig
from wamjax.networks.umt5 import UMT5Config
from wamjax.networks.wan.dit import WanDiTConfig
from wamjax.networks.wan.vae import WanVAEConfig
from wamjax.policies.dreamzero.config import DreamZeroConfig, SamplingConfig
from wamjax.policies.dreamzero.network import Clip, NetworkConfig, Robot
from wamjax.policies.frozen import WanFrames
from wamjax.sharding.mesh import MeshConfig, make_mesh

CASE = "i2v_1"
OTHERS = {
    "text_encoder": ("umt5", UMT5Config(vocabulary=100, width=32, heads=4, head_dim=8, mlp=48, layers=2)),
    "image_encoder": ("clip", CLIPVisionConfig(28, 14, 1280, 16, 48, 2, 1, projection=16, temperature=True)),
    "vae": ("wan_vae", WanVAEConfig(width=8, decoder_width=8, latent=16)),
}
MODEL = {"model_type": "i2v", "num_heads": 4, "num_frame_per_block": 2, "num_action_per_block": 24}
SETTINGS = {"action_head_cfg": {"config": {"lora_rank": 2, "lora_alpha": 8, "train_architecture": "full"}}}
SETTINGS["action_head_cfg"]["config"]["diffusion_model_cfg"] = MODEL


@functools.cache
def published() -> dict[str, np.ndarray]:
    """Every tensor of a tiny checkpoint by its full name; the network's are those of the parity fixture."""
    network = weights(json.loads(str(np.load(FOLDER / f"dreamzero_{CASE}.npz")["shapes"])), 3)
    parts = {"transformer": network}
    for name, (kind, config) in OTHERS.items():
        keymap, shapes = KINDS[kind].keymap(config, "original"), KINDS[kind].shapes(config)
        theirs = {k: s for path, source in keymap.items() for k, s in source.shapes(shapes[path].shape).items()}
        parts[name] = weights(theirs, 7)
    return {BUNDLES["dreamzero"][n] + key: np.asarray(t) for n, part in parts.items() for key, t in part.items()}


def write(folder: Path, tensors: dict[str, np.ndarray], files: int = 3) -> Path:
    """A sharded checkpoint with its settings, as published."""
    folder.mkdir()
    index = {}
    for i in range(files):
        name = f"model-{i + 1:05}-of-{files:05}.safetensors"
        part = dict(list(tensors.items())[i::files])
        save_file({key: np.ascontiguousarray(t).reshape(t.shape) for key, t in part.items()}, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    robot = built("large")[0]
    (folder / "experiment_cfg").mkdir()
    pictures = {camera: {"resolution": [32, 18]} for camera in robot.embodiment.cameras}
    modalities = {"video": pictures}
    metadata = {robot.embodiment.tag: {"statistics": statistics(robot), "modalities": modalities}}
    (folder / "experiment_cfg" / "metadata.json").write_text(json.dumps(metadata))
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    return {key: t for file in sorted(folder.glob("*.safetensors")) for key, t in load_file(file).items()}


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dreamzero")
    source = write(folder / "published", published())
    assert main(["import", str(source), str(folder / "imported")]) == 0
    return folder / "imported"


def outputs(params, module):
    x = DREAMZEROS[CASE].inputs(3)
    clean, noisy = (jnp.concatenate([x[name], x["beside"]], axis=-1) for name in ("clean", "noisy"))
    robot = Robot(x["action"], x["timestep_action"], x["state"], jnp.zeros(2, int))
    run = jax.jit(module.apply)
    return run({"params": params}, Clip(clean, noisy, jnp.asarray(x["timestep"])), robot, x["text"], x["image"])


def test_an_imported_network_computes_what_the_published_code_does(imported):
    assert components(imported).keys() == BUNDLES["dreamzero"].keys()
    loaded = load(imported, "transformer")
    expected = np.load(FOLDER / f"dreamzero_{CASE}.npz")
    video, action = outputs(loaded.params, loaded.module)
    np.testing.assert_allclose(video, expected["video"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(action, expected["action"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("again", ["imported", "published"])
def test_export_gives_every_tensor_back(imported, tmp_path, again):
    source = imported if again == "imported" else imported.parent / "published"
    assert main(["export", str(source), str(tmp_path / "hub")]) == 0
    found, expected = read(tmp_path / "hub"), published()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    for settings in ("experiment_cfg/metadata.json", "config.json"):
        assert (tmp_path / "hub" / settings).read_bytes() == (imported.parent / "published" / settings).read_bytes()


def test_one_component_has_a_description_of_its_own(imported, tmp_path):
    assert main(["export", str(imported), str(tmp_path / "network"), "--component", "transformer"]) == 0
    described = json.loads((tmp_path / "network" / "config.json").read_text())
    assert (described["num_heads"], described["action_dim"], described["num_action_per_block"]) == (4, 32, 24)
    assert load(tmp_path / "network").config == load(imported, "transformer").config


NETWORK = "action_head.model."
ADAPTED = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.1.ffn.0")


def adapters(rank: int = 2) -> dict[str, np.ndarray]:
    found = {}
    for name in ADAPTED:
        out, inside = published()[f"{NETWORK}{name}.weight"].shape
        start = f"{NETWORK}base_model.model.{name}"
        found[f"{start}.lora_A.default.weight"] = draw(f"{name} a", (rank, inside), 0)
        found[f"{start}.lora_B.default.weight"] = draw(f"{name} b", (out, rank), 0)
    return found


def merged() -> dict[str, np.ndarray]:
    """The published tensors with alpha / r B A = 8 / 2 B A added by hand."""
    tensors, change = dict(published()), adapters()
    for name in ADAPTED:
        start = f"{NETWORK}base_model.model.{name}"
        b, a = change[f"{start}.lora_B.default.weight"], change[f"{start}.lora_A.default.weight"]
        tensors[f"{NETWORK}{name}.weight"] = tensors[f"{NETWORK}{name}.weight"] + 4 * b @ a
    return tensors


def test_adapters_beside_their_weights_are_added(tmp_path):
    tensors = {}
    for name, tensor in published().items():
        if name.startswith(NETWORK):
            module, leaf = name.removeprefix(NETWORK).rsplit(".", 1)
            name = f"{NETWORK}base_model.model.{module}{'.base_layer' * (module in ADAPTED)}.{leaf}"
        tensors[name] = tensor
    source = write(tmp_path / "published", tensors | adapters())
    ours = flatten(load(source, "transformer").params)
    theirs = flatten(load(write(tmp_path / "merged", merged()), "transformer").params)
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, rtol=0, atol=1e-6, err_msg=path)


def test_adapters_alone_need_their_base(imported, tmp_path, capsys):
    codecs = {
        key.replace(NETWORK, f"{NETWORK}base_model.model."): -tensor
        for key, tensor in published().items()
        if any(part in key for part in ("state_encoder", "action_encoder", "action_decoder"))
    }
    source = write(tmp_path / "adapters", adapters() | codecs)
    assert main(["import", str(source), str(tmp_path / "without")]) != 0
    assert "name the checkpoint they were trained on as base" in capsys.readouterr().err
    base = str(imported.parent / "published")
    theirs = flatten(load(write(tmp_path / "merged", merged()), "transformer").params)
    settings = json.loads((source / "config.json").read_text())
    settings["action_head_cfg"]["config"]["train_architecture"] = "lora"
    (source / "config.json").write_text(json.dumps(settings))
    (source / "experiment_cfg" / "conf.yaml").write_text("save_lora_only: true\ntrain_architecture: lora\n")
    for ours, folder in (("published", base), ("imported", str(imported))):
        assert main(["import", str(source), str(tmp_path / ours), "--base", folder]) == 0
        assert components(tmp_path / ours).keys() == BUNDLES["dreamzero"].keys()
        found = flatten(load(tmp_path / ours, "transformer").params)
        for path, leaf in theirs.items():
            expected = -leaf if path.startswith(("state", "action")) else leaf
            np.testing.assert_allclose(found[path], expected, rtol=0, atol=1e-6, err_msg=path)
        settings = json.loads((tmp_path / ours / "config.json").read_text())
        assert settings["action_head_cfg"]["config"]["train_architecture"] == "full"
        text = (tmp_path / ours / "experiment_cfg" / "conf.yaml").read_text()
        assert text == 'save_lora_only: false\ntrain_architecture: "full"\n'
    wrong = {k: v for k, v in published().items() if "blocks.1.ffn.0.weight" not in k}
    wrong = str(write(tmp_path / "wrong", wrong))
    assert main(["import", str(source), str(tmp_path / "ours"), "--base", wrong]) != 0
    assert "the base has no blocks.1.ffn.0.weight" in capsys.readouterr().err
    assert main(["import", base, str(tmp_path / "again"), "--base", base]) != 0
    assert "holds no adapters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{NETWORK}blocks.1.self_attn.o.bias"), "1 missing (blocks.1.self_attn.o.bias)"),
        (lambda t: t.update({f"{NETWORK}blocks.1.register": np.zeros(3)}), "1 unexpected (blocks.1.register)"),
        (lambda t: t.update({f"{NETWORK}action_encoder.W3.b": np.zeros((1, 3))}), "1 misshapen (action_encoder.W3.b"),
        (lambda t: [t.pop(k) for k in list(t) if ".vae." in k], "lacks vae: download all of it"),
        (lambda t: t.update({"action_head.critic.weight": np.zeros(3)}), "1 unexpected (action_head.critic.weight)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, capsys, change, message):
    tensors = dict(published())
    change(tensors)
    source = write(tmp_path / "published", tensors)
    assert main(["import", str(source), str(tmp_path / "ours")]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "ours").exists()


def test_a_checkpoint_becomes_a_policy_that_acts(imported, monkeypatch):
    wanted = Wanted("droid", sampling=SamplingConfig(steps=2, reuse="none"))
    monkeypatch.setattr("wamjax.cli._released.PICTURES", {8: (built("large")[0].config.canvas, None)})
    monkeypatch.setattr("wamjax.policies.frozen.UMT5Text.tokenize", lambda self, text: np.arange(1, 9))
    policy, params, frozen = released(imported, wanted)
    now = {
        "frames": np.zeros((1, 3, 18, 32, 3), np.uint8),
        "state": np.zeros((1, 8), np.float32),
        "language": policy.tokenize("push")[None],
    }
    state = jax.jit(policy.reset)(params, frozen, now)
    actions, _ = jax.jit(policy.act)(params, frozen, state, now, policy.draw_act(jax.random.key(0), 1))
    assert actions.shape == (1, 24, 8)
    assert np.isfinite(actions).all()


def test_training_may_begin_with_a_transformer_that_has_neither_codecs_nor_an_image_branch(tmp_path, capsys):
    """As Wan2.2-TI2V-5B: what it lacks is random, what it has is exact."""
    tensors = weights(json.loads(str(np.load(FOLDER / "dreamzero_ti2v_1.npz")["shapes"])), 3)
    less = {k: v for k, v in tensors.items() if not k.startswith(("state", "action")) and "img" not in k}
    (tmp_path / "transformer").mkdir()
    save_file(less, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"num_heads": 4}))
    dit = WanDiTConfig(width=48, mlp=64, heads=4, layers=2, inputs=16, outputs=16, text=32, image=1280)
    policy = large(network=NetworkConfig(dit, hidden=24), frames=WanFrames(OTHERS["vae"][1]))
    begin = functools.partial(SYSTEMS[DreamZeroConfig].initial, policy=policy, mesh=make_mesh(MeshConfig()))
    found = flatten(begin(Experiment("a", policy.config, weights=str(tmp_path))))
    random = flatten(jax.jit(policy.init)(jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in found.items()} == {path: leaf.shape for path, leaf in random.items()}
    table = keymap(policy.config.network)
    lacks = {path for path, source in table.items() if source.keys[0] not in less}
    assert len(lacks) == 14 + 8 + 5  # codecs, the image's embedding, its keys and values in the blocks
    for path, leaf in found.items():
        if path in lacks:
            np.testing.assert_allclose(leaf, random[path], rtol=1e-5, atol=1e-7, err_msg=path)
        else:
            np.testing.assert_array_equal(leaf, to_ours_leaf(table[path], less), err_msg=path)
    assert "27 parameters are not in" in capsys.readouterr().out
    other = large(network=NetworkConfig(dataclasses.replace(dit, mlp=80), hidden=24), frames=policy.config.frames)
    with pytest.raises(UserError, match="misshapen"):
        begin(Experiment("a", other.config, weights=str(tmp_path)), policy=other)


def to_ours_leaf(source: Source, tensors: dict[str, np.ndarray]) -> np.ndarray:
    layers = [source.layer_of_ours(i, tensors.__getitem__) for i in range(source.layers)]
    return np.stack(layers) if source.stacked else layers[0]


def test_parameters_in_memory_are_a_component():
    policy, params, _ = built("small")
    component = of_params(policy.network, params)
    assert component.kind == "dreamzero"
    assert component.leaves.keys() == flatten(params).keys()
