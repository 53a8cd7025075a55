"""`moment`: a strictly local student made of density moments and a network per element.

One `DensityLayer` gives the invariants of an atom's environment; a small network of the element
turns them into its energy.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill.kernels import ElementWeights, MomentWeights
from distill.kernels.contract import Species
from distill.students.density import DensityLayer, pair_basis
from distill.students.elements import ElementDense, NeighborElements


class MomentStudent(nn.Module):
    """Energy of each atom from the displacements to its neighbours.

    Attributes:
        n_elements: size of the model's element table.
        cutoff: Å.
        n_radial: Bessel functions per element (or embedding) of the neighbour.
        n_channels: densities per l.
        max_l: largest degree of the spherical harmonics, at most 3.
        n_triples: channels whose products of three densities are used; 0 leaves them out, and
            `max_l` of 1 has none.
        hidden: widths of the network's hidden layers.
        n_embeddings: 0 gives every pair of elements radial functions and every element a network
            of its own; otherwise elements share them through embeddings of this length, which
            suits many elements.
        angular_cutoff: Å, beyond which only distances are seen, no angles: that of the harmonics
            of l > 0. 0 lets them see as far as `cutoff`.
        n_neighbors: typical number of neighbours, sets the scale of the densities.
    """

    n_elements: int
    cutoff: float
    n_radial: int = 10
    n_channels: int = 10
    max_l: int = 3
    n_triples: int = 8
    hidden: tuple[int, ...] = (64, 64)
    n_embeddings: int = 0
    n_neighbors: float = 10.0
    angular_cutoff: float = 0.0

    @nn.compact
    def __call__(
        self,
        displacements: jax.Array,
        neighbor_species: jax.Array,
        mask: jax.Array,
        species: Species,
    ) -> jax.Array:
        """Energies `[N]` in eV (without reference energies).

        Args:
            displacements: `[N, K, 3]`, Å; anything beyond the cutoff in padding slots.
            neighbor_species: `[N, K]` int32.
            mask: `[N, K]` bool, False in padding slots.
            species: `[N]` int32; as a numpy array it is static and the networks are evaluated on
                the atoms of their element only.
        """
        dtype = displacements.dtype
        shared = self.n_embeddings > 0
        radial, harmonics = pair_basis(
            displacements, self.cutoff, self.n_radial, self.max_l, self.angular_cutoff
        )
        features = NeighborElements(
            self.n_elements, self.n_embeddings, self.n_neighbors, name="elements"
        )(neighbor_species, mask, dtype)
        _, x = DensityLayer(
            self.n_elements,
            self.n_channels,
            self.n_triples,
            self.max_l,
            per_element=not shared,
            name="layer_0",
        )(radial, harmonics, features, species)
        for number, width in enumerate(self.hidden):
            x = nn.silu(
                ElementDense(self.n_elements, width, shared, name=f"hidden_{number}")(x, species)
            )
        self.sow("intermediates", "last_features", x)
        energy = ElementDense(self.n_elements, 1, shared, name="energy")(x, species)[:, 0]
        energy_scale = self.variable("statistics", "energy_scale", jnp.ones, ())
        return energy * energy_scale.value.astype(dtype)

    def weights(self, variables: Any) -> MomentWeights:
        """The model as a kernel knows it, from its Flax variables."""
        params, statistics = variables["params"], variables["statistics"]
        layer = params["layer_0"]
        radial = []
        for degree in range(self.max_l + 1):
            kernel = layer[f"radial_{degree}"]
            if self.n_embeddings:
                radial.append(ElementWeights(kernel[None], layer[f"factor_{degree}"]))
            else:
                radial.append(ElementWeights(kernel))
        names = [*(f"hidden_{number}" for number in range(len(self.hidden))), "energy"]
        return MomentWeights(
            neighbors=params["elements"]["embedding"] if self.n_embeddings else None,
            radial=tuple(radial),
            mean=statistics["layer_0"]["mean"],
            scale=statistics["layer_0"]["scale"],
            layers=tuple(self._dense(params[name]) for name in names),
            energy_scale=statistics["energy_scale"],
            cutoff=self.cutoff,
            angular_cutoff=self.angular_cutoff,
            n_radial=self.n_radial,
            n_channels=self.n_channels,
            density_scale=self.n_neighbors**-0.5,
        )

    def _dense(self, params: Any) -> ElementWeights:
        if self.n_embeddings:
            return ElementWeights(params["all"]["kernel"][None], params["factor"], params["bias"])
        return ElementWeights(params["own"]["kernel"], None, params["own"]["bias"])
