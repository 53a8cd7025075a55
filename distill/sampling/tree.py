"""A family tree of structures: displace a parent, relax it a little, keep it if it is not too hot.

The method of arXiv 2506.10956: each accepted structure may become the parent of others, so that
a few starts reach far without dynamics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from distill.data import Dataset
from distill.data.flags import atoms_too_close
from distill.errors import (
    CapacityError,
    ConfigError,
    SimulationError,
    UnsupportedStructureError,
)
from distill.potential import Potential
from distill.progress import progress_bar
from distill.sampling.rattle import rattle
from distill.sampling.strained import apply_strain, random_strain, require_periodic, require_strain
from distill.simulation import Relaxed, make_relaxer
from distill.units import BOLTZMANN

FREE_GENERATIONS = 10
"""Batches without any accepted child after which a tree is given up."""

ATTEMPTS_PER_CHILD = 20
"""Further attempts that each accepted child pays for."""


@dataclass(frozen=True)
class TreeConfig:
    """How a tree grows.

    Attributes:
        structures: of the tree, the start included.
        batch: children relaxed side by side.
        rattle: Å, standard deviation of the displacements, per component; less where atoms would
            come too close, see `distill.sampling.rattle`.
        relaxation_steps: steps downhill after the displacement, see `distill.simulation.relax`.
        temperature: K, of the acceptance.
        min_distance: Å, closer atoms are refused.
        strain: standard deviation of the components of a symmetric strain of the start's cell,
            drawn for each batch; only for fully periodic structures.
        seed: same seed, same tree.

    Raises:
        ConfigError: a number out of range.
    """

    structures: int = 200
    batch: int = 16
    rattle: float = 0.15
    relaxation_steps: int = 10
    temperature: float = 500.0
    min_distance: float = 0.6
    strain: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.structures < 1 or self.batch < 1 or self.relaxation_steps < 0:
            raise ConfigError("structures and batch are at least 1, relaxation_steps at least 0")
        for name, least in (("rattle", 0.0), ("temperature", 0.0), ("min_distance", 0.3)):
            if not least < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} must be above {least:g}, not {getattr(self, name)}")
        require_strain(self.strain)


def sample_tree(
    make_potential: Callable[[Atoms], Potential],
    atoms: Atoms,
    config: TreeConfig,
    *,
    name: str,
    system: str | None = None,
    progress: bool = True,
) -> Dataset:
    """Grow a family tree of structures from `atoms`.

    A child is accepted with probability `min(1, exp(-(E - E_max) / kT))`, where `E_max` is the
    energy of the start after the same relaxation plus the thermal allowance `3/2 n kT`: all below
    the ceiling are taken alike, so that the tree does not collapse into minima, and the ceiling is
    the start's and not the parent's, so that it does not heat up from generation to generation.

    Args:
        make_potential: e.g. `FennolTeacher.potential` or `Student.potential`.
        atoms: start.
        config: settings.
        name: of the potential, recorded in the origin.
        system: first part of the name of the trajectory; the formula by default.
        progress: show a bar.

    Returns:
        Unlabelled structures, `atoms` first; the parent of each is the earlier one that it was
        made from. All are one trajectory, so that a split holds out whole families.

    Raises:
        ConfigError: strain asked for a structure that is not fully periodic.
        SimulationError: too few children are accepted; the message says what to change.
        UnsupportedStructureError: the start has atoms closer than `min_distance`.
    """
    if config.strain > 0:
        require_periodic(atoms)
    if _too_close(atoms, config):
        raise UnsupportedStructureError(
            f"the start has atoms closer than min_distance={config.min_distance} Å: relax it "
            "first, or lower min_distance"
        )
    rng = np.random.default_rng(config.seed)
    thermal = BOLTZMANN * config.temperature
    relax = make_relaxer(make_potential(atoms))
    reference = relax(atoms.positions[None], config.relaxation_steps).energy[0]
    ceiling = reference + 1.5 * len(atoms) * thermal
    tree, parents = [atoms], [-1]
    refused: Counter[str] = Counter()
    bar = progress_bar(config.structures, "growing a tree", "structure", 1, not progress)
    with bar:
        while len(tree) < config.structures:
            attempts = len(tree) - 1 + refused.total()
            if attempts >= FREE_GENERATIONS * config.batch + ATTEMPTS_PER_CHILD * (len(tree) - 1):
                raise SimulationError(_advice(len(tree) - 1, attempts, refused, config))
            chosen = rng.integers(len(tree), size=config.batch)
            starts = [tree[i] for i in chosen]
            if config.strain > 0:
                cell = apply_strain(atoms, random_strain(config.strain, rng)).cell
                starts = [_in_cell(start, cell) for start in starts]
                relax = make_relaxer(make_potential(starts[0]))
            children = rattle(starts, config.rattle, int(rng.integers(2**31)))
            energies = _relax_in_place(relax, children, config.relaxation_steps)
            probabilities = np.exp(-np.maximum(energies - ceiling, 0.0) / thermal)
            drawn = rng.random(config.batch)
            for k, child in enumerate(children):
                if not np.isfinite(energies[k]):
                    refused["failed"] += 1
                elif _too_close(child, config):
                    refused["close"] += 1
                elif drawn[k] >= probabilities[k]:
                    refused["hot"] += 1
                elif len(tree) < config.structures:
                    tree.append(child)
                    parents.append(int(chosen[k]))
                    bar.update(1)
    return Dataset.from_structures(
        tree,
        f"{system or atoms.get_chemical_formula()}-tree-{config.temperature:g}K-s{config.seed}",
        f"tree:{name}:{config.temperature:g}K",
        parent=parents,
    )


def _relax_in_place(
    relax: Callable[[np.ndarray, int], Relaxed], children: list[Atoms], steps: int
) -> np.ndarray:
    """Energies `[R]` in eV after the relaxation; NaN for a child that leaves the potential's range.

    One such child fails the whole batch: halves are then relaxed on their own.
    """
    try:
        relaxed = relax(np.stack([a.positions for a in children]), steps)
    except (CapacityError, SimulationError):
        if len(children) == 1:
            return np.array([np.nan])
        half = len(children) // 2
        parts = children[:half], children[half:]
        return np.concatenate([_relax_in_place(relax, part, steps) for part in parts])
    for child, positions in zip(children, relaxed.positions, strict=True):
        child.positions = positions
    return relaxed.energy


def _too_close(atoms: Atoms, config: TreeConfig) -> bool:
    return atoms_too_close(atoms.positions, atoms.cell.array, atoms.pbc, config.min_distance)


def _in_cell(atoms: Atoms, cell: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.set_cell(cell, scale_atoms=True)
    return copy


def _advice(accepted: int, attempts: int, refused: Counter[str], config: TreeConfig) -> str:
    causes = {
        "hot": "were too high in energy (raise temperature or relaxation_steps, or lower rattle"
        + (" or strain)" if config.strain > 0 else ")"),
        "close": f"had atoms closer than {config.min_distance} Å (lower rattle or min_distance)",
        "failed": "left the range of the potential (lower rattle, or take another potential)",
    }
    told = "; ".join(f"{refused[key]} {text}" for key, text in causes.items() if refused[key])
    return f"the tree does not grow: {accepted} of {attempts} children were accepted; {told}"
