"""Displaced and strained copies of one structure, made without any potential."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from distill.data import Dataset
from distill.errors import ConfigError
from distill.sampling.rattle import rattle

MAX_STRAIN = 0.15
"""Largest standard deviation of a strain; beyond it cells may turn inside out."""


@dataclass(frozen=True)
class RattleConfig:
    """How copies are displaced and strained.

    Attributes:
        copies: per standard deviation.
        standard_deviations: Å, of the displacements, per component.
        strain: standard deviation of the components of a symmetric strain, drawn for each copy;
            only for fully periodic structures.
        seed: same seed, same copies.

    Raises:
        ConfigError: no copies, amplitudes out of range, or nothing that parts the copies.
    """

    copies: int = 10
    standard_deviations: tuple[float, ...] = (0.05, 0.1)
    strain: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.copies < 1 or not self.standard_deviations:
            raise ConfigError("give at least one copy and one standard deviation")
        if not all(0 <= s < np.inf for s in self.standard_deviations):
            raise ConfigError(
                f"standard deviations are lengths in Å from 0 on, not {self.standard_deviations}"
            )
        require_strain(self.strain)
        if self.strain == 0 and 0 in self.standard_deviations:
            raise ConfigError(
                "a standard deviation of 0 Å without strain makes equal copies: give one above 0"
            )


def sample_rattled(atoms: Atoms, config: RattleConfig, *, system: str | None = None) -> Dataset:
    """Copies of `atoms`, first strained and then displaced; atoms never come on top of each other.

    Args:
        atoms: start, near a minimum.
        config: settings.
        system: first part of the name of the trajectory; the formula by default.

    Returns:
        Unlabelled structures of one trajectory: `atoms` first, then its copies, whose parent is 0.

    Raises:
        ConfigError: strain asked for a structure that is not fully periodic.
        UnsupportedStructureError: atoms of the start lie on top of each other.
    """
    if config.strain > 0:
        require_periodic(atoms)
    rng = np.random.default_rng(config.seed)
    structures, origins = [atoms], ["start"]
    for number, deviation in enumerate(config.standard_deviations):
        starts = [atoms] * config.copies
        if config.strain > 0:
            starts = [apply_strain(atoms, random_strain(config.strain, rng)) for _ in starts]
        structures += rattle(starts, deviation, config.seed + 1000 * number)
        strained = f"+strain:{config.strain:g}" if config.strain > 0 else ""
        origins += [f"rattle:{deviation:g}A{strained}"] * config.copies
    return Dataset.from_structures(
        structures,
        f"{system or atoms.get_chemical_formula()}-rattle-s{config.seed}",
        origins,
        parent=[-1, *[0] * (len(structures) - 1)],
    )


def random_strain(standard_deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Symmetric strain `[3, 3]`, each of its six components normally distributed."""
    upper = np.triu(rng.normal(scale=standard_deviation, size=(3, 3)))
    return upper + np.triu(upper, 1).T


def apply_strain(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """Copy whose cell and positions are deformed by `1 + strain`, `[3, 3]`."""
    deformation = np.eye(3) + strain
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ deformation, scale_atoms=False)
    copy.positions = atoms.positions @ deformation
    return copy


def require_strain(standard_deviation: float) -> None:
    """Raise `ConfigError` for a strain that is negative or too large."""
    if not 0 <= standard_deviation <= MAX_STRAIN:
        raise ConfigError(
            f"strain is {standard_deviation}: give a standard deviation from 0 to {MAX_STRAIN}"
        )


def require_periodic(atoms: Atoms) -> None:
    """Raise `ConfigError` unless `atoms` is periodic in all directions."""
    if not atoms.pbc.all():
        raise ConfigError(
            f"{atoms.get_chemical_formula()} has pbc={atoms.pbc.tolist()}: only structures that "
            "are periodic in all directions can be strained; set strain to 0"
        )
