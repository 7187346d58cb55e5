"""How policies of every kind meet a dataset: their samples, their frozen parameters, what they see."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from wamjax.data import embodiments
from wamjax.data.chunks import ChunkConfig, ChunkReader, chunk_batches
from wamjax.data.films import FilmConfig, FilmReader, film_batches, first_film
from wamjax.data.mixture import Dataset
from wamjax.data.normalise import Statistics, dataset_statistics
from wamjax.data.pipeline import Bucket, ClipReader, batches, episode_clips
from wamjax.data.samples import EpisodeReader
from wamjax.data.selection import Selection
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode, encode
from wamjax.errors import UserError
from wamjax.evaluation.open_loop import Predictor, open_loop, side_by_side
from wamjax.evaluation.replay import Replay
from wamjax.interop.checkpoint import load
from wamjax.interop.dreamzero import drawn, lacking
from wamjax.interop.keymap import flatten, nest
from wamjax.networks.stream_transformer import PARTITIONS as SMALL_PARTITIONS
from wamjax.networks.wan.dit import PARTITIONS as WAN_PARTITIONS
from wamjax.policies.contract import Params, Policy, SampleShapes
from wamjax.policies.dreamzero import stages
from wamjax.policies.dreamzero.config import DreamZeroConfig
from wamjax.policies.dreamzero.network import PARTITIONS as DREAMZERO_PARTITIONS
from wamjax.policies.dreamzero.network import DreamZeroNetwork
from wamjax.policies.dreamzero.policy import DreamZero
from wamjax.policies.frozen import AnyText, UMT5Text, pretrained_shapes
from wamjax.policies.small_wam import SmallWAM, SmallWAMConfig
from wamjax.policies.wan_video import WanVideo, WanVideoConfig
from wamjax.serving.protocols import PREFIX, STATE_SIZES
from wamjax.sharding.mesh import Rules, shardings
from wamjax.sharding.processes import say
from wamjax.training.loop import Batches

if TYPE_CHECKING:
    from wamjax.cli._experiment import Experiment, Trained


OPEN_LOOP_BATCHES, OPEN_LOOP_BATCH, CLIPS = 8, 16, 4
STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


@dataclasses.dataclass(frozen=True)
class Sketch:
    """A policy without a dataset or files, for planning and timing.

    Attributes:
        policy: the policy.
        frozen: shapes of its frozen parameters. batch: shapes of a training batch of one sample.
    """

    policy: Any
    frozen: Params
    batch: Any

    def encode(self, frozen: Params, batch: Any) -> Any:
        """What the policy's frozen networks make of a batch."""
        return self.policy.encode(frozen, None, batch)


