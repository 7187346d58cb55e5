"""An experiment: the sections of a configuration file, and the parts they build."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wamjax import config as configuration
from wamjax.cli._systems import SYSTEMS, Sketch, System
from wamjax.data.normalise import Statistics
from wamjax.data.pipeline import ClipConfig, DataConfig
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError
from wamjax.evaluation.collect import CollectConfig
from wamjax.evaluation.runner import Trials
from wamjax.policies.contract import Policy, SampleShapes
from wamjax.policies.dreamzero.config import DreamZeroConfig
from wamjax.policies.small_wam import SmallWAMConfig
from wamjax.policies.wan_video import WanVideoConfig
from wamjax.sharding.mesh import MeshConfig
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.loop import TrainConfig
from wamjax.training.lora import merged


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
        policy, train, mesh: what is trained, how and where.
        clip: on which samples, where the policy does not say so itself (SmallWAM).
        data: how its datasets are read.
        weights: folder of pretrained networks (published, or from `wamjax import`) to begin with; empty for none.
        collect: how the dataset is made. evaluation: how the policy is tried out.
    """

    name: str
    policy: SmallWAMConfig | DreamZeroConfig | WanVideoConfig
    clip: ClipConfig | None = None
    data: DataConfig = DataConfig()
    weights: str = ""
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    collect: CollectConfig = CollectConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def load(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Reads a configuration file (or a run's config.json) and applies `key=value` overrides."""
    complete = configuration.to_dict(configuration.build(Experiment, configuration.load(path)))
    return configuration.build(Experiment, configuration.override(complete, overrides))


def system(experiment: Experiment) -> System:
    """How the experiment's policy meets a dataset."""
    return SYSTEMS[type(experiment.policy)]


def longest(experiment: Experiment) -> Experiment:
    """The experiment with samples of one length, the longest that its steps have; what fits is decided by these."""
    lengths = system(experiment).lengths(experiment)
    return lengths[int(np.argmax(experiment.data.frames))] if len(lengths) > 1 else lengths[0]


def sketch(experiment: Experiment, frame: str) -> Sketch:
    """An experiment's policy for cameras of `frame` ("180x320"), without a dataset or files; for timing and planning.

    Raises:
        UserError: a frame that is no size, or a policy that takes its sizes from a dataset.
    """
    height, cross, width = frame.partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise UserError(f"--frame {frame}: write height and width in pixels, for instance 180x320")
    return system(experiment).sketch(experiment, int(height), int(width))


def trials(experiment: Experiment, seed_set: str) -> Trials:
    """The closed-loop episodes of an experiment on a named set of seeds."""
    options = dataclasses.asdict(experiment.evaluation)
    return Trials(experiment.collect.tasks, experiment.collect.environment, seed_set, **options)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A policy as a run left it: the averaged parameters of its newest checkpoint.

    Attributes:
        experiment: the run's configuration. policy: the policy.
        params, frozen: its parameters. step: of the checkpoint.
        statistics: of the fields of its state and action; none in runs of earlier versions.
    """

    experiment: Experiment
    policy: Policy
    params: Any
    frozen: Any
    step: int
    statistics: Statistics


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
    policy = system(experiment).policy(experiment, configuration.build(SampleShapes, meta["shapes"]))
    params, frozen = checkpoints.params(step)
    params, frozen = merged(params, frozen, experiment.train.lora)
    checkpoints.close()
    _check_structure(params, jax.eval_shape(policy.init, jax.random.key(0)), checkpoints.path(step))
    return Trained(experiment, policy, params, frozen, step, meta.get("statistics", {}))


def statistics(run: str | Path, store: EpisodeStore) -> tuple[Statistics, Statistics]:
    """Those that a run's newest checkpoint carries, and those that it would carry had it been trained on a dataset.

    Raises:
        UserError: no run, no checkpoint, one without statistics, or a dataset without the fields.
    """
    checkpoints = Checkpoints(Path(run))
    if (step := checkpoints.latest) is None:
        raise UserError(f"{run} has no finished checkpoint yet: let `wamjax train` run until its first one")
    meta = checkpoints.meta(step)
    checkpoints.close()
    if not meta.get("statistics"):
        raise UserError(f"{checkpoints.path(step)} carries no statistics: train again, or compare with its dataset")
    experiment = configuration.build(Experiment, meta["config"])
    policy = system(experiment).policy(experiment, configuration.build(SampleShapes, meta["shapes"]))
    return meta["statistics"], system(experiment).statistics(experiment, store, policy)


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
