"""Hessian-vector products of the structures of a dataset, and the directions they are taken in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from distill.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class HessianConfig:
    """Which Hessian-vector products the labelling takes.

    Attributes:
        products: number for each structure.
        directions: `random`, unit vectors (over all atoms of the structure) distributed evenly;
            or `rows`, single atoms moved along single axes, distinct within a structure, whose
            products are rows of the Hessian. A structure of `n` atoms has `3n` rows: when more
            are asked for, it gets all of them.
        seed: of the directions; not negative.

    Raises:
        ConfigError: a value outside these.
    """

    products: int = 1
    directions: Literal["random", "rows"] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.products < 1:
            raise ConfigError(f"products is {self.products}: give at least 1")
        if self.directions not in ("random", "rows"):
            raise ConfigError(f"directions is {self.directions!r}: give 'random' or 'rows'")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: give one that is not negative")


def draw_directions(config: HessianConfig, index: int, n_atoms: int) -> np.ndarray:
    """Directions for one structure, `[k, n_atoms, 3]` float64, without unit and of norm 1.

    They follow from `config.seed` and `index` alone, so that a resumed labelling draws the same.
    Asked for fewer products, `random` gives the first of them.

    Args:
        config: number and kind of the directions.
        index: number of the structure in the whole dataset.
        n_atoms: its atoms.
    """
    rng = np.random.default_rng([config.seed, index])
    if config.directions == "rows":
        chosen = np.sort(rng.permutation(3 * n_atoms)[: config.products])
        return np.eye(3 * n_atoms)[chosen].reshape(-1, n_atoms, 3)
    directions = rng.standard_normal((config.products, n_atoms, 3))
    return directions / np.linalg.norm(directions, axis=(1, 2), keepdims=True)


@dataclass(frozen=True, eq=False)
class HessianProducts:
    """`P` products of Hessians with directions, in the order of their structures.

    The atom rows of all products lie one after the other, `R` in all. Units are those of the
    dataset, eV and Å unless it was made in others on purpose.

    Attributes:
        structure: `[P]` int64, number of the structure, ascending; several products may have one.
        atoms: `[P]` int64, atoms of that structure.
        direction: `[R, 3]` float64, without unit.
        product: `[R, 3]` float64, second derivatives of the energy times `direction`, eV/Å².
        error: `[P]` float64, estimate of the largest error of a component, eV/Å²; 0 when exact.
        exact: `[P]` bool, whether second derivatives were taken, not differences of forces.

    Raises:
        DatasetError: shapes that disagree, structures that are not in order, values that are not
            finite, or an error that is negative, or not 0 for an exact product.
    """

    structure: np.ndarray
    atoms: np.ndarray
    direction: np.ndarray
    product: np.ndarray
    error: np.ndarray
    exact: np.ndarray

    def __post_init__(self) -> None:
        for name, (dtype, _, _) in PRODUCT_COLUMNS.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        if self.atoms.ndim != 1 or (self.atoms < 1).any():
            raise DatasetError("Hessian products: atoms must be one positive number per product")
        count, rows = len(self.atoms), int(self.atoms.sum())
        for name, (_, width, per_atom) in PRODUCT_COLUMNS.items():
            values = getattr(self, name)
            shape = (rows if per_atom else count, *width)
            if values.shape != shape:
                raise DatasetError(
                    f"Hessian products: {name!r} has shape {values.shape}, expected {shape}"
                )
        if count and (self.structure[0] < 0 or (np.diff(self.structure) < 0).any()):
            raise DatasetError(
                "Hessian products: structure must hold ascending numbers from 0: sort the products"
            )
        for name in ("direction", "product", "error"):
            if not np.isfinite(getattr(self, name)).all():
                raise DatasetError(
                    f"Hessian products: {name!r} holds NaN or infinity: leave such products out"
                )
        wrong = (self.error < 0) | (self.exact & (self.error != 0))
        if wrong.any():
            index = int(np.argmax(wrong))
            raise DatasetError(
                f"Hessian products: product {index} has error {self.error[index]}; it must not be "
                "negative, and 0 for an exact product"
            )

    def __len__(self) -> int:
        return len(self.atoms)

    @cached_property
    def offsets(self) -> np.ndarray:
        """`[P + 1]` int64, first atom row of each product."""
        return np.concatenate([[0], np.cumsum(self.atoms)]).astype(np.int64)

    def rows(self, index: int) -> slice:
        """Atom rows of product `index`."""
        index = range(len(self))[index]
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def of(self, structure: int) -> tuple[np.ndarray, np.ndarray]:
        """Directions and products of one structure of `n` atoms, `[k, n, 3]` each.

        `[0, 0, 3]` for a structure without products.
        """
        first, end = np.searchsorted(self.structure, [structure, structure + 1])
        rows = slice(int(self.offsets[first]), int(self.offsets[end]))
        shape = (end - first, self.atoms[first] if end > first else 0, 3)
        return self.direction[rows].reshape(shape), self.product[rows].reshape(shape)

    def subset(self, structures: Any) -> HessianProducts:
        """Products of the structures with these numbers (`[T]` int), renumbered from 0 to `T - 1`.

        A structure that is taken twice has its products twice.
        """
        taken = np.asarray(structures, np.int64)
        first = np.searchsorted(self.structure, taken)
        counts = np.searchsorted(self.structure, taken, "right") - first
        chosen = _ranges(first, counts)
        rows = _ranges(self.offsets[chosen], self.atoms[chosen])
        columns = {
            name: getattr(self, name)[rows if per_atom else chosen]
            for name, (_, _, per_atom) in PRODUCT_COLUMNS.items()
        }
        columns["structure"] = np.repeat(np.arange(len(taken)), counts)
        return HessianProducts(**columns)

    def scaled(self, factor: float) -> HessianProducts:
        """The same products in another unit, that is `factor` times as large."""
        return replace(self, product=self.product * factor, error=self.error * factor)

    def require_fitting(self, n_atoms: np.ndarray) -> None:
        """Check that these are products of structures with `n_atoms` (`[S]`) atoms.

        Raises:
            DatasetError: naming the first product that is not.
        """
        wrong = self.structure >= len(n_atoms)
        inside = ~wrong
        wrong[inside] = n_atoms[self.structure[inside]] != self.atoms[inside]
        if wrong.any():
            index = int(np.argmax(wrong))
            raise DatasetError(
                f"Hessian products: product {index} is of structure {self.structure[index]} with "
                f"{self.atoms[index]} atoms, which is not among the {len(n_atoms)} structures of "
                "the dataset: give the products of these structures"
            )

    @classmethod
    def of_structure(
        cls, direction: np.ndarray, product: np.ndarray, error: Any, exact: bool
    ) -> HessianProducts:
        """Products of structure 0.

        Args:
            direction: `[k, n, 3]`.
            product: `[k, n, 3]`, eV/Å².
            error: one number or `[k]`, eV/Å².
            exact: whether all of them are exact.

        Raises:
            DatasetError: as for the class.
        """
        count, atoms = np.shape(direction)[:2]
        if np.shape(product) != np.shape(direction) or np.shape(error) not in ((), (count,)):
            raise DatasetError(
                f"Hessian products: {np.shape(product)} values and {np.shape(error)} errors for "
                f"directions of shape {np.shape(direction)}"
            )
        return cls(
            structure=np.zeros(count, np.int64),
            atoms=np.full(count, atoms),
            direction=np.reshape(direction, (-1, 3)),
            product=np.reshape(product, (-1, 3)),
            error=np.broadcast_to(error, (count,)).copy(),
            exact=np.full(count, exact),
        )

    @classmethod
    def join(cls, parts: Sequence[HessianProducts], offsets: Sequence[int]) -> HessianProducts:
        """All products of `parts`; `offsets` are added to the structure numbers of each part.

        No parts give no products.

        Raises:
            DatasetError: offsets that bring the structures out of order.
        """
        columns: dict[str, Any] = {
            name: np.concatenate(
                [np.zeros((0, *width), dtype), *(getattr(part, name) for part in parts)]
            )
            for name, (dtype, width, _) in PRODUCT_COLUMNS.items()
        }
        shift = np.repeat(np.asarray(offsets, np.int64), [len(part) for part in parts])
        columns["structure"] = columns["structure"] + shift
        return cls(**columns)


PRODUCT_COLUMNS: dict[str, tuple[Any, tuple[int, ...], bool]] = {
    "structure": (np.int64, (), False),
    "atoms": (np.int64, (), False),
    "direction": (np.float64, (3,), True),
    "product": (np.float64, (3,), True),
    "error": (np.float64, (), False),
    "exact": (np.bool_, (), False),
}
"""Data type, trailing shape, and whether there is one row per atom, of each column."""


def _ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`first[i], ..., first[i] + counts[i] - 1` for each `i`, one after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(first - before, counts) + np.arange(int(counts.sum()))