class System(Protocol):
    """What a kind of policy makes of an experiment and a dataset.

    Attributes:
        rules: where its parameters lie on a mesh.
        unencoded: keys of its configuration that do not change what its frozen networks make of a sample.
    """

    @property
    def rules(self) -> Rules: ...

    @property
    def unencoded(self) -> tuple[str, ...]: ...

    def lengths(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """The experiment with samples of each length that its steps have: `data.frames`, or the policy's own.

        Raises:
            UserError: lengths that the policy cannot learn.
        """

    def shapes(self, experiment: Experiment, store: Dataset) -> SampleShapes:
        """Sizes of a sample of the dataset."""

    def policy(self, experiment: Experiment, shapes: SampleShapes) -> Policy:
        """The policy for such samples."""

    def loader(self, experiment: Experiment, store: Dataset, policy: Any) -> Batches:
        """Its training batches, as the loop asks for them."""

    def reader(self, experiment: Experiment, store: EpisodeStore, policy: Any) -> EpisodeReader:
        """The samples that the batches are made of, by their numbers, where they have one length."""

    def statistics(self, experiment: Experiment, store: Dataset, policy: Any) -> Statistics:
        """Of its state and action, by field: what they are normalised with, and what checkpoints carry."""

    def frozen(self, experiment: Experiment, store: Dataset, policy: Any, statistics: Statistics, mesh: Mesh) -> Params:
        """Its frozen parameters; pretrained ones lie on the mesh."""

    def initial(self, experiment: Experiment, policy: Any, mesh: Mesh) -> Params | None:
        """Trainable parameters to begin with, where they belong on the mesh; None for random ones."""

    def sees(self, experiment: Experiment) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Cameras in the order of the views, and the fields of its state."""

    def sizes(self, experiment: Experiment, total: int) -> dict[str, int]:
        """Sizes of the state's fields, which have `total` numbers, by their names on the wire."""

    def open_loop(self, loaded: Trained, store: EpisodeStore, folder: Path) -> dict[str, Any]:
        """Measures of a trained policy on recorded episodes; films go to the folder."""

    def film(self, loaded: Trained, store: EpisodeStore, episode: int, seed: int) -> tuple[np.ndarray, float]:
        """Recorded and imagined frames (t, h, w, 3) of an episode side by side, and their rate."""

    def sketch(self, experiment: Experiment, height: int, width: int) -> Sketch:
        """The policy for cameras of such frames; a UserError where its sizes are a dataset's."""


class SmallWAMSystem:
    """Clips around single steps."""

    rules = SMALL_PARTITIONS
    unencoded = (
        *("paradigm", "width", "layers", "heads", "mlp", "predict_video", "predict_action", "video_loss"),
        *("sampling_steps", "imagination_steps", "remat", "offload"),
    )

    def lengths(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """See `System`."""
        return _one_length(experiment)

    def shapes(self, experiment: Experiment, store: Dataset) -> SampleShapes:
        """See `System`; read off a first batch, which also checks cameras and fields."""
        options: dict[str, Any] = {"tokenize": lambda text: np.zeros(1, np.float32), "threads": 1}
        return SampleShapes.of(next(batches(store, _clip(experiment), batch_size=1, seed=0, **options)))

    def policy(self, experiment: Experiment, shapes: SampleShapes) -> SmallWAM:
        """See `System`."""
        config: Any = experiment.policy
        return SmallWAM(config, shapes)

    def loader(self, experiment: Experiment, store: Dataset, policy: SmallWAM) -> Batches:
        """See `System`."""
        options = _reading(experiment, policy)
        return lambda step, rows: batches(store, _clip(experiment), start_step=step, rows=rows, **options)

    def reader(self, experiment: Experiment, store: EpisodeStore, policy: SmallWAM) -> EpisodeReader:
        """See `System`."""
        return ClipReader(store, _clip(experiment), policy.tokenize, *_room(experiment))

    def statistics(self, experiment: Experiment, store: Dataset, policy: SmallWAM) -> Statistics:
        """See `System`."""
        clip, every = _clip(experiment), store.statistics
        fields = {"state": clip.state, "action": (clip.action,)}
        return {
            part: {name: {key: np.ravel(every[name][key]).tolist() for key in STATISTICS} for name in names}
            for part, names in fields.items()
        }

    def frozen(
        self, experiment: Experiment, store: Dataset, policy: SmallWAM, statistics: Statistics, mesh: Mesh
    ) -> Params:
        """See `System`."""
        whole = {
            part: {key: np.concatenate([field[key] for field in fields.values()]) for key in STATISTICS}
            for part, fields in statistics.items()
        }
        return policy.freeze(sample_frames(store, _clip(experiment).cameras), whole)

    def initial(self, experiment: Experiment, policy: SmallWAM, mesh: Mesh) -> None:
        """See `System`: always random."""

    def sees(self, experiment: Experiment) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See `System`."""
        return _clip(experiment).cameras, _clip(experiment).state

    def sizes(self, experiment: Experiment, total: int) -> dict[str, int]:
        """See `System`; a run records only their sum: DROID's are known, and the first takes what is left."""
        fields = _clip(experiment).state
        first, *others = (field.removeprefix(PREFIX) for field in fields)
        sizes = {first: 0} | {field: STATE_SIZES.get(field, 0) for field in others}
        sizes[first] = total - sum(sizes.values())
        if min(sizes.values()) < 1:
            raise UserError(f"the sizes of the run's state fields ({', '.join(fields)}; {total} in all) are not known")
        return sizes

    def open_loop(self, loaded: Trained, store: EpisodeStore, folder: Path) -> dict[str, Any]:
        """See `System`: clips drawn from all episodes."""
        clip, policy = _clip(loaded.experiment), loaded.policy
        predictor = Predictor(policy, loaded.params, loaded.frozen, video=policy.imagines)
        loader = batches(store, clip, batch_size=OPEN_LOOP_BATCH, seed=0, tokenize=policy.tokenize)
        summary: dict[str, Any] = {**open_loop(predictor, loader, OPEN_LOOP_BATCHES, clip.cameras), "clips": []}
        if policy.imagines:
            for index in range(0, len(store), max(1, len(store) // CLIPS)):
                film = side_by_side(predictor, episode_clips(store, clip, index, policy.tokenize), seed=index)
                path = folder / f"clip_{index:02d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(film, store.fps).data)
                summary["clips"].append(path.name)
        return summary

    def film(self, loaded: Trained, store: EpisodeStore, episode: int, seed: int) -> tuple[np.ndarray, float]:
        """See `System`."""
        predictor = Predictor(loaded.policy, loaded.params, loaded.frozen)
        clips = episode_clips(store, _clip(loaded.experiment), episode, loaded.policy.tokenize)
        return side_by_side(predictor, clips, seed), store.fps

    def sketch(self, experiment: Experiment, height: int, width: int) -> Sketch:
        """See `System`: never."""
        raise UserError(f"'{experiment.name}' takes its sizes from a dataset: give an experiment that says them itself")


class DreamZeroSystem:
    """Chunks of actions and their frames; pretrained networks where the experiment names them."""

    rules = DREAMZERO_PARTITIONS
    unencoded = ("network", "alpha", "coupled", "sampling", "compute", "prompts.negative")

    def lengths(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """See `System`."""
        return _one_length(experiment)

    def shapes(self, experiment: Experiment, store: Dataset) -> SampleShapes:
        """See `System`."""
        options: dict[str, Any] = {"tokenize": lambda text: np.zeros(1, np.float32), "threads": 1}
        height, width = next(self._batches(experiment, store, batch_size=1, seed=0, **options))["frames"].shape[3:5]
        policy = DreamZero(self._config(experiment), len(_robot(experiment).cameras), height, width)
        return policy.shapes

    def policy(self, experiment: Experiment, shapes: SampleShapes) -> DreamZero:
        """See `System`."""
        return DreamZero(self._config(experiment), shapes.views, shapes.height, shapes.width)

    def loader(self, experiment: Experiment, store: Dataset, policy: DreamZero) -> Batches:
        """See `System`."""
        options = _reading(experiment, policy)
        return lambda step, rows: self._batches(experiment, store, start_step=step, rows=rows, **options)

    def reader(self, experiment: Experiment, store: EpisodeStore, policy: DreamZero) -> EpisodeReader:
        """See `System`."""
        config = ChunkConfig.of(policy.embodiment, policy.config.blocks)
        return ChunkReader(store, policy.embodiment, config, policy.tokenize, *_room(experiment))

    def statistics(self, experiment: Experiment, store: Dataset, policy: DreamZero) -> Statistics:
        """See `System`; relative actions have relative ones."""
        return dataset_statistics(store, policy.embodiment)

    def frozen(
        self, experiment: Experiment, store: Dataset, policy: DreamZero, statistics: Statistics, mesh: Mesh
    ) -> Params:
        """See `System`."""
        given = frozen_networks(experiment, policy, mesh)
        frames = sample_frames(store, policy.embodiment.cameras)
        return policy.freeze(frames, statistics, given)

    def initial(self, experiment: Experiment, policy: DreamZero, mesh: Mesh) -> Params | None:
        """See `System`; what a Wan transformer lacks (codecs, and the image branch of 5B) is random."""
        places = shardings(jax.eval_shape(policy.init, jax.random.key(0)), self.rules, mesh)
        inside = lambda found: "" if isinstance(found, DreamZeroNetwork) else "dit/"  # noqa: E731
        return starting_weights(experiment, policy, mesh, places, inside)

    def sees(self, experiment: Experiment) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See `System`."""
        robot = _robot(experiment)
        return robot.cameras, tuple(field.name for field in robot.state)

    def sizes(self, experiment: Experiment, total: int) -> dict[str, int]:
        """See `System`."""
        return {field.name.removeprefix(PREFIX): field.size for field in _robot(experiment).state}

    def open_loop(self, loaded: Trained, store: EpisodeStore, folder: Path) -> dict[str, Any]:
        """See `System`: whole episodes, replayed chunk by chunk."""
        return self._replay(loaded, seed=0)(store[i] for i in range(len(store)))

    def film(self, loaded: Trained, store: EpisodeStore, episode: int, seed: int) -> tuple[np.ndarray, float]:
        """See `System`."""
        policy: Any = loaded.policy
        return self._replay(loaded, seed).film(store[episode]), store.fps / policy.stride

    def sketch(self, experiment: Experiment, height: int, width: int) -> Sketch:
        """See `System`."""
        views = len(_robot(experiment).cameras)
        policy = DreamZero(without_files(self._config(experiment)), views, height, width)
        rows, columns, _ = policy.latent_size
        side = policy.config.frames.factor
        frames = np.zeros((2, rows * side, columns * side, 3), np.uint8)  # to fit a codec on, where none is given
        frozen = policy.freeze(frames, stages.statistics(policy), pretrained_shapes(policy.config))
        return Sketch(policy, shapes_of(frozen), shapes_of(stages.batch(policy, 1)))

    def _replay(self, loaded: Trained, seed: int) -> Replay:
        policy: Any = loaded.policy
        action = tuple(field.name for field in policy.embodiment.action)
        return Replay(policy, loaded.params, loaded.frozen, *self.sees(loaded.experiment), action, seed)

    def _config(self, experiment: Experiment) -> DreamZeroConfig:
        config: Any = experiment.policy
        return config

    def _batches(self, experiment: Experiment, store: Dataset, **options: Any) -> Any:
        robot = _robot(experiment)
        return chunk_batches(store, robot, ChunkConfig.of(robot, self._config(experiment).blocks), **options)


class WanVideoSystem:
    """Films of one camera and their captions."""

    rules = WAN_PARTITIONS
    unencoded = (
        *("network", "shift", "first_frame", "drop_text", "negative", "compute", "recipe.steps", "recipe.shift"),
        *("recipe.solver", "recipe.guidance", "recipe.low_guidance", "recipe.boundary"),
    )

    def lengths(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """See `System`."""
        config, data = self._config(experiment), experiment.data
        for frames in data.frames:
            if frames % 4 != 1 or frames < 1:
                raise UserError(f"data.frames={data.frames}: films have 4 n + 1 frames, and {frames} is no such number")
        data = dataclasses.replace(data, frames=(), shares=())
        policies = [config.long(frames) for frames in experiment.data.frames] or [config]
        return tuple(dataclasses.replace(experiment, policy=each, data=data) for each in policies)

    def shapes(self, experiment: Experiment, store: Dataset) -> SampleShapes:
        """See `System`."""
        config, film, room = self._config(experiment), self._film(experiment), _room(experiment)
        Bucket.of(store, lambda one, _: FilmReader(one, film, lambda text: np.zeros(1), *room))  # which checks it
        return WanVideo(config, *store.cameras[config.camera]).shapes

    def policy(self, experiment: Experiment, shapes: SampleShapes) -> WanVideo:
        """See `System`."""
        return WanVideo(self._config(experiment), shapes.height, shapes.width)

    def loader(self, experiment: Experiment, store: Dataset, policy: WanVideo) -> Batches:
        """See `System`."""
        films = [self._film(each) for each in self.lengths(experiment)]
        options = _reading(experiment, policy) | {"shares": experiment.data.shares or None}
        return lambda step, rows: film_batches(store, films, start_step=step, rows=rows, **options)

    def reader(self, experiment: Experiment, store: EpisodeStore, policy: WanVideo) -> EpisodeReader:
        """See `System`."""
        return FilmReader(store, self._film(experiment), policy.tokenize, *_room(experiment))

    def statistics(self, experiment: Experiment, store: Dataset, policy: WanVideo) -> Statistics:
        """See `System`: there is neither state nor action."""
        return {}

    def frozen(
        self, experiment: Experiment, store: Dataset, policy: WanVideo, statistics: Statistics, mesh: Mesh
    ) -> Params:
        """See `System`."""
        given = frozen_networks(experiment, policy, mesh)
        frames = np.zeros((0, policy.height, policy.width, 3), np.uint8)
        if "frames" not in given:
            frames = sample_frames(store, (policy.config.camera,))
        return policy.freeze(frames, statistics, given)

    def initial(self, experiment: Experiment, policy: WanVideo, mesh: Mesh) -> Params | None:
        """See `System`."""
        places = shardings(jax.eval_shape(policy.init, jax.random.key(0)), self.rules, mesh)
        return starting_weights(experiment, policy, mesh, places, lambda found: "")

    def sees(self, experiment: Experiment) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See `System`."""
        return (self._config(experiment).camera,), ()

    def sizes(self, experiment: Experiment, total: int) -> dict[str, int]:
        """See `System`: there is no state."""
        return {}

    def open_loop(self, loaded: Trained, store: EpisodeStore, folder: Path) -> dict[str, Any]:
        """See `System`: never, as there are no actions to measure."""
        raise UserError(
            f"'{loaded.experiment.name}' predicts no actions: look at its validation loss, and at `wamjax imagine`"
        )

    def film(self, loaded: Trained, store: EpisodeStore, episode: int, seed: int) -> tuple[np.ndarray, float]:
        """See `System`: the beginning of the episode."""
        policy: Any = loaded.policy
        batch = first_film(store, self._film(loaded.experiment), episode, policy.tokenize)
        now = {"frames": batch["frames"][:, :, 0], "language": batch["language"]}

        @jax.jit
        def imagine(params: Params, frozen: Params, now: Any, key: Any) -> Any:
            state = policy.reset(params, frozen, now)
            return policy.imagine(params, frozen, state, now, policy.draw_act(key, 1))

        imagined = imagine(loaded.params, loaded.frozen, now, jax.random.key(seed))
        recorded = policy.picture(jax.numpy.asarray(batch["frames"]))
        return np.concatenate([recorded[0, 0], imagined[0, 0]], axis=2), policy.config.recipe.fps

    def sketch(self, experiment: Experiment, height: int, width: int) -> Sketch:
        """See `System`."""
        policy = WanVideo(without_files(self._config(experiment)), height, width)
        frames, given = np.zeros((2, height, width, 3), np.uint8), pretrained_shapes(policy.config)
        frozen = jax.eval_shape(lambda given: policy.freeze(frames, {}, given), given)
        films = np.zeros((1, 1, policy.config.recipe.frames, height, width, 3), np.uint8)
        batch = {
            "frames": films,
            "language": np.asarray(policy.tokenize("a robot arm opens a drawer"), np.float32)[None],
        }
        return Sketch(policy, frozen, shapes_of(batch))

    def _config(self, experiment: Experiment) -> WanVideoConfig:
        config: Any = experiment.policy
        return config

    def _film(self, experiment: Experiment) -> FilmConfig:
        config = self._config(experiment)
        return FilmConfig(config.camera, config.recipe.frames, config.recipe.fps)


SYSTEMS: Mapping[type, System] = {
    SmallWAMConfig: SmallWAMSystem(),
    DreamZeroConfig: DreamZeroSystem(),
    WanVideoConfig: WanVideoSystem(),
}
"""By the class of a policy's configuration."""


def frozen_networks(experiment: Experiment, policy: DreamZero | WanVideo, mesh: Mesh) -> dict[str, Params]:
    """Weights of the pretrained networks that a policy reads through, on the mesh."""
    parts = {"frames": "vae", "text": "text_encoder", "image": "image_encoder"}
    wanted = {ours: theirs for ours, theirs in parts.items() if ours in policy.pretrained}
    if wanted and not experiment.weights:
        raise UserError(f"the policy reads through a pretrained {', '.join(wanted.values())}: set weights=FOLDER")
    return {ours: load(experiment.weights, theirs, sharding=mesh).params for ours, theirs in wanted.items()}


def starting_weights(
    experiment: Experiment, policy: DreamZero | WanVideo, mesh: Mesh, places: Any, inside: Callable[[Any], str]
) -> Params | None:
    """A pretrained transformer as trainable parameters on the mesh; what it lacks is random.

    Args:
        experiment, policy, mesh: whose.
        places: where parameters belong. inside: under which path a loaded network's have their place.
    """
    if not experiment.weights:
        return None
    loaded = load(experiment.weights, "transformer", dtype=np.float32, sharding=mesh)
    found = {inside(loaded.module) + path: leaf for path, leaf in flatten(loaded.params).items()}
    missing, every = lacking(policy, found), flatten(places)
    if missing:
        say(f"{len(missing)} parameters are not in {experiment.weights} and begin at random, first {min(missing)}")
    return nest(found | drawn(policy, {path: every[path] for path in missing}, experiment.train.seed))


def without_files(config: Any) -> Any:
    """A policy's configuration with a tokenizer that needs no file."""
    text = config.text
    return (
        dataclasses.replace(config, text=AnyText(text.encoder, text.length)) if isinstance(text, UMT5Text) else config
    )


def shapes_of(tree: Any) -> Any:
    """The shapes of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def sample_frames(store: Dataset, cameras: Sequence[str], count: int = 1024) -> np.ndarray:
    """Evenly spread training frames of some cameras (n, h, w, 3), to fit a frame codec on."""
    episodes = np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).astype(int))
    each = max(1, count // len(episodes))
    frames = []
    for index in episodes:
        videos = store[int(index)].videos
        for camera in cameras:
            chosen = np.unique(np.linspace(0, videos[camera].frames - 1, each).astype(int))
            frames.append(decode(videos[camera], chosen))
    return np.concatenate(frames)


def _reading(experiment: Experiment, policy: Policy) -> dict[str, Any]:
    """Arguments that the batches of all kinds of samples share."""
    train, data = experiment.train, experiment.data
    return {
        "batch_size": train.batch_size,
        "seed": train.seed,
        "tokenize": policy.tokenize,
        "selection": data.selection,
        "cache_bytes": data.cache_mib << 20,
        "workers": data.workers,
        "numbered": True,
        "keyed": train.augment is not None,
    }


def _room(experiment: Experiment) -> tuple[int, Selection]:
    """Memory for decoded episodes, and the steps at which samples begin."""
    return experiment.data.cache_mib << 20, experiment.data.selection


def _one_length(experiment: Experiment) -> tuple[Experiment]:
    if experiment.data.frames:
        raise UserError(
            f"data.frames={experiment.data.frames}: only films have several lengths, and '{experiment.name}' is not "
            "trained on films: leave it ()"
        )
    return (experiment,)


def _clip(experiment: Experiment) -> Any:
    if experiment.clip is None:
        raise UserError("configuration 'clip' is missing: say which cameras, frames and actions a sample has")
    return experiment.clip


def _robot(experiment: Experiment) -> Any:
    return embodiments.load(experiment.policy.embodiment)  # type: ignore[union-attr]
