"""A student: module, parameters and reference energies, and what users do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.data.labels import Labels
from distill.graph import Graph
from distill.kernels import Kernel, RowModel, blocked, choose_kernel
from distill.kernels.contract import Species
from distill.neighbors import (
    DEFAULT_SKIN,
    batch_graphs,
    bucket,
    element_counts,
    group_slots,
    species_index,
)
from distill.potential import Evaluation, Potential, evaluate, local_potential
from distill.students.spec import StudentSpec, passes_messages
from distill.students.uncertainty import Uncertainty


@dataclass(frozen=True)
class Student:
    """A trained (or fresh) student.

    Attributes:
        spec: rebuilds the module.
        variables: Flax variables, collections `params` and `statistics`.
        reference_energies: `[n_elements]` float64, eV, added on the host.
        uncertainty: of the forces on each atom, see `fit_uncertainty`; None if it was not fitted.
    """

    spec: StudentSpec
    variables: Any
    reference_energies: np.ndarray
    uncertainty: Uncertainty | None = None

    def __post_init__(self) -> None:
        # A numpy array (from a bundle, say) cannot be indexed by the traced species of a kernel.
        object.__setattr__(self, "variables", jax.tree.map(jnp.asarray, self.variables))

    @cached_property
    def module(self) -> nn.Module:
        """The Flax module."""
        return self.spec.build()

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers it knows."""
        return self.spec.elements

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.spec.cutoff

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(int(np.prod(np.shape(p))) for p in jax.tree.leaves(self.variables["params"]))

    def atomic_energy(
        self,
        displacements: jax.Array,
        neighbor_species: jax.Array,
        mask: jax.Array,
        species: Species,
        *neighbors: jax.Array,
    ) -> jax.Array:
        """Energies `[N]` in eV without reference energies; see `distill.kernels` for shapes.

        A student that passes messages takes the indices of the neighbours `[N, K]` as well.
        """
        energies: Any = self.module.apply(
            self.variables, displacements, neighbor_species, mask, species, *neighbors
        )
        return energies

    def energy_and_features(self, *rows: Any) -> tuple[jax.Array, jax.Array]:
        """Energies `[N]` as in `atomic_energy`, and the last features of the network `[N, F]`."""
        return _energy_and_features(self.module, self.variables, *rows)

    @property
    def message_passing(self) -> bool:
        """Whether atoms see further than the cutoff, through their neighbours."""
        return passes_messages(self.module)

    def species(self, numbers: np.ndarray) -> np.ndarray:
        """Index of each atom in the element table. Raises UnknownElementError."""
        return species_index(numbers, self.elements)

    def reference_energy(self, numbers: np.ndarray) -> float:
        """Sum of the reference energies in eV (float64)."""
        return float(self.reference_energies[self.species(numbers)].sum())

    def potential(
        self,
        atoms: Atoms,
        *,
        skin: float = DEFAULT_SKIN,
        dtype: Any = np.float32,
        kernel: Kernel | str | None = None,
        devices: Sequence[jax.Device] = (),
    ) -> Potential:
        """Potential for jax-md for structures like `atoms`; see `distill.potential.Potential`.

        Args:
            atoms: elements, cell and periodicity (fixed).
            skin: of the neighbour list, Å.
            dtype: precision of the simulation.
            kernel: a kernel or its name, see `distill.kernels`; by default what `choose_kernel`
                gives. Students that pass messages use `reference` always: their rows are not
                independent.
            devices: that share one system, e.g. `jax.devices()[:2]`: each evaluates a part of the
                rows of a strictly local student. All hold the whole list. A CPU is one device
                unless `jax_num_cpu_devices` was set before JAX started.

        Raises:
            UnsupportedStructureError: the system has elements that the student does not know, or
                cannot be shared by several devices.
        """
        energy = self.energy_and_features if self.uncertainty else self.atomic_energy
        return local_potential(
            self._row_model(energy, self.variables),
            atoms,
            self.species(atoms.numbers),
            self.cutoff,
            skin=skin,
            dtype=dtype,
            kernel=choose_kernel(kernel),
            message_passing=self.message_passing,
            uncertainty=self.uncertainty,
            devices=devices,
        )

    def label(self, structures: Sequence[Atoms], dtype: Any = np.float32) -> Labels:
        """Energies, forces, stress (NaN without periodicity) and per-atom energies of a batch.

        Expected force errors too, if an uncertainty was fitted.

        Shapes are padded to a ladder of sizes, so that repeated calls seldom compile.
        """
        graph = batch_graphs(
            structures,
            self.cutoff,
            self.elements,
            n_atoms=bucket(sum(len(a) for a in structures) + 1),
            n_systems=bucket(len(structures) + 1),
            dtype=dtype,
        )
        counts = element_counts(graph.neighbors, graph.species, len(self.elements))
        groups = [bucket(int(count)) if count else 0 for count in counts]
        if not sum(groups):
            groups[0] = bucket(1)
        result = self.evaluate(jax.tree.map(jnp.asarray, group_slots(graph, groups)))
        volume = np.array([abs(a.cell.volume) if a.pbc.all() else np.nan for a in structures])
        virial = np.asarray(result.virial, np.float64)[: len(structures)]
        energy = np.asarray(result.energy, np.float64)[: len(structures)]
        ends = np.cumsum([len(a) for a in structures])
        starts = [0, *ends[:-1]]
        parts = [slice(a, b) for a, b in zip(starts, ends, strict=True)]
        forces = np.asarray(result.forces, np.float64)
        atomic = np.asarray(result.per_atom_energy, np.float64)
        spread = None
        if self.uncertainty is not None:
            expected = np.asarray(self.uncertainty(result.beside[0], graph.species), np.float64)
            spread = [expected[part] for part in parts]
        return Labels(
            uncertainty=spread,
            energy=energy + [self.reference_energy(a.numbers) for a in structures],
            forces=[forces[part] for part in parts],
            stress=virial / volume[:, None, None],
            per_atom_energy=[
                atomic[part] + self.reference_energies[self.species(a.numbers)]
                for part, a in zip(parts, structures, strict=True)
            ],
        )

    def evaluate(self, graph: Graph) -> Evaluation:
        """Results for a padded graph, with the last features `[N, F]` beside them."""
        return self._evaluate(self.variables, graph)

    @cached_property
    def _evaluate(self) -> Any:
        module = self.module

        @jax.jit
        def run(variables: Any, graph: Graph) -> Evaluation:
            def energy_and_features(*rows: Species) -> Any:
                return _energy_and_features(module, variables, *rows)

            model = self._row_model(energy_and_features, variables)
            return evaluate(model, graph, blocked, message_passing=passes_messages(module))

        return run

    def _row_model(self, energy: Callable[..., Any], variables: Any) -> RowModel:
        """`energy` with the weights that a kernel may use instead, where the module has them."""
        module: Any = self.module
        return RowModel(energy, module.weights(variables) if hasattr(module, "weights") else None)


def _energy_and_features(
    module: nn.Module, variables: Any, *rows: Any
) -> tuple[jax.Array, jax.Array]:
    """Energies `[N]`, and the last features of the network `[N, F]`."""
    energies, sown = module.apply(variables, *rows, mutable=["intermediates"])
    return energies, sown["intermediates"]["last_features"][0]
