"""Datasets in memory and on disk: round trips, joining, units, crashes, foreign files."""

from __future__ import annotations

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from distill.data import Dataset, DatasetWriter, Labels, concatenate, load, make_units, save
from distill.errors import DatasetError
from distill.units import BOHR, HARTREE, UnitError

TEACHER = {"teacher": "fake", "teacher_version": "1", "weights_sha256": "ab"}


def make_dataset(count=6, seed=0, provenance=None, labels=True) -> Dataset:
    rng = np.random.default_rng(seed)
    structures = [molecule("H2O") if i % 2 else bulk("Si") for i in range(count)]
    for atoms in structures:
        atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
    dataset = Dataset.from_structures(
        structures,
        [f"run{i // 2}" for i in range(count)],
        "teacher_md:500K",
        parent=np.arange(count) - 1,
        provenance=provenance or TEACHER,
    )
    if not labels:
        return dataset
    stress = rng.standard_normal((count, 3, 3))
    stress[1::2] = np.nan
    forces = [rng.standard_normal((len(a), 3)) for a in structures]
    return dataset.labelled(Labels(rng.standard_normal(count), forces, stress))


def test_structures_and_labels_come_back_as_given():
    dataset = make_dataset()
    assert len(dataset) == 6
    assert dataset.elements == (1, 8, 14)
    assert dataset.has_labels and dataset.usable.all()
    assert not make_dataset(labels=False).has_labels
    atoms = dataset.structure(0, labels=True)
    assert atoms.get_chemical_formula() == "Si2" and atoms.pbc.all()
    assert atoms.get_potential_energy() == dataset.energy[0]
    np.testing.assert_array_equal(atoms.get_forces(), dataset.forces[:2])
    np.testing.assert_allclose(
        atoms.get_stress(voigt=False), (dataset.stress[0] + dataset.stress[0].T) / 2
    )
    assert dataset.structure(-1).get_chemical_formula() == "H2O"


def test_subset_keeps_rows_and_renumbers_parents():
    dataset = make_dataset()
    part = dataset.subset([5, 1, 2])
    assert part.parent.tolist() == [2, -1, 1]  # 4 and 3 between 5 and 2 are left out
    np.testing.assert_array_equal(part.structure(0).positions, dataset.structure(5).positions)
    np.testing.assert_array_equal(part.forces[part.rows(2)], dataset.forces[dataset.rows(2)])
    mask = np.array([False, True, False, False, False, True])
    assert dataset.subset(mask).trajectory.tolist() == ["run0", "run2"]
    assert len(dataset.subset([])) == 0
    assert dataset.subset(range(6)).sha256 == dataset.sha256


def test_concatenate_renumbers_parents():
    joined = concatenate([make_dataset(2), make_dataset(3, seed=1)])
    assert joined.parent.tolist() == [-1, 0, -1, 2, 3]
    assert len(joined) == 5


@pytest.mark.parametrize("key", ["teacher", "teacher_version", "weights_sha256"])
def test_concatenate_refuses_other_teachers(key):
    other = make_dataset(provenance={**TEACHER, key: "other"})
    with pytest.raises(DatasetError, match=key):
        concatenate([make_dataset(), other])


def test_concatenate_refuses_other_units_and_missing_labels():
    other = replace(make_dataset(), units=make_units("Hartree", "Bohr"))
    with pytest.raises(UnitError, match="Hartree and Bohr"):
        concatenate([make_dataset(), other])
    with pytest.raises(DatasetError, match="only one has labels"):
        concatenate([make_dataset(), make_dataset(labels=False)])


def test_bad_structures_are_refused():
    with pytest.raises(DatasetError, match="structure 1 has a non-finite"):
        Dataset.from_structures([Atoms("H"), Atoms("H", [[0, 0, np.nan]])], "t", "o")
    with pytest.raises(DatasetError, match="structure 0 has no atoms"):
        Dataset.from_structures([Atoms()], "t", "o")
    with pytest.raises(DatasetError, match="lattice vector"):
        Dataset.from_structures([Atoms("H", cell=[5, 0, 5], pbc=True)], "t", "o")
    with pytest.raises(DatasetError, match="lattice vector"):
        cell = [[5, 0, 0], [10, 0, 0], [0, 0, 5]]
        Dataset.from_structures([Atoms("H", cell=cell, pbc=True)], "t", "o")
    Dataset.from_structures([Atoms("H", cell=[5, 5, 0], pbc=[1, 1, 0])], "t", "o")
    with pytest.raises(DatasetError, match="do not fit"):
        make_dataset(2).labelled(Labels(np.zeros(2), [np.zeros((2, 3))] * 2))


