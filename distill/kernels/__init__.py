"""The performance core: how the rows of a strictly local model are evaluated.

Row `i` of the displacements alone decides the energy of atom `i`, so rows are independent. A
kernel takes the model and dense rows and gives energies with their gradient:

    kernel(atomic_energy, displacements [b, K, 3], neighbor_species [b, K], mask [b, K],
           species [b]) -> (energy [b], dE/d displacement [b, K, 3])

Where slots are grouped by element, `neighbor_species` is a sorted numpy array `[K]` and holds for
every row. A `RowModel` whose weights are known is then evaluated by hand-written formulas, by
`blocked` in XLA and by `pallas` in one fused kernel for GPUs.

A model may return a tuple of arrays with one row per atom, the energy first; it is passed on as it
is, so that features come along at no cost. Energies in eV, displacements in Å. Every kernel passes
the same tests and can be differentiated again, with respect to the parameters and to the
displacements.
"""

from distill.kernels.blocked import blocked
from distill.kernels.choice import KERNELS, choose_kernel, kernel_name
from distill.kernels.contract import AtomicEnergy, Kernel, RowModel
from distill.kernels.element_weights import ElementWeights
from distill.kernels.moment_weights import MomentWeights
from distill.kernels.pallas import pallas
from distill.kernels.reference import reference

__all__ = [
    "KERNELS",
    "AtomicEnergy",
    "ElementWeights",
    "Kernel",
    "MomentWeights",
    "RowModel",
    "blocked",
    "choose_kernel",
    "kernel_name",
    "pallas",
    "reference",
]
