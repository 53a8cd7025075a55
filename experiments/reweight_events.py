"""Events in a run of the student by weights: how often the teacher itself would show them.

An event is a frame whose bonds are not those of the first frame: a proton between two oxygen atoms
counts as bonded to both. Rare frames are looked for in all that were recorded, and only they are
labelled besides those that stand for the whole run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from distill.errors import DatasetError
from distill.evaluation.results import Figure
from distill.evaluation.reweighting import BLOCKS, rate_ratio
from distill.simulation import TrajectoryReader
from distill.simulation.contacts import bond_reach, bonded, close_pairs
from simulation_records import CHANGED, LIKELIER

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


def find_events(paths: list[Path], config: ReweightConfig) -> list[Events]:
    """Events of each length of bonds in the trajectories, one for each replica.

    Raises:
        DatasetError: bonds of the first frame depend on the length asked for.
    """
    factors = sorted(config.bond_factors)
    found: dict[float, list[tuple[Atoms, int]]] = {factor: [] for factor in factors}
    searched = 0
    for replica, path in enumerate(paths):
        reader = TrajectoryReader(path)
        reach = bond_reach(reader.atoms, factors[-1])
        length = sum(len(frames.time) for frames in reader.frames())
        number, start = 0, None
        for frames in reader.frames():
            for positions, cell in zip(frames.positions, frames.cell, strict=True):
                atoms = Atoms(reader.atoms.numbers, positions, cell=cell, pbc=reader.atoms.pbc)
                pairs, lengths = close_pairs(atoms, positions, reach)
                bonds = [bonded(atoms, pairs, lengths, factor) for factor in factors]
                if start is None:
                    start = bonds[0]
                    if start != bonds[-1]:
                        raise DatasetError(
                            f"{path}: the bonds of the first frame are others within {factors[0]:g}"
                            f" and {factors[-1]:g} sums of covalent radii: choose bond_factors "
                            "closer to each other, or to the bonds"
                        )
                for factor, own in zip(factors, bonds, strict=True):
                    if own != start:
                        found[factor].append((atoms, BLOCKS * replica + BLOCKS * number // length))
                number += 1
        searched += number
    chosen = []
    random = np.random.default_rng(0)
    for factor, events in found.items():
        kept = events
        if len(events) > config.frames:
            taken = random.choice(len(events), config.frames, replace=False)
            kept = [events[number] for number in np.sort(taken)]
        blocks = np.array([block for _, block in kept], int)
        chosen.append(Events(factor, len(events), searched, [one for one, _ in kept], blocks))
    return chosen


def weigh_events(
    config: ReweightConfig,
    paths: list[Path],
    difference: np.ndarray,
    temperature: float,
    label: Any,
) -> list[dict[str, Any]]:
    """How likely events are for the teacher, over the student.

    Args:
        difference: `[R, T]`, eV, teacher less student for frames evenly spread in time.
        label: `(config, frames) -> (student, teacher)`, energies in eV.
    """
    n_frames = difference.shape[1]
    blocks = np.arange(len(difference))[:, None] * BLOCKS + np.arange(n_frames) * BLOCKS // n_frames
    results = []
    for events in find_events(paths, config):
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
        if own.get("error") is not None:
            spread = own["ratio"] - own["error"], own["ratio"] + own["error"]
            metric = LIKELIER.format(factor)
            figures.append(Figure(case, subject, metric, own["ratio"], "1", spread))
    return figures


def report_events(results: list[dict[str, Any]]) -> None:
    """The results in a few lines."""
    for own in results:
        line = (
            f"bonds within {own['factor']:g} sums of radii had changed in {own['frames']} of "
            f"{own['searched']} frames"
        )
        if "ratio" in own:
            error = "unknown (all in one block)" if own["error"] is None else f"{own['error']:.2g}"
            line += f"; for the teacher they are {own['ratio']:.3g} times as likely, error {error}"
        print(line)
