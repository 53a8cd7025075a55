"""How long runs last until something unphysical happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from ase import Atoms
from scipy.stats import chi2

from distill.errors import CapacityError, SimulationError
from distill.potential import Potential
from distill.simulation import Frames, MDConfig, SafetyConfig, Watch, run_md
from distill.simulation.ensembles import degrees_of_freedom
from distill.simulation.frames import join_frames

RARE = 1e-9
"""Probability with which a frame of a sound run is taken for too hot."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        temperature: K, of the bath.
        seed: of the run.
        time: ps, of the event, or the length of the run.
        event: what happened, None for a run that lasted.
        largest_expected_error: eV/Å, of any atom of any frame; None where it is not known.
        frames: up to the event, with the frame of the event where there is one; None if not kept.
    """

    temperature: float
    seed: int
    time: float
    event: str | None
    largest_expected_error: float | None
    frames: Frames | None = None


def run_until_event(
    potential: Potential,
    atoms: Atoms,
    positions: np.ndarray,
    config: MDConfig,
    safety: SafetyConfig,
    *,
    closest: Mapping[tuple[int, int], float] | None = None,
    keep_frames: bool = False,
    progress: bool = True,
) -> list[Outcome]:
    """Run replicas side by side, each until the first event that `Watch` finds.

    A run that breaks down at once (NaN, a neighbour list that overflows for good) takes those
    beside it along; then all of the group are made again one by one, each with its own seed.

    Args:
        potential: what is tested.
        atoms: elements and cell.
        positions: `[R, n, 3]`, Å, starts.
        config: the run of each; its seed is that of the group, the next ones those of runs that
            are made alone.
        safety: what is an event; actions other than `ignore` count as `stop`, drifts do not.
            For small systems the largest temperature is raised to one that a sound run reaches
            with a probability of 1e-9 in a frame.
        closest: see `Watch`.
        keep_frames: keep those up to the event.
        progress: show bars.
    """
    seeds = config.seed + np.arange(len(positions))
    stopping = _stopping(safety, atoms, config)
    follower = _UntilEvents(atoms, positions, config, stopping, closest, keep_frames)
    name = f"stability at {config.temperature:g} K"
    try:
        run_md(
            potential,
            positions,
            config,
            on_frames=follower,
            keep_frames=False,
            progress=progress,
            description=name,
        )
    except _AllEnded:
        pass
    except (SimulationError, CapacityError) as error:
        if len(positions) > 1:
            return [
                run_until_event(
                    potential,
                    atoms,
                    positions[r : r + 1],
                    replace(config, seed=int(seeds[r])),
                    safety,
                    closest=closest,
                    keep_frames=keep_frames,
                    progress=progress,
                )[0]
                for r in range(len(positions))
            ]
        follower.break_down(str(error))
    return follower.outcomes(seeds)


def summarise_outcomes(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Rows for JSON, without frames."""
    kept = [field.name for field in fields(Outcome) if field.name != "frames"]
    return [{name: getattr(outcome, name) for name in kept} for outcome in outcomes]


def _stopping(safety: SafetyConfig, atoms: Atoms, config: MDConfig) -> SafetyConfig:
    """Every check that is not ignored stops; drifts and rare heat do not."""
    kinds = ("contacts", "bonds", "temperature", "uncertainty")
    actions: dict[str, Any] = {k: "stop" for k in kinds if getattr(safety, k) != "ignore"}
    free = degrees_of_freedom(len(atoms))
    rare = float(chi2.isf(RARE, free)) / free
    return replace(
        safety, drift="ignore", max_temperature=max(safety.max_temperature, rare), **actions
    )


class _AllEnded(SimulationError):
    """Every replica has met an event."""


class _UntilEvents:
    """Watches every replica on its own and remembers how it ended."""

    def __init__(
        self,
        atoms: Atoms,
        positions: np.ndarray,
        config: MDConfig,
        safety: SafetyConfig,
        closest: Mapping[tuple[int, int], float] | None,
        keep_frames: bool,
    ) -> None:
        self._config, self._keep = config, keep_frames
        self._watches = [
            Watch(atoms, own, config.temperature, safety, closest=closest) for own in positions
        ]
        n = len(positions)
        self._events: list[str | None] = [None] * n
        self._times = np.zeros(n)
        self._largest = np.full(n, -1.0)
        self._kept: list[list[Frames]] = [[] for _ in range(n)]

    def __call__(self, frames: Frames) -> None:
        for replica, watch in enumerate(self._watches):
            for t in range(len(frames.time)):
                if self._events[replica] is not None:
                    break
                own = _frame(frames, t, replica)
                self._times[replica] = own.time[0] / 1e3
                self._largest[replica] = max(
                    self._largest[replica], float(own.uncertainty.max(initial=-1.0))
                )
                if self._keep:
                    self._kept[replica].append(own)
                try:
                    watch(own)
                except SimulationError as error:
                    self._events[replica] = str(error).partition(": the run was stopped")[0]
        if None not in self._events:
            raise _AllEnded("every replica has met an event")

    def break_down(self, why: str) -> None:
        """A run that ended without a frame of the event."""
        self._events = [event or why for event in self._events]

    def outcomes(self, seeds: np.ndarray) -> list[Outcome]:
        """One for each replica."""
        return [
            Outcome(
                temperature=self._config.temperature,
                seed=int(seed),
                time=float(self._times[r]),
                event=self._events[r],
                largest_expected_error=float(self._largest[r]) if self._largest[r] >= 0 else None,
                frames=join_frames(self._kept[r]) if self._kept[r] else None,
            )
            for r, seed in enumerate(seeds)
        ]


def _frame(frames: Frames, t: int, replica: int) -> Frames:
    """Frame `t` of one replica."""
    values = {field.name: getattr(frames, field.name) for field in fields(Frames)}
    return Frames(
        **{k: v[t : t + 1] if k == "time" else v[t : t + 1, replica] for k, v in values.items()}
    )
