"""How a student tells elements apart: by one-hot vectors, or by embeddings that they share."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill.kernels.contract import Species
from distill.students.per_element import PerElementDense


class NeighborElements(nn.Module):
    """Features of the neighbours' elements, zero in padding slots.

    Attributes:
        n_elements: size of the model's element table.
        n_embeddings: 0 for one-hot vectors, otherwise the length of the learnt embedding.
        n_neighbors: typical number of neighbours; sums over them become of order one.
    """

    n_elements: int
    n_embeddings: int
    n_neighbors: float

    @nn.compact
    def __call__(self, neighbor_species: jax.Array, mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """`[N, K] -> [N, K, n_embeddings or n_elements]`."""
        features = jax.nn.one_hot(neighbor_species, self.n_elements, dtype=dtype)
        if self.n_embeddings:
            table = self.param(
                "embedding",
                nn.initializers.normal(1.0),
                (self.n_elements, self.n_embeddings),
            )
            features = features @ table.astype(dtype)
        return features * (mask / self.n_neighbors**0.5).astype(dtype)[..., None]


class ElementDense(nn.Module):
    """A dense layer of the central atom that knows its element.

    Attributes:
        n_elements: size of the model's element table.
        features: output width.
        shared: one kernel for all elements, with a factor and a bias of each element's own;
            otherwise every element has a kernel of its own.
    """

    n_elements: int
    features: int
    shared: bool

    @nn.compact
    def __call__(self, x: jax.Array, species: Species) -> jax.Array:
        """`[N, in] -> [N, features]`."""
        if not self.shared:
            return PerElementDense(self.n_elements, self.features, name="own")(x, species)
        shape = (self.n_elements, self.features)
        y = nn.Dense(self.features, use_bias=False, name="all", param_dtype=jnp.float32)(x)
        factor = self.param("factor", nn.initializers.ones, shape).astype(x.dtype)
        bias = self.param("bias", nn.initializers.normal(0.1), shape).astype(x.dtype)
        return y.astype(x.dtype) * factor[species] + bias[species]
