"""Augmentation: uint8 in and out, one key per sample, all frames of a view alike, nothing where nothing is asked."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.data.augment import AugmentConfig, augment
from wamjax.errors import UserError

NOTHING = AugmentConfig(crop=1.0, brightness=0, contrast=0, saturation=0)
EVERYTHING = AugmentConfig(crop=0.5, aspect=1.5, uncropped=(1,), brightness=0.3, contrast=0.4, saturation=0.5, hue=0.1)
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 2, 2, 12, 16, 3), np.uint8)
KEYS = RNG.integers(0, 2**32, (3, 2), np.uint32)
CHANGE = jax.jit(augment, static_argnames="config")


def change(frames: np.ndarray, keys: np.ndarray, config: AugmentConfig) -> np.ndarray:
    return np.asarray(CHANGE(frames, keys, config=config))


def test_nothing_is_the_identity() -> None:
    np.testing.assert_array_equal(change(FRAMES, KEYS, NOTHING), FRAMES, strict=True)


def test_a_row_depends_on_its_key_alone_and_frames_of_a_view_are_changed_alike() -> None:
    still = np.repeat(FRAMES[:, :, :1], 2, axis=2)
    found = change(still, KEYS, EVERYTHING)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, :, 0], found[:, :, 1])
    turned = change(still[::-1], KEYS[::-1], EVERYTHING)[::-1]
    np.testing.assert_array_equal(turned, found)
    other = change(np.repeat(still[:1], 3, axis=0), KEYS, EVERYTHING)
    assert len({row.tobytes() for row in other}) == 3
    views = change(np.repeat(still[:, :1], 2, axis=1), KEYS, EVERYTHING)
    assert all((row[0] != row[1]).any() for row in views)


def test_crops_are_parts_enlarged() -> None:
    """Of a ramp, a crop is a straight piece: its ends say what was cut, its middle that nothing was bent."""
    rows, columns = np.mgrid[:12, :16].astype(np.float64)
    ramp = np.stack([rows * 20, columns * 15, 0 * rows], -1).astype(np.uint8)
    frames = np.broadcast_to(ramp, FRAMES.shape)
    found = change(frames, KEYS, replace(NOTHING, crop=0.5, aspect=1.2, uncropped=(1,)))
    np.testing.assert_array_equal(found[:, 1], frames[:, 1])
    for row in found[:, 0, 0].astype(np.float64):
        down, right = row[:, 8, 0] / 20, row[6, :, 1] / 15
        height = (down[9] - down[2]) / 7 * 12
        width = (right[12] - right[3]) / 9 * 16
        assert 0.45 < height * width / (12 * 16) <= 1.01
        assert 1 / 1.3 < (width / 16) / (height / 12) < 1.3
        assert np.abs(np.diff(down[1:-1]) - height / 12).max() < 0.15
        assert down.max() <= 11
        assert right.max() <= 15


def test_colours() -> None:
    rng = np.random.default_rng(1)
    frames, keys = np.full((64, 1, 1, 2, 2, 3), (120, 80, 100), np.uint8), rng.integers(0, 2**32, (64, 2), np.uint32)
    factor = change(frames, keys, replace(NOTHING, brightness=0.5))[:, 0, 0, 0, 0] / np.array([120, 80, 100])
    np.testing.assert_allclose(factor, factor[:, :1].repeat(3, 1), atol=0.01)
    assert factor.min() < 0.6 and factor.max() > 1.4 and 0.5 <= factor.min() <= factor.max() <= 1.5  # noqa: PT018
    grey = np.array([0.299, 0.587, 0.114])
    turned = change(frames, keys, replace(NOTHING, contrast=0.9, saturation=0.9, hue=0.4))[:, 0, 0, 0, 0]
    assert len(np.unique(turned, axis=0)) > 30
    np.testing.assert_allclose(turned @ grey, np.array([120, 80, 100]) @ grey, atol=1.2)  # one colour has no contrast


def test_impossible_configurations() -> None:
    for wrong in ({"crop": 0}, {"crop": 1.2}, {"aspect": 0.5}, {"brightness": 2}, {"hue": 0.7}):
        with pytest.raises(UserError, match="augment"):
            AugmentConfig(**wrong)


def test_training_sees_changed_frames_and_validation_recorded_ones() -> None:
    from wamjax.data.pipeline import AUGMENTATION
    from wamjax.training.augmented import augmented

    class Plain:
        def encode(self, frozen: object, key: object, batch: dict) -> dict:
            return batch

    plain = Plain()
    assert augmented(plain, None) is plain
    policy = augmented(plain, EVERYTHING)
    batch = {"frames": jnp.asarray(FRAMES), AUGMENTATION: jnp.asarray(KEYS), "state": jnp.ones(3)}
    seen = policy.encode({}, None, batch)
    assert seen.keys() == {"frames", "state"}
    np.testing.assert_array_equal(seen["frames"], FRAMES)
    trained = jax.jit(policy.encode)({}, jax.random.key(0), batch)
    assert trained.keys() == seen.keys()
    assert np.abs(np.asarray(trained["frames"], int) - change(FRAMES, KEYS, EVERYTHING)).max() <= 1  # of rounding
    with pytest.raises(UserError, match="without keys"):
        policy.encode({}, jax.random.key(0), seen)
