"""SmallWAM: a World-Action Model small enough to train from scratch on a laptop.

One transformer reads an instruction, the robot's state and the current frames, and denoises future frames and an
action chunk by flow matching. The paradigm (joint, representation_only, inverse_dynamics, action_only) is a row of a
table; network, codecs, losses and sampler are the same for all.
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
from jaxtyping import Array, Float, Int, UInt8

from wamjax.flow.matching import Prediction, interpolate, prediction, uniform_sigma
from wamjax.flow.samplers import Streams, sample
from wamjax.flow.schedules import uniform_nodes
from wamjax.flow.solvers import euler
from wamjax.networks.bag_of_words import bag_of_words
from wamjax.networks.patch_codec import PatchCodec
from wamjax.networks.stream_transformer import Stream, StreamTransformer
from wamjax.nn.stack import Cache, Expert, StackConfig, extended
from wamjax.nn.tokens import Group, TokenIds, TokenPlan
from wamjax.policies.contract import Batch, Draws, Encoded, Params, Pass, SampleShapes, require
from wamjax.policies.paradigms import Paradigm, Phases, paradigm

CONTEXT = ("language", "state", "observation")
TIME_OF = {"language": 0, "state": 0, "observation": 0, "video": 1, "action": 2}
"""Column of each stream in a sample's table of noise times; column 0 is always clean."""


@dataclasses.dataclass(frozen=True)
class SmallWAMConfig:
    """Sizes and habits of a SmallWAM.

    Attributes:
        paradigm: a name of `wamjax.policies.paradigms`.
        width, layers, heads, mlp: of the transformer.
        codec: the frame codec.
        language_width: bins of the hashed bag of words.
        predict_video, predict_action: what the network predicts ("data" or "velocity").
        video_loss: factor of the video loss.
        shift_pixels: training frames are shifted by up to so many pixels, each camera by its own amount.
        state_noise: standard deviation of noise on the normalised state in training.
        sampling_steps: Euler steps of each phase that leads to an action.
        imagination_steps: the same for video that is to be looked at. One step gives the mean of the possible
            futures, which has the least squared error; more give samples of them.
        remat, offload: points that the backward pass keeps, see `StackConfig`.
    """

    paradigm: str = "joint"
    width: int = 192
    layers: int = 4
    heads: int = 4
    mlp: int = 576
    codec: PatchCodec = PatchCodec()
    language_width: int = 256
    predict_video: str = "data"
    predict_action: str = "velocity"
    video_loss: float = 0.5
    shift_pixels: int = 2
    state_noise: float = 0.05
    sampling_steps: int = 6
    imagination_steps: int = 1
    remat: tuple[str, ...] | None = None
    offload: tuple[str, ...] = ()
    kind: Literal["small_wam"] = "small_wam"


