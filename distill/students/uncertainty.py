"""Per-atom uncertainty of the forces from the last features of the network.

How far an atom's features lie from those seen in training, measured in units of their spread (a
Mahalanobis distance), says how well the data determine its energy (F. Bigi et al., Mach. Learn.:
Sci. Technol. 5, 045018 (2024)). A power law per element, fitted by maximum likelihood on held-out
structures, turns it into the error of the force. The features come out of the forward pass that
molecular dynamics makes anyway, so the cost is one small product per atom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from distill.data import Dataset, GraphLoader
from distill.errors import DatasetError
from distill.kernels.contract import Species
from distill.students.per_element import per_element_affine

if TYPE_CHECKING:
    from distill.students.student import Student

RIDGE = 1e-4
"""Added to the covariance of the features, relative to its mean diagonal."""

MIN_ATOMS = 10
"""Held-out atoms of an element below which it shares the calibration of all elements."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Uncertainty:
    """Distance of an environment from the training data, calibrated to force errors.

    Attributes:
        whitening: `[E, F, F]`, per element.
        offset: `[E, F]`, whitened mean of the features, negative.
        factor: `[E]`, eV/Å.
        exponent: `[E]`.
    """

    whitening: Any
    offset: Any
    factor: Any
    exponent: Any

    def __call__(self, features: jax.Array, species: Species) -> jax.Array:
        """Expected length of the force error of each atom `[N]`, eV/Å, from features `[N, F]`.

        The root of the summed variances of the components, as in `Labels.uncertainty`.
        """
        dtype = features.dtype
        distance = self.distance(features, species)
        factor = jnp.asarray(self.factor, dtype)[species]
        return factor * distance ** jnp.asarray(self.exponent, dtype)[species]

    def distance(self, features: jax.Array, species: Species) -> jax.Array:
        """`[N]`, 1 for a typical environment of the training data."""
        whitened = per_element_affine(
            features,
            species,
            jnp.asarray(self.whitening, features.dtype),
            jnp.asarray(self.offset, features.dtype),
        )
        return jnp.sqrt((whitened**2).mean(-1) + 1e-6)


def fit_uncertainty(
    student: Student, dataset: Dataset, train: np.ndarray, held_out: np.ndarray
) -> Uncertainty:
    """Uncertainty of a trained student.

    Args:
        student: trained.
        dataset: labelled, eV and Å.
        train: indices of the structures that it was trained on.
        held_out: indices of others (other trajectories) on which it is calibrated.

    Raises:
        DatasetError: no held-out structures.
    """
    if len(held_out) == 0:
        raise DatasetError("there are no held-out structures to calibrate the uncertainty on")
    features, species, _ = _collect(student, dataset, train)
    n_elements, width = len(student.elements), features.shape[1]
    whitening = np.zeros((n_elements, width, width))
    offset = np.zeros((n_elements, width))
    for element in range(n_elements):
        own = features[species == element] if (species == element).sum() > 1 else features
        covariance = np.cov(own.T) + RIDGE * np.trace(np.cov(own.T)) / width * np.eye(width)
        whitening[element] = np.linalg.inv(np.linalg.cholesky(covariance)).T
        offset[element] = -own.mean(0) @ whitening[element]
    raw = Uncertainty(whitening, offset, np.ones(n_elements), np.ones(n_elements))
    features, species, errors = _collect(student, dataset, held_out)
    distance = np.asarray(raw.distance(jnp.asarray(features, jnp.float32), species), np.float64)
    common = _calibrate(distance, errors)
    own_law = [
        _calibrate(distance[species == e], errors[species == e])
        if (species == e).sum() >= MIN_ATOMS
        else common
        for e in range(n_elements)
    ]
    factor, exponent = np.array(own_law).T
    return Uncertainty(
        *(jnp.asarray(a, jnp.float32) for a in (whitening, offset, factor, exponent))
    )


def reliability(
    predicted: np.ndarray, errors: np.ndarray, n_bins: int = 10
) -> dict[str, np.ndarray]:
    """Predicted against real errors in bins of equal population.

    Args:
        predicted: `[n]`, expected length of the force errors, eV/Å.
        errors: `[n]`, their real lengths, eV/Å.
        n_bins: number of bins.

    Returns:
        `predicted` and `observed`, root mean squares in each bin `[n_bins]`.
    """
    groups = np.array_split(np.argsort(predicted, kind="stable"), n_bins)
    return {
        "predicted": np.array([np.sqrt(np.mean(predicted[g] ** 2)) for g in groups]),
        "observed": np.array([np.sqrt(np.mean(errors[g] ** 2)) for g in groups]),
    }


def _calibrate(distance: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Factor and exponent of the likeliest Gaussian errors of variance (factor d^exponent)²."""
    log_distance, squared = np.log(distance), np.maximum(errors**2, 1e-12)

    def loss(parameters: np.ndarray) -> float:
        log_sigma = parameters[0] + parameters[1] * log_distance
        return float(np.mean(3 * log_sigma + 1.5 * squared * np.exp(-2 * log_sigma)))

    start = np.array([0.5 * np.log(squared.mean()), 0.5])
    found = minimize(loss, start, bounds=[(None, None), (0.0, 4.0)], method="L-BFGS-B").x
    return float(np.exp(found[0])), float(found[1])


def _collect(
    student: Student, dataset: Dataset, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features `[n, F]`, species `[n]` and lengths of the force errors `[n]` of real atoms."""
    loader = GraphLoader(
        dataset, indices, student.cutoff, student.elements, 32, shuffle=False, max_buckets=2
    )
    parts = []
    for batch in loader.epoch(0):
        real = batch.graph.atom_mask
        result = student.evaluate(batch.graph)
        errors = np.linalg.norm(np.asarray(result.forces) - batch.forces, axis=1)
        features = np.asarray(result.beside[0], np.float64)
        parts.append((features[real], batch.graph.species[real], errors[real]))
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return joined[0], joined[1], joined[2]
