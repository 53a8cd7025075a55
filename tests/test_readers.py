"""Reading files of others: labels, their units, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from distill.data import INCOMPLETE, NON_FINITE, concatenate, read_structures
from distill.errors import DatasetError
from distill.units import BOHR, HARTREE, UnitError

EV = {"energy_unit": "eV", "length_unit": "Angstrom"}
ATOMIC = {"energy_unit": "Hartree", "length_unit": "Bohr"}


def frame(energy=-1.5, info=None, forces=True, **results):
    atoms = molecule("H2O")
    atoms.set_cell([8, 8, 8])
    atoms.pbc = True
    atoms.info.update(info or {})
    values = {"energy": energy, "stress": np.arange(6.0), **results}
    if forces:
        values["forces"] = np.arange(9.0).reshape(3, 3)
    atoms.calc = SinglePointCalculator(atoms, **values)
    return atoms


@pytest.fixture
def file(tmp_path):
    def make(frames, name="f.extxyz"):
        write(tmp_path / name, frames)
        return tmp_path / name

    return make


def test_frames_without_labels_need_no_units(file):
    path = file([molecule("CH4"), molecule("NH3")], "a.xyz")
    dataset = read_structures(path)
    assert len(dataset) == 2 and not dataset.has_labels and dataset.usable.all()
    assert dataset.trajectory.tolist() == ["a.xyz"] * 2
    assert dataset.origin[0] == "file:a.xyz"
    assert len(read_structures(path, index=1, trajectory="mine")) == 1
    in_bohr = read_structures(path, units={"energy": "Ha", "length": "Bohr"})
    np.testing.assert_allclose(in_bohr.positions, dataset.positions * BOHR)


@pytest.mark.parametrize("name", ["f.traj", "f.db", "f.json"])
def test_ase_formats_count_as_declared(file, name):
    path = file([frame(), frame(-2.0)], name)
    dataset = read_structures(path)
    assert dataset.energy.tolist() == [-1.5, -2.0]
    np.testing.assert_array_equal(dataset.forces[:3], np.arange(9.0).reshape(3, 3))
    np.testing.assert_array_equal(dataset.stress[0], [[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    assert dataset.provenance["teacher"] == f"file:{name}"
    assert read_structures(path, units="ase").sha256 == dataset.sha256
    with pytest.raises(UnitError, match="leave the argument out"):
        read_structures(path, units={"energy": "Hartree", "length": "Angstrom"})


def test_labels_without_units_are_refused(file):
    path = file([molecule("CH4"), frame()])
    with pytest.raises(UnitError, match=r"f\.extxyz: frames 1 .*units=.*energy_unit"):
        read_structures(path)
    with pytest.raises(UnitError, match="frame 0 declares only one"):
        read_structures(file([frame(info={"energy_unit": "eV"})]))


def test_units_by_argument_and_by_frame(file):
    silent = file([frame()], "silent.extxyz")
    reference = read_structures(silent, units="ase")
    assert reference.energy.tolist() == [-1.5]
    by_argument = read_structures(silent, units={"energy": "Hartree", "length": "Bohr"})
    by_frame = read_structures(file([frame(info=ATOMIC)]))
    for dataset in (by_argument, by_frame):
        np.testing.assert_allclose(dataset.energy, reference.energy * HARTREE)
        np.testing.assert_allclose(dataset.forces, reference.forces * HARTREE / BOHR)
        np.testing.assert_allclose(dataset.stress, reference.stress * HARTREE / BOHR**3)
        np.testing.assert_allclose(dataset.cell, reference.cell * BOHR)
    assert len(read_structures(file([frame(info=EV), frame()]), units="ase")) == 2


def test_mixed_and_contradictory_units(file):
    mixed = file([frame(info=EV), frame(info=ATOMIC), frame(info=ATOMIC)])
    with pytest.raises(UnitError, match=r"eV, Angstrom in frames 0; Hartree, Bohr in frames 1, 2"):
        read_structures(mixed)
    path = file([frame(info=ATOMIC)])
    with pytest.raises(UnitError, match=r"frames 0; eV, Angstrom in the argument"):
        read_structures(path, units="ase")
    same = {"energy": "Ha", "length": "Bohr"}
    assert len(read_structures(path, units=same)) == 1
    with pytest.raises(UnitError, match="frames 1 have labels without units"):
        read_structures(file([frame(info=EV), frame()]))
    with pytest.raises(UnitError, match="furlong"):
        read_structures(path, units={"energy": "eV", "length": "furlong"})
    for wrong in ("eV", {"energy": "eV"}, {"energy": "eV", "length": "Bohr", "forces": "eV/Bohr"}):
        with pytest.raises(UnitError, match="forces are taken as"):
            read_structures(path, units=wrong)


def test_reference_labels_come_first_and_are_never_mixed(file):
    atoms = frame(info={"REF_energy": -7.0})
    atoms.arrays["REF_forces"] = np.ones((3, 3))
    dataset = read_structures(file([atoms]), units="ase")
    assert dataset.energy.tolist() == [-7.0] and (dataset.forces == 1).all()
    assert np.isnan(dataset.stress).all() and dataset.provenance["label_source"] == "REF_"
    with pytest.raises(DatasetError, match="different kinds"):
        read_structures(file([atoms, frame()]), units="ase")


def test_free_energy_is_preferred_and_info_is_used(file):
    dataset = read_structures(file([frame(free_energy=-1.6)], "f.traj"))
    assert dataset.energy.tolist() == [-1.6]
    atoms = molecule("H2O")
    atoms.info["energy"] = -3.0
    atoms.info["stress"] = np.eye(3)
    dataset = read_structures(file([atoms], "g.traj"))
    assert dataset.energy.tolist() == [-3.0] and np.isnan(dataset.stress).all()
    assert dataset.flag.tolist() == [INCOMPLETE]


def test_incomplete_and_bad_labels_are_flagged(file):
    broken = frame()
    broken.calc.results["forces"][0, 0] = np.nan
    path = file([frame(), molecule("CH4"), frame(forces=False), broken], "f.traj")
    dataset = read_structures(path)
    assert dataset.flag.tolist() == [0, INCOMPLETE, INCOMPLETE, NON_FINITE]


def test_files_of_unknown_level_of_theory_are_not_joined(file):
    a, b = file([frame()], "a.traj"), file([frame()], "b.traj")
    with pytest.raises(DatasetError, match="teacher"):
        concatenate([read_structures(a), read_structures(b)])
    named = [read_structures(p, provenance={"teacher": "PBE"}) for p in (a, b)]
    assert len(concatenate(named)) == 2


def test_unreadable_files_are_named(tmp_path, file):
    with pytest.raises(DatasetError, match="no such file"):
        read_structures(tmp_path / "none.xyz")
    for name, content in (("a.xyz", "3\n\nH 0 0"), ("b.traj", "hello"), ("c.what", "x"), ("d", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DatasetError, match=rf"{name}.*cannot be read"):
            read_structures(tmp_path / name)
    (tmp_path / "bundle").mkdir()
    with pytest.raises(DatasetError, match="bundletrajectory is not read"):
        read_structures(tmp_path / "bundle")
    with pytest.raises(DatasetError, match="no structures"):
        read_structures(file([Atoms("H")], "e.xyz"), index="5:")
