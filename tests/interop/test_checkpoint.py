"""Import, load, save and export: whole components through real files, and every way a file can be wrong."""

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.recipe import FOLDER, weights
from wamjax import interop
from wamjax.cli.main import main
from wamjax.errors import UserError
from wamjax.interop import checkpoint
from wamjax.interop.components import KINDS
from wamjax.interop.keymap import flatten

# Name of the fixture whose tensors are used, file or folder there, config.json beside it.
PUBLISHED = {
    "dit": ("wan_dit_i2v_0", "diffusion_pytorch_model.safetensors", {"num_attention_heads": 4}),
    "dit_ti2v": ("wan_dit_ti2v_0", "diffusion_pytorch_model.safetensors", {"num_attention_heads": 4}),
    "dit_flf2v": ("wan_dit_flf2v_1", "diffusion_pytorch_model.safetensors", {"num_attention_heads": 4}),
    "dit_original": ("wan_dit_t2v_original", "diffusion_pytorch_model.safetensors", {"num_heads": 4}),
    "vae21": ("wan21_vae_0", "diffusion_pytorch_model.safetensors", {}),
    "vae22": ("wan22_vae_1", "diffusion_pytorch_model.safetensors", {}),
    "vae21_original": ("wan21_vae_original", "Wan2.1_VAE.safetensors", {}),
    "vae22_original": ("wan22_vae_original", "Wan2.2_VAE.safetensors", {}),
    "umt5": ("umt5_0", "model.safetensors", {}),
    "clip": ("clip_0", "model.safetensors", {"num_attention_heads": 4}),
}


def opened(path: Path) -> checkpoint.Component:
    return checkpoint.open_component(checkpoint.choose(path, None))


def published(name: str) -> dict[str, np.ndarray]:
    shapes = json.loads(str(np.load(FOLDER / f"{PUBLISHED[name][0]}.npz")["shapes"]))
    return {key: tensor.astype(ml_dtypes.bfloat16) for key, tensor in weights(shapes, 3).items()}


def put(folder: Path, name: str, tensors: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file(published(name) if tensors is None else tensors, folder / PUBLISHED[name][1])
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name][2]))
    return folder


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype
        np.testing.assert_array_equal(found[key].view(np.uint16), tensor.view(np.uint16))


@pytest.mark.parametrize("name", PUBLISHED)
def test_import_then_export_gives_every_bit_back(name, tmp_path, capsys):
    source = put(tmp_path / "source", name)
    layout = "original" if "original" in name else "diffusers"
    other = {"original": "diffusers", "diffusers": "original"}[layout]
    assert main(["import", str(source), str(tmp_path / "ours")]) == 0
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--layout", layout]) == 0
    (file,) = (tmp_path / "theirs").glob("*.safetensors")
    assert_same(load_file(file), published(name))
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "other"), "--layout", other]) == 0
    if not (tmp_path / "other" / "config.json").exists():  # the original encoders have none, nor 4 heads
        (tmp_path / "other" / "config.json").write_text(json.dumps(PUBLISHED[name][2]))
    interop.save(tmp_path / "again", interop.load(tmp_path / "other"), layout=layout)
    (file,) = (tmp_path / "again").glob("*.safetensors")
    assert_same(load_file(file), published(name))
    assert "GB/s" in capsys.readouterr().out


def test_an_imported_folder_is_an_orbax_checkpoint(tmp_path):
    source = put(tmp_path / "source", "dit")
    checkpoint.import_component(opened(source / PUBLISHED["dit"][1]), tmp_path / "ours")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = flatten(reader.restore(tmp_path / "ours" / "params"))
    loaded = flatten(interop.load(tmp_path / "ours").params)
    assert restored.keys() == loaded.keys()
    for path, leaf in loaded.items():
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), np.asarray(restored[path], np.float32))


