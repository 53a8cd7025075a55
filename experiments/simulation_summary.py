"""Means of a run over all its parts, interrupted or not, and how they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import CapacityError, SimulationError
from distill.simulation import BAROSTATS, Frames, MDConfig
from distill.simulation.drift import Drift

MEANS = (
    "temperature_K",
    "temperature_std_K",
    "potential_energy_ev",
    "pressure_gpa",
    "volume_ang3",
    "density_g_per_cm3",
)


class Totals:
    """Adds up the frames of a run; a `Follower` for `run_md`."""

    def __init__(self, n_replicas: int, numbers: np.ndarray) -> None:
        self._numbers = numbers
        self._drift = Drift(n_replicas, len(numbers))
        # Count, T, T², potential energy, pressure, volume, density.
        self._sums = np.zeros((n_replicas, 7))
        self._largest = -1.0

    def __call__(self, frames: Frames) -> None:
        """Add the next frames."""
        temperature = frames.temperature.astype(np.float64)
        seen = [
            np.ones_like(temperature),
            temperature,
            temperature**2,
            frames.potential_energy.astype(np.float64),
            frames.pressure,
            frames.volume,
            frames.density(self._numbers),
        ]
        self._sums += np.stack([x.reshape(len(x), -1).sum(0) for x in seen], axis=1)
        self._largest = max(self._largest, float(frames.uncertainty.max(initial=-1.0)))
        self._drift.add(frames.time, frames.conserved_energy.reshape(len(frames.time), -1))

    @property
    def frames(self) -> int:
        """Of each replica."""
        return int(self._sums[0, 0])

    def mark(self) -> dict[str, Any]:
        """See `distill.simulation.Follower`."""
        return {
            "sums": self._sums.tolist(),
            "largest": self._largest,
            "drift": self._drift.mark(),
        }

    def rewind(self, mark: dict[str, Any]) -> None:
        """See `distill.simulation.Follower`."""
        self._sums, self._largest = np.array(mark["sums"]), mark["largest"]
        self._drift.rewind(mark["drift"])

    def summary(self, baths: Sequence[Mapping[str, float]] = ()) -> dict[str, Any]:
        """Figures by name with their units; None for what is not known.

        `replicas` has those of each. With `baths`, one for each replica, there are figures of each
        beside what tells its bath.
        """
        slope, _ = self._drift.slopes()
        worst = slope[np.argmax(np.abs(slope))]
        means = _means(self._sums.sum(0))
        if baths:
            own = zip(baths, self._sums, strict=True)
            means = {"baths": [{**bath, **_means(sums)} for bath, sums in own]}
        each = [
            {**_means(sums), "drift_mev_per_atom_ps": _known(own)}
            for sums, own in zip(self._sums, slope.tolist(), strict=True)
        ]
        return {
            "frames": int(self._sums[:, 0].sum()),
            **means,
            "replicas": each,
            "drift_mev_per_atom_ps": float(worst) if np.isfinite(worst) else None,
            "largest_uncertainty_ev_per_ang": self._largest if self._largest >= 0 else None,
        }


def _means(sums: np.ndarray) -> dict[str, Any]:
    if not sums[0]:
        return dict.fromkeys(MEANS)
    temperature, square, energy, pressure, volume, density = (sums[1:] / sums[0]).tolist()
    spread = max(square - temperature**2, 0) ** 0.5
    values = (temperature, spread, energy, _known(pressure), volume or None, _known(density))
    return dict(zip(MEANS, values, strict=True))


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def broken_down(
    summary: Mapping[str, Any], error: SimulationError | CapacityError
) -> dict[str, Any]:
    """The summary of a run that `error` ended, with the replicas in which it happened."""
    kind = error.kind or "breakdown"
    end = [{"kind": kind, "replica": number} for number in error.replicas]
    return {**summary, "faults": [*summary["faults"], *end], "ended": str(error)}


def baths_of(md: MDConfig) -> list[dict[str, float]]:
    """Temperature and pressure of each bath, as far as they differ."""
    own = {"bath_K": md.temperatures, "bath_gpa": md.pressures}
    given = {name: values for name, values in own.items() if values}
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]


def report(summary: dict[str, Any], output: Path, md: MDConfig) -> None:
    """The summary in a few lines."""
    print(f"{output}: {summary['time_ps']:g} ps of {md.ensemble}")
    for own in summary.get("baths", [summary]):
        bath = f" of {own['bath_K']:g} K" if "bath_K" in own else ""
        bath += f" at {own['bath_gpa']:g} GPa" if "bath_gpa" in own else ""
        mean, spread = own["temperature_K"], own["temperature_std_K"]
        print(f"temperature{bath} {mean:.1f} ± {spread:.1f} K")
        if md.ensemble in BAROSTATS:
            print(f"density {own['density_g_per_cm3']:.4f} g/cm³ at {own['pressure_gpa']:.3g} GPa")
    if summary["drift_mev_per_atom_ps"] is not None:
        print(f"drift of the conserved energy {summary['drift_mev_per_atom_ps']:.2g} meV/atom/ps")
    if summary["largest_uncertainty_ev_per_ang"] is not None:
        print(f"largest expected force error {summary['largest_uncertainty_ev_per_ang']:.2f} eV/Å")
    if "exchange" in summary:
        report_exchange(summary["exchange"])
    for finding in summary["findings"]:
        print(f"warning: {finding}")


def report_exchange(exchange: dict[str, Any]) -> None:
    """Acceptance and round trips."""
    for pair in exchange["pairs"]:
        if pair["attempts"]:
            low, high = pair["temperatures_K"]
            print(f"exchanged {low:.0f} and {high:.0f} K: {100 * pair['acceptance']:.0f} %")
    print(f"round trips of the walkers {exchange['round_trips']}")
