"""`message`: density layers in a row, in which neighbours tell what they know of their own.

The first layer sees elements, as `moment` does. In later layers the features of a neighbour are
what its own environment made of it: scalars, and vectors and tensors of its densities projected
on the bond, so that the neighbour's surroundings are seen relative to the bond. It costs several
times as much as `moment` and is more accurate. The receptive field grows by a cutoff per layer.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill.kernels.contract import Species
from distill.students.density import DensityLayer, pair_basis
from distill.students.elements import ElementDense, NeighborElements


class MessageStudent(nn.Module):
    """Energy of each atom; passes messages between neighbours, so it needs their indices.

    Attributes:
        n_elements: size of the model's element table.
        cutoff: Å, of each layer.
        n_layers: density layers, at least 2.
        n_radial: Bessel functions.
        n_channels: densities per l.
        max_l: largest degree of the spherical harmonics, at most 3.
        n_triples: channels whose products of three densities are used.
        hidden: widths of the network of each layer; the last is the number of scalars that an
            atom keeps.
        n_messages: features of a neighbour in later layers.
        n_tensors: densities per l = 1, 2 that a neighbour shows along the bond.
        n_embeddings: see `MomentStudent`.
        n_neighbors: typical number of neighbours, sets the scale of the densities.
    """

    n_elements: int
    cutoff: float
    n_layers: int = 2
    n_radial: int = 8
    n_channels: int = 10
    max_l: int = 3
    n_triples: int = 8
    hidden: tuple[int, ...] = (64, 64)
    n_messages: int = 12
    n_tensors: int = 8
    n_embeddings: int = 0
    n_neighbors: float = 10.0

    message_passing = True

    @nn.compact
    def __call__(
        self,
        displacements: jax.Array,
        neighbor_species: jax.Array,
        mask: jax.Array,
        species: Species,
        neighbors: jax.Array,
    ) -> jax.Array:
        """Energies `[N]` in eV (without reference energies).

        Args:
            displacements: `[N, K, 3]`, Å; anything beyond the cutoff in padding slots.
            neighbor_species: `[N, K]` int32.
            mask: `[N, K]` bool, False in padding slots.
            species: `[N]` int32; a numpy array is static.
            neighbors: `[N, K]` int32, row of each neighbour; anything in padding slots.
        """
        dtype = displacements.dtype
        shared = self.n_embeddings > 0
        radial, harmonics = pair_basis(displacements, self.cutoff, self.n_radial, self.max_l)
        features = elements = NeighborElements(
            self.n_elements, self.n_embeddings, self.n_neighbors, name="elements"
        )(neighbor_species, mask, dtype)
        weight = (mask / self.n_neighbors**0.5).astype(dtype)[..., None]
        kept = None
        energy = jnp.zeros(len(displacements), dtype)
        for layer in range(self.n_layers):
            densities, x = DensityLayer(
                self.n_elements,
                self.n_channels,
                self.n_triples,
                self.max_l,
                per_element=not shared,
                name=f"layer_{layer}",
            )(radial, harmonics, features, species)
            if kept is not None:
                x = jnp.concatenate([x, kept], axis=-1)
            for number, width in enumerate(self.hidden):
                dense = ElementDense(
                    self.n_elements, width, shared, name=f"hidden_{layer}_{number}"
                )
                x = nn.silu(dense(x, species))
            kept = x if kept is None else kept + x
            readout = ElementDense(self.n_elements, 1, shared, name=f"energy_{layer}")
            energy = energy + readout(kept, species)[:, 0]
            if layer + 1 < self.n_layers:
                messages = self._messages(layer, densities, kept, harmonics, neighbors)
                features = jnp.concatenate([elements, messages * weight], axis=-1)
        self.sow("intermediates", "last_features", kept)
        energy_scale = self.variable("statistics", "energy_scale", jnp.ones, ())
        return energy * energy_scale.value.astype(dtype)

    def _messages(
        self,
        layer: int,
        densities: list[jax.Array],
        scalars: jax.Array,
        harmonics: jax.Array,
        neighbors: jax.Array,
    ) -> jax.Array:
        """What each neighbour says, `[N, K, n_messages]`."""
        told = [nn.Dense(self.n_messages, name=f"tell_{layer}")(scalars)[:, None]]
        degrees = range(1, min(self.max_l, 2) + 1)
        for degree in degrees:
            gate = nn.Dense(self.n_tensors, name=f"gate_{layer}_{degree}")(scalars)
            mixed = nn.Dense(self.n_tensors, use_bias=False, name=f"mix_{layer}_{degree}")(
                densities[degree]
            )
            told.append(mixed * gate[:, None])
        # One gather of everything costs less than one for each part.
        parts = [part.reshape(len(part), -1) for part in told]
        heard = jnp.concatenate(parts, axis=-1).at[neighbors].get(mode="clip")
        messages = heard[..., : self.n_messages]
        start = self.n_messages
        for degree in degrees:
            length = 2 * degree + 1
            tensors = heard[..., start : start + length * self.n_tensors]
            tensors = tensors.reshape(*neighbors.shape, length, self.n_tensors)
            own = jnp.swapaxes(harmonics[:, degree**2 : (degree + 1) ** 2], 1, 2)
            along = (tensors * own[..., None]).sum(-2)
            messages = messages + nn.Dense(
                self.n_messages, use_bias=False, name=f"listen_{layer}_{degree}"
            )(along)
            start += length * self.n_tensors
        return nn.silu(messages)
