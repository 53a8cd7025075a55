"""FeNNol teachers, natively in JAX: pure energies, batched labels, committees, MD potentials.

FeNNol: T. Plé, O. Adjoua, L. Lagardère, J.-P. Piquemal, J. Chem. Phys. 161, 042502 (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.data.labels import Labels
from distill.neighbors.capacity import bucket
from distill.potential import Potential
from distill.teachers._fennol_model import (
    FennolModel,
    fennol_version,
    load_members,
    overflow_flag,
)
from distill.teachers.base import TeacherInfo, check_structures

MAX_GROWTHS = 8
"""Capacity growths after which a labelling call gives up (each grows at least by 20 %)."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["data", "overflow"],
    meta_fields=["state"],
)
@dataclass(frozen=True)
class FennolLists:
    """Neighbour lists of one structure as FeNNol built them, and whether they overflowed.

    `state` holds the capacities; it is static, so that a grown list compiles anew.
    """

    data: dict[str, Any]
    overflow: jax.Array
    state: Any


@dataclass(frozen=True)
class FennolEnergy:
    """Pure interaction energy of one composition with fixed capacities.

    Usable under jit, grad, vmap, `lax.fori_loop` and inside jax-md. Atomic self energies are left
    out, because total energies do not fit float32; `self_energy` is their sum in eV (float64).
    """

    model: FennolModel
    numbers: tuple[int, ...]
    periodic: bool
    minimum_image: bool
    state: Any
    self_energy: float

    def energy(self, positions: jax.Array, cell: jax.Array | None = None) -> jax.Array:
        """Mean energy of the members in eV for `positions` `[n, 3]` and `cell` `[3, 3]` (Å).

        NaN when a neighbour capacity overflows, so that an overflow cannot pass unnoticed;
        `energy_and_overflow` gives the flag instead.
        """
        energy, overflow = self.energy_and_overflow(positions, cell)
        return jnp.where(overflow, jnp.nan, energy)

    def energy_and_overflow(
        self, positions: jax.Array, cell: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Mean energy (eV) and whether a neighbour capacity was too small for this structure."""
        lists = self.lists(positions, cell)
        return self.member_energies(positions, lists, cell).mean(), lists.overflow

    def lists(self, positions: jax.Array, cell: jax.Array | None = None) -> FennolLists:
        """Neighbour lists for `positions`; pure, without gradient."""
        data = self.model.process(self.state, self._inputs(positions, cell))
        data = {k: v for k, v in data.items() if k != "flags"}
        overflow = overflow_flag(data)
        if cell is not None and self.minimum_image:
            overflow = overflow | ~_minimum_image_holds(cell, self.model.cutoff)
        return FennolLists(data, overflow, self.state)

    def member_energies(
        self, positions: jax.Array, lists: FennolLists, cell: jax.Array | None = None
    ) -> jax.Array:
        """Energy of each member `[n_members]` in eV with given lists; differentiable."""
        data = {**lists.data, **self._inputs(positions, cell)}
        data.pop("flags", None)
        return self.model.energies(data)[:, 0]

    def _inputs(self, positions: jax.Array, cell: jax.Array | None) -> dict[str, Any]:
        if not self.periodic:
            cell = None
        elif cell is None:
            raise ValueError("this energy was made for a periodic structure: pass its cell")
        numbers = np.asarray(self.numbers, np.int32)
        inputs: dict[str, Any] = {} if cell is None else _cell_inputs(cell[None])
        if self.periodic and self.minimum_image:
            inputs["flags"] = {"minimum_image": None}
        return inputs | {
            "species": jnp.asarray(numbers),
            "coordinates": positions,
            "natoms": jnp.asarray([len(numbers)], jnp.int32),
            "batch_index": jnp.zeros(len(numbers), jnp.int32),
        }


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
        self._label_states: dict[tuple[bool, int], Any] = {}
        self._label = _make_label_function(self.model)
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
        )

    @property
    def info(self) -> TeacherInfo:
        """Identity and capabilities."""
        return self._info

    def energy_function(self, atoms: Atoms) -> FennolEnergy:
        """Pure energy for structures like `atoms`: same elements in the same order.

        Capacities have a margin of 20 % over `atoms`; call again with the crowded structure when
        they overflow.

        Raises:
            UnknownElementError, UnsupportedStructureError: see `check_structures`.
        """
        check_structures(self.info, [atoms])
        periodic = bool(atoms.pbc.all())
        cell = jnp.asarray(atoms.cell.array, self.dtype) if periodic else None
        minimum_image = cell is not None and bool(_minimum_image_holds(cell, self.model.cutoff))
        draft = FennolEnergy(
            model=self.model,
            numbers=tuple(atoms.numbers.tolist()),
            periodic=periodic,
            minimum_image=minimum_image,
            state=None,
            self_energy=self._self_energy(atoms.numbers),
        )
        inputs = draft._inputs(jnp.asarray(atoms.positions, self.dtype), cell)
        state = self.model.allocate(inputs)
        return replace(draft, state=state)

    def potential(self, atoms: Atoms) -> Potential:
        """MD potential for `distill.simulation`, its lists rebuilt at every step.

        FeNNol enumerates all pairs, so a skin saves little for the sizes it is used at.
        Energies are interaction energies (no self energies).
        """
        function = self.energy_function(atoms)
        cell = jnp.asarray(atoms.cell.array, self.dtype) if function.periodic else None

        @jax.jit
        def build(positions: jax.Array, empty: FennolLists) -> FennolLists:
            return replace(function, state=empty.state).lists(positions, cell)

        def allocate(positions: jax.Array, previous: FennolLists | None = None) -> FennolLists:
            positions = jnp.asarray(positions, self.dtype)
            state = function.state if previous is None else previous.state
            lists = build(positions, FennolLists({}, jnp.zeros((), bool), state))
            if previous is not None or bool(lists.overflow):
                enlarge = previous is not None and bool(previous.overflow)
                state = self.model.allocate(function._inputs(positions, cell), state, enlarge)
                lists = build(positions, FennolLists({}, jnp.zeros((), bool), state))
            return lists

        def update(lists: FennolLists, positions: jax.Array) -> FennolLists:
            new = replace(function, state=lists.state).lists(positions, cell)
            return replace(new, overflow=new.overflow | lists.overflow)

        def energy(positions: jax.Array, lists: FennolLists) -> jax.Array:
            return function.member_energies(positions, lists, cell).mean()

        return Potential.from_energy(
            energy,
            allocate=allocate,
            update=update,
            overflow=lambda lists, positions: lists.overflow,
            numbers=atoms.numbers,
            dtype=self.dtype,
        )

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
        key = (periodic, len(inputs["species"]))
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

    def _batch_inputs(self, batch: Sequence[Atoms], periodic: bool) -> dict[str, np.ndarray]:
        """Concatenated structures, padded the way FeNNol's own atom padding does it."""
        sizes = [len(a) for a in batch]
        n_atoms, n_systems = bucket(sum(sizes) + 1), bucket(len(batch) + 1)
        extra = n_atoms - sum(sizes)
        natoms = np.zeros(n_systems, np.int32)
        natoms[: len(batch)] = sizes
        inputs = {
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
        return inputs


def _make_label_function(model: FennolModel) -> Any:
    """Jitted `(state, per_member, variables, inputs) -> (energies, gradient, virial, overflow)`."""

    @partial(jax.jit, static_argnums=(0, 1))
    def label(
        state: Any, per_member: bool, variables: Any, inputs: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        data = model.process(state, inputs)

        def mean_energy(coordinates: jax.Array, strain: jax.Array, members: Any) -> Any:
            deformation = jnp.eye(3, dtype=coordinates.dtype) + strain
            moved = {
                "coordinates": jnp.einsum(
                    "na,nab->nb", coordinates, deformation[inputs["batch_index"]]
                )
            }
            if "cells" in inputs:
                moved |= _cell_inputs(inputs["cells"] @ deformation)
            energies = model.energies({**data, **moved}, members)
            return energies.mean(0).sum(), energies

        n_systems = inputs["natoms"].shape[0]
        strain = jnp.zeros((n_systems, 3, 3), inputs["coordinates"].dtype)
        gradient_of = jax.grad(mean_energy, argnums=(0, 1), has_aux=True)
        (gradient, virial), energies = gradient_of(inputs["coordinates"], strain, variables)
        gradient = gradient[None]
        if per_member:

            def one(member: Any) -> jax.Array:
                single = jax.tree.map(lambda leaf: leaf[None], member)
                return gradient_of(inputs["coordinates"], strain, single)[0][0]

            gradient = jax.vmap(one)(variables)
        return energies, gradient, virial, overflow_flag(data)

    return label


def _cell_inputs(cells: jax.Array) -> dict[str, jax.Array]:
    return {"cells": cells, "reciprocal_cells": jnp.linalg.inv(cells)}


def _minimum_image_holds(cell: jax.Array, cutoff: float) -> jax.Array:
    """Whether every height of `cell` is at least two cutoffs, so that one image suffices."""
    heights = 1.0 / jnp.linalg.norm(jnp.linalg.inv(cell), axis=0)
    return jnp.all(heights >= 2.0 * cutoff)
