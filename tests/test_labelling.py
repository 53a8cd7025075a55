"""Labelling: flags, failing teachers, kill and resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from distill.data import (
    ATOMS_TOO_CLOSE,
    FAILED,
    FORCE_TOO_LARGE,
    NON_FINITE,
    Dataset,
    Labels,
    flag_summary,
    label_structures,
    load,
)
from distill.errors import DatasetError

ROOT = Path(__file__).resolve().parents[1]


class FakeInfo:
    def __init__(self, sha):
        self.sha = sha

    def provenance(self):
        return {"teacher": "fake", "version": "1.0", "weights_sha256": self.sha, "stress": True}


class FakeTeacher:
    """Labels from a formula; raises for structures with neon, counts what it was asked."""

    def __init__(self, delay=0.0, sha="ab"):
        self.info = FakeInfo(sha)
        self.delay = delay
        self.asked = []
        self.broken = False

    def label(self, structures):
        time.sleep(self.delay)
        self.asked.append(len(structures))
        if self.broken or any(10 in a.numbers for a in structures):
            raise RuntimeError("no parameters for neon")
        energy = np.array([np.sin(a.positions).sum() for a in structures])
        forces = [-np.cos(a.positions) for a in structures]
        for i, atoms in enumerate(structures):
            if 2 in atoms.numbers:
                forces[i] = np.full_like(forces[i], np.nan)
            if 3 in atoms.numbers:
                forces[i] = forces[i] * 1e6
            if 4 in atoms.numbers:
                energy[i] = np.inf
        stress = np.stack([np.eye(3) * (1.0 if a.pbc.all() else np.nan) for a in structures])
        return Labels(energy, forces, stress)


def make_structures(count=20, seed=0):
    rng = np.random.default_rng(seed)
    structures = [molecule("CH4") if i % 3 else bulk("Si") for i in range(count)]
    for atoms in structures:
        atoms.positions += 0.02 * rng.standard_normal(atoms.positions.shape)
    names = [f"run{i // 5}" for i in range(count)]
    return Dataset.from_structures(structures, names, "rattle", parent=np.arange(count) - 1)


def test_labels_and_provenance(tmp_path):
    structures = make_structures()
    dataset = label_structures(FakeTeacher(), structures, tmp_path / "d.h5", 8, progress=False)
    assert dataset.sha256 == load(tmp_path / "d.h5").sha256
    np.testing.assert_array_equal(dataset.forces, -np.cos(structures.positions))
    assert dataset.parent.tolist() == structures.parent.tolist()
    assert np.isnan(dataset.stress[1]).all() and np.isfinite(dataset.stress[0]).all()
    assert dataset.provenance["teacher_version"] == "1.0"
    assert dataset.provenance["max_force"] == 100.0
    assert flag_summary(dataset)["usable"] == 20


def test_bad_labels_and_geometries_are_flagged_and_counted(tmp_path):
    structures = [
        molecule("H2O"),
        Atoms("He", [[1, 0, 0]]),
        Atoms("Li", [[1, 0, 0]]),
        Atoms("Be", [[1, 0, 0]]),
        Atoms("H2", [[0, 0, 0], [0, 0, 0]]),
        Atoms("H2", [[0, 0, 0], [0, 0, 0.3]]),
        Atoms("H2", [[0, 0, 0], [0, 0, 4.9]], cell=[5, 5, 5], pbc=True),
        Atoms("H2", [[0, 0, 0], [0, 0, 4.9]], cell=[5, 5, 5], pbc=[True, True, False]),
        Atoms("H2", [[0, 0, 0], [0, 0, 50.1]], cell=[5, 5, 5], pbc=True),
        Atoms("H", cell=[5, 5, 0.2], pbc=True),
        Atoms("H", cell=[5, 5, 0.01], pbc=True),
        Atoms("H3", [[0, 0, 0], [0, 0, 0.7], [1e6, 0, 0]]),
    ]
    dataset = Dataset.from_structures(structures, "t", "o")
    dataset = label_structures(FakeTeacher(), dataset, tmp_path / "d.h5", progress=False)
    close = ATOMS_TOO_CLOSE
    expected = [
        0,
        NON_FINITE,
        FORCE_TOO_LARGE,
        NON_FINITE,
        close,
        close,
        close,
        0,
        close,
        close,
        close,
        0,
    ]
    assert dataset.flag.tolist() == expected
    assert flag_summary(dataset) == {
        "total": 12,
        "usable": 3,
        "non_finite": 2,
        "force_too_large": 1,
        "atoms_too_close": 6,
        "failed": 0,
        "incomplete": 0,
    }


def test_one_failing_structure_is_flagged_alone(tmp_path, caplog):
    structures = [molecule("H2O"), Atoms("Ne"), molecule("CH4")]
    teacher = FakeTeacher()
    dataset = Dataset.from_structures(structures, "t", "o")
    dataset = label_structures(teacher, dataset, tmp_path / "d.h5", progress=False)
    assert dataset.flag.tolist() == [0, FAILED, 0]
    assert np.isnan(dataset.energy[1]) and np.isfinite(dataset.energy[[0, 2]]).all()
    assert teacher.asked == [3, 1, 1, 1]
    assert "structure 1: the teacher failed (no parameters for neon)" in caplog.text


def test_a_whole_failing_batch_later_on_is_not_fatal_but_a_broken_teacher_is(tmp_path):
    structures = [molecule("H2O")] * 2 + [Atoms("Ne")] * 2 + [molecule("CH4")] * 2
    dataset = Dataset.from_structures(structures, "t", "o")
    labelled = label_structures(FakeTeacher(), dataset, tmp_path / "a.h5", 2, progress=False)
    assert labelled.flag.tolist() == [0, 0, FAILED, FAILED, 0, 0]

    class BreaksLater(FakeTeacher):
        def label(self, structures):
            self.broken = len(self.asked) >= 1
            return super().label(structures)

    with pytest.raises(DatasetError, match="also for one that it labelled before"):
        label_structures(BreaksLater(), dataset, tmp_path / "b.h5", 2, progress=False)
    assert len(load(tmp_path / "b.h5")) == 2
    resumed = label_structures(FakeTeacher(), dataset, tmp_path / "b.h5", 2, progress=False)
    assert resumed.sha256 == labelled.sha256


def test_a_teacher_that_fails_from_the_start_is_fatal(tmp_path):
    dataset = Dataset.from_structures([Atoms("Ne")] * 3, "t", "o")
    with pytest.raises(DatasetError, match="first batch: no parameters for neon") as info:
        label_structures(FakeTeacher(), dataset, tmp_path / "d.h5", progress=False)
    assert isinstance(info.value.__cause__, RuntimeError)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_with_labels_of_wrong_shape_is_fatal(tmp_path):
    class Wrong(FakeTeacher):
        def label(self, structures):
            return Labels(np.zeros(len(structures)), [np.zeros((1, 3))] * len(structures))

    with pytest.raises(DatasetError, match="do not fit"):
        label_structures(Wrong(), make_structures(), tmp_path / "d.h5", progress=False)


def test_bad_input(tmp_path):
    with pytest.raises(DatasetError, match="no structures"):
        label_structures(FakeTeacher(), make_structures().subset([]), tmp_path / "d.h5")
    with pytest.raises(DatasetError, match="batch_size"):
        label_structures(FakeTeacher(), make_structures(), tmp_path / "d.h5", batch_size=0)


def test_interrupt_resume_and_extension(tmp_path):
    structures, path = make_structures(), tmp_path / "d.h5"

    class Interrupted(FakeTeacher):
        def label(self, structures):
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            return super().label(structures)

    with pytest.raises(KeyboardInterrupt):
        label_structures(Interrupted(), structures, path, 4, progress=False)
    assert len(load(path)) == 12
    teacher = FakeTeacher()
    resumed = label_structures(teacher, structures, path, 4, progress=False)
    assert sum(teacher.asked) == 8
    whole = label_structures(FakeTeacher(), structures, tmp_path / "e.h5", 4, progress=False)
    assert resumed.sha256 == whole.sha256
    teacher = FakeTeacher()
    assert len(label_structures(teacher, structures, path, progress=False)) == 20
    assert teacher.asked == []
    assert len(label_structures(teacher, make_structures(25), path, progress=False)) == 25
    assert sum(teacher.asked) == 5


def test_resume_refuses_other_input(tmp_path):
    structures, path = make_structures(), tmp_path / "d.h5"
    label_structures(FakeTeacher(), structures, path, progress=False)
    for other, message in (
        (make_structures(seed=1), "first number 0"),
        (make_structures(10), "holds 20 structures"),
    ):
        with pytest.raises(DatasetError, match=message):
            label_structures(FakeTeacher(), other, path, progress=False)
    with pytest.raises(DatasetError, match="weights_sha256"):
        label_structures(FakeTeacher(sha="cd"), structures, path, progress=False)
    with pytest.raises(DatasetError, match="max_force"):
        label_structures(FakeTeacher(), structures, path, max_force=5.0, progress=False)


SCRIPT = """
import sys
from tests.test_labelling import FakeTeacher, make_structures
from distill.data import label_structures
label_structures(FakeTeacher(delay=0.1), make_structures(60), sys.argv[1], 2)
"""


def test_killed_processes_resume(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    running = {}
    for number in (signal.SIGKILL, signal.SIGTERM):  # together, because importing takes long
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / f"{number.name}.h5")]
        running[number] = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        waiting = set(running)
        while waiting:
            for number in list(waiting):
                assert running[number].poll() is None and time.monotonic() < deadline
                if len(list((tmp_path / f"{number.name}.h5.parts").glob("0*.h5"))) >= 4:
                    running[number].send_signal(number)
                    running[number].wait()
                    waiting.discard(number)
            time.sleep(0.01)
    finally:
        for process in running.values():
            process.kill()
    structures = make_structures(60)
    whole = label_structures(FakeTeacher(), structures, tmp_path / "whole.h5", progress=False)
    for number, process in running.items():
        _, errors = process.communicate()
        assert process.returncode == -number
        assert b"labelling by fake" in errors and b"structures/s" in errors
        path = tmp_path / f"{number.name}.h5"
        stored = len(load(path))
        assert 8 <= stored < 60 and not path.exists()
        teacher = FakeTeacher()
        resumed = label_structures(teacher, structures, path, 2, progress=False)
        assert sum(teacher.asked) == 60 - stored
        assert resumed.sha256 == whole.sha256
    assert len(list(tmp_path.iterdir())) == 3
