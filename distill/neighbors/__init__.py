"""Neighbour lists: exact ones on the host, fast ones on the device, of one shape.

Host: `neighbor_table` for one structure, `batch_graphs` for a padded `Graph`. Device:
`neighbor_list` gives a `NeighborSearch`, whose `allocate` (host) and `update` (inside jit) make a
`NeighborList`. Both give `neighbors` `[n, K]` with `n` meaning none, and `shifts` `[n, K, 3]` so
that `r = positions[j] + shift @ cell - positions[i]` for positions as given, wrapped or not.
"""

from distill.neighbors.batch import batch_graphs, species_index
from distill.neighbors.capacity import bucket
from distill.neighbors.device import (
    DEFAULT_SKIN,
    NeighborList,
    NeighborSearch,
    neighbor_list,
)
from distill.neighbors.grouping import element_counts, group_slots
from distill.neighbors.host import NeighborTable, neighbor_table, pair_distances

__all__ = [
    "DEFAULT_SKIN",
    "NeighborList",
    "NeighborSearch",
    "NeighborTable",
    "batch_graphs",
    "bucket",
    "element_counts",
    "group_slots",
    "neighbor_list",
    "neighbor_table",
    "pair_distances",
    "species_index",
]
