"""Video from a prompt: the loop against its formula, conditions, sizes, the tokenizer, and the command line."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from PIL import Image

from tests.parity.recipe import draw
from wamjax import interop
from wamjax.cli.main import main
from wamjax.errors import UserError
from wamjax.flow.schedules import wan_nodes
from wamjax.interop.components import KINDS
from wamjax.interop.keymap import nest
from wamjax.networks.clip import CLIPVision, CLIPVisionConfig
from wamjax.networks.umt5 import UMT5Config, UMT5Encoder
from wamjax.networks.umt5_tokenizer import Tokenizer, clean
from wamjax.networks.wan import generation
from wamjax.networks.wan.dit import WAN_DITS, WanDiT, WanDiTConfig
from wamjax.networks.wan.generation import RECIPES, Condition, Recipe
from wamjax.networks.wan.vae import WAN21_VAE, WAN22_VAE, WanVAE

TINY = {"width": 24, "mlp": 32, "heads": 2, "layers": 2, "text": 16, "text_length": 32}
DITS = {
    "t2v": WanDiTConfig(**TINY),
    "i2v": WanDiTConfig(**TINY, inputs=36, image=32),
    "ti2v": WanDiTConfig(**TINY, inputs=48, outputs=48),
    "i2v-a14b": WanDiTConfig(**TINY, inputs=36),
    "t2v-a14b": WanDiTConfig(**TINY),
    "flf2v": WanDiTConfig(**TINY, inputs=36, image=32, image_positions=10),
}
VAE21 = dataclasses.replace(WAN21_VAE, width=8, decoder_width=8)
VAE22 = dataclasses.replace(WAN22_VAE, width=8, decoder_width=12)
UMT5 = UMT5Config(vocabulary=300, width=16, heads=2, head_dim=8, mlp=24, layers=2)
CLIP = CLIPVisionConfig(image=28, width=32, heads=4, mlp=48, layers=3, used=2)


def random_params(module, seed: int):
    """Scales near one, kernels that keep a signal's size, small biases."""
    kind = next(row for row in KINDS.values() if isinstance(module, row.module))

    def leaf(path: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = draw(path, shape, seed)
        inputs = shape[1:-1] if path.startswith("blocks") else shape[:-1]
        if path.endswith("scale"):
            return 1 + 0.2 * noise
        return noise / np.float32(np.sqrt(np.prod(inputs))) if inputs else 0.2 * noise

    return nest({path: leaf(path, x.shape) for path, x in kind.shapes(module.config).items()})


@pytest.fixture(scope="module")
def spiece(tmp_path_factory) -> Path:
    """A tokenizer with the special tokens of UMT5's: padding 0, end 1, unknown 2."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["robot", "arm", "opens", "the", "drawer", "red", "café", "window", "slowly", "and", "picks", "it", "up"]
    random = np.random.default_rng(0)
    (folder / "text").write_text("\n".join(" ".join(random.choice(words, 8)) for _ in range(400)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "spiece"),
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
    return folder / "spiece.model"


@pytest.fixture(scope="module")
def models(tmp_path_factory, spiece):
    """Makes (once) the folder of a whole tiny model of random weights, in diffusers' layout."""
    root = tmp_path_factory.mktemp("models")

    def make(kind: str) -> Path:
        folder = root / kind
        if folder.exists():
            return folder
        vae = VAE22 if kind == "ti2v" else VAE21
        parts = {"transformer": WanDiT(DITS[kind]), "vae": WanVAE(vae), "text_encoder": UMT5Encoder(UMT5)}
        if kind.endswith("a14b"):
            parts["transformer_2"] = WanDiT(DITS[kind])
        if kind == "i2v":
            parts["image_encoder"] = CLIPVision(CLIP)
        for seed, (name, module) in enumerate(parts.items()):
            interop.save(folder / name, module, random_params(module, seed))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "spiece.model").write_bytes(spiece.read_bytes())
        # diffusers describes no text_len: the tiny networks' is put where the original has it.
        described = folder / "transformer" / "config.json"
        for name in parts:
            if name.startswith("transformer"):
                described = folder / name / "config.json"
                described.write_text(json.dumps(json.loads(described.read_text()) | {"text_len": 32}))
        return folder

    return make


