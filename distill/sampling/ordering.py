"""An order of structures in which every beginning is a spread sample of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def spread_order(trajectory: Sequence[str] | np.ndarray, seed: int = 0) -> np.ndarray:
    """Permutation `[S]` whose first n entries are spread evenly over and within trajectories.

    Smaller subsets are contained in larger ones, as data curves and interrupted labelling need
    them. Every round takes one frame of each trajectory that has one left, in a new random order;
    the frames of a trajectory come first, middle, then in between.

    Args:
        trajectory: `[S]`, the run each structure came from, frames in their order.
        seed: of the order of the trajectories.
    """
    frames: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(trajectory):
        frames[str(name)].append(i)
    queues = [[own[k] for k in _halving_order(len(own))] for own in frames.values()]
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for turn in range(max(map(len, queues), default=0)):
        order += [queues[q][turn] for q in rng.permutation(len(queues)) if turn < len(queues[q])]
    return np.array(order, np.int64)


def _halving_order(n: int) -> list[int]:
    """0, n / 2, n / 4, 3 n / 4, ...: all of `range(n)`, by their reversed bits."""
    bits = max(n - 1, 1).bit_length()
    return sorted(range(n), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
