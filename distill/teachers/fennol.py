"""FeNNol teachers, natively in JAX: pure energies, batched labels, committees, MD potentials.

FeNNol: T. Plé, O. Adjoua, L. Lagardère, J.-P. Piquemal, J. Chem. Phys. 161, 042502 (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.data.labels import Labels
from distill.neighbors.capacity import bucket
from distill.neighbors.cell import heights
from distill.potential import Potential
from distill.teachers._fennol_model import fennol_version, load_members
from distill.teachers.base import HessianProduct, TeacherInfo, check_structures
from distill.teachers.fennol_energy import FennolEnergy, minimum_image_holds
from distill.teachers.fennol_hessian import FennolHessian
from distill.teachers.fennol_labels import make_label_function
from distill.teachers.fennol_potential import fennol_potential
from distill.teachers.hessian import directions_of, numerical_hvp, product_of

MAX_GROWTHS = 8
"""Capacity growths after which a labelling call gives up."""


class FennolTeacher:
    """Teacher made of one or more FeNNol networks; labels are means over the members.

    Args:
        paths: `.fnx` files of the members (same architecture).
        name: name recorded as provenance.
        licence: licence of the weights.
        elements: atomic numbers, when the files do not tell.
        dtype: precision of positions and of the arithmetic (float64 needs jax's x64 mode).
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        name: str | None = None,
        licence: str = "unknown",
        elements: Sequence[int] | None = None,
        dtype: Any = np.float32,
    ):
        if np.dtype(dtype) == np.float64 and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                "a float64 teacher needs jax.config.update('jax_enable_x64', True) in the script"
            )
        self.model = load_members([Path(p) for p in paths], elements)
        if np.dtype(dtype) == np.float64:
            object.__setattr__(
                self.model,
                "variables",
                jax.tree.map(lambda leaf: leaf.astype(np.float64), self.model.variables),
            )
        self.dtype = dtype
        self._label_states: dict[tuple[bool, bool, int], Any] = {}
        self._label = make_label_function(self.model)
        self._info = TeacherInfo(
            name=name or f"fennol:{Path(paths[0]).name}",
            kind="fennol",
            version=fennol_version(),
            weights_sha256=",".join(self.model.weights_sha256),
            elements=self.model.elements,
            cutoff=self.model.cutoff,
            n_members=self.model.n_members,
            n_parameters=self.model.n_parameters,
            periodic=True,
            partly_periodic=False,
            stress=True,
            licence=licence,
            hessian="exact",
            conservative=True,
        )
        self._hessian = FennolHessian(self.energy_function, self.model.cutoff, dtype)

    @property
    def info(self) -> TeacherInfo:
        """Identity and capabilities."""
        return self._info

    def energy_function(self, atoms: Atoms) -> FennolEnergy:
        """Pure energy for structures like `atoms`: same elements in the same order.

        Capacities have a margin of 10 % over `atoms`; call again with the crowded structure when
        they overflow.

        Raises:
            UnknownElementError, UnsupportedStructureError: see `check_structures`.
        """
        check_structures(self.info, [atoms])
        periodic = bool(atoms.pbc.all())
        cell = jnp.asarray(atoms.cell.array, self.dtype) if periodic else None
        minimum_image = cell is not None and bool(minimum_image_holds(cell, self.model.cutoff))
        draft = FennolEnergy(
            model=self.model,
            numbers=tuple(atoms.numbers.tolist()),
            periodic=periodic,
            minimum_image=minimum_image,
            state=None,
            self_energy=self._self_energy(atoms.numbers),
        )
        inputs = draft.inputs(jnp.asarray(atoms.positions, self.dtype), cell)
        state = self.model.allocate(inputs)
        return replace(draft, state=state)

    def potential(self, atoms: Atoms) -> Potential:
        """MD potential for `distill.simulation`, its lists rebuilt at every step.

        FeNNol enumerates all pairs, so a skin saves little for the sizes it is used at.
        Energies are interaction energies (no self energies); there are none of single atoms, so
        that `Evaluation.per_atom_energy` is NaN. Periodic systems may be run in NPT.
        """
        return fennol_potential(self.energy_function, atoms, self.dtype)

    def hvp(self, structure: Atoms, direction: np.ndarray) -> HessianProduct:
        """Second derivatives of the energy of `structure` times `direction`.

        They are exact unless a distance is so close below a cutoff that FeNNol's cosine rounds to
        zero (in single precision within 3e-4 Å), where it has no second derivative: then they are
        differences of forces, with an estimate of their error.

        Args:
            structure: isolated or fully periodic.
            direction: `[n, 3]` or `[k, n, 3]`.

        Raises:
            UnknownElementError, UnsupportedStructureError: see `check_structures`.
            ValueError: a direction of another shape.
        """
        check_structures(self.info, [structure])
        directions, single = directions_of(structure, direction)
        values = self._hessian(structure, directions)
        if not np.isfinite(values).all():
            return numerical_hvp(self.label, structure, direction)
        return product_of(values, np.zeros(len(directions)), single, exact=True)

    def label(self, structures: Sequence[Atoms], uncertainty: bool = False) -> Labels:
        """Label a batch in one call; periodic and isolated structures may be mixed.

        Args:
            structures: any compositions and sizes.
            uncertainty: also give the standard deviation of the members' forces per atom.

        Raises:
            UnknownElementError, UnsupportedStructureError: see `check_structures`.
        """
        check_structures(self.info, structures)
        energy = np.zeros(len(structures))
        forces: list[np.ndarray] = [np.zeros((len(a), 3)) for a in structures]
        stress = np.full((len(structures), 3, 3), np.nan)
        spread: list[np.ndarray] | None = (
            [np.zeros(len(a)) for a in structures] if uncertainty else None
        )
        for periodic in (False, True):
            chosen = [i for i, a in enumerate(structures) if bool(a.pbc.all()) == periodic]
            if not chosen:
                continue
            batch = [structures[i] for i in chosen]
            member_energy, member_forces, virial = self._evaluate(batch, periodic, uncertainty)
            offset = 0
            for row, (index, atoms) in enumerate(zip(chosen, batch, strict=True)):
                own = slice(offset, offset + len(atoms))
                offset += len(atoms)
                energy[index] = member_energy[:, row].mean() + self._self_energy(atoms.numbers)
                forces[index] = member_forces[:, own].mean(0)
                if periodic:
                    stress[index] = virial[row] / atoms.cell.volume
                if spread is not None:
                    deviation = member_forces[:, own] - forces[index]
                    spread[index] = np.sqrt((deviation**2).sum(-1).mean(0))
        return Labels(energy, forces, stress, per_atom_energy=None, uncertainty=spread)

    def _self_energy(self, numbers: np.ndarray) -> float:
        return float(self.model.self_energies[:, numbers].sum(1).mean())

    def _evaluate(
        self, batch: Sequence[Atoms], periodic: bool, per_member: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies [n_members, B], forces [n_members or 1, atoms, 3], virial [B, 3, 3] in eV."""
        inputs = self._batch_inputs(batch, periodic)
        key = (periodic, "flags" in inputs, len(inputs["species"]))
        if key not in self._label_states:
            self._label_states[key] = self.model.allocate(inputs)
        for _ in range(MAX_GROWTHS):
            energies, gradient, virial, overflow = self._label(
                self._label_states[key], per_member, self.model.variables, inputs
            )
            if not bool(overflow):
                break
            self._label_states[key] = self.model.allocate(inputs, self._label_states[key])
        else:
            raise RuntimeError(f"FeNNol capacities still overflow after {MAX_GROWTHS} growths")
        n_atoms = sum(len(a) for a in batch)
        return (
            np.asarray(energies, np.float64)[:, : len(batch)],
            -np.asarray(gradient, np.float64)[:, :n_atoms],
            np.asarray(virial, np.float64)[: len(batch)],
        )

    def _batch_inputs(self, batch: Sequence[Atoms], periodic: bool) -> dict[str, Any]:
        """Concatenated structures, padded the way FeNNol's own atom padding does it."""
        sizes = [len(a) for a in batch]
        n_systems = bucket(len(batch) + 1)
        # One structure again and again is the case of a calculator: little padding, because each
        # padding atom costs as much as a real one. Batches share few sizes instead.
        n_atoms = bucket(sum(sizes) + 1) if len(batch) > 1 else 8 * (sizes[0] // 8 + 1)
        extra = n_atoms - sum(sizes)
        natoms = np.zeros(n_systems, np.int32)
        natoms[: len(batch)] = sizes
        inputs: dict[str, Any] = {
            "species": np.concatenate([a.numbers for a in batch] + [np.full(extra, -1)]).astype(
                np.int32
            ),
            "coordinates": np.concatenate(
                [a.positions for a in batch] + [np.zeros((extra, 3))]
            ).astype(self.dtype),
            "natoms": natoms,
            "batch_index": np.repeat(
                np.r_[np.arange(len(batch)), n_systems - 1], [*sizes, extra]
            ).astype(np.int32),
        }
        inputs["true_atoms"] = inputs["species"] > 0
        inputs["true_sys"] = np.arange(n_systems) < len(batch)
        if periodic:
            # FeNNol gives padding systems a huge cell, so that they need no images.
            cells = np.tile(1000.0 * np.eye(3), (n_systems, 1, 1))
            cells[: len(batch)] = [a.cell.array for a in batch]
            inputs["cells"] = cells.astype(self.dtype)
            inputs["reciprocal_cells"] = np.linalg.inv(cells).astype(self.dtype)
            if all(heights(a.cell.array).min() >= 2.0 * self.model.cutoff for a in batch):
                inputs["flags"] = {"minimum_image": None}
        return inputs
