"""What two statistics disagree about, and what the differences look like."""

import math

import numpy as np
import pytest

from wamjax.data.compare import beyond, differences
from wamjax.errors import UserError


def table(**fields: list[tuple[float, float]]) -> dict:
    """Statistics with such quantiles."""
    return {name: {"q01": [b[0] for b in bounds], "q99": [b[1] for b in bounds]} for name, bounds in fields.items()}


KNOWN = [(-1.0, 1.0), (0.0, 3.0), (-0.5, 2.0), (5.0, 5.0)]


def test_equal_and_nearly_equal_statistics_agree() -> None:
    moved = [(low + 0.05 * (high - low), high) for low, high in KNOWN]
    assert differences(table(joint=KNOWN), table(joint=KNOWN), 1e-9) == []
    assert differences({"state": table(joint=KNOWN)}, {"state": table(joint=moved)}, 0.06) == []
    found = differences(table(joint=KNOWN), table(joint=moved), 0.04)
    assert [(one.index, round(one.low, 6), one.high) for one in found] == [(i, 0.05, 0.0) for i in range(3)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: [(math.degrees(low), math.degrees(high)) for low, high in b], "degrees in the dataset"),
        (lambda b: [(math.radians(low), math.radians(high)) for low, high in b], "radians in the dataset"),
        (lambda b: [(1000 * low, 1000 * high) for low, high in b], "millimetres in the dataset"),
        (lambda b: [b[0], b[2], b[1], b[3]], "exchanged with number"),
        (lambda b: [(-high, -low) for low, high in b], "of the other sign"),
        (lambda b: [(2.0, 2.0)] * 4, "always 2 in the dataset"),
    ],
)
def test_common_mistakes_are_recognised(change, words) -> None:
    found = differences(table(joint=KNOWN), table(joint=change(KNOWN)), 0.05)
    assert sum(words in one.hint for one in found) >= 2
    assert all(abs(one.low) > 0.05 or abs(one.high) > 0.05 for one in found)


def test_a_number_that_never_moved_in_training_and_does_now() -> None:
    (one,) = differences(table(joint=[(5.0, 5.0)]), table(joint=[(5.0, 6.0)]), 0.1)
    assert (one.low, one.high) == (0.0, math.inf)
    assert "always 5 in the checkpoint's data" in one.hint


def test_fields_that_only_one_has() -> None:
    found = differences(table(a=KNOWN, b=KNOWN), table(a=KNOWN, c=KNOWN), 0.1)
    assert [(one.field, one.hint) for one in found] == [("b", "only in the first"), ("c", "only in the second")]
    (one,) = differences(table(a=KNOWN), table(a=KNOWN[:2]), 0.1)
    assert one.hint == "4 numbers in the first, 2 in the second"
    with pytest.raises(UserError, match="no field is in both: the first has a, the second b"):
        differences(table(a=KNOWN), table(b=KNOWN), 0.1)


def test_the_share_that_is_cut_off_is_counted(store) -> None:
    values = np.concatenate([store[i].steps["action"] for i in range(len(store))])
    low, high = np.quantile(values, [0.25, 0.9], axis=0)
    found = beyond(store, {"action": list(zip(low, high, strict=True)), "not there": [(0.0, 1.0)]})
    np.testing.assert_allclose(found["action"], ((values < low) | (values > high)).mean(0), rtol=0, atol=1e-12)
    assert list(found) == ["action"]
