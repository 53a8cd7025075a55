"""Pure energies of FeNNol models in eV: for jit, grad, vmap, `lax.fori_loop` and jax-md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.teachers._fennol_model import FennolModel, overflow_flag


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
        data = self.model.process(self.state, self.inputs(positions, cell))
        data = {k: v for k, v in data.items() if k != "flags"}
        overflow = overflow_flag(data)
        if cell is not None and self.minimum_image:
            overflow = overflow | ~minimum_image_holds(cell, self.model.cutoff)
        return FennolLists(data, overflow, self.state)

    def member_energies(
        self, positions: jax.Array, lists: FennolLists, cell: jax.Array | None = None
    ) -> jax.Array:
        """Energy of each member `[n_members]` in eV with given lists; differentiable."""
        data = {**lists.data, **self.inputs(positions, cell)}
        data.pop("flags", None)
        return self.model.energies(data)[:, 0]

    def inputs(self, positions: jax.Array, cell: jax.Array | None) -> dict[str, Any]:
        """FeNNol's input arrays for one structure."""
        if not self.periodic:
            cell = None
        elif cell is None:
            raise ValueError("this energy was made for a periodic structure: pass its cell")
        numbers = np.asarray(self.numbers, np.int32)
        inputs: dict[str, Any] = {} if cell is None else cell_inputs(cell[None])
        if self.periodic and self.minimum_image:
            inputs["flags"] = {"minimum_image": None}
        return inputs | {
            "species": jnp.asarray(numbers),
            "coordinates": positions,
            "natoms": jnp.asarray([len(numbers)], jnp.int32),
            "batch_index": jnp.zeros(len(numbers), jnp.int32),
        }


def cell_inputs(cells: jax.Array) -> dict[str, jax.Array]:
    """FeNNol's inputs for `cells` `[B, 3, 3]`."""
    return {"cells": cells, "reciprocal_cells": jnp.linalg.inv(cells)}


def minimum_image_holds(cell: jax.Array, cutoff: float) -> jax.Array:
    """Whether every height of `cell` is at least two cutoffs, so that one image suffices."""
    heights = 1.0 / jnp.linalg.norm(jnp.linalg.inv(cell), axis=0)
    return jnp.all(heights >= 2.0 * cutoff)
