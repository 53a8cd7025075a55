"""Exact Hessian-vector products of FeNNol models: one forward over one reverse differentiation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.errors import CapacityError
from distill.potential import hessian_vector_product
from distill.teachers.fennol_energy import FennolEnergy, minimum_image_holds

MAX_GROWTHS = 8
"""Capacity growths after which a call gives up."""


class FennolHessian:
    """Products for any structures; one compilation for each composition and number of directions.

    Args:
        energy_function: `FennolTeacher.energy_function`.
        cutoff: of the model, Å.
        dtype: of the arithmetic.
    """

    def __init__(self, energy_function: Callable[[Atoms], FennolEnergy], cutoff: float, dtype: Any):
        self._energy_function, self._cutoff, self._dtype = energy_function, cutoff, dtype
        self._compiled: dict[Any, tuple[FennolEnergy, Any]] = {}

    def __call__(self, atoms: Atoms, directions: np.ndarray) -> np.ndarray:
        """Products `[k, n, 3]` (float64 array) for `directions` `[k, n, 3]`.

        Raises:
            CapacityError: FeNNol's lists keep overflowing.
        """
        periodic = bool(atoms.pbc.all())
        cell = jnp.asarray(atoms.cell.array, self._dtype) if periodic else None
        # Another cell of the same composition may need more than the nearest image.
        one_image = cell is not None and bool(minimum_image_holds(cell, self._cutoff))
        key = (tuple(atoms.numbers.tolist()), periodic, one_image)
        if key not in self._compiled:
            function = self._energy_function(atoms)
            self._compiled[key] = function, _product(function)
        positions = jnp.asarray(atoms.positions, self._dtype)
        for _ in range(MAX_GROWTHS):
            function, product = self._compiled[key]
            values, overflow = product(positions, cell, jnp.asarray(directions, self._dtype))
            if not bool(overflow):
                return np.asarray(values, np.float64)
            state = function.model.allocate(function.inputs(positions, cell), function.state)
            function = replace(function, state=state)
            self._compiled[key] = function, _product(function)
        raise CapacityError(f"FeNNol capacities still overflow after {MAX_GROWTHS} growths")


def _product(function: FennolEnergy) -> Any:
    @jax.jit
    def product(positions: Any, cell: Any, directions: Any) -> Any:
        lists = function.lists(positions, cell)

        def energy(x: Any) -> Any:
            return function.member_energies(x, lists, cell).mean()

        values = jax.vmap(lambda v: hessian_vector_product(energy, positions, v))(directions)
        return values, lists.overflow

    return product
