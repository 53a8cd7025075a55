"""Types of the kernel contract, see `distill.kernels`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

if TYPE_CHECKING:
    from distill.kernels.moment_weights import MomentWeights

Species = jax.Array | np.ndarray
"""`[b]` int32; a numpy array is static in a trace, so that atoms can be grouped by element."""

NeighborSpecies = jax.Array | np.ndarray
"""`[b, K]` int32; or a sorted numpy array `[K]`, which is static: the element of each slot."""

AtomicEnergy = Callable[..., Any]
"""`(displacements [b, K, 3], neighbor_species, mask [b, K], species [b]) -> energy [b]`."""


@dataclass(frozen=True)
class RowModel:
    """A strictly local model of rows; calling it gives the energies.

    Attributes:
        energy: an `AtomicEnergy`; it may give a tuple of arrays, the energies first.
        moments: the same model as weights, where a kernel may evaluate it by itself; it then
            gives energies and last features.
    """

    energy: AtomicEnergy
    moments: MomentWeights | None = None

    def __call__(self, *rows: Any) -> Any:
        """What `energy` gives."""
        return self.energy(*rows)


class Kernel(Protocol):
    """Evaluates rows of a strictly local model with their gradient."""

    def __call__(
        self,
        atomic_energy: AtomicEnergy,
        displacements: jax.Array,
        neighbor_species: NeighborSpecies,
        mask: jax.Array,
        species: Species,
    ) -> tuple[Any, jax.Array]:
        """Energies `[b]` in eV and their gradient `[b, K, 3]` in eV/Å."""
