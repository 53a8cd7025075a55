"""Types of the kernel contract, see `distill.kernels`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

Species = jax.Array | np.ndarray
"""`[b]` int32; a numpy array is static in a trace, so that atoms can be grouped by element."""

AtomicEnergy = Callable[[jax.Array, jax.Array, jax.Array, Species], jax.Array]
"""`(displacements [b, K, 3], neighbor_species [b, K], mask [b, K], species [b]) -> energy [b]`."""


class Kernel(Protocol):
    """Evaluates rows of a strictly local model with their gradient."""

    def __call__(
        self,
        atomic_energy: AtomicEnergy,
        displacements: jax.Array,
        neighbor_species: jax.Array,
        mask: jax.Array,
        species: Species,
    ) -> tuple[jax.Array, jax.Array]:
        """Energies `[b]` in eV and their gradient `[b, K, 3]` in eV/Å."""
