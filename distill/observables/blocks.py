"""Error bars by block averages, of stored series and of series that stream by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_BLOCKS = 8
"""Blocks below which a standard error is not trusted."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error.

    Attributes:
        value: the mean.
        error: standard error; NaN for fewer than two blocks.
        n_blocks: blocks that the error rests on.
        block_length: samples in a block.
        converged: whether blocks of this length are long enough by the criterion; if not, the
            series is too short and the error a lower bound.
    """

    value: float
    error: float
    n_blocks: int
    block_length: int
    converged: bool


def block_average(series: np.ndarray) -> Estimate:
    """Mean and standard error of a correlated series.

    Blocks are doubled as in Flyvbjerg and Petersen, J. Chem. Phys. 91, 461 (1989). The shortest
    length b is taken with b³ > 2 N (s_b / s_1)⁴ (Lee, Conduit, Nemec, López Ríos and Drummond,
    Phys. Rev. E 83, 066706 (2011)), where s_b is the error from blocks of b samples of N in all,
    but at least `LEAST_BLOCKS` are left.

    Args:
        series: `[T]`, or `[R, T]` for replicas, which are independent.
    """
    series = np.atleast_2d(np.asarray(series, np.float64))
    if not series.size:
        return Estimate(np.nan, np.nan, 0, 0, False)
    first = error = _standard_error(series)
    length, blocks = 1, series
    converged = first == 0
    while not converged and blocks[:, 1::2].size >= LEAST_BLOCKS:
        if length**3 > 2 * series.size * (error / first) ** 4:
            converged = True
            break
        pairs = blocks.shape[1] // 2
        blocks = blocks[:, : 2 * pairs].reshape(len(blocks), pairs, 2).mean(2)
        length *= 2
        error = _standard_error(blocks)
    return Estimate(float(series.mean()), error, blocks.size, length, bool(converged))


def _standard_error(blocks: np.ndarray) -> float:
    return float(np.std(blocks, ddof=1) / np.sqrt(blocks.size)) if blocks.size > 1 else np.nan


class Blocks:
    """Means of equally long blocks of a stream of arrays, in bounded memory.

    When `most` blocks are full they are merged two by two, and blocks are twice as long from then
    on. What is kept does not depend on how the stream was cut into calls.
    """

    def __init__(self, most: int = 32) -> None:
        if most < 2 or most % 2:
            raise ValueError(f"most must be an even number of at least 2, got {most}")
        self._most = most
        self._length, self._count = 1, 0
        # None of these arrays is changed in place: a mark may refer to them.
        self._sum: np.ndarray | None = None
        self._done: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Samples in a block."""
        return self._length

    @property
    def means(self) -> np.ndarray | None:
        """Of the full blocks, `[B, ...]`; None before the first is full."""
        return self._done

    def add(self, sample: np.ndarray) -> None:
        """The next array, of the same shape as the ones before."""
        sample = np.asarray(sample, np.float64)
        self._sum = sample if self._sum is None else self._sum + sample
        self._count += 1
        if self._count < self._length:
            return
        mean = (self._sum / self._length)[None]
        self._done = mean if self._done is None else np.concatenate([self._done, mean])
        self._sum, self._count = None, 0
        if len(self._done) == self._most:
            self._done = 0.5 * (self._done[::2] + self._done[1::2])
            self._length *= 2

    def mark(self) -> dict[str, Any]:
        """See `distill.simulation.Follower`."""
        return {
            "length": self._length,
            "count": self._count,
            "sum": self._sum,
            "done": self._done,
        }

    def rewind(self, mark: dict[str, Any]) -> None:
        """See `distill.simulation.Follower`."""
        self._length, self._count = mark["length"], mark["count"]
        self._sum, self._done = mark["sum"], mark["done"]