def test_loaded_networks_know_their_size_and_run(tmp_path):
    loaded = interop.load(put(tmp_path / "dit", "dit"), dtype=jnp.float32)
    assert (loaded.config.image, loaded.config.heads, loaded.config.layers) == (1280, 4, 2)
    inputs = (jnp.ones((1, 1, 2, 2, 36)), jnp.ones((1, 1)), jnp.ones((1, 3, 32)), jnp.ones((1, 257, 1280)))
    assert loaded.module.apply({"params": loaded.params}, *inputs).shape == (1, 1, 2, 2, 16)
    vae = interop.load(put(tmp_path / "vae", "vae22"), dtype=jnp.float32)
    assert (vae.config.latent, vae.config.decoder_width, vae.config.shortcuts) == (6, 12, True)
    clip = put(tmp_path / "clip", "clip", {f"vision_model.{k}": v for k, v in published("clip").items()})
    assert interop.load(clip).config.image == 28
    umt5 = published("umt5")
    tied = put(tmp_path / "umt5", "umt5", umt5 | {"encoder.embed_tokens.weight": umt5["shared.weight"]})
    assert interop.load(tied).config.vocabulary == 100
    only = {("encoder.embed_tokens.weight" if k == "shared.weight" else k): v for k, v in umt5.items()}
    assert interop.load(put(tmp_path / "umt5_only", "umt5", only)).config.heads == 4


MESH = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from wamjax import interop
from wamjax.interop.keymap import flatten, nest
from wamjax.sharding.mesh import MeshConfig, batch_sharding, make_mesh

whole = flatten(interop.load(sys.argv[1]).params)
mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
spread = flatten(interop.load(sys.argv[1], sharding=mesh).params)
wanted = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
assert spread["blocks/expert_0/ffn_in/kernel"].sharding == wanted
for path, leaf in whole.items():
    np.testing.assert_array_equal(np.asarray(leaf, np.float32), np.asarray(spread[path], np.float32))
module = interop.load(sys.argv[1]).module
random = np.random.default_rng(0)
inputs = [random.standard_normal(s, np.float32) for s in ((4, 3, 4, 4, 36), (4, 3), (4, 5, 32), (4, 257, 1280))]
inputs[1] = np.abs(500 * inputs[1])
run = jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs))
one = run(nest({k: np.asarray(v, np.float32) for k, v in whole.items()}), *inputs)
spread = interop.load(sys.argv[1], dtype=np.float32, sharding=mesh).params
many = run(spread, *(jax.device_put(x, batch_sharding(mesh)) for x in inputs))
assert len(many.sharding.device_set) == 8
np.testing.assert_allclose(one, many, rtol=0, atol=2e-5)
same = interop.load(sys.argv[1], sharding=NamedSharding(mesh, PartitionSpec()))
assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8 for leaf in jax.tree.leaves(same.params))
"""


def test_leaves_are_loaded_in_parts_onto_a_mesh_and_eight_devices_give_the_result_of_one(tmp_path):
    source = put(tmp_path / "source", "dit")
    simulated = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", MESH, str(source)], check=True, env=os.environ | simulated, timeout=120)


def test_the_head_of_the_original_image_encoder_comes_back(tmp_path):
    """Its text tower does not, and transformers' tower has no head."""
    config = dataclasses.replace(interop.load(put(tmp_path / "source", "clip")).config, projection=24, temperature=True)
    row = KINDS["clip"]
    shapes = {path: leaf.shape for path, leaf in row.shapes(config).items()}
    table = row.keymap(config, "original")
    names = {key: shape for path, source in table.items() for key, shape in source.shapes(shapes[path]).items()}
    tensors = {key: np.asarray(tensor, ml_dtypes.bfloat16) for key, tensor in weights(names, 3).items()}
    strangers = {"textual.token_embedding.weight": tensors["visual.head"]}
    put(tmp_path / "original", "clip", tensors | strangers)
    assert main(["import", str(tmp_path / "original"), str(tmp_path / "ours")]) == 0
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "back"), "--layout", "original"]) == 0
    (file,) = (tmp_path / "back").glob("*.safetensors")
    assert_same(load_file(file), tensors)
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "transformers")]) == 0
    assert load_file(tmp_path / "transformers" / "model.safetensors").keys() == published("clip").keys()


