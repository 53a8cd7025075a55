"""NPT: volumes against theory, the conserved energy, lists of a cell that moves, bad input."""

from __future__ import annotations

from dataclasses import replace

import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from ase import Atoms
from builders import frames_of
from listless import no_energy, potential_without_lists

from distill.errors import SimulationError, UnsupportedStructureError
from distill.potential import Potential, local_potential
from distill.simulation import MDCheckpoints, MDConfig, SafetyConfig, Watch, run_md
from distill.simulation.barostat import scr_step
from distill.simulation.bath import bath_of
from distill.simulation.ensembles import kinetic_energy, make_integrator
from distill.simulation.programs import Programs
from distill.simulation.strain import RUNG, strained_lists

pytestmark = pytest.mark.usefixtures("x64")

CUTOFF = 3.0
IMAGES = np.array(list(np.ndindex(5, 5, 5))) - 2.0
CONFIG = MDConfig(
    "npt_scr",
    timestep=2.0,
    temperature=300.0,
    steps=120,
    record_every=10,
    block_steps=60,
    seed=1,
    thermostat_time=100.0,
    pressure=1.0,
    barostat_time=200.0,
)


def spheres() -> Atoms:
    """Eight atoms in a skewed cell of 6 Å, smaller than two cutoffs."""
    corners = 0.5 * np.array(list(np.ndindex(2, 2, 2)), float)
    cell = np.array([[6.0, 0, 0], [0.6, 6.0, 0], [-0.3, 0.4, 6.0]])
    moved = corners @ cell + 0.1 * np.random.default_rng(0).standard_normal((8, 3))
    return Atoms("ArNeArNeArNeArNe", moved, cell=cell, pbc=True)


def pair_energy(squared):
    """Soft spheres with a well, smooth at the cutoff."""
    distances = jnp.sqrt(squared)
    return 2.0 * jnp.maximum(1 - distances / CUTOFF, 0) ** 3 * (1.9 - distances / CUTOFF * 2.2)


def by_rows(displacements, neighbor_species, mask, species):
    squared = (displacements**2).sum(-1)
    return jnp.where(mask, 0.5 * pair_energy(jnp.where(mask, squared, 100.0)), 0).sum(1)


def with_lists(atoms: Atoms, skin: float = 0.3) -> Potential:
    return local_potential(
        by_rows, atoms, np.zeros(len(atoms), int), CUTOFF, dtype=np.float64, skin=skin
    )


def without_lists(atoms: Atoms) -> Potential:
    """All images one by one."""

    def total(positions, cell):
        between = positions[None] - positions[:, None]
        # Atoms wander through many cells; images are counted from the nearest one.
        between = between - jnp.round(between @ jnp.linalg.inv(cell)) @ cell
        vectors = between[:, :, None] + IMAGES @ cell
        itself = np.eye(len(atoms), dtype=bool)[..., None] & (IMAGES == 0).all(1)
        squared = jnp.where(itself, 100.0, (vectors**2).sum(-1))
        return 0.5 * pair_energy(squared).sum()

    return potential_without_lists(atoms, total)


def test_volumes_of_an_ideal_gas_follow_the_gamma_distribution():
    """`V^(n-1) exp(-PV/kT)` with the centre of mass at rest; each replica has its own bath."""
    n, replicas = 6, 1500
    thermal = np.where(np.arange(replicas) % 2, 0.02, 0.04)
    pressure = np.where(np.arange(replicas) % 3, 2e-3, 1e-3)
    atoms = Atoms(f"Ar{n}", np.random.default_rng(0).uniform(0, 5, (n, 3)), pbc=True)
    atoms.set_cell(np.eye(3) * 5)
    potential = potential_without_lists(atoms, no_energy)
    start, _ = make_integrator(potential, replace(CONFIG, temperature=300.0))
    step = scr_step(potential, 1.0, 20.0, 120.0, 1 / 2e-3, 3 * n - 3)

    @jax.jit
    def sample(keys):
        state = jax.vmap(lambda key: start(key, atoms.positions, None))(keys)
        state = replace(state, thermal_energy=thermal, pressure=pressure)
        one = jax.vmap(lambda own: step(own, None))
        return jax.lax.fori_loop(0, 1600, lambda _, own: one(own), state)

    state = sample(jax.random.split(jax.random.PRNGKey(0), replicas))
    in_units = np.asarray(state.volume) * pressure / thermal
    for chosen in (thermal > 0.03, thermal < 0.03, pressure > 1.5e-3, pressure < 1.5e-3):
        assert scipy.stats.kstest(in_units[chosen], scipy.stats.gamma(n).cdf).pvalue > 1e-3
    kinetic = 0.5 * np.asarray((state.momentum**2 / state.mass).sum((1, 2))) / thermal
    assert scipy.stats.kstest(kinetic, scipy.stats.gamma(1.5 * n - 1.5).cdf).pvalue > 1e-3


