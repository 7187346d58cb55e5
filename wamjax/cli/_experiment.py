"""An experiment: the sections of a configuration file, and the parts they build."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wamjax import config as configuration
from wamjax.data.pipeline import ClipConfig, batches
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode
from wamjax.errors import UserError
from wamjax.evaluation.collect import CollectConfig
from wamjax.evaluation.runner import Trials
from wamjax.policies.contract import SampleShapes
from wamjax.policies.small_wam import SmallWAM, SmallWAMConfig
from wamjax.sharding.mesh import MeshConfig
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.loop import Batches, TrainConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a policy is tried out, on the tasks and in the environment that the dataset was collected in.

    Attributes:
        episodes_per_task: held-out instances of each task.
        execute: decisions of a chunk that are executed before the next is asked for.
        slots: episodes that run side by side, and the batch of the policy.
        sampling_seed: of the policy's noise.
        videos_per_task: episodes that are filmed.
    """

    episodes_per_task: int = 25
    execute: int = 4
    slots: int = 8
    sampling_seed: int = 0
    videos_per_task: int = 2


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A named experiment; every section is a frozen dataclass of the room that uses it.

    Attributes:
        name: the variant, as it appears in reports.
        policy, clip, train, mesh: what is trained, on which samples, how and where.
        collect: how the dataset is made. evaluation: how the policy is tried out.
    """

    name: str
    policy: SmallWAMConfig
    clip: ClipConfig
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    collect: CollectConfig = CollectConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def load(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Reads a configuration file (or a run's config.json) and applies `key=value` overrides."""
    complete = configuration.to_dict(configuration.build(Experiment, configuration.load(path)))
    return configuration.build(Experiment, configuration.override(complete, overrides))


def trials(experiment: Experiment, seed_set: str) -> Trials:
    """The closed-loop episodes of an experiment on a named set of seeds."""
    options = dataclasses.asdict(experiment.evaluation)
    return Trials(experiment.collect.tasks, experiment.collect.environment, seed_set, **options)


def loader(store: EpisodeStore, experiment: Experiment, policy: SmallWAM) -> Batches:
    """The training batches of an experiment, as the loop asks for them."""

    def start(step: int, rows: slice) -> Any:
        return batches(
            store,
            experiment.clip,
            batch_size=experiment.train.batch_size,
            seed=experiment.train.seed,
            tokenize=policy.tokenize,
            start_step=step,
            rows=rows,
        )

    return start


def sample_shapes(store: EpisodeStore, clip: ClipConfig) -> SampleShapes:
    """Sizes of one sample, read off a first batch (which also checks cameras and fields)."""
    batch = next(batches(store, clip, batch_size=1, seed=0, tokenize=lambda text: np.zeros(1, np.float32), threads=1))
    return SampleShapes.of(batch)


def statistics(store: EpisodeStore, clip: ClipConfig) -> dict[str, dict[str, np.ndarray]]:
    """The dataset's statistics of a policy's state (its fields joined) and actions."""
    every = store.statistics

    def joined(fields: tuple[str, ...]) -> dict[str, np.ndarray]:
        names = ("mean", "std", "min", "max", "q01", "q99")
        return {name: np.concatenate([np.ravel(every[field][name]) for field in fields]) for name in names}

    return {"state": joined(clip.state), "action": joined((clip.action,))}


def codec_frames(store: EpisodeStore, clip: ClipConfig, count: int = 1024) -> np.ndarray:
    """Evenly spread training frames of all cameras (n, h, w, 3), to fit a frame codec on."""
    episodes = np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).astype(int))
    each = max(1, count // len(episodes))
    frames = []
    for index in episodes:
        videos = store[int(index)].videos
        for camera in clip.cameras:
            chosen = np.unique(np.linspace(0, videos[camera].frames - 1, each).astype(int))
            frames.append(decode(videos[camera], chosen))
    return np.concatenate(frames)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A policy as a run left it: the averaged parameters of its newest checkpoint.

    Attributes:
        experiment: the run's configuration. policy: the policy.
        params, frozen: its parameters. step: of the checkpoint.
    """

    experiment: Experiment
    policy: SmallWAM
    params: Any
    frozen: Any
    step: int


def trained(run: str | Path, overrides: Iterable[str] = ()) -> Trained:
    """Loads the newest checkpoint of a run folder; `key=value` overrides change how it is used, not what it is.

    Raises:
        UserError: no run, no checkpoint, or parameters that the configuration does not describe.
    """
    folder = Path(run)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} holds no checkpoints: give the --out folder of `wamjax train`")
    checkpoints = Checkpoints(folder)
    step = checkpoints.latest
    if step is None:
        raise UserError(f"{folder} has no finished checkpoint yet: let `wamjax train` run until its first one")
    meta = checkpoints.meta(step)
    experiment = configuration.build(Experiment, configuration.override(meta["config"], overrides))
    policy = SmallWAM(experiment.policy, configuration.build(SampleShapes, meta["shapes"]))
    params, frozen = checkpoints.params(step)
    checkpoints.close()
    _check_structure(params, jax.eval_shape(policy.init, jax.random.key(0)), checkpoints.path(step))
    return Trained(experiment, policy, params, frozen, step)


def _check_structure(params: Any, expected: Any, path: Path) -> None:
    """Every parameter there, none unexpected, all of the right shape."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    found, wanted = shapes(params), shapes(expected)
    wrong = [name for name in found | wanted if found.get(name) != wanted.get(name)]
    if wrong:
        name = sorted(wrong)[0]
        raise UserError(
            f"{path} is the checkpoint of another policy: {len(wrong)} parameters differ, first {name} "
            f"(there {found.get(name)}, expected {wanted.get(name)})"
        )
