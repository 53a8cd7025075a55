"""`experiments/label.py`: any teacher, any structures, one dataset."""

from __future__ import annotations

import importlib
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from distill.data import load

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def label(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("label")


def test_list_of_teachers(label, capsys):
    assert label.main(["--list-teachers"]) == 0
    assert "fennol:ani1ccx" in capsys.readouterr().out


def test_smoke_with_products_and_again(label, tmp_path, capsys):
    output = tmp_path / "labels.h5"
    arguments = ["--smoke", f"output={output}", "hessian={products: 1}"]
    arguments.append("teacher=ase:ase.calculators.emt:EMT")
    assert label.main(arguments) == 0
    assert "usable 8" in capsys.readouterr().out
    dataset = load(output)
    assert dataset.hessian is not None and len(dataset.hessian.structure) == 8
    assert label.main(arguments) == 0
    assert load(output).sha256 == dataset.sha256


def test_file_with_a_committee(label, tmp_path):
    frames = [molecule("H2O"), molecule("CO")]
    ase.io.write(tmp_path / "in.extxyz", frames)
    output = tmp_path / "out.h5"
    teachers = (
        "teacher=['ase:ase.calculators.emt:EMT','ase:ase.calculators.emt:EMT?fixed_cutoff=true']"
    )
    assert label.main([teachers, f"structures={tmp_path / 'in.extxyz'}", f"output={output}"]) == 0
    dataset = load(output)
    assert dataset.provenance["kind"] == "committee" and np.isfinite(dataset.energy).all()


def test_unknown_structures(label, tmp_path, capsys):
    arguments = [f"output={tmp_path / 'a.h5'}", "structures=nothing.xyz"]
    assert label.main([*arguments, "teacher=ase:ase.calculators.emt:EMT"]) == 1
    assert "neither a file nor a molecule" in capsys.readouterr().err
