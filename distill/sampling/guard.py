"""Ends trajectories where they leave the range of what drives them, and keeps what was good."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from distill.bonds import NearPairs, bond_reach, bonded, near_pairs
from distill.errors import ConfigError, SimulationError
from distill.simulation import Frames


@dataclass(frozen=True)
class GuardConfig:
    """What ends a trajectory; 0 switches a check off.

    Attributes:
        min_distance: Å, no two atoms (images included) come closer.
        bonds: pairs closer than this many sums of their covalent radii are bonded (1.2 is usual);
            none may form or break, so that molecules neither react nor fall apart.
        max_temperature: largest temperature, in units of the bath's.
        max_uncertainty: eV/Å, largest expected force error of an atom, for potentials that know it.

    Raises:
        ConfigError: a negative number.
    """

    min_distance: float = 0.6
    bonds: float = 0.0
    max_temperature: float = 3.0
    max_uncertainty: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < np.inf:
                raise ConfigError(f"guard.{name} must not be negative or infinite: {value}")


class Guard:
    """Looks at the frames of `run_md` while they come, see its `on_frames`.

    Attributes:
        kept: `[R]`, leading good frames of each replica so far.
        reasons: why each replica ended, None for those that go on.
    """

    def __init__(
        self, atoms: Atoms, positions: np.ndarray, temperature: float, config: GuardConfig
    ) -> None:
        """`positions` `[R, n, 3]` of the start in Å say what is bonded; `temperature` in K."""
        self.atoms, self.temperature, self.config = atoms, temperature, config
        self.bonds = [self._bonds(self._near(own)) for own in positions]
        self.kept = np.zeros(len(positions), int)
        self.reasons: list[str | None] = [None] * len(positions)
        self._blocks: list[np.ndarray] = []

    @property
    def positions(self) -> np.ndarray:
        """All frames seen, `[T, R, n, 3]`, Å; those from `kept` on are not to be used."""
        empty = np.zeros((0, len(self.kept), len(self.atoms), 3))
        return np.concatenate([empty, *self._blocks])

    def __call__(self, frames: Frames) -> None:
        """Take the next frames of all replicas.

        Raises:
            SimulationError: every replica has ended.
        """
        self._blocks.append(frames.positions)
        for replica in range(len(self.kept)):
            for t in range(len(frames.time)):
                if self.reasons[replica] is not None:
                    break
                fault = self._fault(frames, t, replica)
                if fault is None:
                    self.kept[replica] += 1
                else:
                    self.reasons[replica] = f"{fault} at {frames.time[t]:g} fs"
        if None not in self.reasons:
            raise SimulationError("every replica left the range of the potential")

    def _fault(self, frames: Frames, t: int, replica: int) -> str | None:
        config = self.config
        temperature = float(frames.temperature[t, replica])
        if config.max_temperature and temperature > config.max_temperature * self.temperature:
            return f"{temperature:.0f} K"
        expected = frames.uncertainty[t, replica].max(initial=0.0)
        if config.max_uncertainty and expected > config.max_uncertainty:
            return f"expected force error {expected:.2f} eV/Å"
        pairs = self._near(frames.positions[t, replica])
        closest = pairs.lengths.min(initial=np.inf)
        if closest < config.min_distance:
            return f"atoms {closest:.2f} Å apart"
        changed = self._bonds(pairs) ^ self.bonds[replica]
        if changed:
            return f"bonds of atoms {sorted({i for pair in changed for i in pair})[:6]} changed"
        return None

    def _near(self, positions: np.ndarray) -> NearPairs:
        """Pairs as far as the checks reach."""
        reach = max(self.config.min_distance, bond_reach(self.atoms, self.config.bonds), 1.5)
        return near_pairs(self.atoms, reach, positions)

    def _bonds(self, pairs: NearPairs) -> set[tuple[int, int]]:
        return bonded(self.atoms, pairs, self.config.bonds)
