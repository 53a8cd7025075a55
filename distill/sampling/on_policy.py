"""Which frames of a student's own runs are worth a label: where it broke down or is uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase import Atoms

from distill.data import Dataset, concatenate
from distill.data.flags import atoms_too_close
from distill.errors import ConfigError
from distill.sampling.diversity import farthest_points, structure_features
from distill.simulation import Frames

Reason = Literal["event", "uncertain", "ordinary"]

MOST_COMPARED = 1000
"""Most frames among which the most different ones are looked for; more are thinned evenly."""


@dataclass(frozen=True)
class ChoiceConfig:
    """Which frames are labelled.

    Attributes:
        labels: in each round.
        threshold: eV/Å, expected force error of an atom above which a frame is uncertain; 0 takes
            the `quantile`.
        quantile: of the largest expected errors of the validation structures.
        before_event: frames up to an event that are taken from the run that met it.
        min_distance: Å; frames with closer atoms tell a teacher's folly, not its knowledge, and
            are left out.
    """

    labels: int = 50
    threshold: float = 0.0
    quantile: float = 0.99
    before_event: int = 5
    min_distance: float = 0.6

    def __post_init__(self) -> None:
        if self.labels < 1 or self.before_event < 0:
            raise ConfigError("choice.labels must be at least 1, before_event not negative")
        if not (0 < self.quantile <= 1 and self.threshold >= 0 and self.min_distance > 0):
            raise ConfigError(
                "choice.quantile lies between 0 and 1, threshold is not negative, min_distance "
                "is above 0"
            )


def candidates_of_run(
    atoms: Atoms,
    frames: Frames,
    event: bool,
    trajectory: str,
    origin: str,
    threshold: float,
    config: ChoiceConfig,
) -> tuple[Dataset, list[Reason]]:
    """The frames of one run that a teacher may be asked about, and why each.

    Args:
        atoms: elements and cell.
        frames: of one replica, `[T, n, 3]`, up to the event if there was one.
        event: whether the run ended with one.
        trajectory: name of the run.
        origin: recorded with each structure.
        threshold: eV/Å, see `ChoiceConfig`.
        config: settings.
    """
    last = len(frames.time) - config.before_event if event else len(frames.time)
    structures: list[Atoms] = []
    reasons: list[Reason] = []
    for t, positions in enumerate(np.asarray(frames.positions, np.float64)):
        cell = np.asarray(frames.cell[t], np.float64) if atoms.pbc.any() else atoms.cell.array
        if not np.isfinite(positions).all():
            continue
        if atoms_too_close(positions, cell, atoms.pbc, config.min_distance):
            continue
        expected = frames.uncertainty[t].max(initial=0.0)
        reason: Reason = "uncertain" if expected > threshold else "ordinary"
        reasons.append("event" if t >= last else reason)
        structures.append(Atoms(atoms.numbers, positions=positions, cell=cell, pbc=atoms.pbc))
    return Dataset.from_structures(structures, trajectory, origin), reasons


def choose_frames(candidates: Dataset, reasons: Sequence[str], n: int) -> tuple[Dataset, list[str]]:
    """At most `n` candidates: those of events and uncertain ones first, the most different of them.

    Ordinary frames fill up what is left, again the most different ones.

    Returns:
        The chosen structures and the reason for each.

    Raises:
        ConfigError: no candidates.
    """
    if not len(candidates):
        raise ConfigError(
            "no frame of the runs can be labelled: all have atoms closer than "
            "choice.min_distance. Sample and label more before the loop, or lower the temperatures"
        )
    kinds = np.array(reasons)
    parts: list[Dataset] = []
    chosen: list[str] = []
    for wanted in (kinds != "ordinary", kinds == "ordinary"):
        room = n - len(chosen)
        pool = np.flatnonzero(wanted)
        if len(pool) > MOST_COMPARED:
            pool = pool[np.linspace(0, len(pool) - 1, MOST_COMPARED).round().astype(int)]
        if not (room and len(pool)):
            continue
        marked = candidates.subset(pool)
        if len(pool) > room:
            taken = np.sort(farthest_points(structure_features(marked), room))
            marked, pool = marked.subset(taken), pool[taken]
        parts.append(marked)
        chosen += kinds[pool].tolist()
    return concatenate(parts), chosen
