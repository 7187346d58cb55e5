"""Solvers of the flow's differential equation, as tables of coefficients.

Every solver here takes linear combinations of the sample and of the last data predictions m = x - sigma * velocity;
what distinguishes them is the coefficients, which depend on the noise times alone. They are computed once, in double
precision, and one compiled loop (`wamjax.flow.samplers.sample`) runs any of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from wamjax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Solver:
    """The coefficients of n steps.

    Attributes:
        sigma: the n + 1 noise times, falling.
        correct: weights of [x, the last corrected x, m, m one step ago, m two steps ago] in the corrected sample.
        predict: weights of [the corrected sample, m, m one step ago] in the next sample.
    """

    sigma: Float[np.ndarray, " n1"]
    correct: Float[np.ndarray, "n 5"]
    predict: Float[np.ndarray, "n 3"]


def euler(sigma: Float[np.ndarray, " n1"]) -> Solver:
    """First order: x + (sigma' - sigma) * velocity."""
    sigma = _falling(sigma)
    ratio = sigma[1:] / sigma[:-1]
    return Solver(sigma, _uncorrected(len(ratio)), np.stack([ratio, 1 - ratio, np.zeros_like(ratio)], axis=1))


def dpmpp(sigma: Float[np.ndarray, " n1"]) -> Solver:
    """DPM-Solver++ (arXiv 2211.01095), multistep, midpoint, second order; first and last step are of first order."""
    sigma = _falling(sigma)
    steps, time = len(sigma) - 1, _linear_time(sigma)
    predict = np.zeros((steps, 3))
    for i in range(steps):
        ratio, new = _first_order(sigma, time, i)
        predict[i] = ratio, new, 0.0
        if 0 < i < steps - 1:
            extrapolated = 0.5 * new * (time[i + 1] - time[i]) / (time[i] - time[i - 1])
            predict[i] += 0.0, extrapolated, -extrapolated
    return Solver(sigma, _uncorrected(steps), predict)


def unipc(sigma: Float[np.ndarray, " n1"]) -> Solver:
    """UniPC (arXiv 2302.04867), second order, B2(h) = expm1(h), lower order at both ends.

    Its predictor is that of DPM-Solver++; at every step but the first a corrector improves the sample that the
    network has just seen, at no further cost.
    """
    sigma = _falling(sigma)
    if sigma[0] >= 1:
        raise UserError("UniPC cannot start at sigma = 1, where its logarithmic step is infinite: use `wan_nodes`")
    correct = _uncorrected(len(sigma) - 1)
    for i in range(1, len(correct)):
        correct[i] = _unipc_corrector(sigma, _linear_time(sigma), i)
    return Solver(sigma, correct, dpmpp(sigma).predict)


def _unipc_corrector(sigma: np.ndarray, time: np.ndarray, i: int) -> list[float]:
    """Weights that replace the prediction of step i - 1 -> i, of first order where i = 1, once m_i is known."""
    ratio, new = _first_order(sigma, time, i - 1)
    if i == 1:
        return [0.0, ratio, 0.5 * new, 0.5 * new, 0.0]
    h = time[i] - time[i - 1]
    r = (time[i - 2] - time[i - 1]) / h
    first = np.expm1(-h) / -h - 1
    b = np.array([first, 2 * (first / -h - 0.5)]) / np.expm1(-h)
    oldest, newest = np.linalg.solve([[1.0, 1.0], [r, 1.0]], b)
    return [0.0, ratio, new * newest, new * (1 - oldest / r - newest), new * oldest / r]


def _first_order(sigma: np.ndarray, time: np.ndarray, i: int) -> tuple[float, float]:
    """Weights of the sample and of m in the step i -> i + 1 that is exact for a constant m."""
    return sigma[i + 1] / sigma[i], -(1 - sigma[i + 1]) * np.expm1(time[i] - time[i + 1])


def _linear_time(sigma: np.ndarray) -> np.ndarray:
    """log((1 - sigma) / sigma): the time in which the equation is linear."""
    with np.errstate(divide="ignore"):
        return np.log(1 - sigma) - np.log(sigma)


def _uncorrected(steps: int) -> np.ndarray:
    return np.tile([1.0, 0.0, 0.0, 0.0, 0.0], (steps, 1))


def _falling(sigma: Float[np.ndarray, " n1"]) -> np.ndarray:
    sigma = np.asarray(sigma, np.float64)
    if sigma.ndim != 1 or len(sigma) < 2 or (np.diff(sigma) >= 0).any() or sigma[0] > 1 or sigma[-1] < 0:
        raise UserError(
            f"noise times must fall from at most 1 to at least 0 in at least one step, not {sigma.tolist()}"
        )
    return sigma


SOLVERS: Mapping[str, Callable[[Float[np.ndarray, " n1"]], Solver]] = {"euler": euler, "dpmpp": dpmpp, "unipc": unipc}
"""Solvers by their name in configurations."""