@pytest.mark.usefixtures("quick_compilation")
def test_the_conserved_energy_improves_with_the_timestep():
    """Total energy and PV less the heat of both baths; its error falls at least linearly."""
    atoms = spheres()
    potential = without_lists(atoms)
    start, _ = make_integrator(potential, CONFIG)

    def energies(state):
        energy = potential.evaluate(state.position, None, state.cell).energy[0]
        total = energy + kinetic_energy(state) + state.pressure * state.volume
        return total, total - state.heat, state.volume

    @jax.jit
    def run(keys, timestep, every):
        step = jax.vmap(
            lambda own: scr_step(potential, timestep, 100.0, 200.0, 70.0, 21)(own, None)
        )

        def record(state, _):
            state = jax.lax.fori_loop(0, every, lambda _, own: step(own), state)
            return state, jax.vmap(energies)(state)

        state = jax.vmap(lambda key: start(key, atoms.positions, None))(keys)
        return jax.lax.scan(record, state, None, length=25)[1]

    keys = jax.random.split(jax.random.PRNGKey(0), 8)
    (_, coarse, _), (total, fine, volume) = (
        tuple(np.asarray(part) for part in run(keys, timestep, every))
        for timestep, every in ((4.0, 2), (1.0, 8))
    )
    coarse, fine = (part - part[0] for part in (coarse, fine))
    assert total.std(0).mean() > 0.05 and volume.std(0).mean() > 1.0
    assert fine.std() < 0.01 * total.std(0).mean()
    assert coarse.std() > 3 * fine.std()


@pytest.mark.usefixtures("quick_compilation")
def test_lists_are_exact_or_flagged_while_the_cell_moves():
    """Against the sum over all images, from 12 % shorter to 12 % longer cells."""
    atoms = spheres()
    programs = Programs(with_lists(atoms), CONFIG, False)
    exact = jax.jit(without_lists(atoms).evaluate)
    bath = bath_of(CONFIG, None)
    state, lists = programs.first(jax.random.PRNGKey(0), atoms.positions, None, bath)
    flags = []
    for stretch in (1.0, 0.985, 0.975, 1.12, 0.88):
        now = replace(state, position=state.position * stretch, stretch=jnp.asarray(stretch, float))
        potential = programs._at(int(lists.rung))[0]
        functions = strained_lists(potential)
        checked, bad = functions.check(functions.update(lists, now), now)
        flags.append(bool(bad))
        if bad:
            lists = programs.larger(now, checked, 1 if stretch > 0.9 else 5)
            potential = programs._at(int(lists.rung))[0]
            functions = strained_lists(potential)
            assert RUNG ** int(lists.rung) < stretch
            checked, bad = functions.check(functions.update(lists, now), now)
            assert not bad
        found = potential.evaluate(now.position, checked.lists, now.cell)
        expected = exact(now.position, None, now.cell)
        np.testing.assert_allclose(found.energy, expected.energy, rtol=1e-12)
        np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.virial, expected.virial, rtol=0, atol=1e-12)
    assert flags == [False, False, True, False, True]
    grown = replace(now, position=now.position / 0.88, stretch=jnp.asarray(1.0))
    # Atoms that were too fast once stay so in another reference cell.
    for stale, expected in ((False, 0.2), (True, 0.16)):
        careful = {"rebuild_fraction": jnp.asarray(0.2), "stale": jnp.asarray(stale)}
        lists = replace(lists, lists=replace(lists.lists, **careful))
        crushed = replace(lists, crushed=jnp.asarray(True))
        larger, smaller = programs.adapted(grown, lists), programs.larger(now, crushed, 1)
        assert int(larger.rung) < int(lists.rung) < int(smaller.rung)
        for own in (larger, smaller):
            assert float(own.lists.rebuild_fraction) == pytest.approx(expected)
    assert programs.adapted(now, lists) is lists