def film(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def imagine(model: Path, out: Path, *more: str) -> np.ndarray:
    size = ("--steps", "3", "--frames", "5", "--height", "32", "--width", "64")
    options = ("--checkpoint", str(model), "--prompt", "robot arm opens the drawer", "--out", str(out))
    assert main(["imagine", *options, *size, *more]) == 0
    return film(out)


@pytest.mark.parametrize(
    "kind", ["i2v", *(pytest.param(k, marks=pytest.mark.slow) for k in ("t2v", "ti2v", "i2v-a14b"))]
)
def test_a_prompt_becomes_a_playable_film(kind, models, tmp_path, capsys):
    more: tuple[str, ...] = ()
    if kind != "t2v":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 96, 3), np.uint8)).save(tmp_path / "desk.png")
        more = ("--image", str(tmp_path / "desk.png"))
    assert imagine(models(kind), tmp_path / "a.mp4", *more).shape == (5, 32, 64, 3)
    printed = capsys.readouterr().out
    assert "denoising" in printed
    assert "5 frames, 32x64 at" in printed


def test_an_imported_model_makes_the_same_film_and_the_seed_another(models, tmp_path):
    first = imagine(models("t2v"), tmp_path / "a.mp4")
    assert main(["import", str(models("t2v")), str(tmp_path / "ours")]) == 0
    np.testing.assert_array_equal(imagine(tmp_path / "ours", tmp_path / "b.mp4"), first)
    assert (imagine(models("t2v"), tmp_path / "c.mp4", "--seed", "1") != first).mean() > 0.5
    half = imagine(models("t2v"), tmp_path / "d.mp4", "--dtype", "bfloat16")
    assert 0 < np.abs(half.astype(int) - first).mean() < 20


def test_the_loop_is_its_formula():
    """Euler written out: guidance, truncated timesteps, the switch between two networks, the image's latents beside."""
    config = DITS["i2v-a14b"]
    module, params = WanDiT(config), tuple(random_params(WanDiT(config), seed) for seed in (0, 1))
    noise, text, negative, beside = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(2, 2, 4, 4, 16), (2, 3, 16), (2, 3, 16), (2, 2, 4, 4, 20)])
    )
    recipe = Recipe(steps=4, solver="euler", guidance=3.0, low_guidance=2.0, boundary=0.9, shift=3.0)
    run = jax.jit(lambda p: generation.denoise(module, p, noise, text, negative, Condition(beside=beside), recipe))
    found = run(params)
    even = np.linspace(1, 0, 5)
    sigma, x, used = 3 * even / (1 + 2 * even), noise, []
    for now, after in itertools.pairwise(sigma):
        t = int(1000 * now)
        which = 0 if t >= 900 else 1
        used.append(which)
        inputs = (jnp.concatenate([x, beside], axis=-1), jnp.full((2, 1), float(t)))
        conditional, unconditional = (module.apply({"params": params[which]}, *inputs, y) for y in (text, negative))
        x = x + (after - now) * (unconditional + (3.0, 2.0)[which] * (conditional - unconditional))
    assert used == [0, 0, 1, 1]
    np.testing.assert_allclose(found, x, rtol=0, atol=5e-5)


def test_the_first_frame_is_kept_and_clean_for_the_network():
    config = DITS["ti2v"]
    module, params = WanDiT(config), random_params(WanDiT(config), 0)
    shape = (1, 3, 2, 4, 48)
    noise, first = jax.random.normal(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), (1, 1, 2, 4, 48))
    text = jax.random.normal(jax.random.key(2), (1, 3, 16))
    recipe = Recipe(steps=3, guidance=1.0)

    def run(noise):
        return generation.denoise(module, (params,), noise, text, text, Condition(first=first), recipe)

    found = jax.jit(run)(noise)
    np.testing.assert_array_equal(found[:, :1], first)
    # Noise under the kept frame is never seen.
    np.testing.assert_array_equal(jax.jit(run)(noise.at[:, :1].add(1.0)), found)
    once = jax.jit(lambda n: generation.denoise(module, (params,), n, text, text, Condition(first=first), one))
    one = Recipe(steps=1, guidance=1.0)
    top = float(wan_nodes(1)[0])
    levels = jnp.array([[0.0, float(int(1000 * top)), float(int(1000 * top))]])
    velocity = module.apply({"params": params}, noise.at[:, :1].set(first), levels, text)
    np.testing.assert_allclose(once(noise)[:, 1:], (noise - top * velocity)[:, 1:], rtol=0, atol=2e-5)


