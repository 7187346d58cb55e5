"""Every registered experiment builds its policy; those of published size have the published number of parameters."""

from pathlib import Path

import jax
import pytest

from wamjax.cli import _experiment
from wamjax.compute.flops import parameter_count
from wamjax.policies.contract import SampleShapes
from wamjax.policies.dreamzero.config import DreamZeroConfig
from wamjax.policies.dreamzero.policy import DreamZero
from wamjax.policies.wan_video import WanVideo, WanVideoConfig
from wamjax.training.lora import split
from wamjax.training.optimizer import OptimizerConfig
from wamjax.training.paths import leaves, matches

CONFIGS = Path(__file__).parents[1] / "configs"
EVERY = sorted(path.stem for path in CONFIGS.glob("*.py"))
DREAMZEROS = {"dreamzero_14b_droid": 16_484_292_448, "dreamzero_5b_droid": 5_606_692_832}
PUBLISHED = DREAMZEROS | {"wan_14b_720p": 14_288_491_584}
CODECS = """train.lora={'full': ('(state|action)_\\\\w+/.*',)}"""


def built(name: str, *overrides: str):
    """The experiment and its policy, for frames of DROID's server or of the demo."""
    experiment = _experiment.load(CONFIGS / f"{name}.py", overrides)
    if isinstance(experiment.policy, DreamZeroConfig):
        views = {"droid": 3, "metaworld": 2}[experiment.policy.embodiment]
        return experiment, DreamZero(experiment.policy, views, 180, 320)
    if isinstance(experiment.policy, WanVideoConfig):
        return experiment, WanVideo(experiment.policy, 720, 1280)
    views, horizon = len(experiment.clip.cameras), experiment.clip.action_horizon
    shapes = SampleShapes(views, 64, 64, len(experiment.clip.frame_offsets) - 1, horizon, state=4, action=4)
    return experiment, _experiment.system(experiment).policy(experiment, shapes)


@pytest.mark.parametrize("name", EVERY)
def test_every_experiment_builds_its_policy(name):
    _, policy = built(name)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    assert parameter_count(params) == PUBLISHED.get(name, parameter_count(params)) > 0


@pytest.mark.parametrize("name", DREAMZEROS)
def test_weights_decay_as_published(name):
    """All but biases of Wan's layers and the layer norms of text and image, of which every kind occurs."""
    experiment, policy = built(name)
    optimizer: OptimizerConfig = experiment.train.optimizer
    found = leaves(jax.eval_shape(policy.init, jax.random.key(0)))
    stay = {path for path in found if not matches(path, optimizer.decayed)}
    for path in found:
        codec = not path.startswith("dit/")
        layer_norm = "norm_cross" in path or "image_embedding/norm" in path
        assert (path in stay) == ((path.endswith("bias") and not codec) or layer_norm), path


@pytest.mark.parametrize(("name", "adapters"), {"dreamzero_14b_droid": 19.17e6, "dreamzero_5b_droid": 10.08e6}.items())
def test_adapters_have_the_published_size(name, adapters):
    """Rank 4 on attention and MLP, beside the codecs: the overrides of the files' docstrings."""
    experiment, policy = built(name, CODECS)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    codecs = parameter_count({k: v for k, v in params.items() if k != "dit"})
    trained, _ = jax.eval_shape(lambda p: split(p, experiment.train.lora, jax.random.key(0)), params)
    assert parameter_count(trained) - codecs == pytest.approx(adapters, rel=5e-4)
