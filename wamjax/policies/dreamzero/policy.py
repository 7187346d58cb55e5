"""DreamZero as a policy: training, and the chunked closed loop.

After action_head/wan_flow_matching_action_tf.py of github.com/dreamzero0/dreamzero. A session begins with one frame.
Then, chunk by chunk: `act` denoises the next block of frames and its actions beside the frames known so far, and
`observe` replaces the imagined block by what the cameras saw. Frames known are kept as keys and values in a window of
fixed size; when it is full the session begins anew from its newest frame, or the oldest block makes room.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from wamjax.data import embodiments
from wamjax.data.canvas import canvas, pixels
from wamjax.data.embodiments import Embodiment
from wamjax.data.normalise import Bounds, Normalisation, normalisation
from wamjax.data.prompts import Prompts, own
from wamjax.errors import UserError
from wamjax.flow.samplers import Streams, guided, sample
from wamjax.flow.schedules import TrainingTimes, integer_timestep
from wamjax.networks.wan.dit import Latents, Precision
from wamjax.nn.rope import rotate, rotation
from wamjax.nn.stack import Cache, Memory
from wamjax.policies.contract import Batch, Draws, Encoded, Params, Pass, SampleShapes, require
from wamjax.policies.dreamzero.config import DreamZeroConfig
from wamjax.policies.dreamzero.network import (
    Clip,
    DreamZeroNetwork,
    Past,
    Present,
    Robot,
    acting_plan,
    committing_plan,
    training_plan,
)
from wamjax.policies.frozen import image_features, networks, with_condition


@struct.dataclass
class Session:
    """What the policy remembers of its sessions; every leaf leads with the session axis.

    Attributes:
        text, image: keys and values of prompts and first frames in all blocks, (b, layers, r, l, k, h) each.
        beside: the first frames' condition (b, t, y, x, c); no channels where the network reads none.
        cache: keys and values of the frames known (b, layers, r, n, k, h).
        known: how many frames are known.
        imagined: the block of frames that `act` denoised last (b, t, y, x, c).
        executed: actions executed so far.
    """

    text: Memory
    image: Memory
    beside: Latents
    cache: Cache
    known: Int[Array, " b"]
    imagined: Latents
    executed: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class DreamZero:
    """The policy; see `wamjax.policies.contract.Policy` for the meaning of its methods.

    Attributes:
        config: networks and habits.
        views, height, width: of the cameras' frames.
    """

    config: DreamZeroConfig
    views: int
    height: int
    width: int

    def __post_init__(self) -> None:
        c, n, robot = self.config, self.config.network, self.embodiment
        beside = n.dit.inputs - n.dit.outputs
        require(
            n.dit.outputs == c.frames.channels and beside in (0, c.frames.channels + 4),
            f"policy.network reads {n.dit.inputs} and predicts {n.dit.outputs} latent channels, which do not fit the "
            f"{c.frames.channels} of policy.frames: predict as many, and read as many or {2 * c.frames.channels + 4}",
        )
        require(
            n.block_actions == robot.actions_per_chunk and n.block_frames * 4 == robot.frames_per_chunk,
            f"a block of {n.block_frames} latent frames and {n.block_actions} actions is not a chunk of "
            f"{robot.frames_per_chunk} frames and {robot.actions_per_chunk} actions of '{robot.name}'",
        )
        require(self.views == len(robot.cameras), f"'{robot.name}' has {len(robot.cameras)} cameras, not {self.views}")
        y, x = self._canvas_size
        sides = tuple(c.frames.factor * patch for patch in n.dit.patch[1:])
        require(
            n.dit.patch[0] == 1 and y % sides[0] == 0 and x % sides[1] == 0,
            f"a canvas of {y}x{x} does not divide into tokens of {sides[0]}x{sides[1]} pixels and one latent frame",
        )
        require(bool(c.image) == bool(n.dit.image), "policy.image and policy.network.dit.image go together")

    # ---- structure ----

    @functools.cached_property
    def embodiment(self) -> Embodiment:
        """The robot."""
        return embodiments.load(self.config.embodiment)

    @functools.cached_property
    def network(self) -> DreamZeroNetwork:
        """The trained network."""
        dtype = jnp.dtype(self.config.compute)
        return DreamZeroNetwork(self.config.network, Precision(dtype, dtype))

    @property
    def pretrained(self) -> tuple[str, ...]:
        """Frozen networks whose weights must be given to `freeze`."""
        return tuple(networks(self.config))

    @property
    def prompts(self) -> Prompts:
        """Texts around an instruction."""
        return self.config.prompts or own(self.embodiment)

    @property
    def shapes(self) -> SampleShapes:
        """Sizes of a sample; the horizon is that of a chunk."""
        robot, frames = self.embodiment, self.embodiment.frames_per_chunk * self.config.blocks
        sizes = (self.views, self.height, self.width, frames, robot.actions_per_chunk)
        return SampleShapes(*sizes, robot.state_size, robot.action_size)

    @property
    def stride(self) -> int:
        """Steps from one observed frame to the next."""
        return self.embodiment.video_stride

    @property
    def window(self) -> int:
        """Frames that a session knows at most."""
        return 1 + self.config.network.block_frames * (self.config.blocks - 1)

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Rows, columns and channels of a latent frame."""
        frames, (y, x) = self.config.frames, self._canvas_size
        return y // frames.factor, x // frames.factor, frames.channels

    @property
    def _canvas_size(self) -> tuple[int, int]:
        c, layout = self.config, self.embodiment.layout
        if c.resized:
            return c.resized
        return c.canvas.height * (1 + max(p.row for p in layout)), c.canvas.width * max(
            p.column + p.columns for p in layout
        )

    @property
    def _reads_condition(self) -> bool:
        return self.config.network.dit.inputs > self.config.network.dit.outputs

    # ---- parameters ----

    def tokenize(self, text: str) -> np.ndarray:
        """The instruction inside its template, tokenised."""
        return self.config.text.tokenize(self.prompts.render(text))

    def freeze(
        self,
        frames: UInt8[np.ndarray, "n h w 3"],
        statistics: Mapping[str, Any],
        given: Mapping[str, Params] | None = None,
    ) -> Params:
        """Frozen parameters.

        Args:
            frames: of the dataset, to fit the frame codec on where its weights are not given.
            statistics: of the robot's fields (`wamjax.data.normalise.dataset_statistics`).
            given: weights of the frozen networks: "frames", "text", "image".
        """
        given = dict(given or {})
        bounds = normalisation(self.embodiment, statistics)
        return {
            "frames": given.get("frames") or self.config.frames.fit(frames),
            "text": given.get("text", {}),
            "image": given.get("image", {}),
            "negative": np.asarray(self.config.text.tokenize(self.prompts.negative), np.float32),
            "statistics": {
                part: {"low": np.asarray(one.low, np.float32), "high": np.asarray(one.high, np.float32)}
                for part, one in (("state", bounds.state), ("action", bounds.action))
            },
        }

    def init(self, key: Array) -> Params:
        """Random parameters of the network."""
        n = self.config.network
        frames = jnp.zeros((1, 1 + n.block_frames, *n.dit.patch[1:], n.dit.inputs))
        sizes = ((n.block_actions, n.action), (n.block_actions,), (1, n.state))
        actions, level, state = (jnp.zeros((1, *size)) for size in sizes)
        robot = Robot(actions, level, state, jnp.zeros(1, int))
        image = jnp.zeros((1, 1, n.dit.image)) if n.dit.image else None
        clip = Clip(frames, frames, jnp.zeros(frames.shape[:2]))
        return self.network.init(key, clip, robot, jnp.zeros((1, 1, n.dit.text)), image)["params"]

    # ---- training ----

    def encode(self, frozen: Params, key: Array | None, batch: Batch) -> Encoded:
        """Latents of the canvas, normalised states and actions, features; and what of it is there."""
        c, steps = self.config, self._normalisation(frozen)
        clip = self._pixels(batch["frames"], key)
        present = batch["action_mask"].reshape(*batch["state"].shape[:2], -1).all(-1)
        encoded = {
            "video": c.frames.encode(frozen["frames"], clip),
            "state": steps.normalise_state(batch["state"]),
            "action": steps.normalise_actions(batch["actions"], batch["state"]),
            "block": jnp.arange(c.blocks) < batch["chunks"][:, None],
            "robot": present,
            "text": c.text.encode(frozen["text"], batch["language"]),
            "category": batch.get("category", jnp.zeros(len(batch["chunks"]), int)),
        }
        image = image_features(c.image, frozen["image"], clip[:, 0])
        if image is not None:
            encoded["image"] = image
        if self._reads_condition:
            encoded["beside"] = with_condition(c.frames, frozen["frames"], clip)
        return jax.lax.stop_gradient(encoded)

    def draw(self, key: Array, encoded: Encoded) -> Draws:
        """Noise levels of frames and actions, and noises."""
        c, n = self.config, self.config.network
        first_key, block_key, action_key, *keys = jax.random.split(key, 5)
        b, actions = encoded["action"].shape[:2]
        first = TIMES.draw(first_key, (b, 1), c.alpha)
        block = TIMES.draw(block_key, (b, c.blocks), c.alpha)
        action = jnp.repeat(block, n.block_actions, axis=1)
        if not c.coupled:
            action = TIMES.draw(action_key, (b, actions))
        sigma = {"video": jnp.concatenate([first, jnp.repeat(block, n.block_frames, axis=1)], axis=1), "action": action}
        noise = {
            name: jax.random.normal(k, encoded[name].shape) for name, k in zip(("video", "action"), keys, strict=True)
        }
        return Draws(sigma=sigma, noise=noise)

    def loss(
        self, params: Params, frozen: Params, encoded: Encoded, draws: Draws
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Velocity errors of frames and actions, weighted by noise level: a mean per sample, summed over samples.

        As released: padded action numbers and samples without actions count as errors of zero.
        """
        del frozen
        n = self.config.network
        noisy = {
            name: x
            + draws.sigma[name].reshape(*draws.sigma[name].shape, *(1,) * (x.ndim - 2)) * (draws.noise[name] - x)
            for name, x in ((name, encoded[name]) for name in ("video", "action"))
        }
        beside = (encoded["beside"],) if self._reads_condition else ()
        clean, seen = (jnp.concatenate([x, *beside], axis=-1) for x in (encoded["video"], noisy["video"]))
        clip = Clip(clean, seen, 1000 * draws.sigma["video"])
        robot = Robot(noisy["action"], 1000 * draws.sigma["action"], encoded["state"], encoded["category"])
        present = Present(encoded["block"], encoded["robot"])
        inputs = (clip, robot, encoded["text"], encoded.get("image"), present)
        output: Any = self.network.apply({"params": params}, *inputs)
        errors = {
            name: jnp.square(out - (draws.noise[name] - encoded[name])) for name, out in zip(noisy, output, strict=True)
        }
        blocks = jnp.repeat(encoded["block"], n.block_frames, axis=1)
        frames = jnp.concatenate([jnp.ones((len(clean), 1), bool), blocks], axis=1)
        actions = jnp.repeat(encoded["robot"], n.block_actions, axis=1)
        there = jnp.repeat(encoded["block"], n.block_actions, axis=1)
        mask = jnp.arange(n.action) < self.embodiment.action_size
        video = errors["video"].mean((2, 3, 4)) * TIMES.weight_at(draws.sigma["video"]) * frames
        action = (errors["action"] * mask).mean(2) * TIMES.weight_at(draws.sigma["action"]) * actions
        samples = jnp.asarray(float(len(clean)))
        return {
            "video": (jnp.sum(video.sum(1) / frames.sum(1)), samples),
            "action": (jnp.sum(action.sum(1) / there.sum(1)), samples),
        }

    # ---- acting ----

    def reset(self, params: Params, frozen: Params, observation: Batch) -> Session:
        """Starts sessions with instructions "language" (b, l) and first frames "frames" (b, v, h, w, 3)."""
        tokens, b = observation["language"], observation["language"].shape[0]
        if self._branches > 1:
            negative = jnp.broadcast_to(frozen["negative"], tokens.shape)
            tokens = jnp.stack([tokens, negative], axis=1).reshape(-1, *tokens.shape[1:])
        text = self._apply(params, self.config.text.encode(frozen["text"], tokens), method="remember")
        first = self._pixels(observation["frames"][:, :, None], None)[:, 0]
        imagined = jnp.zeros((b, self.config.network.block_frames, *self.latent_size))
        return self._begin(params, frozen, first, _per_session(text, b), imagined, jnp.zeros(b, int))

    def observe(self, params: Params, frozen: Params, state: Session, frames: Array | None, executed: Array) -> Session:
        """Commits the frames (b, v, t, h, w, 3) that cameras saw while the actions (b, e, a) were executed.

        t is that of a block (8), one more, or a divisor, whose frames are then repeated (as the released server does).
        """
        if frames is None:
            raise UserError("DreamZero observes frames: give those since the last observation")
        clip = self._block(self._pixels(frames, None))
        latents = self.config.frames.encode(frozen["frames"], clip)[:, -self.config.network.block_frames :]
        count = state.executed + executed.shape[1]
        full = state.known >= self.window
        if self.config.sampling.window == "slide":
            state = _choose(full, self._slide(state), state)
            return dataclasses.replace(self._commit(params, state, latents), executed=count)

        def restart() -> Session:
            begun = self._begin(params, frozen, clip[:, -1], state.text, state.imagined, state.executed)
            return _choose(full, begun, self._commit(params, state, latents))

        state = jax.lax.cond(full.any(), restart, lambda: self._commit(params, state, latents))
        return dataclasses.replace(state, executed=count)

    def dream(self, params: Params, state: Session) -> Session:
        """Commits the imagined frames as if they had been seen (open loop); the window slides when it is full."""
        state = _choose(state.known >= self.window, self._slide(state), state)
        return self._commit(params, state, state.imagined)

    def split(self, state: Session, mesh: Mesh, axis: str) -> Session:
        """Sessions with the halves of guidance on two devices (or groups of them) along an axis of the mesh.

        `act` then computes each prompt's pass where it lies; parameters are best put on every device before.
        """
        halves, whole = NamedSharding(mesh, PartitionSpec(None, None, axis)), NamedSharding(mesh, PartitionSpec())
        placed = {f.name: jax.device_put(getattr(state, f.name), whole) for f in dataclasses.fields(state)}
        parted = {name: jax.device_put(getattr(state, name), halves) for name in ("text", "image", "cache")}
        return Session(**(placed | parted))

    def draw_act(self, key: Array, sessions: int) -> Draws:
        """Starting noise of a block of frames and of its actions."""
        n, (first, second) = self.config.network, jax.random.split(key)
        shapes = {"video": (n.block_frames, *self.latent_size), "action": (n.block_actions, n.action)}
        keys = {"video": first, "action": second}
        return Draws({}, {name: jax.random.normal(keys[name], (sessions, *shape)) for name, shape in shapes.items()})

    def act(
        self,
        params: Params,
        frozen: Params,
        state: Session,
        observation: Batch,
        draws: Draws,
        prefix: Float[Array, "b p a"] | None = None,
    ) -> tuple[Float[Array, "b h a"], Session]:
        """Denoises the next block: its actions in the robot's units, and its frames, which the session keeps."""
        steps, sampling = self._normalisation(frozen), self.config.sampling
        now = observation["state"][:, None]
        noise = {name: draws.noise[name] for name in sampling.solvers}
        robot = {"state": steps.normalise_state(now), "category": observation.get("category", jnp.zeros(len(now), int))}
        velocity = self._velocity(params, state, robot, draws.noise["video"])
        known = {} if prefix is None else {"action": self._known(steps, prefix, now)}
        sampled = sample(velocity, noise, sampling.solvers, known, sampling.rule)
        imagined = sampled.get("video", state.imagined)
        return steps.denormalise_actions(sampled["action"], now), dataclasses.replace(state, imagined=imagined)

    @property
    def imagines(self) -> bool:
        """Whether frames are denoised."""
        return self.config.sampling.video == "denoise"

    def imagine(
        self, params: Params, frozen: Params, state: Session, observation: Batch, draws: Draws
    ) -> UInt8[Array, "b 1 t h w 3"]:
        """The canvas of the next frames."""
        require(self.imagines, "policy.sampling.video is 'noise': there is no video to imagine")
        return self.show(frozen, self.act(params, frozen, state, observation, draws)[1], observation["frames"])

    def show(self, frozen: Params, state: Session, frames: UInt8[Array, "b v h w 3"]) -> UInt8[Array, "b 1 t h w 3"]:
        """The canvas of the frames that `act` imagined last, after the current ones."""
        current = self.config.frames.encode(frozen["frames"], self._pixels(frames[:, :, None], None))
        clip = self.config.frames.decode(frozen["frames"], jnp.concatenate([current, state.imagined], axis=1))
        return _to_levels(clip[:, None, 1:])

    def picture(self, frames: UInt8[Array, "b v t h w 3"]) -> UInt8[Array, "b 1 t h w 3"]:
        """The canvas of clips."""
        return _to_levels(self._pixels(frames, None))[:, None]

    def reconstruct(self, frozen: Params, frames: UInt8[Array, "b v t h w 3"]) -> UInt8[Array, "b 1 t h w 3"]:
        """The canvas of clips of 4 n frames (a first one repeated in front) after the codec and back."""
        clip = self._pixels(frames, None)
        clip = jnp.concatenate([clip[:, :1], clip], axis=1)
        codec = self.config.frames
        return _to_levels(codec.decode(frozen["frames"], codec.encode(frozen["frames"], clip))[:, None, 1:])

    def passes(self, mode: str, frames: int | None = None) -> list[Pass]:
        """Network passes of one training sample ("train"), all of one length, or one chunk of a full window ("act")."""
        del frames
        n, frame = self.config.network, self._frame_tokens
        if mode == "train":
            plan = training_plan(frame, self.config.blocks, n)
            return [Pass(self.network, plan, plan.length, trained=True)]
        require(mode == "act", f"unknown mode '{mode}': use train or act")
        sampling = self.config.sampling
        commit = committing_plan(frame, self.window, n.block_frames)
        act = acting_plan(frame, self.window, n, sampling.state_sees)
        computed = sampling.computed if sampling.reuse == "static" else sampling.steps
        return [
            Pass(self.network, commit, frame * n.block_frames, self._branches),
            Pass(self.network, act, act.length - frame * self.window, self._branches * computed),
        ]

    # ---- inside ----

    @property
    def _branches(self) -> int:
        """Prompts per session: with guidance, the negative one too."""
        return 2 if self.config.sampling.guidance != 1 and self.imagines else 1

    @property
    def _frame_tokens(self) -> int:
        (y, x, _), (_, rows, columns) = self.latent_size, self.config.network.dit.patch
        return (y // rows) * (x // columns)

    def _apply(self, params: Params, *inputs: Any, **options: Any) -> Any:
        return self.network.apply({"params": params}, *inputs, **options)

    def _normalisation(self, frozen: Params) -> Normalisation:
        bounds = {part: Bounds(**frozen["statistics"][part]) for part in ("state", "action")}
        n, robot = self.config.network, self.embodiment
        return Normalisation(
            **bounds,
            reference=robot.reference,
            actions_per_chunk=n.block_actions,
            state_size=n.state,
            action_size=n.action,
        )

    def _pixels(self, frames: UInt8[Array, "b v t h w 3"], key: Array | None) -> Float[Array, "b t y x 3"]:
        """Views on their canvas, in [-1, 1]."""
        return pixels(canvas(frames, self.embodiment.layout, self.config.canvas, key), self.config.resized)

    def _block(self, clip: Float[Array, "b t y x 3"]) -> Float[Array, "b t y x 3"]:
        """A block's frames behind one more, the first again where it is missing."""
        wanted, given = 4 * self.config.network.block_frames, clip.shape[1]
        if given == wanted + 1:
            return clip
        require(
            wanted % given == 0,
            f"{given} frames are not those of a block: give {wanted}, {wanted + 1} or {wanted // 2}",
        )
        clip = jnp.repeat(clip, wanted // given, axis=1)
        return jnp.concatenate([clip[:, :1], clip], axis=1)

    def _begin(
        self,
        params: Params,
        frozen: Params,
        first: Float[Array, "b y x 3"],
        text: Memory,
        imagined: Latents,
        executed: Int[Array, " b"],
    ) -> Session:
        """Sessions that know one frame."""
        c, b = self.config, first.shape[0]
        latents = c.frames.encode(frozen["frames"], first[:, None])
        features = image_features(c.image, frozen["image"], first)
        image = [] if features is None else self._apply(params, None, self._repeat(features), method="remember")
        beside = jnp.zeros((*latents.shape[:1], 1 + c.network.block_frames * c.blocks, *latents.shape[2:4], 0))
        if self._reads_condition:
            clip = jnp.broadcast_to(first[:, None], (b, 1 + 4 * (beside.shape[1] - 1), *first.shape[1:]))
            beside = with_condition(c.frames, frozen["frames"], clip)
        image = _per_session(image, b)
        seen = self._repeat(jnp.concatenate([latents, beside[:, :1]], axis=-1))
        memory = _together(text) + _together(image)
        new = self._apply(params, seen, jnp.zeros(len(seen), int), memory, method="commit")
        room = ((0, 0),) * 2 + ((0, self._frame_tokens * (self.window - 1)),) + ((0, 0),) * 2
        cache = _per_session({name: jnp.pad(x, room) for name, x in new.items()}, b)
        return Session(text, image, beside, cache, jnp.ones(b, int), imagined, executed)

    def _commit(self, params: Params, state: Session, latents: Latents) -> Session:
        """Sessions that know a further block."""
        past, memory, start = self._past(state)
        seen = self._repeat(jnp.concatenate([latents, self._beside(state)], axis=-1))
        new = _per_session(self._apply(params, seen, start, memory, past, method="commit"), len(latents))
        place = jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2))
        cache = {name: place(x, new[name], state.known * self._frame_tokens) for name, x in state.cache.items()}
        return dataclasses.replace(state, cache=cache, known=state.known + self.config.network.block_frames)

    def _slide(self, state: Session) -> Session:
        """Sessions without their oldest block: later ones move up, their keys turned back by its frames.

        The first frame stays, as the image condition is its, and positions stay within those of training.
        """
        frames, frame = self.config.network.block_frames, self._frame_tokens
        pairs = self.config.network.dit.pairs
        back = rotation(jnp.array([[[-float(frames), 0.0, 0.0]]]), pairs)
        k, v = state.cache["k"], state.cache["v"]
        moved, flat = k[:, :, :, frame * (1 + frames) :], (-1, 1, *k.shape[-2:])
        turned = rotate(moved.reshape(flat), back).reshape(moved.shape)
        cache = {
            "k": k.at[:, :, :, frame : frame + turned.shape[3]].set(turned),
            "v": v.at[:, :, :, frame : frame + turned.shape[3]].set(v[:, :, :, frame * (1 + frames) :]),
        }
        return dataclasses.replace(state, cache=cache, known=state.known - frames)

    def _past(self, state: Session) -> tuple[Past, Memory, Int[Array, " b"]]:
        """What the network is told of the frames known, of prompt and image, and the number of the next frame."""
        known = jnp.repeat(state.known, self._branches)
        held = jnp.arange(self.window) < known[:, None]
        return Past(_together(state.cache), held), _together(state.text) + _together(state.image), known

    def _beside(self, state: Session) -> Latents:
        """The next block's share of the image condition; past the end, the last one's."""
        take = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=self.config.network.block_frames)
        return jax.vmap(take)(state.beside, state.known)

    def _repeat(self, x: Array) -> Array:
        """Every session's row once for each of its prompts."""
        return jnp.repeat(x, self._branches, axis=0)

    def _velocity(self, params: Params, state: Session, robot: Mapping[str, Array], frames: Latents) -> Any:
        """The model of the sampler; `frames` are seen where they are not denoised."""
        past, memory, start = self._past(state)
        n, beside, guidance = self.config.network, self._beside(state), self.config.sampling.guidance
        now, category = self._repeat(robot["state"]), self._repeat(robot["category"])

        def velocity(streams: Streams, sigma: dict[str, Float[Array, " b"]]) -> Streams:
            level = {name: self._repeat(integer_timestep(value))[:, None] for name, value in sigma.items()}
            noisy = jnp.concatenate([streams.get("video", frames), beside], axis=-1)
            video = jnp.repeat(level.get("video", jnp.full((len(start), 1), 999.0)), n.block_frames, axis=1)
            action = jnp.repeat(level["action"], n.block_actions, axis=1)
            robot = Robot(self._repeat(streams["action"]), action, now, category)
            inputs = (self._repeat(noisy), video, robot, start, memory, past, self.config.sampling.state_sees)
            output = self._apply(params, *inputs, method="denoise")
            each = [x.reshape(-1, self._branches, *x.shape[1:]) for x in output]
            seen = each[0][:, 0] if self._branches == 1 else guided(each[0][:, 0], each[0][:, 1], guidance)
            result = {"video": seen, "action": each[1][:, 0]}
            return {name: result[name] for name in streams}

        return velocity

    def _known(self, steps: Normalisation, prefix: Float[Array, "b p a"], now: Array) -> tuple[Array, Array]:
        """Committed actions as data (b, h, a) and mask (1, h, 1) for the sampler."""
        horizon = self.config.network.block_actions
        missing = horizon - prefix.shape[1]
        require(missing >= 0, f"a prefix of {prefix.shape[1]} actions is longer than the chunk of {horizon}")
        data = steps.normalise_actions(jnp.pad(prefix, ((0, 0), (0, missing), (0, 0))), now)
        return data, (jnp.arange(horizon) < prefix.shape[1])[None, :, None]


TIMES = TrainingTimes.wan()
"""Noise levels and weights of training, for frames and actions."""


def _together(tree: Any) -> Any:
    """Leaves (b, layers, r, ...) as the network has them, (layers, b r, ...)."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1, *x.shape[3:]), tree)


def _per_session(tree: Any, sessions: int) -> Any:
    """The inverse of `_together`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], sessions, -1, *x.shape[2:]), 0, 1), tree)


def _choose(rows: Array, yes: Session, no: Session) -> Session:
    """Row by row, one session or the other."""
    return jax.tree.map(lambda a, b: jnp.where(jnp.expand_dims(rows, range(1, a.ndim)), a, b), yes, no)


def _to_levels(clip: Float[Array, "*b 3"]) -> UInt8[Array, "*b 3"]:
    return jnp.clip(jnp.round((clip + 1) * 127.5), 0, 255).astype(jnp.uint8)