def test_shards_are_written_and_read_with_their_index(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD", 20_000)
    loaded = interop.load(put(tmp_path / "source", "dit"))
    interop.save(tmp_path / "shards", loaded)
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.name.endswith(f"-of-{len(files):05}.safetensors") for file in files)
    found: dict[str, np.ndarray] = {}
    for file in files:
        found |= load_file(file)
    assert_same(found, published("dit"))
    again = flatten(interop.load(tmp_path / "shards").params)
    assert all(np.array_equal(again[path], leaf) for path, leaf in flatten(loaded.params).items())
    files[2].rename(tmp_path / "lost")
    with pytest.raises(UserError, match="lacks 1 of its shards"):
        interop.load(tmp_path / "shards")
    (tmp_path / "lost").rename(files[2])
    index = tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"].popitem()
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match="disagree about 1 tensors"):
        interop.load(tmp_path / "shards")


def test_a_whole_model_is_imported_by_component(tmp_path, capsys):
    model = tmp_path / "model"
    put(model / "transformer", "dit")
    put(model / "vae", "vae21")
    put(model / "text_encoder", "umt5")
    with pytest.raises(UserError, match="several components: name one of text_encoder, transformer, vae"):
        interop.load(model)
    assert interop.load(model, "vae").config.latent == 4
    assert main(["import", str(model), str(tmp_path / "ours")]) == 0
    assert interop.load(tmp_path / "ours", "transformer").config.width == 48
    assert main(["import", str(model), str(tmp_path / "one"), "--component", "image_encoder"]) == 2
    assert "holds no component 'image_encoder'" in capsys.readouterr().err
    original = tmp_path / "original"
    original.mkdir()
    save_file(published("vae21_original"), original / "Wan2.1_VAE.safetensors")
    save_file(published("dit_original"), original / "diffusion_pytorch_model.safetensors")
    assert checkpoint.components(original).keys() == {"vae", "transformer"}


