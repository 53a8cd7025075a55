"""Weights of a moment model for one central element, as the fused kernel wants them.

Everything that depends on elements alone is multiplied out here, and every array is padded with
zeros to sizes that are powers of two, as Triton needs; products of matrices need 16 at least.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.element_weights import ElementWeights
from distill.kernels.invariants import triple_terms
from distill.kernels.moment_weights import MomentWeights

MIN_MATRIX = 16
"""Smallest side of a matrix that Triton multiplies."""

MIN_CHANNELS = 4
"""Of pairs; their products then fill a matrix."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FusedWeights:
    """Arrays, or references to them inside the kernel, or their block specs.

    `L` degrees, `G` groups of slots, `R` radial functions, `H` widths of layers. Densities come in
    three kinds of channels: `S` single ones (l = 0, taken as they are), `P` multiplied in pairs,
    `T` in triples.

    Attributes:
        singles: `[G, R, S]`, from moments to densities.
        pairs: `[L, G, R, P]`.
        triples: `[L, G, R, T]`, None if there are none.
        singles_mean: `[S]`, subtracted from the invariants.
        pairs_mean: `[L, P * P]`.
        triples_mean: `[n, T]`, n invariants of three per channel; None if there are none.
        singles_in: `[H, S]`, the part of the first layer that reads them.
        pairs_in: `[L, H, P * P]`, symmetric in the channels.
        triples_in: `[n, H, T]`, None if there are none.
        biases: `[H]` of each hidden layer.
        layers: `[H, H before]` of each hidden layer but the first.
        energy: `[H]`, from the last hidden layer to eV.
        cutoff: Å.
        angular_cutoff: Å, see `MomentWeights`.
    """

    singles: jax.Array
    pairs: jax.Array
    triples: jax.Array | None
    singles_mean: jax.Array
    pairs_mean: jax.Array
    triples_mean: jax.Array | None
    singles_in: jax.Array
    pairs_in: jax.Array
    triples_in: jax.Array | None
    biases: tuple[jax.Array, ...]
    layers: tuple[jax.Array, ...]
    energy: jax.Array
    cutoff: float = field(metadata={"static": True})
    angular_cutoff: float = field(metadata={"static": True})

    @property
    def max_l(self) -> int:
        """Largest degree."""
        return int(self.pairs.shape[0]) - 1


def fused_weights(weights: MomentWeights, elements: list[int], element: int) -> FusedWeights:
    """Weights for atoms of `element` whose groups of slots hold neighbours of `elements`."""
    n_channels, n_degrees = weights.n_channels, weights.max_l + 1
    maps = [_radial_map(weights, own, elements, element) for own in weights.radial]
    n_triples = maps[0].shape[-1] - n_channels
    n_products = len(triple_terms(weights.max_l)) if n_triples else 0
    matrices = [_matrix(own, element) for own in weights.layers]
    first = matrices[0] / weights.scale[element]
    mean = weights.mean[element]

    singles = _power_of_two(n_channels, MIN_MATRIX)
    pairs = _power_of_two(n_channels, MIN_CHANNELS)
    triples = _power_of_two(n_triples, MIN_MATRIX)
    widths = [_power_of_two(len(own), MIN_MATRIX) for own in matrices[:-1]]
    n_upper = n_channels * (n_channels + 1) // 2
    ends = n_channels + n_upper * np.arange(1, n_degrees + 1)
    of_pairs = range(n_channels, int(ends[-1]), n_upper)
    of_triples = range(int(ends[-1]), int(ends[-1]) + n_products * n_triples, max(n_triples, 1))

    def some_triples(parts: list[jax.Array], *shape: int) -> jax.Array | None:
        return jnp.stack([_pad(part, *shape) for part in parts]) if n_products else None

    return FusedWeights(
        singles=_pad(maps[0][..., :n_channels], *maps[0].shape[:2], singles),
        pairs=jnp.stack([_pad(m[..., :n_channels], *m.shape[:2], pairs) for m in maps]),
        triples=some_triples([m[..., n_channels:] for m in maps], *maps[0].shape[:2], triples),
        singles_mean=_pad(mean[:n_channels], singles),
        pairs_mean=jnp.stack(
            [_square(mean[at : at + n_upper], n_channels, pairs) for at in of_pairs]
        ),
        triples_mean=some_triples([mean[at : at + n_triples] for at in of_triples], triples),
        singles_in=_pad(first[:, :n_channels], widths[0], singles),
        pairs_in=jnp.stack(
            [
                # Both orders of two channels are read, so each gets half of the weight.
                _square(_halved(first[:, at : at + n_upper], n_channels), n_channels, pairs, widths)
                for at in of_pairs
            ]
        ),
        triples_in=some_triples(
            [first[:, at : at + n_triples] for at in of_triples], widths[0], triples
        ),
        biases=tuple(
            _pad(_bias(own, element), width)
            for own, width in zip(weights.layers[:-1], widths, strict=True)
        ),
        layers=tuple(
            _pad(own, width, before)
            for own, before, width in zip(matrices[1:-1], widths[:-1], widths[1:], strict=True)
        ),
        energy=_pad(matrices[-1][0] * weights.energy_scale, widths[-1]),
        cutoff=weights.cutoff,
        angular_cutoff=weights.angular_cutoff,
    )


def constant_energy(weights: MomentWeights, element: int) -> jax.Array:
    """The part of the energy that no neighbour changes, eV: bias of the last layer."""
    return _bias(weights.layers[-1], element)[0] * weights.energy_scale


def _radial_map(
    weights: MomentWeights, own: ElementWeights, elements: list[int], element: int
) -> jax.Array:
    """`[G, R, channels]` from moments of each group of slots."""
    kernel = _matrix(own, element).T * weights.density_scale
    by_feature = kernel.reshape(-1, weights.n_radial, kernel.shape[-1])
    chosen = np.asarray(elements, np.int32)
    if weights.neighbors is None:
        return by_feature[chosen]
    return jnp.einsum(
        "gf,frc->grc", weights.neighbors[chosen], by_feature, precision=jax.lax.Precision.HIGHEST
    )


def _matrix(own: ElementWeights, element: int) -> jax.Array:
    """`[out, in]` for one element."""
    matrix = own.kernel[element if len(own.kernel) > 1 else 0].T
    return matrix if own.factor is None else matrix * own.factor[element][:, None]


def _bias(own: ElementWeights, element: int) -> jax.Array:
    return (
        jnp.zeros(own.kernel.shape[-1], own.kernel.dtype) if own.bias is None else own.bias[element]
    )


def _halved(upper: jax.Array, n_channels: int) -> jax.Array:
    """Half of the weights of products of two different channels."""
    rows, columns = np.triu_indices(n_channels)
    return upper * jnp.asarray(np.where(rows == columns, 1.0, 0.5), upper.dtype)


def _square(
    upper: jax.Array, n_channels: int, size: int, widths: list[int] | None = None
) -> jax.Array:
    """`[..., pairs c <= d]` spread over `[..., size * size]`; rows padded to the first width."""
    index = np.zeros((n_channels, n_channels), np.int32)
    rows, columns = np.triu_indices(n_channels)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    leading = upper.shape[:-1] if widths is None else (widths[0],)
    square = _pad(upper[..., index], *leading, size, size)
    return square.reshape(*leading, size * size)


def _pad(array: jax.Array, *shape: int) -> jax.Array:
    return jnp.pad(array, [(0, new - old) for new, old in zip(shape, array.shape, strict=True)])


def _power_of_two(size: int, least: int) -> int:
    return max(least, 1 << max(size - 1, 0).bit_length())
