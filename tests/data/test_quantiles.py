"""Quantiles that are read off several readings are numpy's."""

from collections.abc import Iterator

import numpy as np
import pytest

from wamjax.data.quantiles import of_counts, of_read

SHARES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)


def columns(count: int) -> np.ndarray:
    """Numbers of all kinds: spread, tied, far apart, of both signs, tiny, equal, integers beyond float32, infinite."""
    rng = np.random.default_rng(count)
    return np.stack(
        [
            rng.standard_normal(count),
            rng.integers(-2, 3, count) * 0.0,
            rng.integers(-2, 3, count) * 0.1,
            np.exp(rng.uniform(-600, 600, count)) * rng.choice([-1, 1], count),
            np.full(count, -7.25),
            (2**40 + rng.integers(0, 9, count)).astype(float),
            np.where(rng.random(count) < 0.3, np.inf, rng.standard_normal(count)),
            rng.standard_normal(count).astype(np.float32),
        ],
        axis=1,
    )


@pytest.mark.parametrize("count", [1, 2, 3, 101, 1000, 4321])
def test_any_numbers_in_any_portions(count: int) -> None:
    values = columns(count)

    def read() -> Iterator[np.ndarray]:
        yield from np.array_split(values, 5)

    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(of_read(read, count, SHARES), np.quantile(values, SHARES, axis=0))


def test_integers_and_what_is_no_number() -> None:
    values = np.arange(30.0).reshape(10, 3)[::-1]
    values[4, 1] = -np.nan
    np.testing.assert_array_equal(of_read(lambda: [values], 10, SHARES), np.quantile(values, SHARES, axis=0))
    flags = np.array([[True], [False], [True]])
    np.testing.assert_array_equal(of_read(lambda: [flags], 3, (0.5, 0.1)), [[1], [0.2]])


def test_counted_values() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 3))
    levels = np.arange(256) / np.float32(255)
    counts = np.stack([np.bincount(column, minlength=256) for column in pixels.T])
    wanted = np.quantile(levels[pixels].astype(np.float64), SHARES, axis=0)
    np.testing.assert_array_equal(of_counts(counts, levels.astype(np.float64), SHARES), wanted)
