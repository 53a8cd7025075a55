"""Vibrational density of states from velocities."""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.signal

from distill.errors import ConfigError
from distill.observables.unwrapping import without_drift

CM_PER_FS = 2.99792458e-5
"""Speed of light."""

FASTEST_WITH_HYDROGEN, FASTEST_WITHOUT = 4400.0, 2500.0
"""cm⁻¹, above the fastest stretches: those of H2, and those of N2 and CO."""

CHUNK = 256
"""Atoms whose transforms are in memory at once."""


def wavenumbers(length: int, interval: float) -> np.ndarray:
    """`[length // 2 + 1]`, cm⁻¹, of the spectrum of `length` frames `interval` fs apart."""
    return scipy.fft.rfftfreq(length, interval) / CM_PER_FS


def power_spectrum(velocities: np.ndarray, masses: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Mass-weighted power of the velocities of each kind of atom, in one window.

    By the Wiener-Khinchin theorem the spectrum is the Fourier transform of the velocity
    autocorrelation. A Hann window is laid over the frames, and the motion of the centre of mass is
    taken off. Averages over windows are Welch's estimate.

    Args:
        velocities: `[T, n, 3]`.
        masses: `[n]`.
        kinds: `[n]`, numbers from 0.

    Returns:
        `[kinds, T // 2 + 1]`; the sum over both is proportional to the kinetic energy.
    """
    length, n = velocities.shape[:2]
    moving = without_drift(np.asarray(velocities, np.float64), masses)
    window = scipy.signal.windows.hann(length, sym=False)[:, None, None]
    power = np.empty((length // 2 + 1, n))
    for begin in range(0, n, CHUNK):
        part = slice(begin, begin + CHUNK)
        spectrum = scipy.fft.rfft(window * moving[:, part], axis=0)
        power[:, part] = (spectrum.real**2 + spectrum.imag**2).sum(-1)
    power *= masses
    return np.stack([power[:, kinds == kind].sum(1) for kind in range(kinds.max() + 1)])


def require_resolved(interval: float, numbers: np.ndarray, fastest: float | None = None) -> None:
    """Refuse frames that are too far apart for the fastest motion.

    Args:
        interval: fs between frames.
        numbers: `[n]` atomic numbers.
        fastest: cm⁻¹; by default `FASTEST_WITH_HYDROGEN` or `FASTEST_WITHOUT`.

    Raises:
        ConfigError: the fastest motion is above the Nyquist limit and would be folded back.
    """
    if fastest is None:
        hydrogen = bool((np.asarray(numbers) == 1).any())
        fastest = FASTEST_WITH_HYDROGEN if hydrogen else FASTEST_WITHOUT
    limit = 0.5 / interval / CM_PER_FS
    if limit < fastest:
        raise ConfigError(
            f"frames {interval:g} fs apart resolve vibrations up to {limit:.0f} cm⁻¹ (Nyquist), "
            f"the fastest are at {fastest:.0f} cm⁻¹: record every {0.5 / fastest / CM_PER_FS:.2g} "
            "fs or more often (md.record_every times md.timestep), or give "
            "observables.fastest in cm⁻¹ if there is no such motion"
        )
