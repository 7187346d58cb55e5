import pytest

from wamjax.evaluation.intervals import wilson


# Wilson's formula by hand, z = 1.959964; 97 of 100 is the textbook (0.915, 0.990).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (97, 100, 0.915481, 0.989745),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (1, 4, 0.045587, 0.699358),
    ],
)
def test_known_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-6)


def test_bounds() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(30, 30)[1] == 1.0
    assert wilson(5, 10, 0.99)[0] < wilson(5, 10)[0]
    with pytest.raises(ValueError, match="5 successes of 4"):
        wilson(5, 4)
