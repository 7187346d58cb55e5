"""An experiment: the sections of a configuration file, and the parts they build."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wamjax import config as configuration
from wamjax.data.pipeline import ClipConfig, batches
from wamjax.data.store import EpisodeStore
from wamjax.data.video import decode
from wamjax.evaluation.collect import CollectConfig
from wamjax.policies.contract import SampleShapes
from wamjax.policies.small_wam import SmallWAM, SmallWAMConfig
from wamjax.sharding.mesh import MeshConfig
from wamjax.training.loop import Batches, TrainConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a policy is tried out in closed loop, in the environments that the dataset was collected in.

    Attributes:
        episodes_per_task: held-out instances of each task.
        execute: decisions of a chunk that are executed before the next is asked for.
        slots: episodes that run side by side, and the batch of the policy.
        seed: of the sampling noise.
    """

    episodes_per_task: int = 25
    execute: int = 4
    slots: int = 8
    seed: int = 0


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
