"""`experiments/simulate.py`: a run, its continuation, replicas, and what it refuses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from builders import small_student, triclinic_cell

from distill.students import save_bundle

ROOT = Path(__file__).resolve().parent.parent
MD = "md={ensemble: nvt_nose_hoover, timestep: 0.1, record_every: 5, block_steps: 10}"

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def simulate(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("simulate")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return save_bundle(small_student(), tmp_path_factory.mktemp("bundle") / "student", {})


def test_smoke(simulate, tmp_path, demo_teacher_path):
    output = tmp_path / "run"
    assert simulate.main(["--smoke", f"output={output}", f"model=fennol:{demo_teacher_path}"]) == 0
    assert len(ase.io.read(output / "run.extxyz", index=":")) == 8


def test_replicas_go_on_where_they_were(simulate, bundle, tmp_path, capsys):
    ase.io.write(tmp_path / "cell.xyz", triclinic_cell())
    output = tmp_path / "run"
    common = [
        f"model={bundle}",
        f"structure={tmp_path / 'cell.xyz'}",
        f"output={output}",
        "replicas=2",
        "safety={contacts: ignore, temperature: ignore, drift: ignore}",
        MD,
    ]
    assert simulate.main([*common, "md.steps=20"]) == 0
    assert simulate.main([*common, "md.steps=40"]) == 0
    assert "continuing the run" in capsys.readouterr().out
    first, second = (ase.io.read(output / f"run_00{r}.extxyz", index=":") for r in range(2))
    times = [image.info["time_fs"] for image in first]
    np.testing.assert_allclose(times, 0.5 * np.arange(1, 9))
    assert first[0].pbc.all() and first[0].get_potential_energy() < -1000
    assert np.abs(first[-1].positions - second[-1].positions).max() > 1e-3
    summary = json.loads((output / "summary.json").read_text())
    assert summary["frames"] == 16 and summary["steps"] == 40  # of both parts and replicas
    whole = tmp_path / "whole"
    assert simulate.main([*common, "md.steps=40", f"output={whole}"]) == 0
    for name in ("run_000.extxyz", "run_001.extxyz"):
        assert (whole / name).read_bytes() == (output / name).read_bytes()
    assert simulate.main([*common, "md.steps=40", "md.temperature=400"]) == 1
    assert "holds a run with other settings" in capsys.readouterr().err


def test_npt_tells_density_and_pressure(simulate, bundle, tmp_path, capsys):
    ase.io.write(tmp_path / "cell.xyz", triclinic_cell())
    arguments = [
        f"model={bundle}",
        f"structure={tmp_path / 'cell.xyz'}",
        f"output={tmp_path / 'run'}",
        "safety={contacts: ignore, temperature: ignore, drift: ignore}",
        "md={ensemble: npt_scr, timestep: 0.1, record_every: 5, block_steps: 10, steps: 10}",
    ]
    assert simulate.main(arguments) == 0
    assert "g/cm³ at" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    images = ase.io.read(tmp_path / "run" / "run.extxyz", index=":")
    volumes = [image.cell.volume for image in images]
    assert np.ptp(volumes) > 0
    assert summary["volume_ang3"] == pytest.approx(np.mean(volumes), rel=1e-6)
    grams = images[0].get_masses().sum() * 1.66053907e-24
    density = np.mean([grams / (volume * 1e-24) for volume in volumes])
    assert summary["density_g_per_cm3"] == pytest.approx(density, rel=1e-6)
    assert np.isfinite(summary["pressure_gpa"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["structure=N2"], "N"),
        (["structure=nothing.xyz"], "neither a file nor a molecule that ASE knows"),
        (["model=nowhere"], "not a complete bundle"),
        (["velocities=file"], "holds no velocities: use velocities=draw"),
    ],
)
def test_bad_input(changes, message, simulate, bundle, tmp_path, capsys):
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    arguments = [f"model={bundle}", f"structure={tmp_path / 'water.xyz'}", "md.steps=10", MD]
    assert simulate.main([*arguments, f"output={tmp_path / 'run'}", *changes]) == 1
    assert message in capsys.readouterr().err
