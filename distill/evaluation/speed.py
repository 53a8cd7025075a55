"""Speed of teacher and student, measured in the same MD loop, side by side."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.potential import Potential
from distill.simulation import MDConfig, make_block

MIN_SECONDS = 0.3
"""About the shortest timed run: long against the clock and the call."""


def compare_md_speed(
    teacher: Potential,
    student: Potential,
    atoms: Atoms,
    *,
    temperature: float = 300.0,
    timestep: float = 0.5,
    repeats: int = 5,
) -> dict[str, Any]:
    """NVE steps of both, in turn, in one process, on one device, one system per call.

    Compilation and a warm-up are left out; neighbour lists are included. The speedup is the
    median of the ratios of neighbouring runs, so that a drift of the machine cancels.

    Returns:
        Measures under the names that certificates use; medians with their range.
    """
    config = MDConfig(timestep=timestep, temperature=temperature, record_every=10, block_steps=10)
    runs = {
        name: _Timed(potential, atoms, config)
        for name, potential in (("teacher", teacher), ("student", student))
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run.seconds_per_step() * 1e6 / len(atoms))
    ratios = np.array(times["teacher"]) / np.array(times["student"])
    report: dict[str, Any] = {}
    for name, values in times.items():
        report[f"{name}_us_per_atom_step"] = float(np.median(values))
        report[f"{name}_range_us_per_atom_step"] = [float(min(values)), float(max(values))]
        report[f"{name}_compile_seconds"] = runs[name].compile_seconds
    return report | {
        "md_speedup": float(np.median(ratios)),
        "md_speedup_range": [float(ratios.min()), float(ratios.max())],
        "repeats": repeats,
        "batch": 1,
        "ensemble": config.ensemble,
        "timestep_fs": timestep,
        "atoms": len(atoms),
        "kernel": student.kernel,
        "dtype": {"teacher": str(np.dtype(teacher.dtype)), "student": str(np.dtype(student.dtype))},
    }


class _Timed:
    """A compiled and warmed-up MD loop that starts from the same state every time."""

    def __init__(self, potential: Potential, atoms: Atoms, config: MDConfig):
        start, self._block = make_block(potential, config)
        positions = jnp.asarray(atoms.positions, potential.dtype)
        self._every = config.record_every
        self._neighbors = potential.allocate(positions)
        self._state = start(jax.random.PRNGKey(0), positions, self._neighbors)
        begun = time.perf_counter()
        # The first block finds the forces at the start besides: what is timed begins after it.
        self._state, self._neighbors, _, _ = self._block(self._state, self._neighbors, 1)
        jax.block_until_ready(self._state)
        self.compile_seconds = time.perf_counter() - begun
        # Each length of the loop compiles anew: the length comes from one run, not from doubling.
        self._records = max(1, math.ceil(MIN_SECONDS / self._run(1)))
        self._run(self._records)

    def seconds_per_step(self) -> float:
        return self._run(self._records) / (self._records * self._every)

    def _run(self, records: int) -> float:
        begun = time.perf_counter()
        _, _, _, overflow = jax.block_until_ready(
            self._block(self._state, self._neighbors, records)
        )
        seconds = time.perf_counter() - begun
        if bool(overflow):
            raise RuntimeError("the neighbour list overflowed during a timing run")
        return seconds
