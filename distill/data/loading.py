"""From a dataset to padded training batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from distill.data.batching import BatchPlan, batches, make_buckets
from distill.data.columns import EXTRA_COLUMNS
from distill.data.dataset import Dataset
from distill.errors import DatasetError
from distill.graph import Graph
from distill.neighbors.batch import batch_graphs, species_index
from distill.neighbors.grouping import element_counts, group_slots
from distill.neighbors.host import NeighborTable, neighbor_table

SLOT_MULTIPLE = 4
"""Slots of an element are a multiple of this."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """One padded batch with its labels: host (numpy) arrays until a jitted function takes them.

    Attributes:
        graph: `N` atoms and `B` systems, padding included.
        energy: `[B]`, eV, minus the reference energies of the atoms; 0 for padding.
        forces: `[N, 3]`, eV/Å; 0 for padding.
        stress: `[B, 3, 3]`, eV/Å³; 0 where undefined.
        energy_mask: `[B]` bool, True where the energy (and the forces) count.
        stress_mask: `[B]` bool, True where the stress counts.
        n_atoms: `[B]`, atoms of each system as floating point; 1 for padding, so that it can
            be divided by.
        indices: `[B]` int32, number of each structure in the dataset; -1 for padding.
        per_atom_energy: `[N]`, eV, minus the reference energy of the atom; NaN where unknown.
        uncertainty: `[N]`, eV/Å, the teacher's own; NaN where unknown.
        direction: `[N, 3]`, of one Hessian-vector product of each structure that has any.
        product: `[N, 3]`, eV/Å².
        hessian_mask: `[B]` bool, True where there is a product.

    With shards every array has a leading axis, one entry for each device.
    """

    graph: Graph
    energy: Any
    forces: Any
    stress: Any
    energy_mask: Any
    stress_mask: Any
    n_atoms: Any
    indices: Any
    per_atom_energy: Any
    uncertainty: Any
    direction: Any
    product: Any
    hessian_mask: Any


class GraphLoader:
    """Batches of some structures of a dataset; neighbours are searched once, at the start.

    Args:
        dataset: labelled, in eV and Å.
        indices: structures to use, for example one part of `split_by_trajectory`, or a bool mask.
        cutoff: Å.
        elements: sorted atomic numbers that the model knows.
        batch_size: structures per batch.
        seed: order of the batches; see `distill.data.batching.batches`.
        dtype: of all floating-point arrays.
        atomic_energies: `[len(elements)]`, eV, subtracted in float64; zero by default.
        shuffle: False for evaluation.
        max_buckets: most distinct shapes.
        shards: parts into which each batch is divided, see `Batch`; divides `batch_size`.

    Raises:
        DatasetError: no structures, or structures that are flagged or lack energy or forces.
        UnitError: other units than eV and Å.
        UnknownElementError: an element outside `elements`.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Sequence[int] | np.ndarray,
        cutoff: float,
        elements: Sequence[int],
        batch_size: int,
        seed: int = 0,
        dtype: Any = np.float32,
        *,
        atomic_energies: np.ndarray | None = None,
        shuffle: bool = True,
        max_buckets: int = 4,
        shards: int = 1,
    ) -> None:
        dataset.require_standard_units("batches are made")
        self.dataset = dataset
        chosen = np.asarray(indices)
        self.indices = np.arange(len(dataset))[chosen if chosen.size else chosen.astype(int)]
        self.cutoff = float(cutoff)
        self.elements = tuple(int(z) for z in elements)
        self.seed, self.dtype, self.shuffle = seed, np.dtype(dtype), shuffle
        _require_usable(dataset, self.indices)
        reference = np.zeros(len(self.elements))
        if atomic_energies is not None:
            reference = np.asarray(atomic_energies, np.float64)
        if reference.shape != (len(self.elements),):
            raise DatasetError(
                f"atomic_energies has shape {reference.shape}: give one energy for each of the "
                f"{len(self.elements)} elements"
            )
        self.shards, self._reference = shards, reference
        self._structures = [dataset.structure(int(i)) for i in self.indices]
        species = [
            species_index(atoms.numbers, self.elements, structure=int(i))
            for i, atoms in zip(self.indices, self._structures, strict=True)
        ]
        self._residuals = dataset.energy[self.indices] - [reference[s].sum() for s in species]
        self._tables = [
            neighbor_table(a.positions, a.cell.array, a.pbc, self.cutoff) for a in self._structures
        ]
        self.plan: BatchPlan = make_buckets(
            dataset.n_atoms[self.indices],
            np.array([int(table.counts.max(initial=0)) for table in self._tables]),
            batch_size // shards,
            max_buckets,
        )
        self._groups = [
            _slots_of(bucket.members, self._tables, species, len(self.elements))
            for bucket in self.plan.buckets
        ]
        self.batch_size = batch_size
        self._order: tuple[int, list[tuple[int, np.ndarray]]] | None = None

    def __len__(self) -> int:
        return sum(-(-len(bucket.members) // self.batch_size) for bucket in self.plan.buckets)

    @property
    def n_structures(self) -> int:
        """Structures per epoch."""
        return len(self.indices)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All batches of one epoch, each structure once."""
        for step in range(len(self)):
            yield self.batch(epoch * len(self) + step)

    def batch(self, step: int) -> Batch:
        """The batch of a global step; its epoch is `step // len(self)`."""
        epoch, position = divmod(step, len(self))
        order = self._order  # a local name: batches are made in a thread too
        if order is None or order[0] != epoch:
            plan = BatchPlan(self.plan.buckets, self.batch_size)
            order = self._order = (epoch, batches(plan, epoch, self.seed, self.shuffle))
        bucket, members = order[1][position]
        rng = np.random.default_rng([self.seed, step])
        if self.shards == 1:
            return self._make(bucket, members, rng)
        parts = [self._make(bucket, members[k :: self.shards], rng) for k in range(self.shards)]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *parts)

    def iterator(self, first: int, stop: int) -> Any:
        """Grain iterator over the batches of steps `first` to `stop`, made ahead in a thread.

        Its `get_state` and `set_state` serve checkpoints.
        """
        import grain.python as grain

        dataset = grain.MapDataset.range(stop).map(self.batch)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        iterator = iter(dataset.to_iter_dataset(options))
        if first:
            iterator.set_state({"next_index": first})
        return iterator

    def _make(self, bucket: int, members: np.ndarray, rng: np.random.Generator) -> Batch:
        if len(members) == 0:
            return _emptied(self._make(bucket, self.plan.buckets[bucket].members[:1], rng))
        n_atoms, n_neighbors, n_systems = self.plan.buckets[bucket].shape
        graph = batch_graphs(
            [self._structures[m] for m in members],
            self.cutoff,
            self.elements,
            n_atoms=n_atoms,
            n_neighbors=n_neighbors,
            n_systems=n_systems,
            tables=[self._tables[m] for m in members],
            dtype=self.dtype,
        )
        graph = group_slots(graph, self._groups[bucket])
        chosen, used = self.indices[members], len(members)
        energy = np.zeros(n_systems, self.dtype)
        energy[:used] = self._residuals[members]
        rows = [self.dataset.forces[self.dataset.rows(int(i))] for i in chosen]
        forces = np.zeros((n_atoms, 3), self.dtype)
        forces[: sum(map(len, rows))] = np.concatenate(rows)
        stress = np.zeros((n_systems, 3, 3), self.dtype)
        stress_mask = np.zeros(n_systems, bool)
        stress_mask[:used] = np.isfinite(self.dataset.stress[chosen]).all((1, 2))
        stress[:used] = np.nan_to_num(self.dataset.stress[chosen], nan=0.0)
        sizes = np.ones(n_systems, self.dtype)
        sizes[:used] = self.dataset.n_atoms[chosen]
        indices = np.full(n_systems, -1, np.int32)
        indices[:used] = chosen
        extra = {name: np.full(n_atoms, np.nan, self.dtype) for name in EXTRA_COLUMNS}
        direction, product = np.zeros((2, n_atoms, 3), self.dtype)
        hessian_mask = np.zeros(n_systems, bool)
        start = 0
        for k, index in enumerate(chosen):
            own = slice(start, start + int(self.dataset.n_atoms[index]))
            start, rows_of = own.stop, self.dataset.rows(int(index))
            for name in EXTRA_COLUMNS:
                extra[name][own] = getattr(self.dataset, name)[rows_of]
            extra["per_atom_energy"][own] -= self._reference[graph.species[own]]
            if self.dataset.hessian is not None:
                directions, products = self.dataset.hessian.of(int(index))
                if len(directions):
                    drawn = int(rng.integers(len(directions)))
                    direction[own], product[own] = directions[drawn], products[drawn]
                    hessian_mask[k] = True
        return Batch(
            graph=graph,
            energy=energy,
            forces=forces,
            stress=stress,
            energy_mask=np.arange(n_systems) < used,
            stress_mask=stress_mask,
            n_atoms=sizes,
            indices=indices,
            direction=direction,
            product=product,
            hessian_mask=hessian_mask,
            **extra,
        )


def _slots_of(
    members: np.ndarray,
    tables: Sequence[NeighborTable],
    species: Sequence[np.ndarray],
    n_elements: int,
) -> list[int]:
    """Slots per element that hold the neighbours of any member of a bucket."""
    counts = [element_counts(tables[m].neighbors, species[m], n_elements) for m in members]
    slots = -(-np.max(counts, axis=0) // SLOT_MULTIPLE) * SLOT_MULTIPLE
    if not slots.any():
        slots[0] = SLOT_MULTIPLE
    return [int(width) for width in slots]


def _emptied(batch: Batch) -> Batch:
    """The batch with every structure masked, for a shard that gets none of a short batch."""
    return replace(
        batch,
        energy_mask=np.zeros_like(batch.energy_mask),
        stress_mask=np.zeros_like(batch.stress_mask),
        hessian_mask=np.zeros_like(batch.hessian_mask),
        indices=np.full_like(batch.indices, -1),
    )


def _require_usable(dataset: Dataset, indices: np.ndarray) -> None:
    if len(indices) == 0:
        raise DatasetError("there are no structures to load: indices is empty")
    flagged = indices[~dataset.usable[indices]]
    if len(flagged):
        raise DatasetError(
            f"{len(flagged)} structures are flagged, first number {flagged[0]} (flag "
            f"{dataset.flag[flagged[0]]}, see distill.data.flags): leave them out, for example "
            "indices[dataset.usable[indices]]"
        )
    bad_rows = np.concatenate([[0], np.cumsum(~np.isfinite(dataset.forces).all(1))])
    bad = bad_rows[dataset.offsets[1:]] > bad_rows[dataset.offsets[:-1]]
    bad = (bad | ~np.isfinite(dataset.energy))[indices]
    if bad.any():
        raise DatasetError(
            f"{int(bad.sum())} structures have no finite energy and forces, first number "
            f"{indices[np.argmax(bad)]}: label them with label_structures"
        )
