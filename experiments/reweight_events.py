"""Events in a run of the student by weights: how often the teacher itself would show them.

An event is a frame whose bonds are not those of most frames: a proton between two oxygen atoms
counts as bonded to both. Rare frames are looked for in all that were recorded after the start, and
only they are labelled besides those that stand for the whole run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from distill.bonds import bond_reach, bonded, near_pairs
from distill.evaluation.results import Figure
from distill.evaluation.reweighting import BLOCKS, rate_ratio
from distill.simulation import TrajectoryReader
from simulation_records import CHANGED, LIKELIER, SEARCHED

if TYPE_CHECKING:
    from reweight import ReweightConfig


class Events(NamedTuple):
    """Frames with changed bonds, for one length of bonds.

    Attributes:
        factor: sums of covalent radii up to which a pair is bonded.
        counted: frames with changed bonds, of `searched`.
        searched: frames.
        frames: those that are labelled, all of them or a random choice.
        blocks: `[E]`, number of the stretch of the run that each is from.
    """

    factor: float
    counted: int
    searched: int
    frames: list[Atoms]
    blocks: np.ndarray


def find_events(
    paths: list[Path], config: ReweightConfig, chosen: list[list[Atoms]]
) -> list[Events]:
    """Events of each length of bonds in the trajectories, one for each replica.

    Args:
        chosen: frames of each replica that stand for the run: they say what is usual.
    """
    factors = sorted(config.bond_factors)
    found: list[list[tuple[Atoms, int]]] = [[] for _ in factors]
    searched = 0
    for replica, (path, own_frames) in enumerate(zip(paths, chosen, strict=True)):
        reader = TrajectoryReader(path)
        kept = sum(int((frames.time > 1000 * config.start).sum()) for frames in reader.frames())
        usual = _usual_bonds(own_frames, factors)
        number = 0
        for frames in reader.frames():
            for time, positions, cell in zip(
                frames.time, frames.positions, frames.cell, strict=True
            ):
                if time <= 1000 * config.start:
                    continue
                atoms = Atoms(reader.atoms.numbers, positions, cell=cell, pbc=reader.atoms.pbc)
                block = BLOCKS * replica + BLOCKS * number // kept
                for events, own, bonds in zip(found, _bonds(atoms, factors), usual, strict=True):
                    if own != bonds:
                        events.append((atoms, block))
                number += 1
        searched += number
    random = np.random.default_rng(0)
    results = []
    for factor, events in zip(factors, found, strict=True):
        some = events
        if len(events) > config.frames:
            taken = random.choice(len(events), config.frames, replace=False)
            some = [events[number] for number in np.sort(taken)]
        blocks = np.array([block for _, block in some], int)
        results.append(Events(factor, len(events), searched, [one for one, _ in some], blocks))
    return results


def _bonds(atoms: Atoms, factors: list[float]) -> list[set[tuple[int, int]]]:
    pairs = near_pairs(atoms, bond_reach(atoms, factors[-1]))
    return [bonded(atoms, pairs, factor) for factor in factors]


def _usual_bonds(frames: list[Atoms], factors: list[float]) -> list[set[tuple[int, int]]]:
    """Pairs that are bonded in more than half of the frames, for each length of bonds."""
    counts: list[Counter[tuple[int, int]]] = [Counter() for _ in factors]
    for atoms in frames:
        for count, own in zip(counts, _bonds(atoms, factors), strict=True):
            count.update(own)
    return [{pair for pair, n in count.items() if 2 * n > len(frames)} for count in counts]


def weigh_events(
    config: ReweightConfig,
    paths: list[Path],
    chosen: list[list[Atoms]],
    difference: np.ndarray,
    temperature: float,
    label: Any,
) -> list[dict[str, Any]]:
    """How likely events are for the teacher, over the student.

    Args:
        chosen: `T` frames of each of `R` replicas, evenly spread in time.
        difference: `[R, T]`, eV, teacher less student for these.
        label: `(config, frames) -> (student, teacher)`, energies in eV.
    """
    n_frames = difference.shape[1]
    blocks = np.arange(len(difference))[:, None] * BLOCKS + np.arange(n_frames) * BLOCKS // n_frames
    results = []
    for events in find_events(paths, config, chosen):
        own: dict[str, Any] = {
            "factor": events.factor,
            "frames": events.counted,
            "searched": events.searched,
        }
        if events.frames:
            folder = config.output / f"events_{events.factor:g}"
            student, teacher = label(replace(config, output=folder), events.frames)
            ratio, error = rate_ratio(
                difference.ravel(), blocks.ravel(), teacher - student, events.blocks, temperature
            )
            own |= {"ratio": ratio, "error": error if np.isfinite(error) else None}
        results.append(own)
    return results


def event_figures(results: list[dict[str, Any]], case: str, subject: str) -> list[Figure]:
    """Figures for the records."""
    figures = []
    for own in results:
        factor = own["factor"]
        figures.append(Figure(case, subject, CHANGED.format(factor), own["frames"], "1"))
        figures.append(Figure(case, subject, SEARCHED, own["searched"], "1"))
        if "ratio" in own:
            ratio, error = own["ratio"], own["error"]
            spread = None if error is None else (ratio - error, ratio + error)
            figures.append(Figure(case, subject, LIKELIER.format(factor), ratio, "1", spread))
    return figures


def report_events(results: list[dict[str, Any]]) -> None:
    """The results in a few lines."""
    for own in results:
        line = (
            f"bonds within {own['factor']:g} sums of radii had changed in {own['frames']} of "
            f"{own['searched']} frames"
        )
        if "ratio" in own:
            error = (
                "unknown (too few stretches of the run hold any)"
                if own["error"] is None
                else f"{own['error']:.2g}"
            )
            line += f"; for the teacher they are {own['ratio']:.3g} times as likely, error {error}"
        print(line)
