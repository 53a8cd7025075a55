"""Pieces of stated length cut from a stream of frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


class Windows:
    """Collects every so manyth frame and hands out pieces of equal length.

    Args:
        stride: frames from one that is taken to the next.
        length: frames in a piece.
        step: frames from the start of a piece to that of the next; less than `length` overlaps.
    """

    def __init__(self, stride: int, length: int, step: int) -> None:
        self.stride, self.length, self._step = stride, length, step
        self._seen = 0
        # Groups of arrays as they came, never changed in place: a mark may refer to them.
        self._kept: list[tuple[np.ndarray, ...]] = []

    def add(self, *arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """The next frames, `[T, ...]` each; gives pieces `[length, ...]` of all as they fill."""
        first = -self._seen % self.stride
        self._seen += len(arrays[0])
        taken = tuple(array[first :: self.stride].copy() for array in arrays)
        if len(taken[0]):
            self._kept.append(taken)
        while sum(len(group[0]) for group in self._kept) >= self.length:
            joined = tuple(np.concatenate(group) for group in zip(*self._kept, strict=True))
            yield tuple(array[: self.length] for array in joined)
            rest = tuple(array[self._step :] for array in joined)
            self._kept = [rest] if len(rest[0]) else []

    def mark(self) -> dict[str, Any]:
        """See `distill.simulation.Follower`."""
        return {"seen": self._seen, "kept": [list(group) for group in self._kept]}

    def rewind(self, mark: dict[str, Any]) -> None:
        """See `distill.simulation.Follower`."""
        self._seen, self._kept = mark["seen"], [tuple(group) for group in mark["kept"]]
