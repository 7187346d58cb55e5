"""How policies of every kind meet a dataset: their samples, their frozen parameters, what they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from wamjax.data.chunks import ChunkConfig, chunk_batches
from wamjax.data.normalise import Statistics, dataset_statistics
from wamjax.data.pipeline import batches, episode_clips
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode, encode
from wamjax.errors import UserError
from wamjax.evaluation.open_loop import Predictor, open_loop, side_by_side
from wamjax.evaluation.replay import Replay
from wamjax.interop.checkpoint import load
from wamjax.interop.dreamzero import drawn, lacking
from wamjax.interop.keymap import flatten, nest
from wamjax.networks.stream_transformer import PARTITIONS as SMALL_PARTITIONS
from wamjax.policies.contract import Params, Policy, SampleShapes
from wamjax.policies.dreamzero.config import DreamZeroConfig
from wamjax.policies.dreamzero.network import PARTITIONS as DREAMZERO_PARTITIONS
from wamjax.policies.dreamzero.network import DreamZeroNetwork
from wamjax.policies.dreamzero.policy import DreamZero
from wamjax.policies.small_wam import SmallWAM, SmallWAMConfig
from wamjax.serving.protocols import PREFIX, STATE_SIZES
from wamjax.sharding.mesh import Rules, shardings
from wamjax.sharding.processes import say
from wamjax.training.loop import Batches

if TYPE_CHECKING:
    from wamjax.cli._experiment import Experiment, Trained


OPEN_LOOP_BATCHES, OPEN_LOOP_BATCH, CLIPS = 8, 16, 4
STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


class System(Protocol):
    """What a kind of policy makes of an experiment and a dataset.

    Attributes:
        rules: where its parameters lie on a mesh.
    """

    @property
    def rules(self) -> Rules: ...

    def shapes(self, experiment: Experiment, store: EpisodeStore) -> SampleShapes:
        """Sizes of a sample of the dataset."""

    def policy(self, experiment: Experiment, shapes: SampleShapes) -> Policy:
        """The policy for such samples."""

    def loader(self, experiment: Experiment, store: EpisodeStore, policy: Any) -> Batches:
        """Its training batches, as the loop asks for them."""

    def statistics(self, experiment: Experiment, store: EpisodeStore, policy: Any) -> Statistics:
        """Of its state and action, by field: what they are normalised with, and what checkpoints carry."""

    def frozen(
        self, experiment: Experiment, store: EpisodeStore, policy: Any, statistics: Statistics, mesh: Mesh
    ) -> Params:
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


class SmallWAMSystem:
    """Clips around single steps."""

    rules = SMALL_PARTITIONS

    def shapes(self, experiment: Experiment, store: EpisodeStore) -> SampleShapes:
        """See `System`; read off a first batch, which also checks cameras and fields."""
        options: dict[str, Any] = {"tokenize": lambda text: np.zeros(1, np.float32), "threads": 1}
        return SampleShapes.of(next(batches(store, _clip(experiment), batch_size=1, seed=0, **options)))

    def policy(self, experiment: Experiment, shapes: SampleShapes) -> SmallWAM:
        """See `System`."""
        config: Any = experiment.policy
        return SmallWAM(config, shapes)

    def loader(self, experiment: Experiment, store: EpisodeStore, policy: SmallWAM) -> Batches:
        """See `System`."""
        options: dict[str, Any] = {"batch_size": experiment.train.batch_size, "seed": experiment.train.seed}
        options["tokenize"] = policy.tokenize
        options["numbered"] = experiment.train.watch.log_samples
        return lambda step, rows: batches(store, _clip(experiment), start_step=step, rows=rows, **options)

    def statistics(self, experiment: Experiment, store: EpisodeStore, policy: SmallWAM) -> Statistics:
        """See `System`."""
        clip, every = _clip(experiment), store.statistics
        fields = {"state": clip.state, "action": (clip.action,)}
        return {
            part: {name: {key: np.ravel(every[name][key]).tolist() for key in STATISTICS} for name in names}
            for part, names in fields.items()
        }

    def frozen(
        self, experiment: Experiment, store: EpisodeStore, policy: SmallWAM, statistics: Statistics, mesh: Mesh
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


class DreamZeroSystem:
    """Chunks of actions and their frames; pretrained networks where the experiment names them."""

    rules = DREAMZERO_PARTITIONS

    def shapes(self, experiment: Experiment, store: EpisodeStore) -> SampleShapes:
        """See `System`."""
        options: dict[str, Any] = {"tokenize": lambda text: np.zeros(1, np.float32), "threads": 1}
        height, width = next(self._batches(experiment, store, batch_size=1, seed=0, **options))["frames"].shape[3:5]
        policy = DreamZero(self._config(experiment), len(_robot(experiment).cameras), height, width)
        return policy.shapes

    def policy(self, experiment: Experiment, shapes: SampleShapes) -> DreamZero:
        """See `System`."""
        return DreamZero(self._config(experiment), shapes.views, shapes.height, shapes.width)

    def loader(self, experiment: Experiment, store: EpisodeStore, policy: DreamZero) -> Batches:
        """See `System`."""
        options: dict[str, Any] = {"batch_size": experiment.train.batch_size, "seed": experiment.train.seed}
        options["tokenize"] = policy.tokenize
        options["numbered"] = experiment.train.watch.log_samples
        return lambda step, rows: self._batches(experiment, store, start_step=step, rows=rows, **options)

    def statistics(self, experiment: Experiment, store: EpisodeStore, policy: DreamZero) -> Statistics:
        """See `System`; relative actions have relative ones."""
        return dataset_statistics(store, policy.embodiment)

    def frozen(
        self, experiment: Experiment, store: EpisodeStore, policy: DreamZero, statistics: Statistics, mesh: Mesh
    ) -> Params:
        """See `System`."""
        parts = {"frames": "vae", "text": "text_encoder", "image": "image_encoder"}
        wanted = {ours: theirs for ours, theirs in parts.items() if ours in policy.pretrained}
        if wanted and not experiment.weights:
            raise UserError(f"the policy reads through a pretrained {', '.join(wanted.values())}: set weights=FOLDER")
        given = {ours: load(experiment.weights, theirs, sharding=mesh).params for ours, theirs in wanted.items()}
        frames = sample_frames(store, policy.embodiment.cameras)
        return policy.freeze(frames, statistics, given)

    def initial(self, experiment: Experiment, policy: DreamZero, mesh: Mesh) -> Params | None:
        """See `System`; what a Wan transformer lacks (codecs, and the image branch of 5B) is random."""
        if not experiment.weights:
            return None
        loaded = load(experiment.weights, "transformer", dtype=np.float32, sharding=mesh)
        inside = "" if isinstance(loaded.module, DreamZeroNetwork) else "dit/"
        found = {inside + path: leaf for path, leaf in flatten(loaded.params).items()}
        missing = lacking(policy, found)
        if missing:
            say(f"{len(missing)} parameters are not in {experiment.weights} and begin at random, first {min(missing)}")
        places = flatten(shardings(jax.eval_shape(policy.init, jax.random.key(0)), self.rules, mesh))
        return nest(found | drawn(policy, {path: places[path] for path in missing}, experiment.train.seed))

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

    def _replay(self, loaded: Trained, seed: int) -> Replay:
        policy: Any = loaded.policy
        action = tuple(field.name for field in policy.embodiment.action)
        return Replay(policy, loaded.params, loaded.frozen, *self.sees(loaded.experiment), action, seed)

    def _config(self, experiment: Experiment) -> DreamZeroConfig:
        config: Any = experiment.policy
        return config

    def _batches(self, experiment: Experiment, store: EpisodeStore, **options: Any) -> Any:
        robot = _robot(experiment)
        return chunk_batches(store, robot, ChunkConfig.of(robot, self._config(experiment).blocks), **options)


SYSTEMS: Mapping[type, System] = {SmallWAMConfig: SmallWAMSystem(), DreamZeroConfig: DreamZeroSystem()}
"""By the class of a policy's configuration."""


def sample_frames(store: EpisodeStore, cameras: Sequence[str], count: int = 1024) -> np.ndarray:
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


def _clip(experiment: Experiment) -> Any:
    if experiment.clip is None:
        raise UserError("configuration 'clip' is missing: say which cameras, frames and actions a sample has")
    return experiment.clip


def _robot(experiment: Experiment) -> Any:
    from wamjax.data import embodiments

    return embodiments.load(experiment.policy.embodiment)  # type: ignore[union-attr]
