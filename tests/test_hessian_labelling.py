"""Labelling with Hessian products: values, failures, interrupt and resume."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from ase import Atoms
from morse_teacher import (
    MorseTeacher,
    assert_right_products,
    labelled,
    make_structures,
    morse,
)

from distill.data import (
    FAILED,
    FORCE_TOO_LARGE,
    NON_FINITE,
    Dataset,
    HessianConfig,
    label_structures,
    load,
)
from distill.data.hessian import draw_directions
from distill.errors import DatasetError


def test_random_products_are_stored_and_symmetric(tmp_path):
    dataset = labelled(tmp_path / "d.h5", products=2)
    assert dataset.usable.all() and len(dataset.hessian) == 18
    assert dataset.hessian.exact.all() and not dataset.hessian.error.any()
    assert_right_products(dataset, 2)
    for i in range(len(dataset)):
        (v, w), (hv, hw) = dataset.hessian.of(i)
        np.testing.assert_allclose(np.sum(v * hw), np.sum(w * hv), atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(v), 1.0)
        np.testing.assert_array_equal([v, w], draw_directions(HessianConfig(2), i, len(v)))
    second = dataset.hessian.rows(1)
    np.testing.assert_array_equal(dataset.hessian.product[second], dataset.hessian.of(0)[1][1])
    assert dataset.provenance["hessian_products"] == {
        "products": 2,
        "directions": "random",
        "seed": 0,
    }
    assert dataset.provenance["hessian"] == "exact"
    numerical = labelled(tmp_path / "n.h5", teacher=MorseTeacher(exact=False)).hessian
    assert not numerical.exact.any() and (numerical.error == 1e-6).all()


def test_rows_are_rows_of_the_hessian(tmp_path):
    dataset = labelled(tmp_path / "d.h5", products=4, directions="rows")
    for i in range(len(dataset)):
        directions, products = dataset.hessian.of(i)
        taken = np.argmax(directions.reshape(4, -1), axis=1)
        assert len(set(taken.tolist())) == 4 and directions.sum() == 4
        hessian = morse(dataset.positions[dataset.rows(i)])[2]
        np.testing.assert_allclose(products.reshape(4, -1), hessian[taken], atol=1e-12)
    whole = labelled(tmp_path / "w.h5", products=1000, directions="rows")
    for i in range(len(whole)):
        n = int(whole.n_atoms[i])
        expected = morse(whole.positions[whole.rows(i)])[2].reshape(3 * n, n, 3)
        np.testing.assert_allclose(whole.hessian.of(i)[1], expected, atol=1e-12)


def test_failing_products_are_flagged_and_not_fatal(tmp_path, caplog):
    far, near = [[0, 0, 0], [1.5, 0, 0]], [[0, 0, 0], [0.4, 0, 0]]
    elements = ("C2", "He2", "Li2", "Be2", "B2", "Ne2", "C2", "N2")
    structures = [Atoms(e, near if e == "N2" else far) for e in elements]
    dataset = Dataset.from_structures(structures, "t", "o")
    teacher = MorseTeacher()
    dataset = label_structures(
        teacher,
        dataset,
        tmp_path / "d.h5",
        3,
        max_force=2.0,
        progress=False,
        hessian=HessianConfig(),
    )
    flags = [0, FAILED, NON_FINITE, FAILED, NON_FINITE, FAILED, 0, FORCE_TOO_LARGE]
    assert dataset.flag.tolist() == flags
    assert dataset.hessian.structure.tolist() == [0, 6]
    assert teacher.asked == 6  # neither for neon, which has no labels, nor for the large force
    assert np.isfinite(dataset.energy[[1, 2, 3, 4]]).all() and np.isnan(dataset.energy[5])
    assert "structure 1: Hessian products failed (out of memory)" in caplog.text
    assert "structure 2: a Hessian product is not finite" in caplog.text
    assert load(tmp_path / "d.h5").sha256 == dataset.sha256


def test_interrupted_and_resumed_is_the_same(tmp_path):
    whole, path = labelled(tmp_path / "whole.h5", products=2), tmp_path / "d.h5"
    for stop in (1, 5, 3):  # in the middle of a first, and of later batches
        with pytest.raises(KeyboardInterrupt):
            labelled(path, teacher=MorseTeacher(stop_after=stop), batch_size=2, products=2)
    stored = load(path)
    assert len(stored) == 6 and not path.exists()
    assert_right_products(stored, 2)
    with h5py.File(tmp_path / "d.h5.parts" / "000001.h5") as file:
        assert file["hessian/structure"][:].tolist() == [0, 0, 1, 1]
    resumed = labelled(path, products=2)
    assert resumed.sha256 == load(path).sha256 == whole.sha256
    teacher = MorseTeacher()
    assert len(labelled(path, make_structures(12), teacher, products=2)) == 12
    assert teacher.asked == 3


def test_resume_refuses_another_configuration(tmp_path):
    path, plain = tmp_path / "d.h5", tmp_path / "plain.h5"
    labelled(path)
    label_structures(MorseTeacher(), make_structures(), plain, progress=False)
    for other in ({"products": 2}, {"directions": "rows"}, {"seed": 1}):
        with pytest.raises(DatasetError, match="was labelled with hessian="):
            labelled(path, **other)
    with pytest.raises(DatasetError, match=r"was labelled with hessian=.*not None"):
        label_structures(MorseTeacher(), make_structures(), path, progress=False)
    with pytest.raises(DatasetError, match="was labelled with hessian=None"):
        labelled(plain)


def test_teacher_without_products_is_refused(tmp_path):
    class Plain:
        info, label = MorseTeacher.info, MorseTeacher.label

    with pytest.raises(DatasetError, match=r"no method hvp.*numerical_hvp"):
        labelled(tmp_path / "d.h5", teacher=Plain())
    assert list(tmp_path.iterdir()) == []


def test_products_of_the_input_are_ignored(tmp_path):
    dataset = labelled(tmp_path / "d.h5", seed=3)
    again = label_structures(MorseTeacher(), dataset, tmp_path / "e.h5", progress=False)
    assert again.hessian is None
    assert labelled(tmp_path / "f.h5", dataset, seed=3).sha256 == dataset.sha256