@pytest.mark.parametrize("name", ["dit", "umt5"])
def test_tensors_that_do_not_fit_are_listed_and_nothing_is_written(name, tmp_path, capsys):
    tensors = published(name)
    key = next(
        k for k in tensors if k.endswith("attn1.to_k.weight") or k.endswith("1.SelfAttention.k.weight") or "wo" in k
    )
    wrong = {k: v for k, v in tensors.items() if k != key} | {"stranger": np.zeros(3, np.float32)}
    source = put(tmp_path / "wrong", name, wrong)
    assert main(["import", str(source), str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert f"1 missing ({key})" in error
    assert "1 unexpected (stranger)" in error
    misshapen = put(tmp_path / "misshapen", name, tensors | {key: tensors[key][:-1]})
    assert main(["import", str(misshapen), str(tmp_path / "ours")]) == 2
    assert f"1 misshapen ({key}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["misshapen", "wrong"]


@pytest.mark.parametrize("cut", [3, 100, -1])
def test_files_cut_short_are_refused(cut, tmp_path):
    source = put(tmp_path / "source", "vae21")
    file = source / PUBLISHED["vae21"][1]
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match="damaged or cut short"):
        interop.load(source)


def test_an_interrupted_import_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    file = put(tmp_path / "source", "dit") / PUBLISHED["dit"][1]
    calls = []

    def fail(done: int) -> None:
        calls.append(done)
        if len(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.import_component(opened(file), tmp_path / "ours", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    (tmp_path / ".ours.partial" / "params").mkdir(parents=True)  # as SIGKILL leaves it
    checkpoint.import_component(opened(file), tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "source"]
    with pytest.raises(UserError, match="exists already"):
        checkpoint.import_component(opened(file), tmp_path / "ours")
    (tmp_path / "ours" / "params" / "head.kernel" / ".zarray").unlink()
    with pytest.raises(UserError, match="lacks the parameter head/kernel: import it again"):
        interop.load(tmp_path / "ours")


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no file or folder"):
        interop.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no weights"):
        interop.load(tmp_path)
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "strange.safetensors")
    with pytest.raises(UserError, match="belong to no known component"):
        interop.load(tmp_path)
    with pytest.raises(UserError, match=r"of no known format"):
        interop.load(Path(__file__))
    (tmp_path / "old.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match="not of PyTorch's zip format"):
        interop.load(tmp_path / "old.pth")


def pickled_tensor(name: str, key: int, storage: str, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """One entry of PyTorch's table of contents, by hand."""

    def integers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + int(v).to_bytes(4, "little") for v in values) + b"t"

    text = [b"X" + len(t).to_bytes(4, "little") + t.encode() for t in (name, "storage", str(key), "cpu")]
    count = b"J" + int(np.prod(shape)).to_bytes(4, "little")
    pid = b"(" + text[1] + f"ctorch\n{storage}\n".encode() + text[2] + text[3] + count + b"tQ"
    arguments = b"(" + pid + b"K\x00" + integers(shape) + integers(stride) + b"\x89ccollections\nOrderedDict\n)Rt"
    return text[0] + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def write_pth(file: Path, tensors: dict[str, np.ndarray], extra: bytes = b"") -> None:
    names = {np.dtype(np.float32): "FloatStorage", np.dtype(ml_dtypes.bfloat16): "BFloat16Storage"}
    with zipfile.ZipFile(file, "w") as archive:
        entries = b""
        for i, (name, tensor) in enumerate(tensors.items()):
            stride = tuple(s // tensor.itemsize for s in tensor.strides)
            entries += pickled_tensor(name, i, names[tensor.dtype], tensor.shape, stride)
            archive.writestr(f"archive/data/{i}", tensor.tobytes("A"))
        archive.writestr("archive/data.pkl", b"\x80\x02ccollections\nOrderedDict\n)R(" + entries + extra + b"u.")


def test_pth_files_are_read_without_torch(tmp_path):
    tensors = published("vae21_original")
    key = "decoder.middle.1.proj.weight"
    turned = tensors | {key: np.asfortranarray(tensors[key])}
    write_pth(tmp_path / "Wan2.1_VAE.pth", turned)
    interop.save(tmp_path / "out", interop.load(tmp_path / "Wan2.1_VAE.pth"), layout="original")
    assert_same(load_file(tmp_path / "out" / "Wan_VAE.safetensors"), tensors)
    whole = (tmp_path / "Wan2.1_VAE.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged, cut short"):
        interop.load(tmp_path / "cut.pth")


def test_pth_files_that_ask_for_code_are_refused(tmp_path):
    evil = b"X\x01\x00\x00\x00acos\nsystem\n(X\x08\x00\x00\x00touch /xtR"
    write_pth(tmp_path / "evil.pth", published("vae21_original"), evil)
    with pytest.raises(UserError, match=r"refused: it asks for os.system"):
        interop.load(tmp_path / "evil.pth")


def test_wrong_layouts_and_modules_are_refused(tmp_path, capsys):
    loaded = interop.load(put(tmp_path / "source", "vae21"))
    with pytest.raises(UserError, match="unknown layout 'keras': use original or diffusers"):
        interop.save(tmp_path / "out", loaded, layout="keras")
    assert main(["export", str(tmp_path / "source"), str(tmp_path / "out"), "--layout", "keras"]) == 2
    assert "unknown layout" in capsys.readouterr().err
    fewer = {name: value for name, value in loaded.params.items() if name != "quant"}
    with pytest.raises(UserError, match="2 differ, first quant/bias"):
        interop.save(tmp_path / "out", loaded.module, fewer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_kinds_share_a_signature(kind):
    for layout, name in KINDS[kind].signature.items():
        others = [row.signature for other, row in KINDS.items() if other != kind]
        assert all(name not in signatures.values() for signatures in others), layout
