"""FeNNol teachers: labels equal FeNNol's own calculator; batches, committees, self energies."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import fennol
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from builders import ethanol, numerical_forces, numerical_stress, triclinic_cell, water_box
from fennol.ase import FENNIXCalculator

from distill.data.labels import Labels
from distill.teachers import MODELS_VARIABLE, Teacher, load

pytestmark = pytest.mark.usefixtures("quick_compilation")

ENERGY, FORCE, STRESS = 1e-5, 1e-4, 1e-6
"""Tolerances in eV/atom, eV/Å and eV/Å³."""

FOLDER = "fennol/ANI/ANI1CCX"


@lru_cache
def teacher_of(name: str, dtype: Any = np.float64) -> Any:
    """A teacher, loaded and compiled once; float64 only under the fixture `x64`."""
    return load(name, dtype=dtype)


def fennol_labels(paths: list[Path], atoms: Atoms) -> list[dict[str, np.ndarray]]:
    """Energy, forces and stress of FeNNol's own calculator in float64, one entry per file.

    `FENNIXCalculator(use_float64=True)` would switch double precision on for the whole process;
    the fixture `x64` has done so for this test, and the calculator's `dtype` does the rest.
    One calculator serves all members of a committee, whose variables are arguments of its
    compiled functions.
    """
    calculator = FENNIXCalculator(str(paths[0]))
    calculator.dtype = "float64"
    copy = atoms.copy()
    results = []
    for path in paths:
        calculator.model.variables = fennol.load(str(path)).variables
        properties = ["energy", "forces"] + ["stress"] * bool(atoms.pbc.all())
        calculator.calculate(copy, properties)
        results.append(dict(calculator.results))
    return results


def assert_agreement(labels: Labels, expected: list[dict[str, Any]], atoms: Atoms) -> None:
    energy = np.mean([e["energy"] for e in expected])
    assert labels.energy[0] == pytest.approx(energy, rel=0, abs=ENERGY * len(atoms))
    forces = np.mean([e["forces"] for e in expected], axis=0)
    assert np.abs(forces).max() > 100 * FORCE
    np.testing.assert_allclose(labels.forces[0], forces, rtol=0, atol=FORCE)
    if atoms.pbc.all():
        stress = np.mean([e["stress"] for e in expected], axis=0)
        assert np.abs(stress).max() > 100 * STRESS
        voigt = labels.stress[0].ravel()[[0, 4, 8, 5, 2, 1]]
        np.testing.assert_allclose(voigt, stress, rtol=0, atol=STRESS)
    else:
        assert np.isnan(labels.stress[0]).all()


@pytest.mark.parametrize("make", [ethanol, water_box, triclinic_cell])
def test_demo_teacher_agrees_with_fennol(make, demo_teacher_path, x64):
    atoms = make()
    labels = teacher_of(f"fennol:{demo_teacher_path}").label([atoms])
    assert_agreement(labels, fennol_labels([demo_teacher_path], atoms), atoms)


@pytest.mark.parametrize("members", [[3], range(8)], ids=["one network", "committee"])
@pytest.mark.parametrize("make", [ethanol, triclinic_cell])
def test_ani1ccx_agrees_with_fennol(make, members, models_folder, monkeypatch, x64):
    monkeypatch.setenv(MODELS_VARIABLE, str(models_folder))
    atoms = make()
    paths = [models_folder / FOLDER / f"ani1ccx_model{i}.fnx" for i in members]
    teacher = teacher_of("fennol:ani1ccx" if len(paths) == 8 else "fennol:ani1ccx?member=3")
    expected = fennol_labels(paths, atoms)
    labels = teacher.label([atoms], uncertainty=True)
    assert teacher.info.n_members == len(paths)
    assert_agreement(labels, expected, atoms)
    deviation = [e["forces"] - labels.forces[0] for e in expected]
    spread = np.sqrt((np.square(deviation)).sum(-1).mean(0))
    np.testing.assert_allclose(labels.uncertainty[0], spread, rtol=0, atol=FORCE)
    assert (spread.max() > 0.01) == (len(paths) == 8)


def test_committee_of_files_is_the_mean_of_its_members(demo_teacher_path, tmp_path):
    other = tmp_path / "other.fnx"
    model = fennol.load(str(demo_teacher_path))
    model.variables = _scaled_energy(model.variables, 1.3)
    model.save(str(other))
    atoms = ethanol()
    teacher = load(f"fennol:{demo_teacher_path},{other}")
    single = teacher_of(f"fennol:{demo_teacher_path}", np.float32).label([atoms])
    labels = teacher.label([atoms], uncertainty=True)
    assert teacher.info.n_members == 2
    assert len(set(teacher.info.weights_sha256.split(","))) == 2
    # The second member's interaction energy is 1.3 times the first one's.
    interaction = single.energy[0] - teacher.energy_function(atoms).self_energy
    assert labels.energy[0] == pytest.approx(single.energy[0] + 0.15 * interaction, abs=1e-3)
    np.testing.assert_allclose(labels.forces[0], 1.15 * single.forces[0], rtol=0, atol=1e-4)
    spread = 0.15 * np.linalg.norm(single.forces[0], axis=-1)
    assert spread.max() > 0.1
    np.testing.assert_allclose(labels.uncertainty[0], spread, rtol=0, atol=1e-4)
    assert single.uncertainty is None


def _scaled_energy(variables: Any, factor: float) -> Any:
    """Variables whose energy network's last layer is scaled: another member of a committee."""
    params = dict(variables["params"])
    network = dict(params["energy_network"])
    last = sorted(network)[-1]
    network[last] = {name: factor * np.asarray(value) for name, value in network[last].items()}
    return {**variables, "params": {**params, "energy_network": network}}


