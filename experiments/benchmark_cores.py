"""Several cores that share a system, or divide replicas of one, against one core.

Part of `benchmark.py`.

In a process whose cores are devices XLA hands small operations between them, also where one device
works alone. One core is therefore measured in a process of its own; blocks are taken in turn.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np
from ase import Atoms, units

from benchmark_water import load_student
from distill.evaluation.timing import TimedMD
from distill.simulation import MDConfig
from pinned import DEVICES


class OneCore:
    """A run in another process on one core; begun when made, ended by `close`.

    Args:
        prepare: gives the run, in that process; pickled with its arguments.
        arguments: of `prepare`.
    """

    def __init__(self, prepare: Callable[..., Any], *arguments: Any) -> None:
        flags = os.environ.get("XLA_FLAGS", "")
        alone = " ".join(flag for flag in flags.split() if not flag.startswith(DEVICES))
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, prepare, arguments))
        os.environ["XLA_FLAGS"] = alone  # read by the new process when it starts JAX
        try:
            self._process.start()
        finally:
            os.environ["XLA_FLAGS"] = flags
        there.close()
        self.compile_seconds = float(self._here.recv())

    def seconds_per_step(self) -> float:
        """Wall time of a run, over its steps."""
        self._here.send("run")
        return float(self._here.recv())

    def close(self) -> None:
        """End the process."""
        self._here.send(None)
        self._process.join()
        self._here.close()


def _serve(pipe: Connection, prepare: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    timed = prepare(*arguments)
    pipe.send(timed.compile_seconds)
    while pipe.recv():
        pipe.send(timed.seconds_per_step())


def timed_student(
    source: str,
    atoms: Atoms,
    settings: MDConfig,
    min_seconds: float,
    options: dict[str, Any],
    replicas: int = 1,
) -> TimedMD:
    """MD of the student of a bundle or size on all devices of this process.

    Options are those of `Student.potential`. The devices share one system, or divide `replicas`.
    """
    devices = tuple(jax.devices()) if jax.device_count() > 1 else ()
    student = load_student("student", source).student
    potential = student.potential(atoms, devices=devices if replicas == 1 else (), **options)
    positions, velocities = atoms.positions, atoms.get_velocities() * units.fs
    if replicas > 1:
        positions, velocities = (np.stack([own] * replicas) for own in (positions, velocities))
    return TimedMD(
        potential,
        positions,
        settings,
        velocities=velocities,
        min_seconds=min_seconds,
        devices=devices if replicas > 1 else (),
    )


def shared_and_alone(repeats: int, *arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    """Seconds per step on the cores of this process, and on one; arguments of `timed_student`."""
    shared = timed_student(*arguments)
    with closing(OneCore(timed_student, *arguments)) as alone:
        times = [(shared.seconds_per_step(), alone.seconds_per_step()) for _ in range(repeats)]
    both, one = np.array(times).T
    return both, one
