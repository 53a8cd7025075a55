"""Which structure another was made from, when some are left out."""

from __future__ import annotations

import numpy as np


def nearest_kept_parents(parent: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """New parents of the structures that are kept: the nearest ancestor that is kept too.

    Args:
        parent: `[S]` number of each structure's parent, -1 (or none of `S`) for none.
        kept: `[K]` numbers of the structures that are kept, in their new order.

    Returns:
        `[K]` int64, new numbers; -1 where no ancestor is kept.
    """
    count = len(parent)
    inside = (parent >= 0) & (parent < count)
    # one row more, for "none", which is its own ancestor
    above = np.append(np.where(inside, parent, count), count)
    new = np.full(count + 1, -1, np.int64)
    new[kept] = np.arange(len(kept))
    nearest = np.where(new >= 0, np.arange(count + 1), above)
    # each round doubles the generations that are climbed, and rings of parents end too
    for _ in range(count.bit_length()):
        nearest = nearest[nearest]
    return new[nearest[above[kept]]]
