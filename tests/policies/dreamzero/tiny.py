"""Tiny DreamZero policies: one of linear parts on a made-up robot, one of all of Wan's parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.data.canvas import CanvasConfig
from wamjax.networks.clip import CLIPVision, CLIPVisionConfig
from wamjax.networks.umt5 import UMT5Config, UMT5Encoder
from wamjax.networks.wan.dit import WanDiTConfig
from wamjax.networks.wan.vae import WanVAE, WanVAEConfig
from wamjax.policies.dreamzero.config import DreamZeroConfig, SamplingConfig
from wamjax.policies.dreamzero.network import NetworkConfig
from wamjax.policies.dreamzero.policy import DreamZero
from wamjax.policies.frozen import PatchFrames, UMT5Text, WanFrames, WordsText

CLIP = CLIPVisionConfig(image=28, width=32, heads=4, mlp=48, layers=3, used=2)
UMT5 = UMT5Config(vocabulary=100, width=32, heads=4, head_dim=8, mlp=48, layers=2)


class LettersText(UMT5Text):
    """Letters instead of UMT5's pieces, whose file is not ours to give."""

    def tokenize(self, prompt: str) -> np.ndarray:
        letters = [ord(letter) % 90 + 5 for letter in prompt][: self.length]
        return np.pad(letters, (0, self.length - len(letters)))


def drawn(init, seed: int, *inputs):
    """Random parameters of a network, none zero or one, without compiling its initialisation."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.standard_normal(shape.shape).astype(np.float32)
        if len(shape.shape) > 3:
            return jnp.asarray(noise / np.sqrt(np.prod(shape.shape[:-1])))
        if path[-1].key in ("kernel", "patch_kernel"):
            return jnp.asarray(noise / np.sqrt(shape.shape[-2]))
        return jnp.asarray((path[-1].key in ("scale", "gamma")) + 0.2 * noise)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init, jax.random.key(0), *inputs))


def small(**changes) -> DreamZero:
    """Linear frames and words, the demo's robot: 16x32 pixels of two cameras, 8 actions and frames a block."""
    dit = WanDiTConfig(width=48, mlp=64, heads=4, layers=2, inputs=12, outputs=12, text=16, text_length=1)
    network = NetworkConfig(dit, state=6, action=5, hidden=24, block_actions=8)
    config = DreamZeroConfig(
        network=network,
        embodiment="metaworld",
        canvas=CanvasConfig(height=16, width=16),
        frames=PatchFrames(patch=4, components=3),
        text=WordsText(width=16),
        image=None,
        sampling=SamplingConfig(steps=3, reuse="none"),
    )
    return DreamZero(dataclasses.replace(config, **changes), views=2, height=20, width=24)


def large(**changes) -> DreamZero:
    """All of Wan's parts, tiny, on DROID's robot: Wan2.1's VAE, UMT5, CLIP, condition channels."""
    dit = WanDiTConfig(width=48, mlp=64, heads=4, layers=2, inputs=24, outputs=10, text=32, text_length=12, image=32)
    config = DreamZeroConfig(
        network=NetworkConfig(dit, hidden=24),
        canvas=CanvasConfig(height=16, width=16),
        frames=WanFrames(vae=WanVAEConfig(width=8, decoder_width=8, latent=10)),
        text=LettersText(encoder=UMT5, length=12),
        image=CLIP,
        sampling=SamplingConfig(steps=3, reuse="none"),
    )
    return DreamZero(dataclasses.replace(config, **changes), views=3, height=18, width=32)


def statistics(policy: DreamZero) -> dict:
    """Quantiles of every field, all different."""
    robot, rng = policy.embodiment, np.random.default_rng(0)

    def bounds(size: int) -> dict[str, list[float]]:
        low = rng.uniform(-2, -1, size)
        return {"q01": low.tolist(), "q99": (low + rng.uniform(1, 3, size)).tolist()}

    return {p: {f.key: bounds(f.size) for f in getattr(robot, p)} for p in ("state", "action")}


def batch(policy: DreamZero, b: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """A training batch of full samples."""
    rng, s, blocks = np.random.default_rng(seed), policy.shapes, policy.config.blocks
    language = rng.integers(1, 100, (b, 12)) if isinstance(policy.config.text, UMT5Text) else rng.normal(size=(b, 16))
    return {
        "frames": rng.integers(0, 256, (b, s.views, s.future + 1, s.height, s.width, 3), np.uint8),
        "chunks": np.full(b, blocks, np.int32),
        "state": rng.uniform(-1, 1, (b, blocks, s.state)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (b, blocks * s.horizon, s.action)).astype(np.float32),
        "action_mask": np.ones((b, blocks * s.horizon), bool),
        "language": language.astype(np.float32),
    }


@functools.cache
def built(kind: str):
    """The policy, its parameters and its frozen ones, all random."""
    policy = {"small": small, "large": large}[kind]()
    params = drawn(policy.init, 1)
    given = {}
    if kind == "large":
        vae = WanVAE(policy.config.frames.vae)
        given["frames"] = drawn(vae.init, 2, jnp.zeros((1, 1, 16, 16, 3)))["params"]
        tokens = jnp.ones((1, 2), int)
        given["text"] = drawn(UMT5Encoder(UMT5).init, 3, tokens, tokens > 0)["params"]
        given["image"] = drawn(CLIPVision(CLIP).init, 4, jnp.zeros((1, 28, 28, 3)))["params"]
    frames = np.random.default_rng(1).integers(0, 256, (16, 20, 24, 3), np.uint8)
    return policy, params, policy.freeze(frames, statistics(policy), given)
