"""Sizes of fixed buffers, rounded so that few distinct shapes (and compilations) occur."""

from __future__ import annotations

import math


def bucket(n: int, ratio: float = 1.25, multiple: int = 8) -> int:
    """The smallest size of a geometric ladder that holds `n`.

    The ladder starts at `multiple`; each size is about `ratio` times the one before, rounded up
    to a multiple of `multiple`.

    Raises:
        ValueError: `ratio` is not above 1 or `multiple` is below 1.
    """
    if not ratio > 1 or multiple < 1:
        raise ValueError(f"need ratio > 1 and multiple >= 1, not {ratio} and {multiple}")
    size = multiple
    while size < n:
        grown = math.ceil(size * ratio / multiple) * multiple
        size = max(grown, size + multiple)
    return size
