"""The demonstration teacher: the committed model is what its card says, and can be made anew."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import molecule

from distill import teachers
from distill.errors import MissingDependencyError
from distill.sampling import rattle
from distill.teachers import Teacher

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
SCRIPT = EXPERIMENTS / "make_demo_teacher.py"
NAMES = {"demo_chno.fnx", "demo_chno.card.yaml", "demo_chno.png"}
MOLECULES = {"ethanol": ("CH3CH2OH", 10), "methanol": ("CH3OH", 5)}
SIZE_LIMIT = 2_000_000
"""Bytes; no file in the repository may be larger."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_card(model: Path) -> dict[str, Any]:
    return yaml.safe_load(model.with_suffix(".card.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def card(demo_teacher_path: Path) -> dict[str, Any]:
    return read_card(demo_teacher_path)


@pytest.fixture(scope="session")
def demo_teacher(demo_teacher_path: Path) -> Teacher:
    return teachers.load(f"fennol:{demo_teacher_path}")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("make_demo_teacher")


@pytest.fixture
def without_tblite(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tblite", "tblite.ase"):
        monkeypatch.setitem(sys.modules, name, None)


# The committed model


def test_model_is_small_and_the_one_of_its_card(
    demo_teacher_path: Path, card: dict[str, Any]
) -> None:
    assert demo_teacher_path.stat().st_size <= SIZE_LIMIT
    assert sha256(demo_teacher_path) == card["training"]["sha256"]


def test_model_is_plain_data(demo_teacher_path: Path) -> None:
    """Read by a decoder that knows numbers, texts and arrays of numbers, so no code can hide."""
    arrays = []

    def array(code: int, content: bytes) -> int:
        assert code == 1, "flax writes arrays as type 1"
        shape, dtype, values = msgpack.unpackb(content)
        assert np.dtype(dtype).kind in "fiu"
        assert len(values) == np.prod(shape, dtype=int) * np.dtype(dtype).itemsize
        arrays.append(shape)
        return code

    model = msgpack.unpackb(demo_teacher_path.read_bytes(), ext_hook=array)
    assert {"modules", "variables"} <= set(model)
    assert arrays


def test_model_is_the_teacher_of_its_card(demo_teacher: Teacher, card: dict[str, Any]) -> None:
    info = demo_teacher.info
    assert info.provenance()["elements"] == ["H", "C", "N", "O"] == card["elements"]
    assert info.weights_sha256 == card["training"]["sha256"]
    assert info.cutoff == card["cutoff_A"]
    assert info.n_members == 1


@pytest.fixture(scope="session")
def rattled() -> dict[str, list[Atoms]]:
    """Structures that no trajectory of the training data holds."""
    return {
        name: rattle([molecule(formula)] * count, 0.03, seed=11)
        for name, (formula, count) in MOLECULES.items()
    }


@pytest.fixture(scope="session")
def teacher_labels(demo_teacher: Teacher, rattled: dict[str, list[Atoms]]) -> dict[str, Any]:
    """(energies in eV, forces in eV/Å) by molecule, all from one call."""
    labels = demo_teacher.label([atoms for group in rattled.values() for atoms in group])
    found, first = {}, 0
    for name, group in rattled.items():
        rows = slice(first, first + len(group))
        found[name] = labels.energy[rows], np.array(labels.forces[rows])
        first = rows.stop
    return found


@pytest.fixture(scope="session")
def gfn2() -> Any:
    """The reference itself, straight from tblite."""
    with pytest.MonkeyPatch.context() as patch:
        # OpenMP reads this when tblite loads it; more threads only wait for each other here.
        patch.setenv("OMP_NUM_THREADS", "1")
        tblite = pytest.importorskip(
            "tblite.ase", reason='needs GFN2-xTB: pip install "distill-mlip[xtb]"'
        )
    return tblite.TBLite(method="GFN2-xTB", verbosity=0)


@pytest.mark.parametrize("name", MOLECULES)
def test_model_agrees_with_gfn2(
    name: str,
    gfn2: Any,
    rattled: dict[str, list[Atoms]],
    teacher_labels: dict[str, Any],
    card: dict[str, Any],
) -> None:
    """A rattle of 0.03 Å strains a molecule less than the held-out runs at 300 to 800 K did, so
    the errors that the card gives for those are a bound here.
    """
    found_energies, found_forces = teacher_labels[name]
    energies = np.array([gfn2.get_potential_energy(atoms) for atoms in rattled[name]])
    forces = np.array([gfn2.get_forces(atoms) for atoms in rattled[name]])

    errors = card["errors_on_held_out_trajectories"]["md_frames_unless_named_distorted"][name]
    bound = errors["force_mae_meV_per_A"]
    assert 1000 * np.abs(found_forces - forces).mean() < bound
    assert 1000 * forces.std() > 10 * bound, "the bound must be small beside the forces"
    # Relative energies: what all structures of one molecule have in common does no harm.
    relative = (found_energies - found_energies.mean()) - (energies - energies.mean())
    per_atom = 1000 * np.abs(relative).mean() / forces.shape[1]
    assert per_atom < errors["energy_mae_meV_per_atom"]


# The script that makes it


@pytest.mark.usefixtures("without_tblite")
def test_missing_tblite_names_the_extra(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an error for a program, as one line and a status for a user; no files."""
    with pytest.raises(MissingDependencyError, match=r'pip install "distill-mlip\[xtb\]"'):
        sys.modules["demo_teacher_data"].gfn2()
    output = tmp_path / "output"
    assert script.main(["--smoke", "--output", str(output)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert 'pip install "distill-mlip[xtb]"' in message
    assert not output.exists()


def test_smoke_run_keeps_away_from_the_committed_model(script: Any) -> None:
    folder = script.output_folder(argparse.Namespace(output=None, smoke=True))
    try:
        assert EXPERIMENTS not in folder.parents
    finally:
        folder.rmdir()


@pytest.mark.slow
def test_smoke_run_makes_a_teacher_and_leaves_the_committed_one(
    tmp_path: Path, demo_teacher_path: Path
) -> None:
    pytest.importorskip("tblite", reason='needs GFN2-xTB: pip install "distill-mlip[xtb]"')
    committed = {name: sha256(demo_teacher_path.parent / name) for name in NAMES}
    output = tmp_path / "output"
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--output", str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert {path.name for path in output.iterdir()} == NAMES
    assert {path.name for path in tmp_path.iterdir()} == {"output"}
    assert {name: sha256(demo_teacher_path.parent / name) for name in NAMES} == committed

    made = output / "demo_chno.fnx"
    card = read_card(made)
    assert card["training"]["sha256"] == sha256(made)
    assert set(card) == set(read_card(demo_teacher_path))
    assert all(part["frames"] > 0 for part in card["training_data"]["splits"].values())
    labels = teachers.load(f"fennol:{made}").label([molecule("CH3OH")])
    assert np.isfinite(labels.energy).all() and np.isfinite(labels.forces[0]).all()
