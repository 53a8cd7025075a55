"""Energy and gradient of a density-moment model on rows whose slots are grouped by element.

The model is that of `distill.students.moment`; here its gradient is written out, so that a block
of rows needs one pass over its pairs each way. Everything is plain JAX: derivatives of the result
(training on forces, Hessian products) follow by automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.contract import Species
from distill.kernels.density_energies import Energies, energies_by_rows
from distill.kernels.element_weights import ElementWeights, affine, affine_transposed
from distill.kernels.invariants import Densities
from distill.kernels.moment_weights import MomentWeights
from distill.kernels.pair_slopes import Slopes, cartesian, pair_basis, slopes_by_products
from distill.kernels.pair_terms import PairTerms, pair_terms


def slot_groups(neighbor_species: np.ndarray) -> list[tuple[int, slice]]:
    """Element and slots of each group, from the sorted element `[K]` of every slot."""
    elements, starts = np.unique(neighbor_species, return_index=True)
    ends = [*starts[1:], len(neighbor_species)]
    return [
        (int(element), slice(int(start), int(end)))
        for element, start, end in zip(elements, starts, ends, strict=True)
    ]


def moment_rows(
    weights: MomentWeights,
    displacements: jax.Array,
    neighbor_species: np.ndarray,
    species: Species,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Energies `[b]` (eV), last features `[b, H]`, gradient `[b, K, 3]` (eV/Å).

    Args:
        weights: of the model.
        displacements: `[b, K, 3]`, Å; anything beyond the cutoff in empty slots.
        neighbor_species: `[K]`, sorted: the element of each slot.
        species: `[b]`; a numpy array of one element lets its weights be chosen beforehand.
    """
    terms = pair_terms(displacements, weights.cutoff, weights.angular_cutoff)
    weights = weights.astype(displacements.dtype)
    energies, features, slopes = moment_terms(weights, terms, neighbor_species, species)
    return energies, features, jnp.stack(cartesian(terms, slopes), axis=-1)


def moment_terms(
    weights: MomentWeights,
    terms: PairTerms,
    neighbor_species: np.ndarray,
    species: Species,
    energies_of: Callable[..., Energies] = energies_by_rows,
    slopes_of: Callable[..., Slopes] = slopes_by_products,
) -> tuple[jax.Array, jax.Array, Slopes]:
    """Energies, last features and the gradient by distance and unit vector; see `moment_rows`.

    `energies_of` is one of the two functions of `density_energies`, `slopes_of` one of those of
    `pair_slopes`.
    """
    groups = slot_groups(neighbor_species)
    bases = [pair_basis(terms, slots, weights.n_radial, weights.max_l) for _, slots in groups]
    elements = [element for element, _ in groups]
    moments = _to_features(
        [jnp.einsum("bmk,brk->bmr", own.harmonics, own.radial) for own in bases],
        weights.neighbors,
        elements,
    )
    radial_maps = _radial_maps(weights, elements)
    ends = [(degree + 1) ** 2 for degree in range(weights.max_l)]
    densities: Densities = [
        affine(own, species, radial_maps[degree])
        for degree, own in enumerate(jnp.split(moments, ends, axis=1))
    ]
    energies, features, by_densities = energies_of(weights, densities, species)
    by_moments = jnp.concatenate(
        [
            affine_transposed(own, species, radial_maps[degree])
            for degree, own in enumerate(by_densities)
        ],
        axis=1,
    )
    by_group = _from_features(by_moments, weights.neighbors, elements)
    return energies, features, slopes_of(bases, by_group, weights.max_l)


def _to_features(
    moments: list[jax.Array], neighbors: jax.Array | None, elements: list[int]
) -> jax.Array:
    """Moments `[b, M, F * R]` of features, from those of each group `[b, M, R]`."""
    if neighbors is None:
        return jnp.concatenate(moments, axis=-1)
    by_group = jnp.stack(moments, axis=2)
    joined = jnp.einsum("bmgr,gf->bmfr", by_group, neighbors[np.asarray(elements, np.int32)])
    return joined.reshape(*joined.shape[:2], -1)


def _from_features(
    moments: jax.Array, neighbors: jax.Array | None, elements: list[int]
) -> list[jax.Array]:
    """Transpose of `_to_features`."""
    if neighbors is None:
        return jnp.split(moments, len(elements), axis=-1)
    split = moments.reshape(*moments.shape[:2], neighbors.shape[1], -1)
    by_group = jnp.einsum("bmfr,gf->bmgr", split, neighbors[np.asarray(elements, np.int32)])
    return [by_group[:, :, group] for group in range(len(elements))]


def _radial_maps(weights: MomentWeights, elements: list[int]) -> tuple[ElementWeights, ...]:
    """The radial maps with their scale, without the rows of elements that no slot holds."""
    n_elements = weights.mean.shape[0]
    everything = weights.neighbors is not None or elements == list(range(n_elements))

    def chosen(kernel: jax.Array) -> jax.Array:
        kernel = kernel * weights.density_scale
        if everything:
            return kernel
        split = kernel.reshape(len(kernel), n_elements, weights.n_radial, -1)
        return split[:, np.asarray(elements, np.int32)].reshape(len(kernel), -1, kernel.shape[-1])

    return tuple(replace(own, kernel=chosen(own.kernel)) for own in weights.radial)