def test_forces_and_stress_equal_finite_differences(demo_teacher_path, x64):
    teacher = teacher_of(f"fennol:{demo_teacher_path}")
    atoms = triclinic_cell(1)
    labels = teacher.label([atoms])
    # 18 structures each, so that both share one compilation.
    numerical = numerical_forces(teacher.label, atoms, rows=[0, 2, 5])
    np.testing.assert_allclose(
        labels.forces[0][[0, 2, 5]], numerical, rtol=0, atol=1e-6 * np.abs(labels.forces[0]).max()
    )
    np.testing.assert_allclose(
        labels.stress[0],
        numerical_stress(teacher.label, atoms),
        rtol=0,
        atol=1e-6 * np.abs(labels.stress).max(),
    )


def test_mixed_batch_equals_labels_one_by_one_in_order(demo_teacher_path):
    teacher = teacher_of(f"fennol:{demo_teacher_path}", np.float32)
    # Sizes are chosen so that the single ones share two compilations.
    structures = [
        triclinic_cell(),
        molecule("H2O"),
        molecule("N2"),
        triclinic_cell(2)[:4],
        Atoms("O"),
    ]
    assert isinstance(teacher, Teacher)
    together = teacher.label(structures)
    assert together.energy.dtype == together.forces[0].dtype == np.float64
    for index, atoms in enumerate(structures):
        alone = teacher.label([atoms])
        assert together.energy[index] == pytest.approx(alone.energy[0], abs=2e-5 * len(atoms))
        assert together.forces[index].shape == (len(atoms), 3)
        np.testing.assert_allclose(together.forces[index], alone.forces[0], rtol=0, atol=1e-4)
        np.testing.assert_allclose(together.stress[index], alone.stress[0], rtol=0, atol=1e-5)


def test_crowded_structure_grows_the_capacity(demo_teacher_path):
    name = f"fennol:{demo_teacher_path}"
    teacher, wide = load(name), ethanol()
    crowded = ethanol()
    wide.positions *= 6.0
    crowded.positions *= 0.9
    for atoms in (wide, crowded):
        labels, fresh = teacher.label([atoms]), teacher_of(name, np.float32).label([atoms])
        assert labels.energy[0] == pytest.approx(fresh.energy[0], abs=1e-4)
        np.testing.assert_allclose(labels.forces[0], fresh.forces[0], rtol=0, atol=1e-3)


def test_self_energies_are_added_in_double_precision(demo_teacher_path):
    teacher = teacher_of(f"fennol:{demo_teacher_path}", np.float32)
    # Atoms out of reach of each other: the energy is that of single atoms.
    apart = Atoms("OCNHOOO", 60.0 * np.arange(21).reshape(7, 3))
    single = [teacher.label([Atoms(s)]).energy[0] for s in "OCNH"]
    total = teacher.label([apart]).energy[0]
    assert total < -500, "one step of float32 here is 6e-5 eV"
    assert total == pytest.approx(sum(single) + 3 * single[0], abs=1e-5)
    function = teacher.energy_function(apart)
    interaction = float(jax.jit(function.energy)(apart.positions.astype(np.float32)))
    assert function.self_energy + interaction == pytest.approx(total, abs=1e-5)


def test_molecules_in_which_all_atoms_are_neighbours(models_folder, monkeypatch):
    """FeNNol itself refuses methanol's lists inside jit once its pairs have a margin."""
    monkeypatch.setenv(MODELS_VARIABLE, str(models_folder))
    teacher = teacher_of("fennol:ani1ccx?member=0", np.float32)
    atoms = molecule("CH3OH")
    function = teacher.energy_function(atoms)
    energy = float(function.energy(atoms.positions)) + function.self_energy
    assert energy == pytest.approx(teacher.label([atoms]).energy[0], abs=1e-3)
