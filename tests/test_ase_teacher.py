"""ASE calculators as teachers: the calculator's own numbers, worker processes, failures."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from builders import structures_of
from failing_calculator import Springs

from distill.data import Dataset, flag_summary, label_structures
from distill.errors import ConfigError, MissingDependencyError, TeacherError
from distill.simulation import MDConfig, run_md
from distill.teachers import load
from distill.teachers.ase_calculator import AseTeacher, parse_ase_name
from distill.teachers.host import HostEnergy
from distill.units import GPA

SPRINGS = "failing_calculator:Springs"


def rattled(atoms: Atoms, seed: int = 0) -> Atoms:
    atoms.rattle(0.1, seed=seed)
    return atoms


def fated(*fates: str | None) -> list[Atoms]:
    structures = [rattled(molecule("H2O"), seed) for seed in range(len(fates))]
    for atoms, fate in zip(structures, fates, strict=True):
        atoms.info["fate"] = fate
    return structures


def test_numbers_of_emt_for_bulk_slab_and_molecule():
    slab = rattled(fcc111("Cu", (2, 2, 2), vacuum=5.0), 1)
    structures = [rattled(bulk("Cu", cubic=True)), slab, rattled(molecule("CO"), 2)]
    teacher = load("ase:ase.calculators.emt:EMT")
    labels = teacher.label(structures)
    for i, atoms in enumerate(structures):
        atoms.calc = EMT()
        assert labels.energy[i] == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(labels.forces[i], atoms.get_forces(), atol=1e-10)
    expected = structures[0].get_stress(voigt=False)
    np.testing.assert_allclose(labels.stress[0], expected, atol=1e-12)
    assert np.isnan(labels.stress[1:]).all()
    assert teacher.info.kind == "ase" and teacher.info.hessian == "numerical"
    teacher.close()


def test_numbers_of_gfn2_in_worker_processes():
    pytest.importorskip("tblite")
    from tblite.ase import TBLite

    structures = [rattled(molecule(name)) for name in ("CH3CH2OH", "H2O", "NH3")]
    with AseTeacher(
        "tblite.ase:TBLite", parameters={"method": "GFN2-xTB", "verbosity": 0}, n_workers=2
    ) as teacher:
        labels = teacher.label(structures)
    for i, atoms in enumerate(structures):
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
        assert labels.energy[i] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(labels.forces[i], atoms.get_forces(), atol=1e-5)


def test_constraints_and_earlier_structures_change_nothing():
    atoms = rattled(bulk("Cu", cubic=True))
    free = AseTeacher(EMT, n_workers=0).label([atoms]).forces[0]
    atoms.set_constraint(FixAtoms([0]))
    teacher = AseTeacher(EMT(), n_workers=0)
    teacher.label([molecule("CO")])
    np.testing.assert_array_equal(teacher.label([atoms]).forces[0], free)
    assert np.abs(free[0]).max() > 0.01


def test_failures_are_recorded_and_leave_the_others_alone(caplog):
    structures = fated(None, "raise", None, "nan", None)
    teacher = AseTeacher(SPRINGS, parameters={"k": 2.0}, n_workers=0)
    with caplog.at_level(logging.WARNING):
        labels = teacher.label(structures)
    assert [(f.index, f.formula) for f in teacher.failures] == [(1, "H2O"), (3, "H2O")]
    assert "did not converge" in caplog.text and "NaN" in teacher.failures[1].error
    for i in (0, 2, 4):
        np.testing.assert_allclose(labels.forces[i], -2.0 * structures[i].positions)
    assert np.isnan(labels.energy[[1, 3]]).all() and np.isnan(labels.forces[1]).all()
    teacher.label(structures[:1])
    assert teacher.failures == []


def test_dead_and_hanging_workers_are_survived():
    structures = fated(None, "die", None, "sleep", None, None)
    with AseTeacher(SPRINGS, n_workers=2, timeout=8.0) as teacher:
        labels = teacher.label(structures)
        assert {f.index: f.error for f in teacher.failures} == {
            1: "the worker process died",
            3: "no answer within 8.0 s",
        }
    for i in (0, 2, 4, 5):
        np.testing.assert_allclose(labels.forces[i], -structures[i].positions)


def test_nothing_but_failures_is_an_error():
    teacher = AseTeacher(SPRINGS, n_workers=0)
    with pytest.raises(TeacherError, match=r"all 2 structures.*did not converge"):
        teacher.label(fated("raise", "raise"))


def _threads():
    return ThreadPoolExecutor(2)


def _processes():
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


def _dask():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
    )
    return distributed.Client(cluster).get_executor()


@pytest.mark.parametrize("make", [_threads, _processes, _dask])
def test_executors_of_the_user(make):
    structures = fated(None, "raise", None, None)
    executor = make()
    labels = AseTeacher(SPRINGS, executor=executor).label(structures)
    for i in (0, 2, 3):
        np.testing.assert_allclose(labels.forces[i], -structures[i].positions)
    assert np.isnan(labels.energy[1])
    # Still the user's.
    assert executor.submit(int, 3).result() == 3
    executor.shutdown()


def test_threads_do_not_share_an_instance():
    structures = [rattled(bulk("Cu", cubic=True), seed) for seed in range(16)]
    expected = AseTeacher(EMT, n_workers=0).label(structures).energy
    with ThreadPoolExecutor(4) as executor:
        teacher = AseTeacher(EMT(), executor=executor)
        np.testing.assert_allclose(teacher.label(structures).energy, expected, atol=1e-10)
    assert teacher.failures == []


def test_an_executor_that_breaks_is_reported():
    executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with pytest.raises(TeacherError, match=r"executor .* broke"):
        AseTeacher(SPRINGS, executor=executor).label(fated(None, "die", None))


def test_identity_tells_settings_apart_and_stays():
    plain, other = AseTeacher(EMT()), AseTeacher(EMT(asap_cutoff=True))
    assert plain.info.weights_sha256 != other.info.weights_sha256
    assert plain.info == AseTeacher(EMT()).info
    factory = AseTeacher(SPRINGS, parameters={"k": 2.0, "label": None}).info
    assert factory == AseTeacher(SPRINGS, parameters={"label": None, "k": 2.0}).info


def test_labelling_flags_what_failed_and_goes_on(tmp_path):
    structures = fated(*[None] * 6)
    teacher = AseTeacher(FarIsBad, n_workers=0)
    shifted = [atoms.copy() for atoms in structures]
    shifted[2].positions += 100.0
    dataset = Dataset.from_structures(shifted, "a", "test")
    labelled = label_structures(teacher, dataset, tmp_path / "d.h5", batch_size=3, progress=False)
    assert labelled.usable.tolist() == [True, True, False, True, True, True]
    assert sum(flag_summary(labelled).values()) >= 1
    again = label_structures(teacher, dataset, tmp_path / "d.h5", batch_size=3, progress=False)
    assert again.sha256 == labelled.sha256


class FarIsBad(Springs):
    """Raises for structures far from the origin."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=None):
        super().calculate(atoms, properties, system_changes or [])
        if np.abs(atoms.positions).max() > 50:
            raise RuntimeError("too far")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ase:tblite", ConfigError, "<module>:<class>"),
        ("ase:no_such_package_x:Calculator", MissingDependencyError, "no_such_package_x"),
        ("ase:ase.calculators.nothing:EMT", ConfigError, "no module"),
        ("ase:ase.calculators.emt:EMTX", ConfigError, "no 'EMTX'"),
        (f"ase:{SPRINGS}?stiffness=3&k", ConfigError, "argument=value"),
    ],
)
def test_names_that_are_wrong(name, error, message):
    with pytest.raises(error, match=message):
        load(name)