@pytest.mark.usefixtures("quick_compilation")
def test_a_box_that_shrinks_is_that_of_a_run_without_lists():
    """Replicas: every list that became too small was replaced, no step was wrong."""
    atoms = spheres()
    starts = np.stack([atoms.positions, atoms.positions + 0.05])
    config = replace(CONFIG, pressure=5.0, steps=12, record_every=3, block_steps=12)
    first = run_md(with_lists(atoms), starts, config, progress=False)
    second = run_md(without_lists(atoms), starts, config, progress=False)
    lengths = np.cbrt(first.frames.volume / atoms.cell.volume)
    assert lengths.min() < 0.97 and first.n_reallocations > 0
    for name in ("positions", "cell", "pressure", "conserved_energy"):
        one, other = getattr(first.frames, name), getattr(second.frames, name)
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.usefixtures("quick_compilation")
def test_two_halves_are_the_whole_while_the_reference_changes(tmp_path):
    atoms = spheres()
    config = replace(CONFIG, pressure=5.0, steps=12, record_every=3, block_steps=6)

    def run(folder, steps):
        return run_md(
            with_lists(atoms),
            atoms.positions,
            replace(config, steps=steps),
            checkpoints=MDCheckpoints(tmp_path / folder),
            progress=False,
        )

    half = run("parts", 6)
    parts, whole = run("parts", 12), run("whole", 12)
    assert half.n_reallocations > 0
    np.testing.assert_array_equal(parts.frames.positions, whole.frames.positions[2:])
    np.testing.assert_array_equal(parts.frames.cell, whole.frames.cell[2:])
    for a, b in zip(jax.tree.leaves(parts.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert parts.n_reallocations == whole.n_reallocations


@pytest.mark.slow
def test_two_pressures_have_the_ratio_of_theory():
    """ln p1(V) / p2(V) is linear in V with slope -(P1 - P2) / kT (Shirts, JCTC 9, 909)."""
    atoms, replicas = spheres(), 64
    starts = np.tile(atoms.positions, (replicas, 1, 1))
    samples = []
    for pressure in (0.8, 1.2):
        config = MDConfig(
            "npt_scr",
            4.0,
            300.0,
            steps=8000,
            record_every=100,
            block_steps=4000,
            thermostat_time=100.0,
            pressure=pressure,
            barostat_time=200.0,
            compressibility=0.4,
        )
        run = run_md(without_lists(atoms), starts, config, progress=False).frames
        samples.append(run.volume[20:])
        mean = run.pressure[20:].mean(0)
        assert abs(mean.mean() - pressure) < 4 * mean.std() / np.sqrt(replicas)
    first, second = samples
    assert first.mean() > second.mean() + 2
    expected = -0.4 * -ase.units.GPa / (300 * ase.units.kB)

    def slope(chosen):
        """Maximum likelihood of the logistic regression of which run a volume is from."""
        volumes = np.concatenate([first[:, chosen].ravel(), second[:, chosen].ravel()])
        label = np.repeat([1.0, 0.0], first[:, chosen].size)
        x = np.stack([np.ones_like(volumes), volumes - volumes.mean()], axis=1)
        weights = np.zeros(2)
        for _ in range(30):
            p = 1 / (1 + np.exp(-x @ weights))
            weights = weights + np.linalg.solve((x.T * (p * (1 - p))) @ x, x.T @ (label - p))
        return weights[1]

    rng = np.random.default_rng(0)
    spread = np.std([slope(rng.integers(0, replicas, replicas)) for _ in range(50)])
    assert spread < 0.1 * expected
    assert abs(slope(np.arange(replicas)) - expected) < 4 * spread


def test_the_watch_measures_in_the_cell_of_each_frame():
    atoms = Atoms("Ar2", [[0.5, 3, 3], [5.5, 3, 3]], cell=np.eye(3) * 6, pbc=True)
    positions = np.tile(atoms.positions, (2, 1, 1))
    cell = np.stack([np.eye(3) * 6, np.eye(3) * 5.2])
    watch = Watch(atoms, atoms.positions, 300.0, SafetyConfig(min_distance=0.6, geometry_every=1))
    with pytest.raises(SimulationError, match=r"atoms 0 and 1 were 0\.20 Å apart at 20 fs"):
        watch(frames_of(positions, cell=cell))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pressure": np.nan}, r"pressure must be a finite number in GPa, got \[nan\]"),
        ({"compressibility": 0.0}, r"compressibility must be larger than zero"),
        ({"compressibility": -1.0}, r"compressibility must be larger than zero"),
        ({"barostat_time": 5.0}, r"barostat_time \(5.0 fs\) must be at least ten timesteps"),
        ({"temperature": 0.0}, r"npt_scr needs a temperature above zero"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_potentials_without_a_volume_or_a_virial_are_refused(toy_potential):
    atoms = spheres()
    toy = toy_potential(lambda x: x.sum(), atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc)
    with pytest.raises(UnsupportedStructureError, match=r"needs a potential that gives a virial"):
        run_md(toy, atoms.positions, CONFIG, progress=False)
    for pbc in ((True, True, False), False):
        atoms.pbc = pbc
        with pytest.raises(UnsupportedStructureError, match=r"periodic in all three .*False\]"):
            run_md(with_lists(atoms), atoms.positions, CONFIG, progress=False)
