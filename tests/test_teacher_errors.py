"""What teachers and their loader refuse, and what they say then."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from builders import ethanol

from distill.errors import ConfigError, DistillError, UnknownElementError, UnsupportedStructureError
from distill.teachers import load


@pytest.fixture(scope="module")
def teacher(demo_teacher_path):
    return load(f"fennol:{demo_teacher_path}")


def slab() -> Atoms:
    atoms = ethanol()
    atoms.set_cell(np.eye(3) * 9)
    atoms.pbc = (True, True, False)
    return atoms


def lost() -> Atoms:
    atoms = ethanol()
    atoms.positions[4, 1] = np.nan
    return atoms


def without_cell() -> Atoms:
    atoms = ethanol()
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: molecule("SO2"), UnknownElementError, r"structure 1.*holds S.*H, C, N, O.*remove"),
        (slab, UnsupportedStructureError, "structure 1 is periodic along 2 of 3.*add vacuum"),
        (lost, UnsupportedStructureError, "structure 1 has NaN"),
        (without_cell, UnsupportedStructureError, "structure 1 .*no volume: set atoms.cell"),
    ],
    ids=["element", "slab", "NaN", "no cell"],
)
def test_structures_that_cannot_be_treated(teacher, make, error, message):
    with pytest.raises(error, match=message):
        teacher.label([ethanol(), make()])
    for method in (teacher.energy_function, teacher.potential):
        with pytest.raises(error, match=message.replace("structure 1", "structure 0")):
            method(make())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ani1ccx", "unknown teacher 'ani1ccx'.*fennol:ani1ccx"),
        ("orbital:x", "unknown teacher"),
        ("fennol:ani1cx", "neither a file nor a known model.*Did you mean fennol:ani1ccx"),
        ("fennol:nowhere.fnx", "nowhere.fnx is neither a file nor a known model"),
        ("fennol:ani1ccx?member=8", "member must be 0 to 7"),
        ("fennol:ani1ccx?member=-1", "member must be 0 to 7"),
        ("fennol:ani1ccx?membr=1", "unknown options membr; known: member, elements"),
        ("fennol:ani1ccx?elements=H,Xq", "'Xq', which is no chemical symbol"),
    ],
)
def test_names_that_are_not_understood(name, message):
    with pytest.raises(ConfigError, match=message):
        load(name)


def test_pickled_models_are_refused_unread(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(b"cos\nsystem\n(S'touch %b'\ntR." % str(tmp_path / "ran").encode())
    with pytest.raises(DistillError, match=r"model\.pkl is not a \.fnx file.*FENNIX\.save"):
        load(f"fennol:{path}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 1000, -1])
def test_truncated_file(demo_teacher_path, tmp_path, keep):
    path = tmp_path / "cut.fnx"
    path.write_bytes(demo_teacher_path.read_bytes()[:keep])
    with pytest.raises(DistillError, match=r"cut\.fnx .*cannot be read.*truncated.*SHA-256"):
        load(f"fennol:{path}")


def test_double_precision_needs_the_mode_of_jax(demo_teacher_path):
    with pytest.raises(ValueError, match="jax_enable_x64"):
        load(f"fennol:{demo_teacher_path}", dtype=np.float64)


def test_identity_and_options(teacher, demo_teacher_path):
    record = teacher.info.provenance()
    assert record["teacher"] == f"fennol:{demo_teacher_path.name}"
    assert record["elements"] == ["H", "C", "N", "O"]
    assert record["stress"] is True and record["cutoff"] > 0
    assert str(demo_teacher_path.parent) not in str(record), "no path of this machine"
    narrow = load(f"fennol:{demo_teacher_path}?elements=O,H&member=0")
    assert narrow.info.elements == (1, 8)
    assert narrow.info.weights_sha256 == teacher.info.weights_sha256
    with pytest.raises(UnknownElementError, match="C"):
        narrow.label([ethanol()])