@struct.dataclass
class Session:
    """What the policy remembers of its sessions.

    Attributes:
        language: encoded instruction.
        executed: actions executed so far.
    """

    language: Float[Array, "b l"]
    executed: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class SmallWAM:
    """The policy; see `wamjax.policies.contract.Policy` for the meaning of its methods.

    Attributes:
        config: sizes and paradigm.
        shapes: sizes of a sample.
    """

    config: SmallWAMConfig
    shapes: SampleShapes

    def __post_init__(self) -> None:
        c, s = self.config, self.shapes
        require(c.width % c.heads == 0, f"policy.width {c.width} must be a multiple of policy.heads {c.heads}")
        require(
            s.height % c.codec.patch == 0 and s.width % c.codec.patch == 0,
            f"frames of {s.height}x{s.width} do not divide into patches of {c.codec.patch}: change policy.codec.patch",
        )
        prediction(c.predict_video), prediction(c.predict_action), paradigm(c.paradigm)

    # ---- structure ----

    @functools.cached_property
    def streams(self) -> tuple[Stream, ...]:
        """The streams of this paradigm, in sequence order."""
        c, s = self.config, self.shapes
        patches = s.views * (s.height // c.codec.patch) * (s.width // c.codec.patch)
        every = (
            Stream("language", 1, c.language_width),
            Stream("state", 1, s.state),
            Stream("observation", patches, c.codec.channels),
            Stream("video", patches, s.future * c.codec.channels, outputs=s.future * (c.codec.channels + 2)),
            Stream("action", s.horizon, s.action, outputs=s.action),
        )
        return tuple(stream for stream in every if stream.name in CONTEXT or stream.name in self._paradigm.sees)

    @functools.cached_property
    def network(self) -> StreamTransformer:
        """The trained network."""
        c = self.config
        expert = Expert(c.width, c.mlp)
        stack = StackConfig(c.layers, c.heads, c.width // c.heads, (expert,), c.remat, c.offload)
        return StreamTransformer(self.streams, stack)

    def plan(self, names: tuple[str, ...]) -> TokenPlan:
        """The token plan of the named streams, in that order."""
        groups = {stream.name: stream.group() for stream in self.streams}

        def sees(query: Group, key: Group) -> bool:
            if key.stream in CONTEXT or query.stream in CONTEXT:
                return key.stream in CONTEXT
            return key.stream == query.stream or key.stream in self._paradigm.sees[query.stream]

        return TokenPlan.from_rule([groups[name] for name in names], sees)

    @property
    def _paradigm(self) -> Paradigm:
        return paradigm(self.config.paradigm)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(stream.name for stream in self.streams)

    @property
    def _denoised(self) -> tuple[str, ...]:
        return tuple(stream.name for stream in self.streams if stream.outputs)

    # ---- parameters ----

    def tokenize(self, text: str) -> np.ndarray:
        """The instruction as a hashed bag of words (language_width,)."""
        return bag_of_words(text, self.config.language_width)

    def freeze(
        self, frames: UInt8[np.ndarray, "n h w 3"], statistics: Mapping[str, Mapping[str, np.ndarray]]
    ) -> Params:
        """Fits the frame codec; keeps the statistics: state by mean and std, action by its 1 % and 99 % quantiles."""
        state, action = statistics["state"], statistics["action"]
        centre = (np.asarray(action["q99"]) + np.asarray(action["q01"])) / 2
        scale = np.maximum((np.asarray(action["q99"]) - np.asarray(action["q01"])) / 2, 1e-3)
        return {
            "codec": self.config.codec.fit(frames),
            "state": {"mean": np.float32(state["mean"]), "std": np.float32(np.maximum(state["std"], 1e-3))},
            "action": {"mean": np.float32(centre), "std": np.float32(scale)},
        }

    def init(self, key: Array) -> Params:
        """Random parameters of the network."""
        plan = self.plan(self._names)
        inputs = {stream.name: jnp.zeros((1, stream.length, stream.channels)) for stream in self.streams}
        ids = TokenIds.of(plan, 1, TIME_OF)
        return self.network.init(key, inputs, jnp.zeros((1, 3)), ids, plan)["params"]

    # ---- training ----

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """Clean, normalised streams (b, n, c) of a batch, and the masks of what may be scored."""
        frames, state = batch["frames"], normalise(frozen["state"], batch["state"])
        if key is not None:
            shift_key, noise_key = jax.random.split(key)
            frames = random_shift(shift_key, frames, self.config.shift_pixels)
            state = state + self.config.state_noise * jax.random.normal(noise_key, state.shape)
        latents = self.config.codec.encode(frozen["codec"], frames)
        encoded = self._context(batch["language"], state, latents[:, :, 0])
        encoded["action"] = normalise(frozen["action"], batch["actions"])
        encoded["action_mask"] = batch["action_mask"][:, :, None]
        b, v, t, y, x, c = latents[:, :, 1:].shape
        encoded["video"] = jnp.moveaxis(latents[:, :, 1:], 2, 4).reshape(b, v * y * x, t * c)
        encoded["video_mask"] = jnp.repeat(batch["frame_mask"][:, 1:], c, axis=1)[:, None, :]
        return encoded

    def draw(self, key: Array, encoded: Encoded) -> Draws:
        """Noise times (shared or separate, as the paradigm says) and noises."""
        clean_key, *keys = jax.random.split(key, 1 + 2 * len(self._denoised))
        batch = encoded["action"].shape[0]
        sigma = {
            n: uniform_sigma(keys[0 if self._paradigm.coupled else i], batch) for i, n in enumerate(self._denoised)
        }
        if self._paradigm.clean_video:
            clean = jax.random.bernoulli(clean_key, self._paradigm.clean_video, (batch,))
            sigma["video"] = jnp.where(clean, 0.0, sigma["video"])
        noise = {
            n: jax.random.normal(keys[len(self._denoised) + i], encoded[n].shape) for i, n in enumerate(self._denoised)
        }
        return Draws(sigma=sigma, noise=noise)

    def loss(
        self, params: Params, frozen: Params, encoded: Encoded, draws: Draws
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Flow-matching terms of every denoised stream, as (weighted sum, weight)."""
        del frozen
        noisy = {n: interpolate(encoded[n], draws.noise[n], draws.sigma[n]) for n in self._denoised}
        inputs = {n: encoded[n] for n in CONTEXT} | noisy
        outputs, _ = self._forward(params, self._names, inputs, self._times(draws.sigma), encoded["observation"])
        terms = {}
        for name in self._denoised:
            error = self._prediction(name).squared_error(
                outputs[name], encoded[name], draws.noise[name], draws.sigma[name]
            )
            noisy_sample = (draws.sigma[name] > 0)[:, None, None]  # a stream given clean is not scored
            weight = jnp.broadcast_to(encoded[f"{name}_mask"] & noisy_sample, error.shape).astype(error.dtype)
            factor = {"video": self.config.video_loss, "action": 1.0}[name]
            terms[name] = (factor * jnp.sum(error * weight), jnp.sum(weight))
        return terms

    # ---- acting ----

    def reset(self, params: Params, frozen: Params, observation: Batch) -> Session:
        """Starts one session per row of the observation."""
        del params, frozen
        language = observation["language"]
        return Session(language=language, executed=jnp.zeros(language.shape[0], jnp.int32))

    def observe(self, params: Params, frozen: Params, state: Session, frames: Array | None, executed: Array) -> Session:
        """Counts the executed actions (b, e, a). The policy has no memory of frames before the current one."""
        del params, frozen, frames
        return dataclasses.replace(state, executed=state.executed + executed.shape[1])

    def draw_act(self, key: Array, sessions: int) -> Draws:
        """Starting noise of every denoised stream."""
        keys = jax.random.split(key, len(self._denoised))
        sizes = {stream.name: (sessions, stream.length, stream.channels) for stream in self.streams}
        return Draws({}, {n: jax.random.normal(k, sizes[n]) for n, k in zip(self._denoised, keys, strict=True)})

    def act(
        self,
        params: Params,
        frozen: Params,
        state: Session,
        observation: Batch,
        draws: Draws,
        prefix: Float[Array, "b p a"] | None = None,
    ) -> tuple[Float[Array, "b h a"], Session]:
        """Denoises what the paradigm needs for an action chunk, in the robot's units."""
        known = {} if prefix is None else {"action": self._known_actions(frozen, prefix)}
        sampled = self._sample(
            params, frozen, state, observation, self._paradigm.act, self.config.sampling_steps, draws, known
        )
        return denormalise(frozen["action"], sampled["action"]), state

    @property
    def imagines(self) -> bool:
        """Whether the paradigm has a video to imagine."""
        return bool(self._paradigm.imagine)

    def imagine(
        self, params: Params, frozen: Params, state: Session, observation: Batch, draws: Draws
    ) -> UInt8[Array, "b v t h w 3"]:
        """Denoises the future frames and decodes them."""
        require(self.imagines, f"the paradigm '{self.config.paradigm}' has no video to imagine")
        sampled = self._sample(
            params, frozen, state, observation, self._paradigm.imagine, self.config.imagination_steps, draws, {}
        )
        c, s = self.config.codec, self.shapes
        y, x = s.height // c.patch, s.width // c.patch
        latents = sampled["video"].reshape(-1, s.views, y, x, s.future, c.channels)
        return c.decode(frozen["codec"], jnp.moveaxis(latents, 4, 2))

    def reconstruct(self, frozen: Params, frames: UInt8[Array, "*b h w 3"]) -> UInt8[Array, "*b h w 3"]:
        """Frames after the codec and back."""
        return self.config.codec.decode(frozen["codec"], self.config.codec.encode(frozen["codec"], frames))

    def passes(self, mode: str, frames: int | None = None) -> list[Pass]:
        """Network passes of one training sample ("train") or one action chunk ("act"), all of which are alike."""
        del frames
        if mode == "train":
            plan = self.plan(self._names)
            return [Pass(self.network, plan, plan.length, trained=True)]
        require(mode == "act", f"unknown mode '{mode}': use train or act")
        done: tuple[str, ...] = CONTEXT
        plan = self.plan(CONTEXT)
        passes = [Pass(self.network, plan, plan.length)]
        for index, phase in enumerate(self._paradigm.act):
            queries, plan = self.plan(phase).length, self.plan(done + phase)
            commit = index + 1 < len(self._paradigm.act)
            passes.append(Pass(self.network, plan, queries, repeats=self.config.sampling_steps + commit))
            done += phase
        return passes

    # ---- inside ----

    def _prediction(self, name: str) -> Prediction:
        return prediction({"video": self.config.predict_video, "action": self.config.predict_action}[name])

    def _context(self, language: Array, state: Array, latents: Float[Array, "b v y x c"]) -> dict[str, Array]:
        b, *_, c = latents.shape
        return {"language": language[:, None], "state": state[:, None], "observation": latents.reshape(b, -1, c)}

    def _times(self, sigma: Mapping[str, Float[Array, " b"]]) -> Float[Array, "b m"]:
        """Table of noise times: column 0 clean, one column per denoised stream (clean where not given)."""
        clean = jnp.zeros_like(next(iter(sigma.values())))
        return jnp.stack([clean, sigma.get("video", clean), sigma.get("action", clean)], axis=1)

    def _forward(
        self,
        params: Params,
        names: tuple[str, ...],
        inputs: Streams,
        sigma: Array,
        observation: Float[Array, "b n c"],
        cache: Cache | None = None,
    ) -> tuple[Streams, Cache]:
        """Predictions over the named streams, of which `inputs` are the last, and the keys and values of these."""
        plan = self.plan(names)
        ids = TokenIds.of(plan, sigma.shape[0], TIME_OF)
        result: Any = self.network.apply({"params": params}, inputs, sigma, ids, plan, cache)
        outputs, new = result
        if "video" in outputs:
            outputs["video"] = self._compose(outputs["video"], inputs["video"], observation)
        return outputs, new

    def _compose(
        self, readout: Float[Array, "b n o"], noisy: Float[Array, "b n tc"], observation: Float[Array, "b n c"]
    ) -> Float[Array, "b n tc"]:
        """The video prediction: new content, plus shares of the current frame and of the noisy sample.

        The shares are scalars per patch and frame, read out like the content. What stands still, or is hardly noisy,
        so need not pass through a network narrower than its patches (compositing as in arXiv 1605.07157).
        """
        times, channels = self.shapes.future, self.config.codec.channels
        content, of_observation, of_noisy = jnp.split(readout, [times * channels, times * (channels + 1)], axis=-1)

        def frames(x: Array) -> Array:
            return x.reshape(*x.shape[:2], times, channels)

        kept = of_observation[..., None] * observation[:, :, None] + of_noisy[..., None] * frames(noisy)
        return (frames(content) + kept).reshape(noisy.shape)

    def _sample(
        self,
        params: Params,
        frozen: Params,
        state: Session,
        observation: Batch,
        phases: Phases,
        steps: int,
        draws: Draws,
        known: Mapping[str, tuple[Array, Array]],
    ) -> Streams:
        """Denoises phase after phase; the context, and what a phase made, are computed once and cached for the next."""
        latents = self.config.codec.encode(frozen["codec"], observation["frames"])
        context = self._context(state.language, normalise(frozen["state"], observation["state"]), latents)
        names: tuple[str, ...] = CONTEXT
        clean = jnp.zeros((state.language.shape[0], 3))
        now = context["observation"]
        cache = self._forward(params, names, context, clean, now)[1]
        result: Streams = {}
        for phase in phases:
            names = names + phase

            def velocity(
                x: Streams, sigma: dict[str, Array], names: tuple[str, ...] = names, cache: Cache = cache
            ) -> Streams:
                outputs, _ = self._forward(params, names, x, self._times(sigma), now, cache)
                return {n: self._prediction(n).velocity(outputs[n], x[n], sigma[n]) for n in x}

            solvers = dict.fromkeys(phase, euler(uniform_nodes(steps)))
            sampled = sample(velocity, {n: draws.noise[n] for n in phase}, solvers, known)
            if phase != phases[-1]:
                cache = extended(cache, self._forward(params, names, sampled, clean, now, cache)[1])
            result = result | sampled
        return result

    def _known_actions(self, frozen: Params, prefix: Float[Array, "b p a"]) -> tuple[Array, Array]:
        """Committed actions as data (b, h, a) and mask (1, h, 1) for the sampler."""
        missing = self.shapes.horizon - prefix.shape[1]
        require(
            missing >= 0, f"a prefix of {prefix.shape[1]} actions is longer than the chunk of {self.shapes.horizon}"
        )
        data = jnp.pad(normalise(frozen["action"], prefix), ((0, 0), (0, missing), (0, 0)))
        return data, (jnp.arange(self.shapes.horizon) < prefix.shape[1])[None, :, None]


def normalise(statistics: Mapping[str, Array], x: Array) -> Array:
    """Physical units to the network's."""
    return (x - statistics["mean"]) / statistics["std"]


def denormalise(statistics: Mapping[str, Array], x: Array) -> Array:
    """The network's units to physical ones."""
    return x * statistics["std"] + statistics["mean"]


def random_shift(key: Array, frames: UInt8[Array, "b v t h w 3"], pixels: int) -> UInt8[Array, "b v t h w 3"]:
    """Shifts every camera of every sample by up to `pixels` either way, the same for all its frames; edges repeat."""
    if not pixels:
        return frames
    b, v, t, h, w, c = frames.shape
    padded = jnp.pad(frames, ((0, 0),) * 3 + ((pixels, pixels),) * 2 + ((0, 0),), mode="edge")
    offsets = jax.random.randint(key, (b * v, 2), 0, 2 * pixels + 1)

    def crop(clip: Array, offset: Array) -> Array:
        return jax.lax.dynamic_slice(clip, (0, offset[0], offset[1], 0), (t, h, w, c))

    return jax.vmap(crop)(padded.reshape(b * v, *padded.shape[2:]), offsets).reshape(frames.shape)
