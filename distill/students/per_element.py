"""A dense layer with weights of its own for every element."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill.kernels.contract import Species


class PerElementDense(nn.Module):
    """`x @ kernel[species] + bias[species]`.

    Attributes:
        n_elements: number of elements.
        features: output width.
    """

    n_elements: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, species: Species) -> jax.Array:
        """`[N, in] -> [N, features]`; a numpy `species` is static and used to group the atoms."""
        kernel = self.param(
            "kernel",
            nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=(0,)),
            (self.n_elements, x.shape[-1], self.features),
        ).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.n_elements, self.features))
        bias = bias.astype(x.dtype)
        return per_element_affine(x, species, kernel, bias)


def per_element_affine(
    x: jax.Array, species: Species, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
    """`x @ kernel[species] + bias[species]` for x `[N, in]`; a numpy `species` is static."""
    n_elements = len(kernel)
    if isinstance(species, np.ndarray):
        return _grouped(x, species, kernel, bias)
    # All elements for all atoms, then a choice: dense and without a gather of weights.
    every = jnp.einsum("ni,eio->eno", x, kernel) + bias[:, None]
    chosen = jax.nn.one_hot(species, n_elements, dtype=x.dtype)
    return jnp.einsum("eno,ne->no", every, chosen)


def _grouped(x: jax.Array, species: np.ndarray, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    starts = np.flatnonzero(np.diff(species, prepend=-1))
    if len(starts) > 2 * len(kernel):
        order = np.argsort(species, kind="stable")
        sorted_result = _grouped(x[order], species[order], kernel, bias)
        return sorted_result[np.argsort(order, kind="stable")]
    # Atoms of one element stand together: slices cost nothing, gathers would.
    ends = [*starts[1:], len(species)]
    return jnp.concatenate(
        [
            x[start:end] @ kernel[species[start]] + bias[species[start]]
            for start, end in zip(starts, ends, strict=True)
        ]
    )