def test_the_image_condition_is_a_mask_and_the_image_then_grey():
    vae, params = WanVAE(VAE21), random_params(WanVAE(VAE21), 0)
    image = jax.random.uniform(jax.random.key(0), (1, 32, 32, 3), minval=-1)
    found = generation.beside(vae, params, image, 5, 32, 32)
    assert found.shape == (1, 2, 4, 4, 20)
    np.testing.assert_array_equal(found[:, 0, :, :, :4], 1)
    np.testing.assert_array_equal(found[:, 1, :, :, :4], 0)
    clip = jnp.zeros((1, 5, 32, 32, 3)).at[:, 0].set(image)
    np.testing.assert_allclose(found[..., 4:], vae.apply({"params": params}, clip, method="encode"), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(720, 1280), (500, 333), (64, 64), (1000, 3001)])
def test_sizes_follow_the_image(height, width):
    rows, columns = generation.size_like(704 * 1280, height, width, 32)
    assert rows % 32 == columns % 32 == 0
    assert 0.85 * 704 * 1280 < rows * columns <= 704 * 1280
    assert abs(np.log(rows / columns * width / height)) < 0.08
    rows, columns = generation.size_near(480 * 832, height, width, 16)
    assert rows % 16 == columns % 16 == 0
    assert abs(np.log(rows / columns * width / height)) < 0.08


def test_released_models_find_their_recipe():
    names = {"wan2.1-t2v-14b": "t2v", "wan2.1-i2v-14b": "i2v", "wan2.2-ti2v-5b": "ti2v"}
    assert {name: generation.conditioning(WAN_DITS[name], two=False) for name in names} == names
    assert generation.conditioning(WAN_DITS["wan2.2-t2v-a14b"], two=True) == "t2v-a14b"
    assert generation.conditioning(WAN_DITS["wan2.2-i2v-a14b"], two=True) == "i2v-a14b"
    assert generation.latent_shape(RECIPES["ti2v"], WAN_DITS["wan2.2-ti2v-5b"], WAN22_VAE) == (31, 44, 80, 48)
    with pytest.raises(UserError, match="multiples of 32"):
        generation.latent_shape(dataclasses.replace(RECIPES["ti2v"], height=720), DITS["ti2v"], WAN22_VAE)
    with pytest.raises(UserError, match="unknown solver 'heun': use one of unipc, dpmpp, euler"):
        generation.solver_of(Recipe(solver="heun"))


def test_prompts_are_cleaned_cut_and_ended(spiece):
    assert clean(" a&amp;amp;b \n\t caf\u00c3\u00a9  ") == "a&b caf\u00e9"
    tokens, present = Tokenizer(spiece, 12)(["robot arm", "", "the drawer " * 30])
    model = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    pieces = model.encode("robot arm")
    assert tokens[0, : len(pieces) + 1].tolist() == [*pieces, 1]
    assert not tokens[0, len(pieces) + 1 :].any()
    assert present.sum(axis=1).tolist() == [len(pieces) + 1, 1, 12]
    assert tokens[1, 0] == tokens[2, -1] == 1


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("t2v", ["--image", "x.png"], "makes video from text alone"),
        ("i2v", [], "makes video from an image: give one with --image"),
        ("i2v", ["--image", "nothing.png"], "nothing.png is no image that can be read"),
        ("flf2v", ["--image", "x.png"], "joins a first and a last frame, which cannot be asked for yet"),
        ("t2v", ["--frames", "6"], "use 4 n + 1 frames"),
        ("t2v", ["--solver", "heun"], "unknown solver 'heun'"),
        ("t2v", ["--tokenizer", "nothing"], "holds no tokenizer"),
        ("t2v", ["--data", "somewhere"], "either --data with a policy, or --prompt with a Wan model"),
    ],
)
def test_mistakes_are_one_line(kind, options, message, models, tmp_path, capsys):
    arguments = ["--checkpoint", str(models(kind)), "--prompt", "x", "--out", str(tmp_path / "x.mp4")]
    size = ["--steps", "2", "--height", "32", "--width", "32", "--frames", "1"]
    assert main(["imagine", *arguments, *size, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.mp4").exists()


def test_a_model_without_a_part_is_named(models, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vae").symlink_to(models("t2v") / "vae")
    assert main(["imagine", "--checkpoint", str(tmp_path / "model"), "--prompt", "x", "--out", "x.mp4"]) == 2
    assert "lacks the component transformer" in capsys.readouterr().err
