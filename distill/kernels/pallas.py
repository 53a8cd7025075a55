"""One fused kernel for GPUs, in Pallas: arrays between the two ends never exist in memory.

Pair terms, densities, invariants, network and gradient of a block of rows are one program; see
`distill.kernels.fused`. XLA gathers the displacements beforehand. On a machine without a GPU the
same program is interpreted, which is slow and meant for tests.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from distill.kernels.blocked import blocked
from distill.kernels.contract import AtomicEnergy, NeighborSpecies, RowModel, Species
from distill.kernels.fused import Groups, fused
from distill.kernels.fused_weights import FusedWeights, constant_energy, fused_weights
from distill.kernels.moment import moment_rows, slot_groups
from distill.kernels.moment_weights import MomentWeights

BLOCK_ROWS = 16
"""Rows per block, the least that a product of matrices takes."""

PIECE = 16
"""Groups of slots are padded to multiples of it; not tuned on a GPU yet."""

WARPS = 8
"""Of 32 threads, per block; not tuned on a GPU yet."""


def pallas(
    atomic_energy: AtomicEnergy,
    displacements: jax.Array,
    neighbor_species: NeighborSpecies,
    mask: jax.Array,
    species: Species,
) -> tuple[Any, jax.Array]:
    """Same results as `blocked`; fused for models with `MomentWeights` and static `species`.

    Other models, networks without a hidden layer, and species that are traced are evaluated as in
    `blocked`. Where slots are not grouped, each is seen once per element, which costs that factor.
    """
    weights = atomic_energy.moments if isinstance(atomic_energy, RowModel) else None
    if weights is None or len(weights.layers) < 2 or not isinstance(species, np.ndarray):
        return blocked(atomic_energy, displacements, neighbor_species, mask, species)
    weights = weights.astype(displacements.dtype)
    if isinstance(neighbor_species, np.ndarray):
        return _any_order(weights, displacements, neighbor_species, species)
    elements = np.arange(weights.mean.shape[0], dtype=np.int32)
    own = (neighbor_species[:, None, :] == elements[:, None])[..., None]
    spread = jnp.where(own, displacements[:, None], _beyond(weights))
    groups = np.repeat(elements, mask.shape[1])
    flat = spread.reshape(len(spread), len(groups), 3)
    outputs, gradients = _any_order(weights, flat, groups, species)
    return outputs, jnp.where(own, gradients.reshape(spread.shape), 0).sum(1)


def _any_order(
    weights: MomentWeights,
    displacements: jax.Array,
    neighbor_species: np.ndarray,
    species: np.ndarray,
) -> tuple[Any, jax.Array]:
    """Rows of each element in one call."""
    order = np.argsort(species, kind="stable")
    sorted_already = (order == np.arange(len(order))).all()
    rows = displacements if sorted_already else displacements[order]
    elements, starts = np.unique(species[order], return_index=True)
    parts = [
        _differentiable(neighbor_species, int(element))(weights, rows[start:end])
        for element, start, end in zip(elements, starts, [*starts[1:], len(order)], strict=True)
    ]
    found = [jnp.concatenate(own) for own in zip(*parts, strict=True)]
    if not sorted_already:
        found = [own[np.argsort(order)] for own in found]
    energies, features, gradients = found
    return (energies, features), gradients


def _differentiable(neighbor_species: np.ndarray, element: int) -> Any:
    """The fused kernel, with derivatives (of any order) from the formulas in plain JAX."""

    def plain(weights: MomentWeights, displacements: jax.Array) -> Any:
        own = np.full(len(displacements), element)
        return moment_rows(weights, displacements, neighbor_species, own)

    @jax.custom_jvp
    def evaluate(weights: MomentWeights, displacements: jax.Array) -> Any:
        return _evaluate(weights, displacements, neighbor_species, element)

    @evaluate.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return evaluate(*primals), jax.jvp(plain, primals, tangents)[1]

    return evaluate


def _evaluate(
    weights: MomentWeights, displacements: jax.Array, neighbor_species: np.ndarray, element: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Energies `[b]`, last features `[b, H]`, gradient `[b, K, 3]` of rows of one element."""
    groups = slot_groups(neighbor_species)
    own = fused_weights(weights, [other for other, _ in groups], element)
    lengths = [slots.stop - slots.start for _, slots in groups]
    padded = [-(-length // PIECE) * PIECE for length in lengths]
    starts = [0, *np.cumsum(padded).tolist()]
    count = len(displacements)
    parts = [
        jnp.pad(
            displacements[:, slots],
            ((0, 0), (0, size - length), (0, 0)),
            constant_values=2 * weights.cutoff,
        )
        for (_, slots), length, size in zip(groups, lengths, padded, strict=True)
    ]
    # Rows that fill up the last block repeat a real one: nothing in them overflows.
    whole = jnp.pad(
        jnp.concatenate(parts, axis=1), ((0, -count % BLOCK_ROWS), (0, 0), (0, 0)), mode="edge"
    )
    energies, features, gradients = _launch(
        own, whole.transpose(2, 1, 0), tuple(map(_pieces, starts[:-1], padded))
    )
    slots = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=False)])
    return (
        energies[0, :count] + constant_energy(weights, element),
        features[: weights.layers[-1].kernel.shape[1], :count].T,
        gradients.transpose(2, 1, 0)[:count, slots],
    )


@partial(jax.jit, static_argnums=2)
def _launch(
    weights: FusedWeights, vectors: jax.Array, groups: Groups
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Run the kernel on vectors `[3, K, b]`: compiled for CUDA, interpreted elsewhere."""
    dtype, (_, n_slots, n_rows) = vectors.dtype, vectors.shape
    width = len(weights.energy)
    shapes = [(1, n_rows), (width, n_rows), (3, n_slots, n_rows)]

    def by_rows(*leading: int) -> pl.BlockSpec:
        return pl.BlockSpec((*leading, BLOCK_ROWS), lambda i: (*(0,) * len(leading), i))

    def everything(array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda i: (0,) * array.ndim)

    def run(weights: FusedWeights, vectors: jax.Array, **how: Any) -> Any:
        return pl.pallas_call(
            partial(fused, groups=groups),
            out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape in shapes],
            grid=(n_rows // BLOCK_ROWS,),
            in_specs=[by_rows(3, n_slots), jax.tree.map(everything, weights)],
            out_specs=[by_rows(*shape[:-1]) for shape in shapes],
            **how,
        )(vectors, weights)

    found: tuple[jax.Array, jax.Array, jax.Array] = jax.lax.platform_dependent(
        weights,
        vectors,
        cuda=partial(run, compiler_params=triton.CompilerParams(num_warps=WARPS)),
        default=partial(run, interpret=True),
    )
    return found


def _pieces(start: int, size: int) -> tuple[tuple[int, int], ...]:
    """`(start, size)` of parts of a group whose sizes are powers of two."""
    pieces = []
    while size:
        part = 1 << (size.bit_length() - 1)
        pieces.append((start, part))
        start, size = start + part, size - part
    return tuple(pieces)


def _beyond(weights: MomentWeights) -> jax.Array:
    """A displacement that no density sees, Å."""
    return jnp.asarray([2 * weights.cutoff, 0, 0], weights.mean.dtype)
