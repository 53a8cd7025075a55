"""Batches of few fixed shapes, so that training compiles a few times and never again.

Structures are sorted by size into buckets; every batch of a bucket has the same padded shape. Only
indices are handled here; `distill.data.loading` makes the graphs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.errors import DatasetError


@dataclass(frozen=True)
class Bucket:
    """Structures of similar size and the shape that fits any batch of them.

    Attributes:
        members: `[M]` int64, positions in the list of sizes the plan was made from.
        n_atoms: atom slots of a batch; the last is always padding.
        n_neighbors: neighbour slots per atom.
        n_systems: system slots of a batch; the last is always padding.
    """

    members: np.ndarray
    n_atoms: int
    n_neighbors: int
    n_systems: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(n_atoms, n_neighbors, n_systems)`."""
        return self.n_atoms, self.n_neighbors, self.n_systems


@dataclass(frozen=True)
class BatchPlan:
    """Buckets with distinct shapes, smallest structures first."""

    buckets: tuple[Bucket, ...]
    batch_size: int

    @property
    def n_batches(self) -> int:
        """Batches per epoch."""
        return sum(-(-len(bucket.members) // self.batch_size) for bucket in self.buckets)

    @property
    def n_structures(self) -> int:
        """Structures per epoch."""
        return sum(len(bucket.members) for bucket in self.buckets)


def make_buckets(
    n_atoms_per_structure: np.ndarray,
    n_neighbors_per_structure: np.ndarray,
    batch_size: int,
    max_buckets: int = 4,
    round_atoms: int = 8,
    round_neighbors: int = 4,
) -> BatchPlan:
    """Choose the size limits of the buckets that leave the least padding.

    Args:
        n_atoms_per_structure: `[M]`, atoms.
        n_neighbors_per_structure: `[M]`, largest number of neighbours of an atom.
        batch_size: structures per batch.
        max_buckets: most shapes, each of which is compiled once.
        round_atoms: atom slots are rounded up to a multiple of this.
        round_neighbors: neighbour slots are rounded up to a multiple of this.

    Raises:
        DatasetError: no structures, or a batch size or number of buckets below 1.
    """
    atoms = np.asarray(n_atoms_per_structure, np.int64)
    neighbors = np.asarray(n_neighbors_per_structure, np.int64)
    if len(atoms) == 0 or batch_size < 1 or max_buckets < 1:
        raise DatasetError(
            f"cannot batch {len(atoms)} structures with batch_size={batch_size} and "
            f"max_buckets={max_buckets}: all must be at least 1"
        )
    order = np.lexsort((neighbors, atoms))
    limits = _candidate_limits(atoms[order])
    ends = _best_ends(atoms[order], neighbors[order], limits, batch_size, max_buckets)
    groups = [order[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    buckets: list[Bucket] = []
    for members in groups:
        bucket = _bucket(members, atoms, neighbors, batch_size, round_atoms, round_neighbors)
        while buckets and buckets[-1].shape == bucket.shape:
            members = np.concatenate([buckets.pop().members, members])
            bucket = _bucket(members, atoms, neighbors, batch_size, round_atoms, round_neighbors)
        buckets.append(bucket)
    return BatchPlan(tuple(buckets), batch_size)


def batches(
    plan: BatchPlan, epoch: int, seed: int, shuffle: bool = True
) -> list[tuple[int, np.ndarray]]:
    """Batches of one epoch as `(bucket, members)`: each structure exactly once.

    A pure function of `seed` and `epoch`, so that a resumed run sees the same batches. The last
    batch of a bucket may be short; without `shuffle` the order is that of the buckets.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    made = []
    for number, bucket in enumerate(plan.buckets):
        members = rng.permutation(bucket.members) if shuffle else bucket.members
        for start in range(0, len(members), plan.batch_size):
            made.append((number, members[start : start + plan.batch_size]))
    return [made[i] for i in rng.permutation(len(made))] if shuffle else made


def _bucket(
    members: np.ndarray,
    atoms: np.ndarray,
    neighbors: np.ndarray,
    batch_size: int,
    round_atoms: int,
    round_neighbors: int,
) -> Bucket:
    # the largest batch that can be drawn, which is less than batch_size times the largest structure
    needed = int(np.sort(atoms[members])[-batch_size:].sum()) + 1
    widest = max(int(neighbors[members].max()), 1)
    return Bucket(
        members=members,
        n_atoms=-(-needed // round_atoms) * round_atoms,
        n_neighbors=-(-widest // round_neighbors) * round_neighbors,
        n_systems=batch_size + 1,
    )


def _candidate_limits(sorted_atoms: np.ndarray, most: int = 64) -> np.ndarray:
    """Ends (exclusive) at which a bucket may stop: where the size changes, thinned out."""
    changes = np.append(np.flatnonzero(np.diff(sorted_atoms)) + 1, len(sorted_atoms))
    if len(changes) > most:
        changes = changes[np.linspace(0, len(changes) - 1, most).round().astype(int)]
    return changes


def _best_ends(
    atoms: np.ndarray,
    neighbors: np.ndarray,
    limits: np.ndarray,
    batch_size: int,
    max_buckets: int,
) -> list[int]:
    """Ends of the buckets with the fewest pair slots per epoch, by dynamic programming."""
    starts = np.concatenate([[0], limits[:-1]])
    n = len(limits)
    widest = np.maximum.reduceat(neighbors, starts)
    best = np.full((max_buckets + 1, n + 1), np.inf)
    best[0, 0] = 0
    previous = np.zeros((max_buckets + 1, n + 1), np.int64)
    for last in range(1, n + 1):
        for first in range(1, last + 1):
            count = limits[last - 1] - starts[first - 1]
            slots = -(-count // batch_size) * batch_size * atoms[limits[last - 1] - 1]
            cost = float(slots * max(widest[first - 1 : last].max(), 1))
            for used in range(1, max_buckets + 1):
                total = best[used - 1, first - 1] + cost
                if total < best[used, last]:
                    best[used, last], previous[used, last] = total, first - 1
    used, last, ends = int(np.argmin(best[:, n])), n, []
    while last > 0:
        ends.append(int(limits[last - 1]))
        last, used = int(previous[used, last]), used - 1
    return ends[::-1]
