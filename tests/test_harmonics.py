"""Spherical harmonics, their couplings and the cutoff function against textbook formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import random_rotation
from scipy import special

from distill.kernels.harmonics import MAX_L, coupling, coupling_paths, spherical_harmonics
from distill.kernels.radial import bessel_basis, smooth_cutoff

pytestmark = pytest.mark.usefixtures("x64")


def unit_vectors(count: int = 40, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def complex_harmonic(degree: int, order: int, polar: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """SciPy's, under its new name (from 1.15) or its old one."""
    if hasattr(special, "sph_harm_y"):
        return special.sph_harm_y(degree, order, polar, azimuth)
    return special.sph_harm(order, degree, azimuth, polar)


def real_harmonics(vectors: np.ndarray, degree: int) -> np.ndarray:
    """Real harmonics from SciPy's complex ones, without Condon-Shortley phase, `[n, 2l + 1]`."""
    polar, azimuth = np.arccos(vectors[:, 2]), np.arctan2(vectors[:, 1], vectors[:, 0])
    columns = []
    for order in range(-degree, degree + 1):
        value = complex_harmonic(degree, abs(order), polar, azimuth)
        if order == 0:
            columns.append(value.real)
        else:
            part = value.imag if order < 0 else value.real
            columns.append(np.sqrt(2) * (-1.0) ** order * part)
    return np.sqrt(4 * np.pi) * np.stack(columns, axis=1)


@pytest.mark.parametrize("max_l", range(MAX_L + 1))
def test_harmonics_equal_those_of_scipy(max_l):
    vectors = unit_vectors()
    found = spherical_harmonics(jnp.asarray(vectors), max_l)
    expected = np.concatenate([real_harmonics(vectors, degree) for degree in range(max_l + 1)], 1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("max_l", [-1, MAX_L + 1])
def test_degree_out_of_range_is_refused(max_l):
    with pytest.raises(ValueError, match="between 0 and 3"):
        spherical_harmonics(jnp.ones((1, 3)), max_l)


@pytest.mark.parametrize("path", coupling_paths(MAX_L), ids=str)
def test_couplings_are_invariant_under_rotation_and_reflection(path):
    vectors = unit_vectors(3 * 4, seed=1).reshape(3, 4, 3)
    constants = coupling(path)

    def invariant(points: np.ndarray) -> float:
        y = np.asarray(spherical_harmonics(jnp.asarray(points), MAX_L)).sum(1)
        parts = [y[i, degree**2 : (degree + 1) ** 2] for i, degree in enumerate(path)]
        return float(np.einsum("abc,a,b,c->", constants, *parts))

    value = invariant(vectors)
    assert abs(value) > 1e-6
    for seed in range(3):
        rotation = random_rotation(seed)
        assert invariant(vectors @ rotation.T) == pytest.approx(value, abs=1e-10)
        assert invariant(-vectors @ rotation.T) == pytest.approx(value, abs=1e-10)


def test_coupling_paths_are_all_even_triangles():
    expected = {
        (a, b, c)
        for a, b, c in np.ndindex(4, 4, 4)
        if 1 <= a <= b <= c and c <= a + b and (a + b + c) % 2 == 0
    }
    assert set(coupling_paths(3)) == expected
    assert coupling_paths(1) == []


def test_cutoff_function_and_two_derivatives_vanish_at_the_cutoff():
    cutoff = 4.3
    derivatives = [smooth_cutoff]
    for _ in range(2):
        derivatives.append(jax.grad(derivatives[-1]))
    for derivative in derivatives:
        # From inside; the third derivative, at most 1e3, times the distance to the cutoff.
        assert abs(float(derivative(jnp.asarray(cutoff - 1e-9), cutoff))) < 1e-6
        assert float(derivative(jnp.asarray(cutoff + 1e-9), cutoff)) == 0.0
    assert float(smooth_cutoff(jnp.asarray(0.0), cutoff)) == 1.0
    values = smooth_cutoff(jnp.linspace(0.0, cutoff, 200), cutoff)
    assert bool((jnp.diff(values) <= 0).all())


def test_bessel_functions_follow_the_formula_and_end_at_the_cutoff():
    cutoff, distance = 5.0, np.linspace(0.5, 6.0, 12)
    found = bessel_basis(jnp.asarray(distance), cutoff, 4)
    envelope = np.where(distance < cutoff, smooth_cutoff(jnp.asarray(distance), cutoff), 0)
    for n in range(1, 5):
        wave = np.sqrt(2 / cutoff) * np.sin(n * np.pi * distance / cutoff) / distance
        np.testing.assert_allclose(found[:, n - 1], wave * envelope, atol=1e-14)
    assert not np.asarray(found[distance > cutoff]).any()
