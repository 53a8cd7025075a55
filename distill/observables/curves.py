"""A curve with its error, and how alike two of them are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """Means over independent parts of one or several runs.

    Attributes:
        x: `[n]`.
        blocks: `[B, n]`, the curve from each block of each replica.
        x_label: what x is, with its unit.
        y_label: what the curve is, with its unit.
    """

    x: np.ndarray
    blocks: np.ndarray
    x_label: str = ""
    y_label: str = ""

    @property
    def mean(self) -> np.ndarray:
        """`[n]`."""
        return self.blocks.mean(0)

    @property
    def error(self) -> np.ndarray:
        """`[n]`, standard error from the spread of the blocks; NaN for a single one."""
        if len(self.blocks) < 2:
            return np.full(len(self.x), np.nan)
        return self.blocks.std(0, ddof=1) / np.sqrt(len(self.blocks))


@dataclass(frozen=True)
class Overlap:
    """How alike two curves are.

    Attributes:
        value: 1 for equal curves, 0 for curves that are nowhere above zero together.
        error: standard error of the value by a jackknife over the blocks of both curves.
        attainable: value that two curves with these error bars reach on average if what they
            estimate is the same. Only a value well below it tells that the curves differ.
    """

    value: float
    error: float
    attainable: float


def overlap(a: Curve, b: Curve) -> Overlap:
    """Score 1 - ∫|a - b| / ∫(a + b) of two curves that are nowhere negative.

    For densities of unit area this is ∫min(a, b). It is the score of Schran et al., PNAS 118,
    e2110077118 (2021), for radial distribution functions and vibrational densities of states. `b`
    is interpolated to the points of `a`, in the range that both cover.

    Raises:
        ValueError: the curves have no common range, are zero there, or are not finite.
    """
    x = a.x[(a.x >= b.x.min()) & (a.x <= b.x.max())]
    if len(x) < 2:
        raise ValueError(
            f"the curves have no common range: [{a.x.min():g}, {a.x.max():g}] and "
            f"[{b.x.min():g}, {b.x.max():g}] of {a.x_label or 'x'}"
        )
    ours = a.blocks[:, np.isin(a.x, x)]
    theirs = np.stack([np.interp(x, b.x, block) for block in b.blocks])
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("a curve holds NaN or infinite values")
    first, second = ours.mean(0), theirs.mean(0)
    if not np.trapezoid(first + second, x) > 0:
        raise ValueError("both curves are zero, which have no overlap to speak of")
    value = _score(first, second, x)
    variance = 0.0
    for blocks, other in ((ours, second), (theirs, first)):
        n = len(blocks)
        if n < 2:
            return Overlap(value, np.nan, np.nan)
        left_out = (blocks.sum(0) - blocks) / (n - 1)
        scores = [_score(curve, other, x) for curve in left_out]
        variance += (n - 1) * np.var(scores)
    spread = np.hypot(_error(ours), _error(theirs))
    # The mean size of a normal deviate is sqrt(2 / π) standard deviations.
    noise = np.trapezoid(np.sqrt(2 / np.pi) * spread, x) / np.trapezoid(first + second, x)
    return Overlap(value, float(np.sqrt(variance)), float(1 - noise))


def _score(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> float:
    return float(1 - np.trapezoid(np.abs(a - b), x) / np.trapezoid(a + b, x))


def _error(blocks: np.ndarray) -> np.ndarray:
    return blocks.std(0, ddof=1) / np.sqrt(len(blocks))
