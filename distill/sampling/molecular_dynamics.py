"""Structures from molecular dynamics at several temperatures, many replicas at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from ase import Atoms

from distill.data import Dataset
from distill.errors import CapacityError, SimulationError
from distill.potential import Potential
from distill.sampling.guard import Guard, GuardConfig
from distill.sampling.rattle import rattle
from distill.simulation import MDConfig, MDResult, relax, run_md


@dataclass(frozen=True)
class MDSamplingConfig:
    """How structures are sampled.

    Attributes:
        temperatures: K, one set of replicas each.
        replicas: independent trajectories per temperature.
        frames: kept per trajectory.
        spacing: fs between kept frames.
        equilibration: fs before the first kept frame.
        timestep: fs.
        friction: 1/fs.
        rattle: Å, standard deviation of the displacements that part the replicas at the start.
        relaxation_steps: steps downhill before, for starts with close contacts (packed liquids).
        guard: ends a trajectory before its first bad frame; without it nothing is checked.
        seed: of displacements, velocities and noise.
    """

    temperatures: tuple[float, ...] = (300.0, 500.0)
    replicas: int = 8
    frames: int = 50
    spacing: float = 20.0
    equilibration: float = 200.0
    timestep: float = 0.5
    friction: float = 0.02
    rattle: float = 0.03
    relaxation_steps: int = 0
    guard: GuardConfig | None = None
    seed: int = 0


def sample_by_md(
    make_potential: Callable[[Atoms], Potential],
    atoms: Atoms,
    config: MDSamplingConfig,
    *,
    name: str = "teacher_md",
    system: str | None = None,
    progress: bool = True,
) -> Dataset:
    """Run Langevin MD from `atoms` and keep frames, each replica a trajectory of its own.

    Args:
        make_potential: e.g. `FennolTeacher.potential` or `Student.potential`.
        atoms: start, near a minimum.
        config: settings.
        name: origin recorded with each structure, followed by the temperature.
        system: first part of the names of the trajectories; the formula by default.
        progress: show bars.

    Returns:
        Unlabelled structures; trajectories are called `<system>-<temperature>K-r<replica>`, with
        `-s<seed>` unless that is 0. The parent of a frame is the one before it in its trajectory.
        With a guard a trajectory may be shorter, or missing; this is printed.

    Raises:
        SimulationError: the potential let the system explode; with a guard only if nothing is left.
    """
    potential = make_potential(atoms)
    every = max(round(config.spacing / config.timestep), 1)
    skipped = round(config.equilibration / config.timestep / every)
    structures: list[Atoms] = []
    trajectories: list[str] = []
    origins: list[str] = []
    parents: list[int] = []
    for number, temperature in enumerate(config.temperatures):
        seed = config.seed + 1000 * number
        start = np.stack(
            [a.positions for a in rattle([atoms] * config.replicas, config.rattle, seed)]
        )
        if config.relaxation_steps:
            start = relax(potential, start, config.relaxation_steps).positions
        md = MDConfig(
            ensemble="nvt_langevin",
            timestep=config.timestep,
            temperature=temperature,
            friction=config.friction,
            steps=every * (skipped + config.frames),
            record_every=every,
            block_steps=every * max(1, 200 // every),
            seed=seed,
        )
        run = partial(
            run_md,
            potential,
            start,
            md,
            progress=progress,
            description=f"sampling at {temperature:.0f} K",
        )
        if config.guard is None:
            frames = run().frames.positions
            ends = [len(frames)] * config.replicas
        else:
            guard = Guard(atoms, start, temperature, config.guard)
            frames, ends = _guarded(run, guard), guard.kept.tolist()
        for replica, end in enumerate(ends):
            kept = frames[skipped:end, replica]
            first = len(structures)
            structures.extend(_with_positions(atoms, kept))
            parents.extend([-1, *range(first, first + len(kept) - 1)][: len(kept)])
            label = f"{system or atoms.get_chemical_formula()}-{temperature:.0f}K-r{replica}"
            label += f"-s{config.seed}" if config.seed else ""
            trajectories.extend([label] * len(kept))
            origins.extend([f"{name}:{temperature:.0f}K"] * len(kept))
    if not structures:
        raise SimulationError("every trajectory ended before its first frame was kept")
    return Dataset.from_structures(structures, trajectories, origins, parent=parents)


def _guarded(run: Callable[..., MDResult], guard: Guard) -> np.ndarray:
    """All frames `[T, R, n, 3]` up to where the run ended, and a word on what ended it."""
    try:
        run(on_frames=guard)
    except (SimulationError, CapacityError) as error:
        if None in guard.reasons:
            print(f"warning: the run ended early, frames before are kept: {error}")
    for replica, reason in enumerate(guard.reasons):
        if reason is not None:
            kept = guard.kept[replica]
            print(f"warning: replica {replica} ends after {kept} recorded frames: {reason}")
    return guard.positions


def _with_positions(atoms: Atoms, positions: np.ndarray) -> list[Atoms]:
    return [
        Atoms(atoms.numbers, positions=frame, cell=atoms.cell, pbc=atoms.pbc)
        for frame in positions.astype(np.float64)
    ]
