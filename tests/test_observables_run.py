"""Observables of a run: restart, replicas, files, scripts."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from builders import frames_of, small_student, triclinic_cell, water_box

from distill.errors import ConfigError, DatasetError
from distill.observables import Observables, ObservablesConfig, overlap, read_curves
from distill.simulation import (
    FORMATS,
    Frames,
    MDCheckpoints,
    MDConfig,
    TrajectoryReader,
    open_trajectory,
    run_md,
)
from distill.students import save_bundle

ROOT = Path(__file__).resolve().parent.parent
INTERVAL = 4.0
CONFIG = ObservablesConfig(
    rdf=True,
    msd=True,
    vdos=True,
    gyration=True,
    start=0.05,
    r_max=5.0,
    r_width=0.2,
    rdf_interval=8.0,
    msd_interval=8.0,
    msd_window=0.16,
    vdos_window=0.08,
    fastest=4000,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


def walk(atoms: Atoms, n: int, replicas: int, seed: int = 0) -> Frames:
    """Frames of atoms that walk at random in a breathing cell, 4 fs apart."""
    rng = np.random.default_rng(seed)
    steps = 0.02 * rng.standard_normal((n, replicas, len(atoms), 3))
    shape = (n, replicas)
    frames = frames_of(
        atoms.positions + np.cumsum(steps, axis=0),
        cell=atoms.cell.array * rng.uniform(0.99, 1.01, shape)[..., None, None],
        temperature=rng.uniform(280, 320, shape),
        pressure=rng.standard_normal(shape),
    )
    return replace(frames, time=INTERVAL * np.arange(1, n + 1), velocities=steps / INTERVAL)


def part(frames: Frames, begin: int, end: int) -> Frames:
    return Frames(**{name: array[begin:end] for name, array in vars(frames).items()})


def assert_equal_results(one: Observables, other: Observables) -> None:
    for a, b in zip(one.results(), other.results(), strict=True):
        assert a.record() == b.record()
        for name, curve in a.curves.items():
            np.testing.assert_array_equal(curve.blocks, b.curves[name].blocks)


def test_results_do_not_depend_on_the_cuts():
    """One call, many calls, and a return to an earlier mark, which stays what it was."""
    atoms, n = water_box(2), 200
    frames = walk(atoms, n, 2)
    whole, cut, back = (Observables(atoms, CONFIG, INTERVAL, 2) for _ in range(3))
    whole(frames)
    for begin in range(0, n, 7):
        cut(part(frames, begin, begin + 7))
    assert_equal_results(whole, cut)
    back(part(frames, 0, 77))
    mark = back.mark()
    back(walk(atoms, 60, 2, seed=1))
    again = Observables(atoms, CONFIG, INTERVAL, 2)
    again.rewind(mark)
    back.rewind(mark)
    for one in (back, again):
        one(part(frames, 77, n))
        assert_equal_results(whole, one)


def test_results_are_complete_and_right():
    atoms = water_box(2)
    frames = walk(atoms, 200, 2)
    observables = Observables(atoms, CONFIG, INTERVAL, 2)
    observables(frames)
    (found,) = observables.results()
    late = part(frames, 12, 200)  # 52 fs is the first frame after the start
    assert found.time == (0.052, 0.8) and found.frames == 188 and found.notes == []
    assert found.scalars["temperature_k"].value == pytest.approx(late.temperature.mean(), abs=0.5)
    volume = np.linalg.det(late.cell)
    density = 8 * 18.015 / 0.602214076 / volume
    assert found.scalars["density_g_per_cm3"].value == pytest.approx(density.mean(), rel=1e-3)
    assert found.scalars["pressure_gpa"].value == pytest.approx(late.pressure.mean(), abs=0.02)
    assert "gyration_H2O_ang" in found.scalars
    assert {name.split()[0] for name in found.curves} == {"rdf", "msd", "vdos"}
    # White noise of the steps: D = <step²> / (6 Δt), the same in all directions of the cell.
    theory = 3 * 0.02**2 / (6 * INTERVAL) * 1000 * 1e-4
    assert found.diffusion["H"].value == pytest.approx(theory, rel=0.15)
    vdos = found.curves["vdos all"]
    assert np.trapezoid(vdos.mean, vdos.x) == pytest.approx(1)
    parts = found.curves["vdos H"].mean + found.curves["vdos O"].mean
    np.testing.assert_allclose(parts, vdos.mean)


def test_replicas_of_other_conditions_are_kept_apart():
    atoms = water_box(2)
    frames = walk(atoms, 100, 2)
    apart = Observables(atoms, CONFIG, INTERVAL, 2, pooled=False)
    apart(frames)
    for r, found in enumerate(apart.results()):
        alone = Observables(atoms, CONFIG, INTERVAL)
        alone(Frames(**{k: v if k == "time" else v[:, r] for k, v in vars(frames).items()}))
        record = alone.results()[0].record()
        assert found.replica == r and {**found.record(), "replica": None} == record


def test_a_short_run_says_what_is_missing():
    atoms = water_box(2)
    observables = Observables(atoms, replace(CONFIG, msd_window=10.0), INTERVAL, 1)
    observables(walk(atoms, 60, 1))
    (found,) = observables.results()
    assert found.notes == ["no msd: less than one window of 10 ps was seen"]
    assert found.diffusion == {} and json.dumps(found.record(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fastest": None}, r"4170 cm⁻¹ \(Nyquist\).*4400"),
        ({"msd_window": 0.03}, "make msd_window longer"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(change, message):
    with pytest.raises(ConfigError, match=message):
        Observables(water_box(2), replace(CONFIG, **change), INTERVAL)


@pytest.mark.parametrize(
    "change", [{"r_max": 0.0}, {"msd_fit": (0.3, 0.2)}, {"start": -1.0}, {"vdos_window": 0.0}]
)
def test_settings_out_of_range(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_an_interrupted_run_observes_what_a_whole_one_does(tmp_path, toy_potential):
    """Through the checkpoint, in the middle of windows; and from the files the same again."""
    atoms = water_box(2)
    start = atoms.positions.astype(np.float32)
    potential = toy_potential(
        lambda x: ((x - start) ** 2).sum(), atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc
    )
    config = MDConfig(
        ensemble="nvt_langevin", steps=240, record_every=4, block_steps=24, timestep=1.0
    )

    def run(folder: Path, steps: int) -> Observables:
        observables = Observables(atoms, CONFIG, INTERVAL)
        files = [
            open_trajectory(folder / f"run.{name}", atoms, name, append=True, timestep=1.0)
            for name in FORMATS
        ]
        run_md(
            potential,
            atoms.positions,
            replace(config, steps=steps),
            on_frames=[observables, *files],
            checkpoints=MDCheckpoints(folder, every=2),
            progress=False,
        )
        return observables

    run(tmp_path / "parts", 120)
    parts, whole = run(tmp_path / "parts", 240), run(tmp_path / "whole", 240)
    assert_equal_results(parts, whole)
    for name in FORMATS:
        reader = TrajectoryReader(tmp_path / f"whole/run.{name}")
        assert reader.interval == pytest.approx(INTERVAL)
        again = Observables(atoms, CONFIG, reader.interval)
        for frames in reader.frames(13):
            again(frames)
        for key, curve in whole.results()[0].curves.items():
            if key.startswith("rdf"):  # text holds eight decimals
                continue
            found = again.results()[0].curves[key]
            np.testing.assert_allclose(found.mean, curve.mean, rtol=1e-3, atol=1e-6)
        wanted = whole.results()[0].scalars
        found = again.results()[0].scalars
        for key in ("temperature_k", "potential_energy_ev", "density_g_per_cm3"):
            assert found[key].value == pytest.approx(wanted[key].value, rel=1e-5)
            assert found[key].error == pytest.approx(wanted[key].error, rel=1e-3, abs=1e-9)


def test_files_that_are_no_trajectories(tmp_path):
    frames = walk(water_box(2), 6, 1)
    one = Frames(**{k: v if k == "time" else v[:, 0] for k, v in vars(frames).items()})
    for name in FORMATS:
        path = tmp_path / f"gap.{name}"
        writer = open_trajectory(path, water_box(2), name)
        writer(part(one, 0, 3))
        writer(part(one, 4, 6))
        with pytest.raises(DatasetError, match="frame after 12 fs is not 4 fs later"):
            list(TrajectoryReader(path).frames())
    (tmp_path / "text.xyz").write_text("no trajectory")
    with pytest.raises(DatasetError, match=r"text\.xyz cannot be read as a trajectory"):
        TrajectoryReader(tmp_path / "text.xyz")
    ase.io.write(tmp_path / "still.xyz", [water_box(2)] * 3)
    with pytest.raises(DatasetError, match="holds no times: give the interval"):
        TrajectoryReader(tmp_path / "still.xyz")
    assert TrajectoryReader(tmp_path / "still.xyz", 5.0).interval == 5.0


def test_observe_smoke(scripts, tmp_path, capsys):
    observe = scripts("observe")
    assert observe.main(["--smoke"]) == 0
    assert "gyration_H2O_ang" in capsys.readouterr().out
    folder = tmp_path / "runs/smoke/observe"
    (curves,) = read_curves(folder / "observables.npz")
    vdos = curves["vdos all"]
    assert vdos.x[np.argmax(vdos.mean)] == pytest.approx(3700, abs=200)  # a window of 0.1 ps
    assert overlap(vdos, vdos).value == 1
    record = json.loads((folder / "observables.json").read_text())
    assert record["settings"]["rdf"] is True
    assert set(record["results"][0]["curves"]) == set(curves)
    assert (folder / "observables.png").stat().st_size > 10000
    trajectory = folder / "vibrating_water.extxyz"
    for changes, message in (
        (["observables.vdos=false", "interval=0.1"], None),
        ([f"trajectory=[{trajectory},{tmp_path / 'none.xyz'}]"], "none.xyz cannot be read"),
        (["observables.fastest=10000"], "Nyquist"),
    ):
        assert observe.main(["--smoke", *changes]) == (0 if message is None else 1)
        assert message is None or message in capsys.readouterr().err


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return save_bundle(small_student(), tmp_path_factory.mktemp("bundle") / "student", {})


def test_simulate_observes_and_writes_h5md(scripts, bundle, tmp_path, capsys):
    """What the script observed is what its files hold."""
    simulate, observe = scripts("simulate"), scripts("observe")
    ase.io.write(tmp_path / "cell.xyz", triclinic_cell())
    observables = "observables={rdf: true, gyration: true, rdf_interval: 0.4, r_max: 4.0}"
    common = [
        f"model={bundle}",
        f"structure={tmp_path / 'cell.xyz'}",
        "replicas=2",
        "format=h5md",
        "safety={contacts: ignore, temperature: ignore, drift: ignore}",
        "md={timestep: 0.1, record_every: 2, block_steps: 10}",
        observables,
        "output=run",
    ]
    assert simulate.main([*common, "md.steps=40"]) == 0
    ours = json.loads(Path("run/observables.json").read_text())["results"][0]
    assert ours["frames"] == 20 and Path("run/observables.png").is_file()
    files = "trajectory=[run/run_000.h5md, run/run_001.h5md]"
    assert observe.main([files, observables, "output=observed"]) == 0
    found = json.loads(Path("observed/observables.json").read_text())["results"][0]
    assert set(found["curves"]) == set(ours["curves"])
    for name, curve in ours["curves"].items():
        np.testing.assert_allclose(found["curves"][name]["value"], curve["value"], rtol=1e-5)
    for name, value in ours["scalars"].items():
        if name not in ("potential_energy_ev", "total_energy_ev"):  # files hold the references
            assert found["scalars"][name]["value"] == pytest.approx(value["value"], rel=1e-5)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        simulate.main([*common, "format=dcd"])
    assert "h5md" in capsys.readouterr().err