def test_arguments_are_what_they_look_like():
    name = "ase:tblite.ase:TBLite?method=GFN2-xTB&accuracy=1e-6&verbosity=0&cache_api=false&x=a: b"
    assert parse_ase_name(name) == (
        "tblite.ase:TBLite",
        {"method": "GFN2-xTB", "accuracy": 1e-6, "verbosity": 0, "cache_api": False, "x": "a: b"},
    )


def test_hessian_products_are_right_within_their_estimate():
    atoms = rattled(bulk("Cu", cubic=True))
    teacher = AseTeacher(EMT, n_workers=0)
    direction = np.random.default_rng(0).standard_normal((4, 3))
    product = teacher.hvp(atoms, direction)
    assert not product.exact
    step = 1e-4
    moved = [atoms.copy(), atoms.copy()]
    moved[0].positions += step * direction
    moved[1].positions -= step * direction
    forces = teacher.label(moved).forces
    reference = (forces[1] - forces[0]) / (2 * step)
    assert np.abs(product.values - reference).max() < product.error
    assert product.error < 0.02 * np.abs(reference).max()


def test_a_calculator_drives_a_compiled_md_loop():
    atoms = rattled(molecule("H2O"))
    config = MDConfig(timestep=0.5, steps=200, record_every=50, block_steps=100, temperature=100.0)
    run = run_md(
        AseTeacher(SPRINGS, n_workers=0).potential(atoms), atoms.positions, config, progress=False
    )
    energy = run.frames.total_energy
    assert np.ptp(energy) < 1e-3 * abs(run.frames.kinetic_energy).max()
    relative = run.frames.potential_energy[-1]
    exact = 0.5 * (run.frames.positions[-1] ** 2).sum() - 0.5 * (atoms.positions**2).sum()
    assert relative == pytest.approx(exact, abs=1e-4)


