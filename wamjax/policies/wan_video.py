"""Wan as a learner of video (arXiv 2503.20314): flow matching on latents, from a prompt, or from one and a first frame.

Its three forms differ in where the first frame stands:

- nowhere (T2V): the network reads as many channels as it predicts;
- beside the latents (I2V): a mask of four channels and the frame's latents, and CLIP's features on Wan2.1;
- in the sequence (TI2V): in some samples the first latent frame is clean, at a noise level of its own, and not scored.

The target is the velocity, noise minus data; noise times are shifted towards noise and errors weighted by them, as code
that fine-tunes Wan does it. In some samples another prompt takes the place of their own, which is what guidance leads
away from when sampling. Autoencoder and encoders stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, UInt8

from wamjax.errors import UserError
from wamjax.flow.schedules import TrainingTimes
from wamjax.networks.clip import CLIPVisionConfig
from wamjax.networks.images import resize_linear
from wamjax.networks.wan.dit import Precision, WanDiT, WanDiTConfig
from wamjax.networks.wan.generation import Condition, Recipe, denoise
from wamjax.nn.tokens import Group, TokenPlan
from wamjax.policies.contract import Batch, Draws, Encoded, Params, Pass, SampleShapes, require
from wamjax.policies.frozen import (
    PatchFrames,
    Pixels,
    UMT5Text,
    WanFrames,
    WordsText,
    image_features,
    networks,
    with_condition,
)


@dataclasses.dataclass(frozen=True)
class WanVideoConfig:
    """The model.

    Attributes:
        network: the trained transformer.
        camera: whose films are learnt.
        recipe: frames, rate and size of the films, and how they are sampled.
        frames, text, image: the frozen encoders.
        shift: of training's noise times towards noise.
        first_frame: share of samples that are given their first frame in the sequence (TI2V). Networks that read it
            beside the latents always have it.
        drop_text: share of samples whose prompt is replaced by `negative`.
        negative: the prompt that guidance leads away from.
        compute: type of matrix products and attention; Wan's islands of float32 stay.
    """

    network: WanDiTConfig
    camera: str
    recipe: Recipe = Recipe()
    frames: WanFrames | PatchFrames = WanFrames()
    text: UMT5Text | WordsText = UMT5Text()
    image: CLIPVisionConfig | None = None
    shift: float = 5.0
    first_frame: float = 0.0
    drop_text: float = 0.1
    negative: str = ""
    compute: Literal["float32", "bfloat16"] = "float32"
    kind: Literal["wan_video"] = "wan_video"

    def long(self, frames: int) -> WanVideoConfig:
        """The same for films of so many frames."""
        return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, frames=frames))


@struct.dataclass
class Prompted:
    """What the model remembers of its sessions.

    Attributes:
        text: features of the prompts.
    """

    text: Float[Array, "b l e"]


@dataclasses.dataclass(frozen=True)
class WanVideo:
    """The model; see `wamjax.policies.contract.Policy` for the meaning of its methods.

    Attributes:
        config: network and habits.
        height, width: of the recorded frames, whose middle is cut out and resized to the recipe's size.
    """

    config: WanVideoConfig
    height: int
    width: int

    def __post_init__(self) -> None:
        c, r, n = self.config, self.config.recipe, self.config.network
        beside = n.inputs - n.outputs
        require(
            n.outputs == c.frames.channels and beside in (0, c.frames.channels + 4),
            f"policy.network reads {n.inputs} and predicts {n.outputs} latent channels, which do not fit the "
            f"{c.frames.channels} of policy.frames: predict as many, and read as many or {2 * c.frames.channels + 4}",
        )
        sides = tuple(c.frames.factor * patch for patch in n.patch[1:])
        require(
            n.patch[0] == 1 and r.frames % 4 == 1 and r.height % sides[0] == 0 and r.width % sides[1] == 0,
            f"{r.frames} frames of {r.height}x{r.width} cannot be learnt: set policy.recipe to 4 n + 1 frames, and to "
            f"a height and a width that are multiples of {sides[0]} and {sides[1]}",
        )
        require(bool(c.image) == bool(n.image), "policy.image and policy.network.image go together")
        require(not n.image_positions, "networks that join a first and a last frame (FLF2V) cannot be trained yet")
        require(
            0 <= c.first_frame <= (beside == 0),
            f"policy.first_frame is {c.first_frame}: a share of the samples, and 0 for a network that reads the frame "
            "beside the latents",
        )

    # ---- structure ----

    @functools.cached_property
    def network(self) -> WanDiT:
        """The trained network."""
        return WanDiT(self.config.network, Precision(jnp.dtype(self.config.compute)))

    @property
    def pretrained(self) -> tuple[str, ...]:
        """Frozen networks whose weights must be given to `freeze`."""
        return tuple(networks(self.config))

    @property
    def shapes(self) -> SampleShapes:
        """Sizes of a sample, which has no actions."""
        return SampleShapes(1, self.height, self.width, self.config.recipe.frames - 1, horizon=0, state=0, action=0)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Frames, rows, columns and channels of a film's latents."""
        frames, r = self.config.frames, self.config.recipe
        return 1 + r.frames // 4, r.height // frames.factor, r.width // frames.factor, frames.channels

    @property
    def plan(self) -> TokenPlan:
        """The sequence: every token of a film sees every other."""
        (t, y, x, _), (pt, py, px) = self.latent_shape, self.config.network.patch
        return TokenPlan.from_rule([Group("video", (t // pt) * (y // py) * (x // px))], lambda query, key: True)

    @property
    def _reads_condition(self) -> bool:
        return self.config.network.inputs > self.config.network.outputs

    @property
    def _times(self) -> TrainingTimes:
        return TrainingTimes.wan(self.config.shift)

    # ---- parameters ----

    def tokenize(self, text: str) -> np.ndarray:
        """The prompt, tokenised."""
        return self.config.text.tokenize(text)

    def freeze(
        self,
        frames: UInt8[np.ndarray, "n h w 3"],
        statistics: Mapping[str, Any],
        given: Mapping[str, Params] | None = None,
    ) -> Params:
        """Frozen parameters, and the features of the negative prompt.

        Args:
            frames: of the dataset, to fit the frame codec on where its weights are not given.
            statistics: not used: there are no states or actions.
            given: weights of the frozen networks: "frames", "text", "image".
        """
        del statistics
        given, text = dict(given or {}), self.config.text
        codec = given.get("frames") or self.config.frames.fit(np.asarray(_to_levels(self._seen(jnp.asarray(frames)))))
        tokens = np.asarray(text.tokenize(self.config.negative), np.float32)[None]
        negative = jax.jit(text.encode)(given.get("text", {}), tokens)[0]
        return {
            "frames": codec,
            "text": given.get("text", {}),
            "image": given.get("image", {}),
            "negative": negative.astype(jnp.float32),
        }

    def init(self, key: Array) -> Params:
        """Random parameters of the network."""
        n = self.config.network
        image = jnp.zeros((1, 1, n.image)) if n.image else None
        inputs = (jnp.zeros((1, *n.patch, n.inputs)), jnp.zeros((1, 1)), jnp.zeros((1, 1, n.text)), image)
        return self.network.init(key, *inputs)["params"]

    # ---- training ----

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """Latents of the films, features of prompts, and what the network reads of first frames."""
        del key  # films are learnt as they are
        c, clip = self.config, self._pixels(batch["frames"])
        encoded = {
            "video": c.frames.encode(frozen["frames"], clip),
            "text": c.text.encode(frozen["text"], batch["language"]),
        }
        return jax.lax.stop_gradient(encoded | self._beside(frozen, clip))

    def draw(self, key: Array, encoded: Encoded) -> Draws:
        """A noise time per film, noises, whose prompt is dropped and whose first frame is given."""
        time, noise, text, first = jax.random.split(key, 4)
        samples = encoded["video"].shape[0]
        return Draws(
            sigma={"video": self._times.draw(time, (samples, 1))},
            noise={"video": jax.random.normal(noise, encoded["video"].shape)},
            chosen={
                "dropped": jax.random.bernoulli(text, self.config.drop_text, (samples,)),
                "given": jax.random.bernoulli(first, self.config.first_frame, (samples,)),
            },
        )

    def loss(
        self, params: Params, frozen: Params, encoded: Encoded, draws: Draws
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Velocity errors, weighted by noise time: a mean over the frames scored of each film, summed over films."""
        x, noise, sigma = encoded["video"], draws.noise["video"], draws.sigma["video"]
        samples, frames = x.shape[:2]
        level = sigma
        if self.config.first_frame:
            kept = draws.chosen["given"][:, None] & (jnp.arange(frames) == 0)
            level = jnp.where(kept, 0.0, sigma)
        share = level[:, :, None, None, None]
        beside = (encoded["beside"],) if self._reads_condition else ()
        seen = jnp.concatenate([(1 - share) * x + share * noise, *beside], axis=-1)
        dropped = draws.chosen["dropped"][:, None, None]
        text = jnp.where(dropped, self._negative(frozen, encoded["text"]), encoded["text"])
        inputs = (seen, 1000 * level, text, encoded.get("image"))
        velocity: Any = self.network.apply({"params": params}, *inputs)
        error = jnp.square(velocity - (noise - x)).mean((2, 3, 4)) * self._times.weight_at(sigma)
        scored = jnp.broadcast_to(level > 0, error.shape)
        each = jnp.sum(error * scored, axis=1) / jnp.sum(scored, axis=1)
        return {"video": (jnp.sum(each), jnp.asarray(float(samples)))}

    # ---- sampling ----

    def reset(self, params: Params, frozen: Params, observation: Batch) -> Prompted:
        """Reads the prompts."""
        del params
        return Prompted(self.config.text.encode(frozen["text"], observation["language"]))

    def observe(
        self, params: Params, frozen: Params, state: Prompted, frames: Array | None, executed: Array
    ) -> Prompted:
        """Nothing: every film is made anew."""
        del params, frozen, frames, executed
        return state

    def draw_act(self, key: Array, sessions: int) -> Draws:
        """The noise of a film."""
        return Draws({}, {"video": jax.random.normal(key, (sessions, *self.latent_shape))})

    def act(self, *arguments: Any, **options: Any) -> Any:
        """Never: there are no actions to predict."""
        raise UserError("a video model does not act: `imagine` with it, or train a policy that begins with its weights")

    @property
    def imagines(self) -> bool:
        """Always."""
        return True

    def imagine(
        self, params: Params, frozen: Params, state: Prompted, observation: Batch, draws: Draws
    ) -> UInt8[Array, "b 1 t y x 3"]:
        """Whole films, from the prompts and, where the network takes it, the frame "frames" (b, 1, h, w, 3)."""
        c, noise = self.config, draws.noise["video"]
        first = self._pixels(observation["frames"][:, :, None])
        clip = jnp.broadcast_to(first, (len(first), c.recipe.frames, *first.shape[2:]))
        kept = c.frames.encode(frozen["frames"], first) if c.first_frame else None
        condition = Condition(**self._beside(frozen, clip), first=kept)
        negative = jnp.broadcast_to(self._negative(frozen, state.text), state.text.shape)
        latents = denoise(self.network, (params,), noise, state.text, negative, condition, c.recipe)
        return _to_levels(c.frames.decode(frozen["frames"], latents))[:, None]

    def picture(self, frames: UInt8[Array, "b 1 t h w 3"]) -> UInt8[Array, "b 1 t y x 3"]:
        """Recorded films as `imagine` shows them."""
        return _to_levels(self._pixels(frames))[:, None]

    def reconstruct(self, frozen: Params, frames: UInt8[Array, "b 1 t h w 3"]) -> UInt8[Array, "b 1 t y x 3"]:
        """Films of 4 n + 1 frames after the codec and back."""
        codec, params = self.config.frames, frozen["frames"]
        return _to_levels(codec.decode(params, codec.encode(params, self._pixels(frames))))[:, None]

    def passes(self, mode: str, frames: int | None = None) -> list[Pass]:
        """Network passes of one training film ("train") or of one that is sampled ("act"), with and without prompt."""
        require(mode in ("train", "act"), f"unknown mode '{mode}': use train or act")
        repeats = {"train": 1, "act": 2 * self.config.recipe.steps}[mode]
        plan = self.plan if frames is None else dataclasses.replace(self, config=self.config.long(frames)).plan
        return [Pass(self.network, plan, plan.length, repeats, trained=mode == "train")]

    # ---- inside ----

    def _seen(self, frames: UInt8[Array, "*b h w 3"]) -> Pixels:
        """The middle of frames in [-1, 1], of the recipe's aspect and size."""
        r, (h, w) = self.config.recipe, frames.shape[-3:-1]
        scale = max(r.height / h, r.width / w)
        rows, columns = min(h, round(r.height / scale)), min(w, round(r.width / scale))
        top, left = (h - rows) // 2, (w - columns) // 2
        middle = jnp.asarray(frames[..., top : top + rows, left : left + columns, :], jnp.float32) / 127.5 - 1
        return (
            middle
            if (rows, columns) == (r.height, r.width)
            else resize_linear(middle, r.height, r.width, antialias=True)
        )

    def _pixels(self, frames: UInt8[Array, "b 1 t h w 3"]) -> Pixels:
        return self._seen(frames[:, 0])

    def _beside(self, frozen: Params, clip: Pixels) -> dict[str, Array]:
        """What the network reads of first frames beside the latents."""
        found = {"image": image_features(self.config.image, frozen["image"], clip[:, 0])}
        if self._reads_condition:
            found["beside"] = with_condition(self.config.frames, frozen["frames"], clip)
        return {name: x for name, x in found.items() if x is not None}

    def _negative(self, frozen: Params, text: Float[Array, "b l e"]) -> Float[Array, "1 l e"]:
        return jnp.asarray(frozen["negative"], text.dtype)[None]


def _to_levels(clip: Float[Array, "*b 3"]) -> UInt8[Array, "*b 3"]:
    return jnp.clip(jnp.round((clip + 1) * 127.5), 0, 255).astype(jnp.uint8)
