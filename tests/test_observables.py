"""Observables against theory and independent programs."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.geometry.rdf import get_rdf
from builders import random_rotation, water_box
from scipy.signal import lfilter

from distill.errors import ConfigError, UnsupportedStructureError
from distill.observables import (
    Blocks,
    Curve,
    Molecules,
    RadialDistribution,
    block_average,
    finite_size_correction,
    mean_squared_displacement,
    overlap,
    power_spectrum,
    require_resolved,
    self_diffusion,
    unwrap,
    wavenumbers,
    without_drift,
)
from distill.units import AMU_TO_EV_FS2_PER_ANG2, BOLTZMANN

SKEWED = np.array([[14.0, 0, 0], [3.0, 13.0, 0], [-2.0, 1.5, 15.0]])


def correlated(n: int, memory: float, seed: int, rows: int = 1) -> np.ndarray:
    """`[rows, n]` of an autoregressive process of unit variance with correlation `memory` ** k."""
    noise = np.random.default_rng(seed).standard_normal((rows, n + 500))
    return lfilter([np.sqrt(1 - memory**2)], [1, -memory], noise, axis=1)[:, 500:]


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.95])
def test_block_averages_have_the_error_of_theory(memory):
    n = 2**14
    theory = np.sqrt((1 + memory) / (1 - memory) / n)
    estimates = [block_average(series) for series in correlated(n, memory, 1, 20)]
    assert all(e.converged for e in estimates)
    assert np.mean([e.error for e in estimates]) == pytest.approx(theory, rel=0.1)
    assert np.std([e.value for e in estimates]) == pytest.approx(theory, rel=0.5)
    of_all = block_average(correlated(n, memory, 1, 20))
    assert of_all.error == pytest.approx(theory / np.sqrt(20), rel=0.1)


def test_a_short_series_says_that_it_is_short():
    estimate = block_average(correlated(64, 0.99, 0)[0])
    assert not estimate.converged and estimate.n_blocks >= 8
    assert np.isnan(block_average(np.ones(1)).error)
    assert block_average(np.ones(100)).error == 0


def test_blocks_of_a_stream_are_those_of_the_whole():
    samples = np.random.default_rng(0).standard_normal((1000, 3))
    blocks = Blocks(8)
    for sample in samples:
        blocks.add(sample)
    assert blocks.length == 128 and blocks.means.shape == (7, 3)
    np.testing.assert_allclose(blocks.means, samples[:896].reshape(7, 128, 3).mean(1), atol=1e-12)


def test_rdf_of_an_ideal_gas_is_one():
    rng = np.random.default_rng(0)
    numbers = np.repeat([1, 8], [60, 40])
    rdf = RadialDistribution(numbers, True, 12.0, 1.0)  # beyond half the cell
    assert rdf.labels == ["H-H", "H-O", "O-O"]
    samples = []
    for _ in range(300):
        cell = SKEWED * rng.uniform(0.9, 1.1)
        samples.append(rdf(rng.uniform(-2, 2, (100, 3)) @ cell, cell))
    mean = np.mean(samples, 0)
    error = np.std(samples, 0) / np.sqrt(len(samples))
    # Below the shortest lattice vector an atom does not meet itself.
    near = rdf.r < 6
    expected = np.array([1 - 1 / 60, 1.0, 1 - 1 / 40])[:, None]
    assert (np.abs(mean - expected)[:, near] < 4 * error[:, near]).all()
    assert (error[:, 3:] < 0.01).all()
    np.testing.assert_allclose(mean[1], 1, rtol=0, atol=4 * error[1].max())


def test_rdf_of_a_crystal_has_its_shells():
    """From the primitive cell with one atom, whose neighbours are all images of itself."""
    for atoms in (bulk("Al", "fcc", a=4.0), bulk("Al", "fcc", a=4.0, cubic=True)):
        rdf = RadialDistribution(atoms.numbers, True, 6.0, 0.02)
        g = rdf(atoms.positions + 0.1, atoms.cell.array)[0]
        density = len(atoms) / atoms.get_volume()
        counts = g * density * 4 / 3 * np.pi * np.diff(rdf.edges**3)
        distances = 4.0 * np.sqrt([0.5, 1.0, 1.5, 2.0])
        found = [counts[np.abs(rdf.r - d) < 0.1].sum() for d in distances]
        np.testing.assert_allclose(found, [12, 6, 24, 12], rtol=1e-9)
        assert counts.sum() == pytest.approx(12 + 6 + 24 + 12, rel=1e-9)


def test_rdf_is_that_of_ase():
    atoms = water_box(4)
    rdf = RadialDistribution(atoms.numbers, True, 6.0, 0.1)
    ours = dict(zip(rdf.labels, rdf(atoms.positions, atoms.cell.array), strict=True))
    oxygen = atoms[atoms.numbers == 8]
    theirs, r = get_rdf(oxygen, 6.0, 60)
    np.testing.assert_allclose(r, rdf.r)
    # ASE takes 4π r² dr at the middle of a bin for its shell.
    np.testing.assert_allclose(theirs, ours["O-O"] * np.diff(rdf.edges**3) / (0.3 * r**2))


def test_distances_in_a_molecule():
    atoms = molecule("CH3CH2OH")
    rdf = RadialDistribution(atoms.numbers, False, 10.0, 0.1)
    curves = dict(zip(rdf.labels, rdf(atoms.positions, np.zeros((3, 3))), strict=True))
    assert "O-O" not in curves
    for curve in curves.values():
        assert curve.sum() * 0.1 == pytest.approx(1)
    peak = rdf.r[np.argmax(curves["C-C"])]
    assert peak == pytest.approx(atoms.get_distance(0, 1), abs=0.06)


def test_displacements_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    positions = np.cumsum(rng.standard_normal((40, 5, 3)), axis=0) + 100
    masses, kinds = np.array([1.0, 2, 3, 4, 5]), np.array([0, 0, 1, 1, 1])
    found = mean_squared_displacement(positions, masses, kinds, 21)
    moving = without_drift(positions, masses)
    for lag in (0, 1, 7, 20):
        squares = ((moving[lag:] - moving[: len(moving) - lag]) ** 2).sum(-1).mean(0)
        expected = [squares[kinds == kind].mean() for kind in (0, 1)]
        np.testing.assert_allclose(found[:, lag], expected, atol=1e-9)


def test_drift_does_not_count():
    positions = np.arange(30.0)[:, None, None] * np.array([1.0, 2, 3]) + np.zeros((30, 4, 3))
    found = mean_squared_displacement(positions, np.ones(4), np.zeros(4, int), 10)
    np.testing.assert_allclose(found, 0, atol=1e-8)


def test_diffusion_of_brownian_particles():
    """Langevin motion, exactly propagated: D = kT / (m γ)."""
    n, steps, dt, gamma, temperature, mass = 200, 2000, 50.0, 0.02, 300.0, 16.0
    thermal = BOLTZMANN * temperature / (mass * AMU_TO_EV_FS2_PER_ANG2)  # Å²/fs²
    rng = np.random.default_rng(0)
    # Chandrasekhar's joint distribution of velocity and displacement over dt.
    c = np.exp(-gamma * dt)
    vv = thermal * (1 - c**2)
    xv = thermal / gamma * (1 - c) ** 2
    xx = thermal / gamma**2 * (2 * gamma * dt - 3 + 4 * c - c**2)
    factor = np.linalg.cholesky([[vv, xv], [xv, xx]])
    v = np.sqrt(thermal) * rng.standard_normal((n, 3))
    x, paths = np.zeros((n, 3)), []
    for _ in range(steps):
        dv, dx = np.einsum("ab,bni->ani", factor, rng.standard_normal((2, n, 3)))
        x = x + v * (1 - c) / gamma + dx
        v = c * v + dv
        paths.append(x)
    windows = np.array(paths).reshape(10, 200, n, 3)
    blocks = [mean_squared_displacement(w, np.ones(n), np.zeros(n, int), 101)[0] for w in windows]
    curve = Curve(np.arange(101) * dt / 1000, np.array(blocks))
    found = self_diffusion(curve, (1.0, 5.0))
    theory = thermal / gamma * 1000 * 1e-4 * (1 - 1 / n)  # the centre of mass is taken off
    assert found.error < 0.05 * theory
    assert abs(found.value - theory) < 4 * found.error
    assert found.exponent == pytest.approx(1, abs=0.1)
    with pytest.raises(ConfigError, match=r"holds 2 lags: make msd_window longer"):
        self_diffusion(curve, (1.0, 1.05))


def test_a_breathing_cell_and_wrapping_move_nothing():
    """Atoms that walk in scaled coordinates; the cell breathes and positions are wrapped."""
    rng = np.random.default_rng(0)
    scaled = rng.uniform(0, 1, (6, 3)) + np.cumsum(0.02 * rng.standard_normal((50, 6, 3)), axis=0)
    scaled += 30
    fixed = np.repeat(SKEWED[None], 50, axis=0)
    paths = scaled @ SKEWED
    np.testing.assert_array_equal(unwrap(paths, fixed), paths)
    wrapped = unwrap(scaled % 1 @ SKEWED, fixed, wrapped=True)
    np.testing.assert_allclose(np.diff(wrapped, axis=0), np.diff(paths, axis=0), atol=1e-9)
    cells = fixed * (1 + 0.02 * rng.standard_normal(50))[:, None, None]
    still = np.repeat(scaled[:1], 50, axis=0) @ cells
    np.testing.assert_allclose(unwrap(still, cells), still[:1].repeat(50, 0), atol=1e-9)


def test_finite_size_correction_of_water():
    """0.85 mPa s, 18.6 Å, 298 K: kT ξ / (6π η L) by hand in SI units."""
    by_hand = 1.380649e-23 * 298 * 2.837297 / (6 * np.pi * 0.85e-3 * 18.6e-10) * 1e4
    assert finite_size_correction(298, 18.6, 0.85e-3) == pytest.approx(by_hand, rel=1e-6)


def test_spectrum_of_a_vibration_is_at_its_frequency():
    """A diatomic molecule that vibrates at 2143 cm⁻¹ while it flies: no peak of the flight."""
    masses = np.array([12.0, 16.0])
    time = 4.0 * np.arange(1000)
    omega = 2 * np.pi * 2.99792458e-5 * 2143
    relative = np.cos(omega * time)[:, None] * np.array([0.6, 0.8, 0.0])
    velocities = np.stack([relative / 12, -relative / 16], axis=1) + 0.5
    spectrum = power_spectrum(velocities, masses, np.array([0, 1]))
    nu = wavenumbers(1000, 4.0)
    for row in (*spectrum, spectrum.sum(0)):
        assert np.sum(nu * row) / np.sum(row) == pytest.approx(2143, abs=2)
        assert row[np.abs(nu - 2143) < 20].sum() > 0.99 * row.sum()
    # Kinetic energies of the two go as the inverse masses.
    assert spectrum[0].sum() / spectrum[1].sum() == pytest.approx(16 / 12)


def test_frames_too_far_apart_are_refused():
    require_resolved(3.5, np.array([1, 8]))
    with pytest.raises(ConfigError, match=r"to 3336 cm⁻¹ \(Nyquist\).* 4400 cm⁻¹.* every 3.8 fs"):
        require_resolved(5.0, np.array([1, 8]))
    require_resolved(5.0, np.array([6, 8]))
    require_resolved(5.0, np.array([1, 8]), fastest=1500)


def normal_curve(centre: float, seed: int, blocks: int = 20, noise: float = 0.02) -> Curve:
    x = np.linspace(-6, 8, 281)
    density = np.exp(-((x - centre) ** 2) / 2) / np.sqrt(2 * np.pi)
    rng = np.random.default_rng(seed)
    return Curve(x, density + noise * density.max() * rng.standard_normal((blocks, len(x))))


def test_overlap_of_two_normal_densities():
    """∫min of two unit Gaussians a distance d apart is erfc(d / 2√2)."""
    from scipy.special import erfc

    for distance in (0.5, 2.0):
        found = overlap(normal_curve(0, 0), normal_curve(distance, 1))
        assert found.value == pytest.approx(erfc(distance / np.sqrt(8)), abs=0.01)
    same = overlap(normal_curve(0, 0), normal_curve(0, 0))
    assert same.value == 1


def test_overlap_knows_its_noise():
    pairs = [overlap(normal_curve(0, 2 * s), normal_curve(0, 2 * s + 1)) for s in range(40)]
    values = np.array([p.value for p in pairs])
    assert values.mean() == pytest.approx(np.mean([p.attainable for p in pairs]), abs=5e-4)
    shifted = [overlap(normal_curve(0, 2 * s), normal_curve(1, 2 * s + 1)) for s in range(40)]
    spread = np.std([p.value for p in shifted], ddof=1)
    assert np.mean([p.error for p in shifted]) == pytest.approx(spread, rel=0.35)


def test_overlap_of_curves_that_do_not_fit():
    curve = normal_curve(0, 0)
    with pytest.raises(ValueError, match="no common range"):
        overlap(curve, Curve(curve.x + 100, curve.blocks))
    with pytest.raises(ValueError, match="both curves are zero"):
        overlap(Curve(curve.x, 0 * curve.blocks), Curve(curve.x, 0 * curve.blocks))
    with pytest.raises(ValueError, match="NaN"):
        overlap(curve, Curve(curve.x, np.nan * curve.blocks))
    few = Curve(curve.x[::2], curve.blocks[:1, ::2])
    found = overlap(curve, few)  # another grid; one block tells nothing of its error
    assert found.value > 0.95 and np.isnan(found.error) and np.isnan(found.attainable)


def test_gyration_of_molecules_cut_by_the_cell():
    """Waters and an ethanol, turned, wrapped; the same as of the free molecules."""
    ethanol, water = molecule("CH3CH2OH"), molecule("H2O")
    expected = []
    for atoms in (ethanol, water):
        moved = atoms.positions - atoms.get_center_of_mass()
        masses = atoms.get_masses()
        expected.append(np.sqrt((masses * (moved**2).sum(1)).sum() / masses.sum()))
    box = Atoms(cell=SKEWED, pbc=True)
    for k, atoms in enumerate((ethanol, water, water)):
        atoms = atoms.copy()
        atoms.positions = atoms.positions @ random_rotation(k).T + k * 4.9
        box += atoms
    box.wrap()
    molecules = Molecules(box)
    assert molecules.formulas == ["C2H6O", "H2O"]
    found = molecules.radius_of_gyration(box.positions[None], SKEWED[None])
    np.testing.assert_allclose(found, [expected], rtol=1e-6)
    alone = Molecules(ethanol).radius_of_gyration(ethanol.positions, np.zeros((3, 3)))
    np.testing.assert_allclose(alone, expected[:1], rtol=1e-6)


def test_gyration_needs_molecules():
    with pytest.raises(UnsupportedStructureError, match="go on through the periodic images"):
        Molecules(bulk("Al", "fcc", a=4.0, cubic=True))
    with pytest.raises(UnsupportedStructureError, match="single atoms only"):
        Molecules(Atoms("Ar2", [[0, 0, 0], [5, 5, 5]]))
