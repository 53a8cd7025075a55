"""The padded graph: one frozen pytree that every model, loss and simulation reads.

Shapes are fixed so that one compilation serves many structures. `N` atoms, `K` neighbour slots
and `B` systems include the padding; the last atom and the last system are always padding, so that
an index of `N - 1` or `B - 1` can be used as a harmless target.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

PADDING_DISTANCE = 1.0e3
"""Length in Å given to padding pairs: far outside any cutoff, finite, with a finite gradient."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Graph:
    """Atoms of one or more systems with their neighbours within a cutoff.

    Attributes:
        positions: `[N, 3]`, Å. May be unwrapped.
        species: `[N]` int32, index into the model's element table (0 for padding atoms).
        neighbors: `[N, K]` int32, index of the neighbouring atom; `N` means none.
        shifts: `[N, K, 3]`, whole cell images added to the neighbour (same dtype as positions).
        cell: `[B, 3, 3]`, rows are lattice vectors in Å (identity for non-periodic systems).
        system: `[N]` int32, the system an atom belongs to (`B - 1` for padding atoms).
        atom_mask: `[N]` bool, False for padding atoms.
        system_mask: `[B]` bool, False for padding systems.
        groups: static, slots per element where they are grouped: the first `groups[0]` slots of
            every row hold neighbours of element 0, and so on; empty where they are not.
    """

    positions: jax.Array
    species: jax.Array
    neighbors: jax.Array
    shifts: jax.Array
    cell: jax.Array
    system: jax.Array
    atom_mask: jax.Array
    system_mask: jax.Array
    groups: tuple[int, ...] = field(default=(), metadata={"static": True})

    @property
    def pair_mask(self) -> jax.Array:
        """`[N, K]` bool, True where a neighbour slot is filled."""
        return self.neighbors < self.positions.shape[0]

    @property
    def n_systems(self) -> int:
        """Number of system slots `B`, padding included."""
        return self.cell.shape[0]


def displacements(graph: Graph) -> jax.Array:
    """Vectors from each atom to its neighbours, `[N, K, 3]` in Å.

    Padding slots hold a constant vector of length `PADDING_DISTANCE`, so that no gradient flows
    through them and no norm is differentiated at zero.
    """
    neighbor_positions = graph.positions.at[graph.neighbors].get(mode="clip")
    # Full precision: a TF32 product would move images by hundredths of an Å.
    images = jnp.einsum(
        "nka,nab->nkb", graph.shifts, graph.cell[graph.system], precision=jax.lax.Precision.HIGHEST
    )
    vectors = neighbor_positions - graph.positions[:, None, :] + images
    far = jnp.asarray([PADDING_DISTANCE, 0.0, 0.0], vectors.dtype)
    return jnp.where(graph.pair_mask[..., None], vectors, far)


def neighbor_species(graph: Graph) -> jax.Array:
    """Species index of each neighbour, `[N, K]` int32 (0 in padding slots)."""
    gathered = graph.species.at[graph.neighbors].get(mode="clip")
    return jnp.where(graph.pair_mask, gathered, 0)


def model_rows(graph: Graph, message_passing: bool = False) -> tuple[jax.Array, ...]:
    """Arguments of a model of rows: displacements, species of neighbours, mask, species.

    With `message_passing` also the neighbours, whose padding slots point outside.
    """
    rows = displacements(graph), neighbor_species(graph), graph.pair_mask, graph.species
    return (*rows, graph.neighbors) if message_passing else rows


def sum_per_system(values: jax.Array, graph: Graph) -> jax.Array:
    """Sum per-atom `values` `[N, ...]` over the atoms of each system, `[B, ...]`."""
    mask = graph.atom_mask.reshape((-1,) + (1,) * (values.ndim - 1))
    return jax.ops.segment_sum(jnp.where(mask, values, 0), graph.system, graph.n_systems)
