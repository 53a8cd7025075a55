"""Linear maps whose weights go by the element of the central atom."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.contract import Species


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ElementWeights:
    """A linear map that knows the element of the central atom.

    Attributes:
        kernel: `[S, in, out]`, or `[1, in, out]` if the elements share it.
        factor: `[S, out]` on the result, or None.
        bias: `[S, out]`, or None.
    """

    kernel: jax.Array
    factor: jax.Array | None = None
    bias: jax.Array | None = None

    def kernel_of(self, element: int) -> jax.Array:
        """`[in, out]`, of one element."""
        return self.kernel[element if len(self.kernel) > 1 else 0]


def affine(x: jax.Array, species: Species, weights: ElementWeights) -> jax.Array:
    """`[b, ..., in] -> [b, ..., out]` with the weights of each row's element."""
    one = single_element(species)
    if one is not None:
        y = x @ weights.kernel_of(one)
    elif len(weights.kernel) == 1:
        y = x @ weights.kernel[0]
    else:
        # All elements for all rows, then a choice: dense, without a gather of weights.
        every = jnp.einsum("b...i,sio->b...so", x, weights.kernel)
        y = (every * _chosen(species, weights, x)[..., None]).sum(-2)
    if weights.factor is not None:
        y = y * by_element(weights.factor, species, y)
    return y if weights.bias is None else y + by_element(weights.bias, species, y)


def affine_transposed(y: jax.Array, species: Species, weights: ElementWeights) -> jax.Array:
    """Transpose of the linear part of `affine`, `[b, ..., out] -> [b, ..., in]`."""
    if weights.factor is not None:
        y = y * by_element(weights.factor, species, y)
    one = single_element(species)
    if one is not None:
        return y @ weights.kernel_of(one).T
    if len(weights.kernel) == 1:
        return y @ weights.kernel[0].T
    spread = y[..., None, :] * _chosen(species, weights, y)[..., None]
    return jnp.einsum("b...so,sio->b...i", spread, weights.kernel)


def column_affine(x: jax.Array, species: Species, weights: ElementWeights) -> jax.Array:
    """`affine` of columns, `[in, b] -> [out, b]`."""
    one = single_element(species)
    if one is None:
        return affine(x.T, species, weights).T
    # In this form, and with constant weights, XLA finds its fast product.
    y = weights.kernel_of(one).T @ x
    if weights.factor is not None:
        y = y * weights.factor[one][:, None]
    return y if weights.bias is None else y + weights.bias[one][:, None]


def column_affine_transposed(y: jax.Array, species: Species, weights: ElementWeights) -> jax.Array:
    """`affine_transposed` of columns, `[out, b] -> [in, b]`."""
    one = single_element(species)
    if one is None:
        return affine_transposed(y.T, species, weights).T
    if weights.factor is not None:
        y = y * weights.factor[one][:, None]
    return weights.kernel_of(one) @ y


def single_element(species: Species) -> int | None:
    """The element of all rows where that is static."""
    if isinstance(species, np.ndarray) and len(species) and (species == species[0]).all():
        return int(species[0])
    return None


def by_element(table: jax.Array, species: Species, like: jax.Array) -> jax.Array:
    """Rows of `table` `[S, out]` by element, with axes to stand beside `like` `[b, ..., out]`."""
    one = single_element(species)
    rows = table[one][None] if one is not None else table[species]
    return rows.reshape(len(rows), *(1,) * (like.ndim - 2), -1)


def _chosen(species: Species, weights: ElementWeights, like: jax.Array) -> jax.Array:
    """One-hot elements `[b, ..., S]`, with axes to stand beside `like`."""
    hot = jax.nn.one_hot(species, len(weights.kernel), dtype=like.dtype)
    return hot.reshape(len(hot), *(1,) * (like.ndim - 2), -1)
