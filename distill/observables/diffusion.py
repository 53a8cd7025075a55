"""Mean squared displacements and self-diffusion coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from distill.errors import ConfigError
from distill.observables.curves import Curve
from distill.observables.unwrapping import without_drift
from distill.units import BOLTZMANN, GPA

ANG2_PER_PS_TO_CM2_PER_S = 1e-4
"""cm²/s in one Å²/ps."""

PA_S_TO_EV_PS_PER_ANG3 = 1e3 * GPA
"""eV ps/Å³ in one Pa s."""

CHUNK = 256
"""Atoms whose transforms are in memory at once."""


def mean_squared_displacement(
    positions: np.ndarray, masses: np.ndarray, kinds: np.ndarray, n_lags: int
) -> np.ndarray:
    """Of each kind of atom, from all time origins, relative to the centre of mass.

    The sums over origins are made by FFT (Calandrini, Pellegrini, Calligari, Hinsen and Kneller,
    Collection SFN 12, 201 (2011)).

    Args:
        positions: `[T, n, 3]`, Å, unwrapped.
        masses: `[n]`, in any unit.
        kinds: `[n]`, numbers from 0.
        n_lags: how many lags, from zero, at most T.

    Returns:
        `[kinds, n_lags]`, Å².
    """
    length, n = positions.shape[:2]
    moves = without_drift(np.asarray(positions, np.float64) - positions[:1], masses)
    squares = (moves**2).sum(-1)
    sums = np.concatenate([np.zeros((1, n)), np.cumsum(squares, axis=0)])
    lags = np.arange(n_lags)
    # Squared lengths of all first ends and all last ends of the displacements.
    ends = sums[length - lags] + sums[length] - sums[lags]
    products = np.empty((n_lags, n))
    size = scipy.fft.next_fast_len(2 * length, real=True)
    for begin in range(0, n, CHUNK):
        part = slice(begin, begin + CHUNK)
        spectrum = scipy.fft.rfft(moves[:, part], size, axis=0)
        power = (spectrum.real**2 + spectrum.imag**2).sum(-1)
        products[:, part] = scipy.fft.irfft(power, size, axis=0)[:n_lags]
    each = np.maximum(ends - 2 * products, 0) / (length - lags)[:, None]
    each[0] = 0
    return np.stack([each[:, kinds == kind].mean(1) for kind in range(kinds.max() + 1)])


@dataclass(frozen=True)
class Diffusion:
    """A self-diffusion coefficient, of the finite box.

    Attributes:
        value: cm²/s.
        error: cm²/s, standard error from the spread of the blocks; NaN for a single block.
        exponent: slope of ln MSD against ln t in the window of the fit: 1 where the motion is
            diffusive, otherwise the value means nothing.
        fit: ps, first and last lag of the fit.
    """

    value: float
    error: float
    exponent: float
    fit: tuple[float, float]


def self_diffusion(curve: Curve, fit: tuple[float, float]) -> Diffusion:
    """From the slope of a mean squared displacement in Å² against lags in ps: D = slope / 6.

    Args:
        curve: see above.
        fit: ps, first and last lag.

    Raises:
        ConfigError: fewer than three lags are in the window of the fit.
    """
    chosen = fitted_lags(curve.x, fit)
    time = curve.x[chosen]
    slopes = np.polyfit(time, curve.blocks[:, chosen].T, 1)[0] / 6 * ANG2_PER_PS_TO_CM2_PER_S
    n = len(slopes)
    mean = np.maximum(curve.mean[chosen], np.finfo(float).tiny)
    return Diffusion(
        value=float(slopes.mean()),
        error=float(slopes.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan,
        exponent=float(np.polyfit(np.log(time), np.log(mean), 1)[0]),
        fit=(float(time[0]), float(time[-1])),
    )


def fitted_lags(lags: np.ndarray, fit: tuple[float, float]) -> np.ndarray:
    """Which lags `[n]` in ps lie in the window `fit`; ConfigError if fewer than three."""
    chosen = (lags >= fit[0] - 1e-9) & (lags <= fit[1] + 1e-9) & (lags > 0)
    if chosen.sum() < 3:
        raise ConfigError(
            f"the fit of the diffusion coefficient from {fit[0]:g} to {fit[1]:g} ps holds "
            f"{chosen.sum()} lags: make msd_window longer or msd_interval shorter"
        )
    return chosen


def finite_size_correction(temperature: float, length: float, viscosity: float) -> float:
    """What a cubic box takes off the coefficient of the infinite liquid, cm²/s.

    2.837297 k T / (6 π η L): Yeh and Hummer, J. Phys. Chem. B 108, 15873 (2004).

    Args:
        temperature: K.
        length: Å, edge of the box.
        viscosity: Pa s, of the model, not of the experiment.
    """
    mobility = 2.837297 / (6 * np.pi * viscosity * PA_S_TO_EV_PS_PER_ANG3 * length)
    return float(BOLTZMANN * temperature * mobility * ANG2_PER_PS_TO_CM2_PER_S)
