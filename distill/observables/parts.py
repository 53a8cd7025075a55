"""The curves of `Observables`: each part takes frames and keeps the means of blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from distill.neighbors.cell import heights
from distill.observables.blocks import Blocks
from distill.observables.config import ObservablesConfig
from distill.observables.curves import Curve
from distill.observables.diffusion import fitted_lags, mean_squared_displacement
from distill.observables.radial import RadialDistribution
from distill.observables.unwrapping import unwrap
from distill.observables.vibrations import power_spectrum, require_resolved, wavenumbers
from distill.observables.windows import Windows
from distill.simulation.frames import Frames

LARGEST_R_MAX = 10.0
"""Å, unless a larger one is asked for."""


class CurvePart(ABC):
    """Curves of one kind, from pieces of the run."""

    name: ClassVar[str]
    piece: str
    """How long a piece is, for messages."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._blocks = Blocks()

    def add(self, frames: Frames) -> None:
        """The next frames, with an axis for replicas."""
        for piece in self._windows.add(*self._arrays(frames)):
            n_replicas = piece[0].shape[1]
            self._blocks.add(
                np.stack([self._sample(*(a[:, r] for a in piece)) for r in range(n_replicas)])
            )

    def curves(self, replicas: slice) -> dict[str, Curve]:
        """By name, from the blocks of some replicas; none before the first piece is full."""
        means = self._blocks.means
        return {} if means is None else self._curves(means[:, replicas])

    def mark(self) -> Any:
        """See `distill.simulation.Follower`."""
        return {"windows": self._windows.mark(), "blocks": self._blocks.mark()}

    def rewind(self, mark: Any) -> None:
        """See `distill.simulation.Follower`."""
        self._windows.rewind(mark["windows"])
        self._blocks.rewind(mark["blocks"])

    @abstractmethod
    def _arrays(self, frames: Frames) -> tuple[np.ndarray, ...]:
        """What is collected of the frames, `[T, R, ...]` each."""

    @abstractmethod
    def _sample(self, *arrays: np.ndarray) -> np.ndarray:
        """What is averaged, `[curves, n]`, of a piece `[length, ...]` of one replica."""

    @abstractmethod
    def _curves(self, blocks: np.ndarray) -> dict[str, Curve]:
        """From blocks `[B, R, curves, n]`."""


class RadialPart(CurvePart):
    """Radial distribution functions, each piece a frame."""

    name = "rdf"
    piece = "frame"

    def __init__(self, atoms: Atoms, config: ObservablesConfig, interval: float) -> None:
        super().__init__(Windows(stride_of(config.rdf_interval, interval), 1, 1))
        r_max = config.r_max
        if r_max is None:
            r_max = LARGEST_R_MAX
            if atoms.pbc.all():
                r_max = min(r_max, 0.5 * float(heights(atoms.cell.array).min()))
        self._rdf = RadialDistribution(atoms.numbers, atoms.pbc, r_max, config.r_width)

    def _arrays(self, frames: Frames) -> tuple[np.ndarray, ...]:
        return frames.positions, frames.cell

    def _sample(self, *arrays: np.ndarray) -> np.ndarray:
        (positions,), (cell,) = arrays
        return self._rdf(positions, cell)

    def _curves(self, blocks: np.ndarray) -> dict[str, Curve]:
        label = "g(r)" if self._rdf.periodic else "density of distances (1/Å)"
        return {
            f"rdf {pair}": Curve(self._rdf.r, _pooled(blocks[:, :, k]), "r (Å)", label)
            for k, pair in enumerate(self._rdf.labels)
        }


class DisplacementPart(CurvePart):
    """Mean squared displacements."""

    name = "msd"

    def __init__(
        self, atoms: Atoms, config: ObservablesConfig, interval: float, wrapped: bool
    ) -> None:
        stride = stride_of(config.msd_interval, interval)
        length = max(round(1000 * config.msd_window / (stride * interval)), 2)
        super().__init__(Windows(stride, length, length))
        self.piece = f"window of {config.msd_window:g} ps"
        self._masses, self._wrapped = atoms.get_masses(), wrapped
        self._symbols, self._kinds = kinds_of(atoms)
        self._n_lags = length // 2 + 1
        self._time = np.arange(self._n_lags) * stride * interval / 1000
        fitted_lags(self._time, config.fit)  # refused now rather than at the end of the run

    def _arrays(self, frames: Frames) -> tuple[np.ndarray, ...]:
        return frames.positions, frames.cell

    def _sample(self, *arrays: np.ndarray) -> np.ndarray:
        paths = unwrap(arrays[0], arrays[1], self._wrapped)
        return mean_squared_displacement(paths, self._masses, self._kinds, self._n_lags)

    def _curves(self, blocks: np.ndarray) -> dict[str, Curve]:
        return {
            f"msd {symbol}": Curve(self._time, _pooled(blocks[:, :, k]), "t (ps)", "MSD (Å²)")
            for k, symbol in enumerate(self._symbols)
        }


class VibrationPart(CurvePart):
    """Vibrational densities of states."""

    name = "vdos"

    def __init__(self, atoms: Atoms, config: ObservablesConfig, interval: float) -> None:
        require_resolved(interval, atoms.numbers, config.fastest)
        length = max(round(1000 * config.vdos_window / interval), 4)
        # Pieces that overlap by half make up for what the Hann window takes away.
        super().__init__(Windows(1, length, length // 2))
        self.piece = f"window of {config.vdos_window:g} ps"
        self._masses = atoms.get_masses()
        self._symbols, self._kinds = kinds_of(atoms)
        self._wavenumbers = wavenumbers(length, interval)

    def _arrays(self, frames: Frames) -> tuple[np.ndarray, ...]:
        return (frames.velocities,)

    def _sample(self, *arrays: np.ndarray) -> np.ndarray:
        return power_spectrum(arrays[0], self._masses, self._kinds)

    def _curves(self, blocks: np.ndarray) -> dict[str, Curve]:
        total = blocks.sum(2)
        area = np.trapezoid(total.mean((0, 1)), self._wavenumbers)
        spectra = {s: blocks[:, :, k] for k, s in enumerate(self._symbols)} | {"all": total}
        return {
            f"vdos {name}": Curve(
                self._wavenumbers, _pooled(spectrum) / area, "wavenumber (cm⁻¹)", "VDOS (cm)"
            )
            for name, spectrum in spectra.items()
        }


def _pooled(blocks: np.ndarray) -> np.ndarray:
    """Blocks `[B, R, n]` of replicas one after the other, `[B R, n]`."""
    return blocks.reshape(-1, blocks.shape[-1])


def stride_of(wanted: float, interval: float) -> int:
    """Recorded frames, `interval` fs apart, from one to the next that is `wanted` fs later."""
    return max(round(wanted / interval), 1)


def kinds_of(atoms: Atoms) -> tuple[list[str], np.ndarray]:
    """Symbols of the elements, and which of them each atom `[n]` is."""
    elements, kinds = np.unique(atoms.numbers, return_inverse=True)
    return [chemical_symbols[z] for z in elements], kinds
