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

from distill.config import load_config
from distill.data import Dataset
from distill.evaluation.domain import training_domain
from distill.evaluation.results import read_records
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


def test_a_skin_once_chosen_stays(simulate, bundle, tmp_path, monkeypatch):
    arguments = [f"model={bundle}", "structure=H2O", f"output={tmp_path}", "skin=auto", MD]
    assert simulate.main([*arguments, "md.steps=10"]) == 0
    chosen = load_config(simulate.SimulateConfig, tmp_path / "config.yaml").skin
    assert 0.2 <= chosen <= 2.0
    # The run goes on without a measurement, which might choose another one.
    monkeypatch.setattr(importlib.import_module("simulation_model"), "tune_skin", None)
    assert simulate.main([*arguments, "md.steps=20"]) == 0
    assert load_config(simulate.SimulateConfig, tmp_path / "config.yaml").skin == chosen


def test_a_ladder_of_temperatures(simulate, bundle, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = [
        f"model={bundle}",
        "structure=H2O",
        f"output={output}",
        "safety={contacts: ignore, drift: ignore}",
        "md={ensemble: nvt_csvr, timestep: 0.2, thermostat_time: 10, steps: 40, record_every: 5, "
        "block_steps: 20, temperatures: [100, 130, 170], exchange_every: 10}",
    ]
    assert simulate.main(arguments) == 0
    images = [ase.io.read(output / f"run_00{rung}.extxyz", index=":") for rung in range(3)]
    walkers = [
        sorted(image.info["walker"] for image in frame) for frame in zip(*images, strict=True)
    ]
    assert walkers == [[0, 1, 2]] * 8
    summary = json.loads((output / "summary.json").read_text())
    assert [own["bath_K"] for own in summary["baths"]] == [100, 130, 170]
    for own, frames in zip(summary["baths"], images, strict=True):
        mean = (
            np.mean([frame.get_temperature() for frame in frames]) * 9 / 6
        )  # no drift, 6 freedoms
        np.testing.assert_allclose(own["temperature_K"], mean, rtol=1e-3)
    assert [pair["attempts"] for pair in summary["exchange"]["pairs"]] == [2, 2]
    assert len(summary["exchange"]["round_trips"]) == 3
    said = capsys.readouterr()
    assert "temperature of 170 K" in said.out and "exchanged 100 and 130 K" in said.out
    assert "exchanged=" in said.err  # the progress line


def test_as_many_replicas_as_temperatures(simulate, bundle, tmp_path, capsys):
    arguments = [f"model={bundle}", "structure=H2O", f"output={tmp_path}", "replicas=2"]
    with pytest.raises(SystemExit):
        simulate.main([*arguments, "md.temperatures=[100, 200, 300]"])
    assert "temperatures has 3 values for 2 replicas" in capsys.readouterr().err


def test_start_outside_the_training_data(simulate, tmp_path, capsys):
    water = molecule("H2O")
    domain = training_domain(Dataset.from_structures([water], "t", "md:300K"), [0])
    bundle = save_bundle(small_student(), tmp_path / "student", {"domain": domain})
    water.positions[1] = water.positions[0] + 0.7 * (water.positions[1] - water.positions[0])
    ase.io.write(tmp_path / "close.xyz", water)
    ase.io.write(tmp_path / "far.xyz", molecule("CH4"))
    arguments = [f"model={bundle}", f"output={tmp_path / 'run'}", "md.steps=10", MD]
    for name, told in (
        ("close", r"H-O atoms are 0.68 Å apart, shortest in training 0.97 Å"),
        ("far", "C is not among the training elements H, O"),
    ):
        start = f"structure={tmp_path / name}.xyz"
        assert simulate.main([*arguments, start, "domain=refuse"]) == 1
        assert told in capsys.readouterr().err
    # The run itself is watched with the same distances.
    config = [f"structure={tmp_path / 'close.xyz'}", "domain=warn", "md.timestep=0.0001"]
    assert simulate.main([*arguments, *config]) == 1
    printed = capsys.readouterr()
    assert "warning: the start: H-O atoms are 0.68 Å apart" in printed.out
    assert "atoms 0 and 1 were 0.68 Å apart" in printed.err


def test_npt_tells_density_and_pressure(simulate, bundle, tmp_path, capsys):
    ase.io.write(tmp_path / "cell.xyz", triclinic_cell())
    arguments = [
        f"model={bundle}",
        f"structure={tmp_path / 'cell.xyz'}",
        f"output={tmp_path / 'run'}",
        "safety={contacts: ignore, temperature: ignore, drift: ignore}",
        "md={ensemble: npt_scr, timestep: 0.1, record_every: 5, block_steps: 10, steps: 10}",
        f"record={tmp_path / 'records.json'}",
        "case=tiny, npt",
        "subject=s",
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
    records = {r["metric"]: r for r in read_records(tmp_path / "records.json")}
    assert records["density"]["value"] == pytest.approx(density, rel=1e-6)
    assert records["runs with an unphysical event"]["value"] == 0
    assert records["length of each run"]["value"] == pytest.approx(1e-3)
    assert records["pressure"]["subject"] == "s" and records["pressure"]["case"] == "tiny, npt"
    assert f"model={bundle}" in records["pressure"]["command"]


def test_a_run_that_breaks_down_leaves_its_figures(simulate, bundle, tmp_path, capsys):
    arguments = [
        f"model={bundle}",
        "structure=H2O",
        f"output={tmp_path / 'run'}",
        "replicas=2",
        "md={ensemble: nve, timestep: 0.1, temperature: 10, record_every: 5, block_steps: 10}",
        "md.steps=30",
        "domain=ignore",
        f"record={tmp_path / 'records.json'}",
        "case=broken",
    ]
    calm, hot = (
        f"safety={{contacts: ignore, drift: ignore, temperature: stop, max_temperature: {limit}}}"
        for limit in (1e9, 1e-9)
    )
    assert simulate.main([*arguments, "md.steps=20", calm]) == 0
    for path, reached in ((tmp_path / "run", 2e-3), (tmp_path / "at_once", 0.0)):
        assert simulate.main([*arguments, hot, f"output={path}"]) == 1
        assert "the temperature was" in capsys.readouterr().err
        summary = json.loads((path / "summary.json").read_text())
        assert "the temperature was" in summary["ended"]
        assert summary["time_ps"] == pytest.approx(reached)
        records = {r["metric"]: r["value"] for r in read_records(tmp_path / "records.json")}
        assert records["runs"] == 2 and records["runs with an unphysical event"] == 1
        assert records["length of each run"] == pytest.approx(reached)


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
