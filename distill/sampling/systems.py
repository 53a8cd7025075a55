"""What is sampled: starting structures from a configuration, each with a name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms

from distill.data import Dataset, load
from distill.errors import ConfigError
from distill.sampling.packing import make_crystal, pack_liquid, read_structure


@dataclass(frozen=True)
class LiquidConfig:
    """Packed boxes of a molecular liquid.

    Attributes:
        molecules: names or files, and how many of each in a box.
        densities: g/cm³, one or more boxes at each.
        boxes: different packings per density.
    """

    molecules: dict[str, int] = field(default_factory=dict)
    densities: tuple[float, ...] = (1.0,)
    boxes: int = 1


@dataclass(frozen=True)
class CrystalConfig:
    """Supercells of a crystal.

    Attributes:
        structure: file with the cell, or an element.
        repeats: cells along each lattice vector.
        strains: isotropic strains, one supercell for each.
    """

    structure: str = ""
    repeats: tuple[int, int, int] = (1, 1, 1)
    strains: tuple[float, ...] = (0.0,)


@dataclass(frozen=True)
class SystemConfig:
    """Exactly one of the four kinds.

    Attributes:
        structure: a molecule of `ase.build.molecule` or a file, as it is; or several of them.
        liquid: packed boxes.
        crystal: supercells.
        dataset: file with trajectories, whose last usable frames are the starts.
        seed: of the packing.
    """

    structure: str | list[str] | None = None
    liquid: LiquidConfig | None = None
    crystal: CrystalConfig | None = None
    dataset: Path | None = None
    seed: int = 0


def make_systems(config: SystemConfig) -> dict[str, Atoms]:
    """Starting structures by name, which says how each was made.

    Raises:
        ConfigError: none or several kinds are given, or a structure is unknown.
        DatasetError: the dataset cannot be read.
        UnsupportedStructureError: a liquid cannot be packed.
    """
    kinds = config.structure, config.liquid, config.crystal, config.dataset
    if sum(kind is not None for kind in kinds) != 1:
        raise ConfigError("give exactly one of structure, liquid, crystal and dataset")
    if config.dataset is not None:
        return last_frames(load(config.dataset))
    if config.structure is not None:
        names = [config.structure] if isinstance(config.structure, str) else config.structure
        return {Path(name).stem: read_structure(name) for name in names}
    if config.liquid is not None:
        liquid = config.liquid
        content = "-".join(f"{count}{Path(name).stem}" for name, count in liquid.molecules.items())
        _require_distinct("liquid.densities", liquid.densities)
        return {
            f"{content}-{density:g}gcc-b{config.seed + box}": pack_liquid(
                liquid.molecules, density, seed=config.seed + box
            )
            for density in liquid.densities
            for box in range(liquid.boxes)
        }
    assert config.crystal is not None
    crystal = config.crystal
    _require_distinct("crystal.strains", crystal.strains)
    size = "x".join(map(str, crystal.repeats))
    return {
        f"{Path(crystal.structure).stem}-{size}-strain{strain:g}": make_crystal(
            crystal.structure, crystal.repeats, strain
        )
        for strain in crystal.strains
    }


def last_frames(dataset: Dataset) -> dict[str, Atoms]:
    """The last usable frame of every trajectory, by its name, in the order of the dataset.

    Raises:
        UnitError: other units than eV and Å.
    """
    dataset.require_standard_units("frames can be starts")
    last = {str(dataset.trajectory[i]): int(i) for i in np.flatnonzero(dataset.usable)}
    return {name: dataset.structure(i) for name, i in last.items()}


def _require_distinct(name: str, values: tuple[float, ...]) -> None:
    """Names show six digits: equal ones would be one system."""
    if len({f"{value:g}" for value in values}) < len(values):
        raise ConfigError(f"{name} holds a value twice (to six digits): {values}")
