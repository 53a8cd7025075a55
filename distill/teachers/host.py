"""Teachers that compute outside JAX, called back from compiled functions.

The energy is a `jax.pure_callback` with a custom JVP: its derivative are the forces that came
with the same call, so that gradients, jax-md loops and `vmap` over replicas work. A `vmap` hands
all its structures to the teacher as one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.errors import SimulationError
from distill.potential import Evaluation, Potential
from distill.teachers.base import Teacher, check_structures

Energy = Callable[..., jax.Array]


class HostEnergy:
    """Energy of structures like `atoms` by any teacher, usable inside jit and vmap.

    `energy(positions [n, 3], cell [3, 3] or None) -> []` in eV, relative to `energy_offset`, the
    energy of `atoms`, because total energies do not fit single precision. It can be
    differentiated once, with respect to positions and, for a teacher with stress, the cell. The
    derivative of a teacher that is not conservative are its forces, not the true gradient.

    Args:
        teacher: any.
        atoms: elements, periodicity and default cell.
        dtype: of positions, energy and forces.

    Raises:
        UnknownElementError, UnsupportedStructureError: see `check_structures`.
    """

    def __init__(self, teacher: Teacher, atoms: Atoms, dtype: Any = np.float32):
        check_structures(teacher.info, [atoms])
        self._teacher, self._dtype = teacher, dtype
        self._atoms = atoms.copy()
        self._atoms.calc = None
        self._atoms.set_constraint()
        self.energy_offset = float(teacher.label([atoms]).energy[0])
        self._has_virial = bool(atoms.pbc.all()) and teacher.info.stress
        self._function = self._make()

    def __call__(self, positions: jax.Array, cell: jax.Array | None = None) -> jax.Array:
        """Energy in eV relative to `energy_offset`."""
        return self._function(*self._inputs(positions, cell))

    def energy_and_forces(
        self, positions: jax.Array, cell: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Energy in eV and forces `[n, 3]` in eV/Å from one call of the teacher."""
        energy, forces, _ = self._evaluate(*self._inputs(positions, cell))
        return energy, forces

    def with_virial(self, positions: Any, cell: Any = None) -> tuple[jax.Array, ...]:
        """Energy `[]` in eV, forces `[n, 3]` in eV/Å and virial `[3, 3]` (dE/dstrain, eV).

        The virial is zero where the teacher gives no stress.
        """
        return self._evaluate(*self._inputs(positions, cell))

    def _inputs(self, positions: Any, cell: Any) -> tuple[jax.Array, jax.Array]:
        if cell is None:
            cell = self._atoms.cell.array
        return jnp.asarray(positions, self._dtype), jnp.asarray(cell, self._dtype)

    def _evaluate(self, positions: jax.Array, cell: jax.Array) -> tuple[jax.Array, ...]:
        """Energy, forces and virial (dE/dstrain, eV)."""
        shapes = tuple(
            jax.ShapeDtypeStruct(shape, np.dtype(self._dtype))
            for shape in ((), positions.shape, (3, 3))
        )
        return jax.pure_callback(self._call, shapes, positions, cell, vmap_method="broadcast_all")

    def _call(self, positions: Any, cell: Any) -> tuple[np.ndarray, ...]:
        """Host code: `[..., n, 3]` and `[..., 3, 3]`, all leading axes in one batch."""
        # Copies: the teacher must not keep views of buffers that belong to the caller.
        points, cells = np.array(positions, np.float64), np.array(cell, np.float64)
        leading = points.shape[:-2]
        count = int(np.prod(leading))
        structures = []
        for own, box in zip(
            points.reshape(count, *points.shape[-2:]), cells.reshape(count, 3, 3), strict=True
        ):
            atoms = self._atoms.copy()
            atoms.set_cell(box, scale_atoms=False)
            atoms.positions = own
            structures.append(atoms)
        energy = np.full(count, np.nan)
        forces = np.full((count, *points.shape[-2:]), np.nan)
        virial = np.zeros((count, 3, 3))
        # Lost atoms give NaN, so that the caller's own check reports where and when.
        good = np.flatnonzero(np.isfinite(points.reshape(count, -1)).all(1))
        if len(good):
            labels = self._teacher.label([structures[i] for i in good])
            energy[good], forces[good] = labels.energy, np.stack(labels.forces)
            if self._has_virial and labels.stress is not None:
                volumes = np.array([structures[i].cell.volume for i in good])
                virial[good] = labels.stress * volumes[:, None, None]
        return (
            (energy - self.energy_offset).astype(self._dtype).reshape(leading),
            forces.astype(self._dtype).reshape(points.shape),
            virial.astype(self._dtype).reshape(*leading, 3, 3),
        )

    def _make(self) -> Energy:
        @jax.custom_jvp
        def energy(positions: jax.Array, cell: jax.Array) -> jax.Array:
            return self._evaluate(positions, cell)[0]

        @energy.defjvp
        def derivative(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
            positions, cell = primals
            moved, deformed = tangents
            value, forces, virial = self._evaluate(positions, cell)
            change = -(forces * moved).sum()
            if self._has_virial:
                # dE/dcell at fixed positions: cell^-T (virial - sum of r_i dE/dr_i).
                fixed = virial + positions.T @ forces
                change = change + (jnp.linalg.inv(cell).T @ fixed * deformed).sum()
            return value, change

        return energy


def host_potential(teacher: Teacher, atoms: Atoms, dtype: Any = np.float32) -> Potential:
    """MD potential for structures like `atoms` that calls `teacher` back at every step.

    The energy is relative to that of `atoms`. There are no lists on the device: the teacher makes
    its own. A periodic system may be run in NPT where the teacher has stress.

    Raises:
        UnknownElementError, UnsupportedStructureError: see `check_structures`.
    """
    energy = HostEnergy(teacher, atoms, dtype)
    if not np.isfinite(energy.energy_offset):
        raise SimulationError(f"teacher {teacher.info.name} gives no finite energy for the start")

    def energy_and_forces(positions: jax.Array, lists: Any) -> tuple[jax.Array, jax.Array]:
        return energy.energy_and_forces(positions)

    def evaluate(positions: jax.Array, lists: Any, cell: jax.Array) -> Evaluation:
        value, forces, virial = energy.with_virial(positions, cell)
        unknown = jnp.full(len(positions), jnp.nan, positions.dtype)
        return Evaluation(value[None], forces, virial[None], unknown)

    def with_cell(cell: np.ndarray) -> Potential:
        # Nothing but the cell itself depends on it: every call passes the one of the moment.
        return replace(potential, cell=np.array(cell), with_cell=with_cell)

    bulk = teacher.info.stress and bool(atoms.pbc.all())
    potential = Potential(
        numbers=atoms.numbers.copy(),
        dtype=dtype,
        allocate=lambda positions, previous=None: jnp.zeros((), bool),
        update=lambda lists, positions: lists,
        overflow=lambda lists, positions: jnp.zeros((), bool),
        energy_and_forces=energy_and_forces,
        evaluate=evaluate if bulk else None,
        cell=atoms.cell.array.copy(),
        pbc=atoms.pbc.copy(),
        with_cell=with_cell if bulk else None,
    )
    return potential