def test_round_trip(tmp_path):
    dataset = replace(make_dataset(), flag=np.array([0, 1, 2, 4, 8, 0]))
    save(dataset, tmp_path / "d.h5")
    loaded = load(tmp_path / "d.h5")
    assert loaded.sha256 == dataset.sha256
    assert loaded.provenance == TEACHER and loaded.units == make_units()
    assert loaded.trajectory.tolist() == dataset.trajectory.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]
    with h5py.File(tmp_path / "d.h5") as file:
        assert file.attrs["energy_unit"] == "eV" and "h5py" in file.attrs["versions"]


def test_long_provenance_and_unicode(tmp_path):
    dataset = make_dataset(provenance={**TEACHER, "note": "Å" * 100_000})
    dataset = replace(dataset, origin=np.array(["µ"] * 6))
    save(dataset, tmp_path / "d.h5")
    assert load(tmp_path / "d.h5").provenance["note"] == "Å" * 100_000


def test_units_are_converted(tmp_path):
    dataset = make_dataset()
    save(replace(dataset, units=make_units("Hartree", "Bohr")), tmp_path / "d.h5")
    loaded = load(tmp_path / "d.h5")
    np.testing.assert_allclose(loaded.positions, dataset.positions * BOHR)
    np.testing.assert_allclose(loaded.energy, dataset.energy * HARTREE)
    np.testing.assert_allclose(loaded.forces, dataset.forces * HARTREE / BOHR)
    np.testing.assert_allclose(loaded.stress, dataset.stress * HARTREE / BOHR**3)
    assert loaded.units == make_units()


@pytest.mark.parametrize("attribute", ["energy_unit", "length_unit"])
def test_missing_and_unknown_units(tmp_path, attribute):
    path = tmp_path / "d.h5"
    save(make_dataset(), path)
    with h5py.File(path, "a") as file:
        file.attrs[attribute] = "furlong"
    with pytest.raises(UnitError, match=r"d\.h5.*furlong"):
        load(path)
    with h5py.File(path, "a") as file:
        del file.attrs[attribute]
    with pytest.raises(UnitError, match=r"d\.h5.*no units"):
        load(path)


def test_bad_files_are_named(tmp_path):
    good, path = tmp_path / "good.h5", tmp_path / "bad.h5"
    save(make_dataset(), good)
    with pytest.raises(DatasetError, match=r"bad\.h5: there is no such"):
        load(path)
    content = good.read_bytes()
    for length in (len(content) - 200, len(content) // 2, 600, 20):
        path.write_bytes(content[:length])
        with pytest.raises(DatasetError, match=r"bad\.h5: is truncated"):
            load(path)
    for foreign in (b"", b"3\n\nH 0 0 0\n", b"\x80\x04pickle"):
        path.write_bytes(foreign)
        with pytest.raises(DatasetError, match=r"bad\.h5: is not an HDF5"):
            load(path)
    with h5py.File(path, "w") as file:
        file["x"] = [1.0]
    with pytest.raises(DatasetError, match="not a distill dataset"):
        load(path)


def test_edited_or_incomplete_files_are_noticed(tmp_path):
    path = tmp_path / "d.h5"
    save(make_dataset(), path)
    with h5py.File(path, "a") as file:
        file["energy"][0] = 0.5
    with pytest.raises(DatasetError, match="checksum"):
        load(path)
    with h5py.File(path, "a") as file:
        del file["forces"]
    with pytest.raises(DatasetError, match=r"d\.h5.*damaged"):
        load(path)
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(DatasetError, match="update distill"):
        load(path)


def test_empty_datasets_are_refused(tmp_path):
    path = tmp_path / "d.h5"
    with pytest.raises(DatasetError, match="without structures"):
        save(make_dataset().subset([]), path)
    assert not path.exists()
    save(make_dataset(), path)
    with h5py.File(path, "a") as file:
        file.attrs["n_structures"] = 0
    with pytest.raises(DatasetError, match=r"d\.h5: the dataset is empty"):
        load(path)
    with pytest.raises(DatasetError), DatasetWriter(tmp_path / "e.h5", TEACHER) as writer:
        writer.finish()


def write_parts(path, dataset, sizes=(2, 2, 2)):
    with DatasetWriter(path, TEACHER) as writer:
        for size in sizes:
            chosen = range(writer.count, writer.count + size)
            writer.append(replace(dataset.subset(chosen), parent=dataset.parent[chosen]))
        return writer.count


def test_parts_are_readable_and_merge_into_the_whole(tmp_path):
    dataset, path = make_dataset(), tmp_path / "d.h5"
    assert write_parts(path, dataset, (2, 3)) == 5
    assert len(load(path)) == 5 and not path.exists()
    with DatasetWriter(path, TEACHER) as writer:
        assert writer.count == 5
        writer.append(replace(dataset.subset([5]), parent=[4]))
        assert writer.finish().sha256 == dataset.sha256
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]
    with DatasetWriter(path, TEACHER) as writer:
        assert writer.count == 6
        writer.append(dataset)
        writer.finish()
    assert len(load(path)) == 12


