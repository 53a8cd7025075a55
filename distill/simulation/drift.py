"""Drift of the conserved energy, by a running linear regression for each replica."""

from __future__ import annotations

from typing import Any

import numpy as np

LEAST_BLOCKS = 5
"""Blocks from which a slope is trusted."""

STANDARD_ERRORS = 4.0
"""A slope that is smaller than so many of its standard errors is noise."""


class Drift:
    """Slopes of the conserved energy, from the mean of each block."""

    def __init__(self, n_replicas: int, n_atoms: int) -> None:
        self._n_atoms = n_atoms
        self._first: np.ndarray | None = None
        # Count, sums of t, t², e, te, e² of each replica; t in ps, e in meV/atom.
        self._sums = np.zeros((n_replicas, 6))

    def add(self, time: np.ndarray, energy: np.ndarray) -> None:
        """The next block: times `[T]` in fs and conserved energies `[T, R]` in eV."""
        if self._first is None:
            self._first = energy[0].astype(np.float64)
        t = float(time.mean()) / 1000
        e = 1000 * (energy - self._first).mean(0) / self._n_atoms
        one = np.ones_like(e)
        self._sums += np.stack([one, t * one, t * t * one, e, t * e, e * e], axis=1)

    def slopes(self) -> tuple[np.ndarray, np.ndarray]:
        """Slope and its standard error `[R]`, meV/atom/ps; NaN for fewer than three blocks."""
        n, t, tt, e, te, ee = self._sums.T
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = tt - t * t / n
            slope = (te - t * e / n) / spread
            rest = np.maximum(ee - e * e / n - slope**2 * spread, 0)
            error = np.sqrt(rest / (n - 2) / spread)
        return np.where(n > 2, slope, np.nan), np.where(n > 2, error, np.nan)

    def faults(self, limit: float) -> list[tuple[int, str]]:
        """Replicas whose slope is beyond `limit` meV/atom/ps for certain, with what to do."""
        if self._sums[0, 0] < LEAST_BLOCKS:
            return []
        slope, error = self.slopes()
        bad = np.flatnonzero(np.abs(slope) > np.maximum(limit, STANDARD_ERRORS * error))
        return [
            (
                int(replica),
                f"the conserved energy drifts by {slope[replica]:.2g} meV/atom/ps (limit "
                f"{limit:g}), use a smaller timestep,",
            )
            for replica in bad
        ]

    def mark(self) -> dict[str, Any]:
        """See `Follower`."""
        first = None if self._first is None else self._first.tolist()
        return {"first": first, "sums": self._sums.tolist()}

    def rewind(self, mark: dict[str, Any]) -> None:
        """See `Follower`."""
        self._first = None if mark["first"] is None else np.array(mark["first"])
        self._sums = np.array(mark["sums"])
