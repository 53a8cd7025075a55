"""What the teacher would have given: averages over runs of the student, reweighted.

A frame of a canonical run of the student has the weight exp(-(U_teacher - U_student) / kT) in the
ensemble of the teacher at the same temperature and pressure (Zwanzig, J. Chem. Phys. 22, 1420
(1954)); kinetic energy and pressure times volume cancel. So the teacher is called for frames far
apart instead of every step. It works as long as the two ensembles overlap, which the effective
number of samples tells (Kish, Survey Sampling, 1965): the energies' difference grows with the
system, so this is for small ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.units import BOLTZMANN

BLOCKS = 5
"""Blocks of each replica for the errors, which must be longer than what is averaged remembers."""

LEAST_SHARE = 0.1
"""Effective share of the samples below which weighted averages rest on a few frames."""


@dataclass(frozen=True)
class Reweighted:
    """An average in both ensembles, with standard errors.

    The errors leave out one block at a time (jackknife); that of the difference is smaller than
    those of the two averages, which come from the same frames.

    Attributes:
        student, student_error: plain average, or with the student's own weights.
        teacher, teacher_error: weighted average.
        difference, difference_error: student less teacher.
    """

    student: float
    student_error: float
    teacher: float
    teacher_error: float
    difference: float
    difference_error: float


def teacher_weights(
    student_energy: np.ndarray, teacher_energy: np.ndarray, temperature: float
) -> np.ndarray:
    """Weights `[R, T]` of frames in the teacher's ensemble, with the sum 1.

    Args:
        student_energy: `[R, T]`, eV, of `T` frames of `R` replicas of the student.
        teacher_energy: `[R, T]`, eV, of the same frames; another zero of the energy is no matter.
        temperature: K, of the run.

    Raises:
        ValueError: shapes differ, an energy is not finite, or the temperature is not positive.
    """
    if student_energy.shape != teacher_energy.shape or student_energy.ndim != 2:
        raise ValueError(
            f"energies must be [R, T] both, got {student_energy.shape} and {teacher_energy.shape}"
        )
    _check(temperature, student_energy, teacher_energy)
    exponent = (student_energy - teacher_energy) / (BOLTZMANN * temperature)
    weights = np.exp(exponent - exponent.max())
    return np.asarray(weights / weights.sum())


def effective_share(weights: np.ndarray) -> float:
    """Number of equally weighted samples that are worth as much, over that of all: 0 to 1."""
    return float(weights.sum() ** 2 / (weights.size * (weights**2).sum()))


def rate_ratio(
    differences: np.ndarray,
    blocks: np.ndarray,
    event_differences: np.ndarray,
    event_blocks: np.ndarray,
    temperature: float,
) -> tuple[float, float]:
    """How many times as likely some frames are for the teacher as for the student, and its error.

    It is the mean weight of these frames over that of all; the error is by the jackknife over
    blocks, and infinite where fewer than five blocks hold any. All frames of a kind are wanted, or
    a random choice: rare events cost few calls of the teacher.

    Args:
        differences: `[N]`, eV, energy of the teacher less that of the student for frames that
            represent the run.
        blocks: `[N]` int, number of the stretch of the run that each is from; stretches longer than
            the system remembers.
        event_differences, event_blocks: `[E]`, the same for the frames asked about.
        temperature: K, of the run.

    Raises:
        ValueError: there are no frames of either kind, an energy is not finite, or the temperature
            is not positive.
    """
    if not len(differences) or not len(event_differences):
        raise ValueError("there are no frames to compare, or none to compare with")
    _check(temperature, differences, event_differences)
    # The largest weight is 1; what all have in common cancels.
    shift = min(differences.min(), event_differences.min())
    every, some = (
        np.exp(-(own - shift) / (BOLTZMANN * temperature))
        for own in (differences, event_differences)
    )
    kinds = np.unique(np.concatenate([blocks, event_blocks]))

    def ratio(left_out: Any = None) -> float:
        rest, events = blocks != left_out, event_blocks != left_out
        return float(some[events].mean() / every[rest].mean())

    found = ratio()
    if len(np.unique(event_blocks)) < BLOCKS or len(np.unique(blocks)) < BLOCKS:
        return found, float("inf")
    return found, float(_jackknife(np.array([ratio(kind) for kind in kinds])))


def evenly_spread(count: int, wanted: int) -> np.ndarray:
    """Numbers of at most `wanted` of `count` frames, equally far apart over all of them."""
    step = max(-(-count // wanted), 1)
    return np.arange(step - 1, count, step)


def reweight(
    values: np.ndarray,
    weights: np.ndarray,
    blocks: int = BLOCKS,
    student_weights: np.ndarray | None = None,
) -> Reweighted:
    """The average of `values` `[R, T]` with and without `weights` `[R, T]`.

    Args:
        values: of `T` frames, equally far apart, of `R` independent replicas.
        weights: of `teacher_weights`.
        blocks: of each replica.
        student_weights: `[R, T]`, of `teacher_weights` too, where the frames are of another run
            than one of the student; by default all are equal.

    Raises:
        ValueError: there are fewer than two blocks, or fewer frames than blocks.
    """
    values = np.asarray(values, np.float64)
    own_weights = np.ones_like(values) if student_weights is None else student_weights
    n_frames = values.shape[1]
    if blocks * len(values) < 2 or n_frames < blocks:
        raise ValueError(f"{len(values)} x {n_frames} frames are too few for blocks: give more")
    number = np.arange(n_frames) * blocks // n_frames
    sums = np.array(
        [
            [part.sum() for part in (plain * one, own, own * one, plain)]
            for one, own, plain in (
                (array[replica, number == block] for array in (values, weights, own_weights))
                for replica in range(len(values))
                for block in range(blocks)
            )
        ]
    )
    whole, without = sums.sum(0), sums.sum(0) - sums

    def averages(total: np.ndarray) -> np.ndarray:
        plain, weighted = total[..., 0] / total[..., 3], total[..., 2] / total[..., 1]
        return np.stack([plain, weighted, plain - weighted], axis=-1)

    found, left = averages(whole), averages(without)
    pairs = [float(x) for pair in zip(found, _jackknife(left), strict=True) for x in pair]
    return Reweighted(*pairs)


def _check(temperature: float, *energies: np.ndarray) -> None:
    if not all(np.isfinite(own).all() for own in energies):
        raise ValueError("energies are NaN or infinite: leave such frames out")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")


def _jackknife(left: np.ndarray) -> np.ndarray:
    """Standard errors from estimates `[blocks, ...]` that each leave out one block."""
    count = len(left)
    return np.asarray(np.sqrt((count - 1) / count * ((left - left.mean(0)) ** 2).sum(0)))