def test_called_back_energy_has_gradients_of_positions_and_cell(x64):
    atoms = rattled(bulk("Cu", cubic=True))
    atoms.positions[0] += 2 * atoms.cell.array[1]  # another image of the same crystal
    energy = HostEnergy(AseTeacher(EMT, n_workers=0), atoms, np.float64)
    inputs = jnp.asarray(atoms.positions), jnp.asarray(atoms.cell.array)
    gradients = jax.jit(jax.grad(energy, argnums=(0, 1)))(*inputs)
    step = 1e-5
    for which, index in [(0, (0, 1)), (0, (2, 2)), (1, (0, 0)), (1, (1, 0)), (1, (1, 2))]:
        shifted = [
            [x.at[index].add(sign * step) if i == which else x for i, x in enumerate(inputs)]
            for sign in (1, -1)
        ]
        numerical = (energy(*shifted[0]) - energy(*shifted[1])) / (2 * step)
        assert gradients[which][index] == pytest.approx(float(numerical), abs=1e-6)


@pytest.mark.usefixtures("quick_compilation")
def test_constant_pressure_through_the_callback():
    """The labels of every frame are those of its own cell, also after the reference was left."""
    teacher = AseTeacher(EMT, n_workers=0)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    config = MDConfig(
        "npt_scr",
        timestep=2.0,
        temperature=300.0,
        steps=24,
        record_every=4,
        block_steps=24,
        thermostat_time=50.0,
        pressure=40.0,
        barostat_time=50.0,
        compressibility=0.008,
    )
    run = run_md(teacher.potential(atoms), atoms.positions, config, progress=False)
    frames = run.frames
    assert run.n_reallocations > 0 and frames.volume[-1] < 0.92 * atoms.cell.volume
    seen = structures_of(atoms, frames)
    labels = teacher.label([atoms, *seen])
    np.testing.assert_allclose(
        frames.potential_energy, labels.energy[1:] - labels.energy[0], rtol=0, atol=1e-4
    )
    kinetic = 2 * frames.kinetic_energy / (3 * frames.volume)
    pressure = kinetic - np.trace(labels.stress[1:], axis1=1, axis2=2) / 3
    np.testing.assert_allclose(frames.pressure, pressure / GPA, rtol=1e-3)