def test_kill_during_finish_loses_and_repeats_nothing(tmp_path):
    dataset, path = make_dataset(), tmp_path / "d.h5"
    parts = tmp_path / "d.h5.parts"
    write_parts(path, dataset)
    copy = shutil.copytree(parts, tmp_path / "copy")
    for removed in range(4):  # killed after the main file was put in place and `removed` deletions
        with DatasetWriter(path, TEACHER) as writer:
            assert writer.finish().sha256 == dataset.sha256
        shutil.copytree(copy, parts)
        for number in range(removed):
            (parts / f"{number:06d}.h5").unlink()
        (parts / ".000009.h5.123.tmp").write_bytes(b"half a part")
        (tmp_path / ".d.h5.123.tmp").write_bytes(b"half a file")
        assert load(path).sha256 == dataset.sha256
        with DatasetWriter(path, TEACHER) as writer:
            assert writer.count == 6
            assert writer.finish().sha256 == dataset.sha256
        assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "d.h5"]


def test_append_after_a_kill_during_finish(tmp_path):
    dataset, path = make_dataset(), tmp_path / "d.h5"
    write_parts(path, dataset)
    copy = shutil.copytree(tmp_path / "d.h5.parts", tmp_path / "copy")
    with DatasetWriter(path, TEACHER) as writer:
        writer.finish()
    shutil.copytree(copy, tmp_path / "d.h5.parts")
    with DatasetWriter(path, TEACHER) as writer:
        writer.append(make_dataset(3, seed=5))
        assert len(load(path)) == 9
        assert len(writer.finish()) == 9


def test_lost_foreign_and_damaged_parts_are_refused(tmp_path):
    dataset, path = make_dataset(), tmp_path / "d.h5"
    parts = tmp_path / "d.h5.parts"
    write_parts(path, dataset)
    with pytest.raises(DatasetError, match="unfinished dataset"):
        save(dataset, path)
    (parts / "000001.h5").rename(tmp_path / "kept")
    with pytest.raises(DatasetError, match=r"000002\.h5: holds structures 4 to 5, but 2 precede"):
        load(path)
    (tmp_path / "kept").rename(parts / "000001.h5")
    content = (parts / "000002.h5").read_bytes()
    (parts / "000002.h5").write_bytes(content[:-300])
    for action in (load, lambda p: DatasetWriter(p, TEACHER)):
        with pytest.raises(DatasetError, match=r"000002\.h5: is truncated"):
            action(path)
    shutil.rmtree(parts)
    write_parts(path, make_dataset(seed=3))
    other = tmp_path / "other.h5"
    save(dataset, other)
    other.rename(path)
    with pytest.raises(DatasetError, match="belongs to another run"):
        load(path)


def test_writer_refuses_other_teachers_units_and_a_second_writer(tmp_path):
    path = tmp_path / "d.h5"
    save(make_dataset(), path)
    with pytest.raises(DatasetError, match="weights_sha256"):
        DatasetWriter(path, {**TEACHER, "weights_sha256": "cd"})
    with DatasetWriter(path, TEACHER) as writer:
        with pytest.raises(DatasetError, match="teacher is 'x'"):
            writer.append(make_dataset(provenance={**TEACHER, "teacher": "x"}))
        with pytest.raises(UnitError, match="in_standard_units"):
            writer.append(replace(make_dataset(), units=make_units("Ry", "Bohr")))
        with pytest.raises(DatasetError, match="another process"):
            DatasetWriter(path, TEACHER)
    with pytest.raises(DatasetError, match="closed"):
        writer.append(make_dataset())
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]
