"""Hessian products in datasets: renumbering, files, units, bad input."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from morse_teacher import (
    TEACHER,
    MorseTeacher,
    assert_right_products,
    labelled,
    make_structures,
    morse,
)

from distill.data import (
    DatasetWriter,
    HessianConfig,
    HessianProducts,
    Labels,
    concatenate,
    label_structures,
    load,
    make_units,
    save,
)
from distill.data.columns import COLUMNS
from distill.data.hessian import draw_directions
from distill.errors import ConfigError, DatasetError
from distill.units import BOHR, HARTREE


def refused(message, **changes):
    columns = {
        "structure": [0, 2],
        "atoms": [1, 2],
        "direction": np.ones((3, 3)),
        "product": np.ones((3, 3)),
        "error": [0, 0.1],
        "exact": [True, False],
    }
    with pytest.raises(DatasetError, match=message):
        HessianProducts(**{**columns, **changes})
    return HessianProducts(**columns)


def test_the_reference_hessian_is_the_derivative_of_the_forces():
    positions, step = make_structures().structure(2).positions, 1e-5
    for axis in range(positions.size):
        move = step * np.eye(positions.size)[axis].reshape(positions.shape)
        change = morse(positions - move)[1] - morse(positions + move)[1]
        np.testing.assert_allclose(
            morse(positions)[2][axis], change.ravel() / (2 * step), atol=1e-8
        )


def test_directions_depend_on_seed_and_number_only():
    config = HessianConfig(3)
    directions = draw_directions(config, 7, 4)
    np.testing.assert_array_equal(directions, draw_directions(config, 7, 4))
    np.testing.assert_array_equal(directions[:2], draw_directions(HessianConfig(2), 7, 4))
    assert not np.isclose(directions, draw_directions(config, 8, 4)).any()
    assert not np.isclose(directions, draw_directions(HessianConfig(3, seed=1), 7, 4)).any()


@pytest.mark.parametrize("wrong", [{"products": 0}, {"directions": "columns"}, {"seed": -1}])
def test_bad_configurations(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        HessianConfig(**wrong)


def test_subset_and_concatenate_renumber(tmp_path):
    dataset = labelled(tmp_path / "d.h5", products=2)
    part = dataset.subset([5, 1, 5, -1])
    assert part.hessian.structure.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert_right_products(part, 2)
    mask = np.arange(9) % 2 == 1
    assert_right_products(dataset.subset(mask), 2)
    assert len(dataset.subset([]).hessian) == 0
    assert dataset.subset(range(9)).sha256 == dataset.sha256
    assert concatenate([dataset.subset(range(4)), dataset.subset(range(4, 9))]).sha256 == (
        dataset.sha256
    )
    assert_right_products(concatenate([part, dataset]), 2)
    without = replace(dataset, hessian=None)
    assert without.sha256 != dataset.sha256
    for pair in ([dataset, without], [without, dataset]):
        with pytest.raises(DatasetError, match=r"dataset 1 of the 2.*label all.*hessian=None"):
            concatenate(pair)


def test_new_labels_keep_products_unless_others_are_given(tmp_path):
    dataset = labelled(tmp_path / "d.h5")
    labels = Labels(dataset.energy, np.split(dataset.forces, dataset.offsets[1:-1]))
    assert dataset.labelled(labels).hessian is dataset.hessian
    other = dataset.hessian.scaled(2.0)
    assert dataset.labelled(labels, hessian=other).hessian is other


def test_round_trip_and_format_version(tmp_path):
    path = tmp_path / "d.h5"
    dataset = labelled(path, products=2)
    loaded = load(path)
    assert loaded.sha256 == dataset.sha256
    for name in ("structure", "atoms", "direction", "product", "error", "exact"):
        values, before = getattr(loaded.hessian, name), getattr(dataset.hessian, name)
        np.testing.assert_array_equal(values, before)
        assert values.dtype == before.dtype
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 2
    nothing = HessianProducts.join([], [])
    save(replace(dataset, hessian=nothing), tmp_path / "e.h5")
    assert len(load(tmp_path / "e.h5").hessian) == 0


def test_files_without_products_are_as_before(tmp_path):
    path = tmp_path / "d.h5"
    dataset = label_structures(MorseTeacher(), make_structures(), path, progress=False)
    digest = hashlib.sha256()
    for name, (dtype, _, _) in COLUMNS.items():
        values = getattr(dataset, name)
        text = "\0".join(values).encode() if dtype is np.str_ else values.tobytes()
        digest.update(f"{name}:{len(text)}:".encode() + text)
    assert dataset.sha256 == digest.hexdigest()
    assert load(path).hessian is None and "hessian_products" not in load(path).provenance
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 1 and "hessian" not in file


def test_damaged_and_edited_files_are_refused(tmp_path):
    good, path = tmp_path / "good.h5", tmp_path / "bad.h5"
    labelled(good)
    content = good.read_bytes()
    for length in (len(content) - 200, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(DatasetError, match=r"bad\.h5: is truncated"):
            load(path)

    def edited(message, edit):
        shutil.copy(good, path)
        with h5py.File(path, "a") as file:
            edit(file)
        with pytest.raises(DatasetError, match=rf"bad\.h5.*{message}"):
            load(path)

    def set_value(name, value):
        def edit(file):
            file[f"hessian/{name}"][0] = value

        return edit

    def remove(name):
        return lambda file: file.__delitem__(name)

    for name, value in (("product", 0.5), ("direction", 0.5), ("exact", False)):
        edited("checksum", set_value(name, value))
    edited("checksum", remove("hessian"))
    edited("damaged", remove("hessian/product"))
    edited("NaN", set_value("product", np.nan))
    edited("product 0 has error", set_value("error", 0.1))
    edited("expected", set_value("atoms", 3))
    edited("ascending", set_value("structure", 2))
    edited("update distill", lambda file: file.attrs.__setitem__("format_version", 4))


def test_units_are_converted(tmp_path):
    dataset = labelled(tmp_path / "d.h5", teacher=MorseTeacher(exact=False))
    save(replace(dataset, units=make_units("Hartree", "Bohr")), tmp_path / "e.h5")
    loaded, factor = load(tmp_path / "e.h5"), HARTREE / BOHR**2
    np.testing.assert_allclose(loaded.hessian.product, dataset.hessian.product * factor)
    np.testing.assert_allclose(loaded.hessian.error, dataset.hessian.error * factor)
    np.testing.assert_array_equal(loaded.hessian.direction, dataset.hessian.direction)


def test_bad_products_are_refused():
    good = refused("'product' has shape", product=np.ones((2, 3)))
    refused("positive", atoms=[0, 3])
    refused("ascending", structure=[2, 0])
    refused("ascending", structure=[-1, 0])
    refused("'direction' holds NaN", direction=np.full((3, 3), np.nan))
    refused("'error' holds NaN", error=[0, np.inf])
    refused("product 1 has error -1", error=[0, -1])
    refused("product 0 has error 1", error=[1, 0])
    dataset = make_structures(3)
    with pytest.raises(DatasetError, match="product 0 is of structure 0 with 1 atoms"):
        replace(dataset, hessian=good)
    with pytest.raises(DatasetError, match="among the 0 structures"):
        replace(dataset.subset([]), hessian=good)
    assert good.of(1)[0].shape == (0, 0, 3) and good.rows(-1) == slice(1, 3)


def test_writer_refuses_a_mixture(tmp_path):
    dataset, path = labelled(tmp_path / "d.h5"), tmp_path / "e.h5"
    without = replace(dataset, hessian=None)
    with DatasetWriter(path, TEACHER) as writer:
        writer.append(dataset)
        with pytest.raises(DatasetError, match="has no Hessian products"):
            writer.append(without)
    with DatasetWriter(path, TEACHER) as writer:
        with pytest.raises(DatasetError, match="has no Hessian products"):
            writer.append(without)
        writer.append(dataset)
        assert_right_products(writer.finish(), 1)
    with DatasetWriter(tmp_path / "f.h5", TEACHER) as writer:
        writer.append(without)
        with pytest.raises(DatasetError, match="has Hessian products"):
            writer.append(dataset)
