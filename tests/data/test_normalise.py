"""q99 normalisation and relative actions: the original's values, there and back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.data import normalise as module
from wamjax.data.embodiments import Embodiment, Field, load
from wamjax.data.episode import Episode
from wamjax.data.mixture import Mixture
from wamjax.data.normalise import (
    Bounds,
    Normalisation,
    dataset_statistics,
    denormalise,
    keep_relative_statistics,
    normalisation,
    normalise,
    relative_statistics,
)
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError

ROBOTS = ("droid", "agibot", "yam")


def random_statistics(embodiment: Embodiment, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)

    def one(size: int) -> dict:
        low = rng.normal(size=size)
        return {"q01": low.tolist(), "q99": (low + rng.random(size) + 0.5).tolist()}

    parts = {"state": embodiment.state, "action": embodiment.action}
    return {part: {field.key: one(field.size) for field in fields} for part, fields in parts.items()}


def test_values() -> None:
    bounds = Bounds((0.0, -1.0, 3.0, 0.5, -2.0), (2.0, 1.0, 3.0, 0.5, -2.0))
    x = jnp.array([[0.5, 0.25, 3.0, 0.5, -2.0], [2.5, -7.0, 0.2, -0.3, 0.0]])
    expected = [[-0.5, 0.25, 1.0, 0.5, -1.0], [1.0, -1.0, 0.2, -0.3, 0.0]]  # equal quantiles: the value, cut off
    np.testing.assert_allclose(normalise(x, bounds), expected, atol=1e-7)
    back = denormalise(jnp.array([[-0.5, 0.25, 1.0, 0.5, -1.0], [1.5, -1.0, 0.2, -0.3, 0.0]]), bounds)
    np.testing.assert_allclose(back, [[0.5, 0.25, 3.0, 0.5, -2.0], [2.5, -1.0, 3.0, 0.5, -2.0]], atol=1e-6)


def test_values_inside_the_bounds_come_back() -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=50)
    low[::7] *= 100
    high = low + rng.random(50) * np.where(np.arange(50) % 5, 1, 0)  # every fifth is constant
    bounds = Bounds(tuple(low), tuple(high))
    x = (low + rng.random((200, 50)) * (high - low)).astype(np.float32)
    found = np.asarray(normalise(x, bounds))
    assert np.abs(found).max() <= 1
    np.testing.assert_allclose(denormalise(found, bounds), x, atol=3e-5)


@pytest.mark.parametrize("name", ROBOTS)
@pytest.mark.parametrize("chunks", [1, 3])
def test_relative_actions_come_back(name: str, chunks: int) -> None:
    robot = load(name)
    scale = normalisation(robot, random_statistics(robot))
    rng = np.random.default_rng(chunks)
    state = rng.normal(size=(2, chunks, robot.state_size)).astype(np.float32)
    inside = rng.uniform(-1, 1, (2, chunks * 24, 32)).astype(np.float32) * scale.action_mask
    actions = jax.jit(scale.denormalise_actions)(inside, state)
    assert actions.shape == (2, chunks * 24, robot.action_size)
    np.testing.assert_allclose(jax.jit(scale.normalise_actions)(actions, state), inside, atol=2e-5)
    padded = np.asarray(scale.normalise_state(state))
    assert padded.shape == (2, chunks, 64)
    assert not padded[..., robot.state_size :].any()
    assert (scale.state_mask.sum(), scale.action_mask.sum()) == (robot.state_size, robot.action_size)


def test_each_chunk_has_its_own_anchor() -> None:
    robot = load("droid")
    wide = {"q01": [-1000.0] * 7, "q99": [1000.0] * 7}
    gripper = {"q01": [-1000.0], "q99": [1000.0]}
    parts = {"joint_position": wide, "gripper_position": gripper}
    scale = normalisation(robot, {"state": parts, "action": parts})
    state = np.zeros((1, 2, 8), np.float32)
    state[0, 0], state[0, 1] = 10, 200
    actions = np.full((1, 48, 8), 500, np.float32)
    found = np.asarray(scale.normalise_actions(actions, state)) * 1000
    np.testing.assert_allclose(found[0, :24, :7], 490, rtol=1e-5)
    np.testing.assert_allclose(found[0, 24:, :7], 300, rtol=1e-5)
    np.testing.assert_allclose(found[0, :, 7], 500, rtol=1e-5)  # the gripper is absolute
    assert not found[..., 8:].any()


def test_what_is_relative() -> None:
    assert load("droid").reference == (0, 1, 2, 3, 4, 5, 6, None)
    assert load("agibot").reference == (*range(20), None, None)
    assert load("yam").reference == tuple(range(14))


def walker(index: int, length: int) -> Episode:
    rng = np.random.default_rng(index)
    return Episode(
        steps={
            "observation/arm": rng.normal(size=(length, 2)).astype(np.float32),
            "observation/hand": rng.random((length, 1)).astype(np.float32),
            "action_dict/arm": rng.normal(size=(length, 2)).astype(np.float32),
            "action_dict/hand": rng.random((length, 1)).astype(np.float32),
        },
        metadata={"fps": 15},
    )


WALKER = replace(
    load("droid"),
    name="walker",
    state=(Field("observation/arm", 2), Field("observation/hand", 1)),
    action=(Field("action_dict/hand", 1), Field("action_dict/arm", 2, relative=True)),
    video_stride=1,
    frames_per_chunk=5,
)
LENGTHS = (4, 9, 5, 12, 7)


@pytest.fixture
def store(make_store: Callable[..., Path]) -> EpisodeStore:
    return EpisodeStore(make_store([walker(i, length) for i, length in enumerate(LENGTHS)]))


def pooled(episodes: list[Episode], horizon: int = 5) -> np.ndarray:
    found = []
    for episode in episodes:
        action = episode.steps["action_dict/arm"].astype(np.float64)
        state = episode.steps["observation/arm"].astype(np.float64)
        for i in range(len(action) - horizon + 1):
            found += [action[i + k] - state[i] for k in range(horizon)]
    return np.array(found)


def test_relative_statistics_pool_all_offsets_and_starts(store: EpisodeStore) -> None:
    values = pooled([walker(i, length) for i, length in enumerate(LENGTHS)])
    assert len(values) == (0 + 5 + 1 + 8 + 3) * 5
    found = relative_statistics(store, WALKER)
    assert list(found) == ["arm"]
    assert list(found["arm"]) == ["max", "min", "mean", "std", "q01", "q99"]
    for name, how in {"max": np.max, "min": np.min, "mean": np.mean, "std": np.std}.items():
        np.testing.assert_allclose(found["arm"][name], how(values, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found["arm"]["q01"], np.quantile(values, 0.01, axis=0))
    np.testing.assert_array_equal(found["arm"]["q99"], np.quantile(values, 0.99, axis=0))


def test_relative_statistics_are_kept_for_the_very_same_data_and_robot(
    store: EpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = relative_statistics(store, WALKER)
    path = keep_relative_statistics(store, WALKER)
    with monkeypatch.context() as patch:
        patch.setattr(EpisodeStore, "all_steps", lambda _: pytest.fail("the data are read"))
        assert relative_statistics(store, WALKER) == found
    other = replace(WALKER, frames_per_chunk=4)
    assert relative_statistics(store, other)["arm"] != found["arm"]
    path.write_text(path.read_text().replace("0.", "1."))
    assert relative_statistics(store, WALKER) == found  # damaged: computed again


@pytest.mark.parametrize("fps", [10, 30])
def test_relative_statistics_are_at_the_robot_s_rate(store: EpisodeStore, fps: int) -> None:
    values = []
    for steps in (walker(i, length).steps for i, length in enumerate(LENGTHS)):
        after = [round(k * 15 / fps) for k in range(WALKER.actions_per_chunk)]
        for i in range(len(steps["action_dict/arm"]) - after[-1]):
            values += [steps["action_dict/arm"][i + k].astype(float) - steps["observation/arm"][i] for k in after]
    found = relative_statistics(store, replace(WALKER, fps=fps))["arm"]
    np.testing.assert_array_equal(found["q99"], np.quantile(values, 0.99, axis=0))
    np.testing.assert_array_equal(found["min"], np.min(values, axis=0))


def test_statistics_of_many_episodes_are_of_the_original_sample(
    store: EpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EPISODES", 3)
    chosen = np.random.default_rng(42).choice(5, size=3, replace=False)
    values = pooled([walker(i, LENGTHS[i]) for i in chosen])
    np.testing.assert_array_equal(relative_statistics(store, WALKER)["arm"]["q99"], np.quantile(values, 0.99, axis=0))


def test_statistics_of_a_dataset(store: EpisodeStore) -> None:
    found = dataset_statistics(store, WALKER)
    assert found["action"]["arm"] == relative_statistics(store, WALKER)["arm"]
    assert found["action"]["hand"]["q99"] == store.statistics["action_dict/hand"]["q99"]
    assert found["state"]["arm"]["q01"] == store.statistics["observation/arm"]["q01"]
    scale = normalisation(WALKER, found)
    assert scale.reference == (None, 0, 1)
    assert scale.action.low == (*found["action"]["hand"]["q01"], *found["action"]["arm"]["q01"])
    assert hash(scale) == hash(normalisation(WALKER, found))


def test_relative_statistics_of_a_mixture_count_by_its_weights(
    store: EpisodeStore, make_store: Callable[..., Path]
) -> None:
    other = [walker(10 + i, length) for i, length in enumerate((30, 6))]
    mixture = Mixture([store, EpisodeStore(make_store(other))], [1, 3])
    a, b = pooled([walker(i, length) for i, length in enumerate(LENGTHS)]), pooled(other)
    values = np.concatenate([np.repeat(a, len(b), axis=0), np.repeat(b, 3 * len(a), axis=0)])
    found = relative_statistics(mixture, WALKER)["arm"]
    for name, how in {"max": np.max, "min": np.min, "mean": np.mean, "std": np.std}.items():
        np.testing.assert_allclose(found[name], how(values, axis=0), rtol=1e-12)
    for name, quantile in (("q01", 0.01), ("q99", 0.99)):
        np.testing.assert_array_equal(found[name], np.quantile(values, quantile, axis=0, method="inverted_cdf"))


def test_statistics_need_the_fields_and_whole_chunks(store: EpisodeStore) -> None:
    with pytest.raises(UserError, match="no step field 'observation/joint_position'"):
        dataset_statistics(store, load("droid"))
    with pytest.raises(UserError, match="13 steps"):
        relative_statistics(store, replace(WALKER, frames_per_chunk=13))


def test_too_many_numbers() -> None:
    with pytest.raises(UserError, match="exceed"):
        Normalisation(Bounds((0.0,), (1.0,)), Bounds((0.0,) * 33, (1.0,) * 33), (None,) * 33)


DAMAGE: list[Callable[[dict], object]] = [
    lambda s: s.pop("state"),
    lambda s: s["action"].pop("joint_position"),
    lambda s: s["action"]["joint_position"].pop("q99"),
    lambda s: s["action"]["joint_position"].update(q01=[0.0] * 6),
    lambda s: s["action"]["joint_position"].update(q01=None),
    lambda s: s["action"]["joint_position"].update(q01="zero"),
    lambda s: s["action"]["joint_position"].update(q01=[float("nan")] * 7),
    lambda s: s["state"].update(gripper_position=3),
    lambda s: s.update(action=[]),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_statistics(damage: Callable[[dict], object]) -> None:
    statistics = random_statistics(load("droid"))
    damage(statistics)
    with pytest.raises(UserError) as error:
        normalisation(load("droid"), statistics)
    assert "\n" not in str(error.value)
