"""All weights of a density-moment model, as its kernels need them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from distill.kernels.element_weights import ElementWeights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MomentWeights:
    """Everything that defines the energy of a row.

    Attributes:
        neighbors: `[S, F]`, features of a neighbour by its element; None for one-hot ones.
        radial: for each degree a map from `F * n_radial` moments to channels.
        mean: `[S, I]`, subtracted from the invariants.
        scale: `[S, I]`, by which they are divided then.
        layers: of the network, the last of width 1; `silu` between them.
        energy_scale: eV.
        cutoff: Å.
        angular_cutoff: Å, of the harmonics of l > 0; 0 for none of their own.
        n_radial: radial functions.
        n_channels: channels multiplied in pairs; the others in triples.
        density_scale: factor of all densities; static, so that no digit is lost in float64.
    """

    neighbors: jax.Array | None
    radial: tuple[ElementWeights, ...]
    mean: jax.Array
    scale: jax.Array
    layers: tuple[ElementWeights, ...]
    energy_scale: jax.Array
    cutoff: float = field(metadata={"static": True})
    angular_cutoff: float = field(metadata={"static": True})
    n_radial: int = field(metadata={"static": True})
    n_channels: int = field(metadata={"static": True})
    density_scale: float = field(metadata={"static": True})

    @property
    def max_l(self) -> int:
        """Largest degree."""
        return len(self.radial) - 1

    def astype(self, dtype: Any) -> MomentWeights:
        """The same weights in another precision."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self)
