"""Looks after a run: says which atoms left the range of the potential, when, and stops it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ase.io
import numpy as np
from ase import Atoms

from distill.bonds import NearPairs, bond_reach, bonded, near_pairs
from distill.errors import SimulationError
from distill.simulation.drift import Drift
from distill.simulation.frames import Frames

Action = Literal["stop", "warn", "ignore"]


@dataclass(frozen=True)
class SafetyConfig:
    """What is looked for in a run, and what then happens: `stop`, `warn` (once) or `ignore`.

    NaN and infinite values always stop a run.

    Attributes:
        contacts: two atoms, images included, closer than `min_distance`, or than `contact_factor`
            times the shortest distance of their elements in the training data, where a `Watch`
            knows that.
        min_distance: Å.
        contact_factor: see `contacts`.
        bonds: a bond formed or broken since the start, so that molecules reacted or fell apart.
        bond_factor: sums of covalent radii up to which a pair is bonded.
        bond_time: fs for which a bond must stay changed, in every frame that is looked at; 0 for a
            single frame. In a hot liquid a proton may come close to a second molecule for some 10
            fs without any reaction.
        temperature: more than `max_temperature`.
        max_temperature: in units of the temperature of the run, or of the replica in a ladder.
        uncertainty: an expected force error above `max_uncertainty`, of potentials that know it.
        max_uncertainty: eV/Å.
        drift: the conserved energy drifts by more than `max_drift`: the timestep is too large.
        max_drift: meV/atom/ps.
        geometry_every: contacts and bonds are looked for in every so manyth frame of a block and in
            its last; all else in every frame.
    """

    contacts: Action = "stop"
    min_distance: float = 0.5
    contact_factor: float = 0.8
    bonds: Action = "ignore"
    bond_factor: float = 1.3
    bond_time: float = 0.0
    temperature: Action = "stop"
    max_temperature: float = 3.0
    uncertainty: Action = "ignore"
    max_uncertainty: float = 1.0
    drift: Action = "warn"
    max_drift: float = 1.0
    geometry_every: int = 10

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, str) or 0 < value < np.inf or (name == "bond_time" and value == 0):
                continue
            least = "zero or larger" if name == "bond_time" else "larger than zero"
            raise ValueError(f"{name} must be {least} and finite, got {value}")


class Watch:
    """Checks the frames of a run as they come; a `Follower` for `run_md`, before any writer.

    Attributes:
        findings: every kind of fault once for each replica, as text, in order.
    """

    def __init__(
        self,
        atoms: Atoms,
        positions: np.ndarray,
        temperature: float | Sequence[float] | np.ndarray,
        config: SafetyConfig,
        save_to: Path | None = None,
        closest: Mapping[tuple[int, int], float] | None = None,
    ) -> None:
        """`positions` `[(R,) n, 3]` in Å of the start say what is bonded.

        Args:
            atoms: elements, periodicity, and the cell of the start.
            positions: see above.
            temperature: K, of the run or of each replica; 0 leaves out the check of temperatures.
            config: what to do about what.
            save_to: extxyz file for the frame that stops the run.
            closest: shortest distances in Å in the training data, by pair of atomic numbers, the
                lower first.
        """
        self.config = config
        self.findings: list[str] = []
        self._atoms, self._save_to = atoms, save_to
        self._kinds = np.unique(atoms.numbers, return_inverse=True)[1]
        self._limits = _limits(atoms, config, closest or {})
        self._replicas = positions.ndim == 3
        starts = positions if self._replicas else positions[None]
        self._temperature = np.broadcast_to(temperature, len(starts))
        self._bonds = [
            self._bonded(self._near(own, atoms.cell.array)) if config.bonds != "ignore" else set()
            for own in starts
        ]
        self._changed: list[dict[tuple[int, int], float]] = [{} for _ in starts]
        """Changed bonds of each walker, with the time in fs of the first frame that showed them."""
        self._drift = Drift(len(starts), len(atoms))
        self._found: set[tuple[str, int]] = set()

    def __call__(self, frames: Frames) -> None:
        """Check the next frames.

        Raises:
            SimulationError: a fault whose action is `stop`; names time and atoms.
        """
        if not self._replicas:
            with_axis = {k: v if k == "time" else v[:, None] for k, v in vars(frames).items()}
            frames = Frames(**with_axis)
        before = self.mark()
        try:
            for t in range(len(frames.time)):
                for replica in range(frames.positions.shape[1]):
                    for kind, fault in self._faults(frames, t, replica):
                        self._report(kind, fault, frames, t, replica)
            self._drift.add(frames.time, frames.conserved_energy)
            for replica, fault in self._drift.faults(self.config.max_drift):
                self._report("drift", fault, frames, len(frames.time) - 1, replica)
        except SimulationError:
            self.rewind(before)  # the block that failed is not part of the run
            raise

    @property
    def found(self) -> list[tuple[str, int]]:
        """Kinds of faults seen (as of `SafetyConfig`) with the replicas, each once, sorted."""
        return sorted(self._found)

    def mark(self) -> dict[str, Any]:
        """See `Follower`."""
        found = [[kind, replica] for kind, replica in self.found]
        changed = [[[*pair, since] for pair, since in own.items()] for own in self._changed]
        return {
            "findings": list(self.findings),
            "found": found,
            "changed": changed,
            "drift": self._drift.mark(),
        }

    def rewind(self, mark: dict[str, Any]) -> None:
        """See `Follower`."""
        self.findings = list(mark["findings"])
        self._found = {(kind, replica) for kind, replica in mark["found"]}
        self._changed = [{(i, j): since for i, j, since in own} for own in mark["changed"]]
        self._drift.rewind(mark["drift"])

    def _report(self, kind: str, fault: str, frames: Frames, t: int, replica: int) -> None:
        action = getattr(self.config, kind)
        if action == "ignore" or (action == "warn" and (kind, replica) in self._found):
            return
        of = f" in replica {replica}" if self._replicas else ""
        message = f"{fault}{of} at {frames.time[t]:g} fs"
        if action == "stop":
            saved = self._save(message, frames, t, replica)
            told = f"{message}: the run was stopped{saved} (safety.{kind})"
            raise SimulationError(told, kind=kind, replicas=[replica])
        self._found.add((kind, replica))
        self.findings.append(message)
        warnings.warn(f"{message} (safety.{kind})", stacklevel=2)

    def _save(self, message: str, frames: Frames, t: int, replica: int) -> str:
        if self._save_to is None:
            return ""
        image = self._atoms.copy()
        image.positions = frames.positions[t, replica]
        image.set_cell(frames.cell[t, replica])
        image.calc = None
        image.info = {"time_fs": float(frames.time[t]), "replica": replica, "fault": message}
        ase.io.write(self._save_to, image, format="extxyz")
        return f", the frame is in {self._save_to}"

    def _faults(self, frames: Frames, t: int, replica: int) -> list[tuple[str, str]]:
        config, faults = self.config, []
        temperature = float(frames.temperature[t, replica])
        bath = self._temperature[replica]
        if bath and temperature > config.max_temperature * bath:
            faults.append(("temperature", f"the temperature was {temperature:.0f} K"))
        expected = frames.uncertainty[t, replica]
        doubtful = np.flatnonzero(expected > config.max_uncertainty)
        if len(doubtful):
            worst = doubtful[np.argsort(-expected[doubtful])][:5].tolist()
            faults.append(
                (
                    "uncertainty",
                    f"the expected force error was {expected.max():.2f} eV/Å, atoms {worst}",
                )
            )
        if (t + 1) % config.geometry_every and t + 1 < len(frames.time):
            return faults
        if config.contacts == config.bonds == "ignore":
            return faults
        pairs = self._near(frames.positions[t, replica], frames.cell[t, replica])
        room = pairs.lengths / self._limits[self._kinds[pairs.first], self._kinds[pairs.second]]
        if len(room) and room.min() < 1:
            worst = int(np.argmin(room))
            i, j = sorted((int(pairs.first[worst]), int(pairs.second[worst])))
            apart = f"{pairs.lengths[worst]:.2f} Å apart"
            faults.append(("contacts", f"atoms {i} and {j} were {apart}"))
        if config.bonds != "ignore":
            # A single run may be one of several side by side, watched by itself.
            walker = frames.walker[t, replica] if self._replicas else 0
            now, before = float(frames.time[t]), self._changed[walker]
            changed = self._bonded(pairs) ^ self._bonds[walker]
            self._changed[walker] = {pair: before.get(pair, now) for pair in changed}
            lasting = [
                p for p, t0 in self._changed[walker].items() if now - t0 >= config.bond_time - 1e-6
            ]
            if lasting:
                atoms = sorted({i for pair in lasting for i in pair})[:6]
                since = f" for {config.bond_time:g} fs" if config.bond_time else ""
                faults.append(("bonds", f"bonds of atoms {atoms} had changed{since}"))
        return faults

    def _near(self, positions: np.ndarray, cell: np.ndarray) -> NearPairs:
        reach = float(self._limits.max())
        if self.config.bonds != "ignore":
            reach = max(reach, bond_reach(self._atoms, self.config.bond_factor))
        atoms = self._atoms.copy()
        atoms.set_cell(cell)
        return near_pairs(atoms, reach, positions)

    def _bonded(self, pairs: NearPairs) -> set[tuple[int, int]]:
        return bonded(self._atoms, pairs, self.config.bond_factor)


def _limits(
    atoms: Atoms, config: SafetyConfig, closest: Mapping[tuple[int, int], float]
) -> np.ndarray:
    """`[E, E]`, Å, below which two atoms of the elements of `atoms` are too close."""
    elements = np.unique(atoms.numbers).tolist()
    limits = np.full((len(elements), len(elements)), config.min_distance)
    for i, first in enumerate(elements):
        for j, second in enumerate(elements):
            seen = closest.get((min(first, second), max(first, second)), 0.0)
            limits[i, j] = max(config.min_distance, config.contact_factor * seen)
    return limits
