"""Averages of the teacher's ensemble from samples of the student's."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from builders import small_student, triclinic_cell
from scipy.stats import chi2

from distill.errors import ConfigError, DatasetError
from distill.evaluation.results import read_records
from distill.evaluation.reweighting import (
    effective_share,
    rate_ratio,
    reweight,
    teacher_weights,
)
from distill.simulation import TrajectoryReader
from distill.students import save_bundle
from distill.units import BOLTZMANN

ROOT = Path(__file__).resolve().parent.parent

TEMPERATURE = 300.0
THERMAL = BOLTZMANN * TEMPERATURE


def oscillators(seed: int, stiffness: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Square displacements and weights of exact samples; the teacher is stiffer.

    The student has the energy x²/2, the teacher `stiffness` times that and another zero.
    """
    positions = np.random.default_rng(seed).normal(scale=THERMAL**0.5, size=(4, 2000, 3))
    squares = (positions**2).sum(-1)
    return squares, teacher_weights(squares / 2, stiffness * squares / 2 + 17.0, TEMPERATURE)


def test_weighted_samples_are_those_of_the_teacher() -> None:
    """Against theory, within errors that are right: their deviations have the width 1."""
    stiffness, pulls = 1.2, []
    for seed in range(60):
        squares, weights = oscillators(seed, stiffness)
        found = reweight(squares, weights)
        theory = 3 * THERMAL, 3 * THERMAL / stiffness
        pulls.append(
            [
                (found.student - theory[0]) / found.student_error,
                (found.teacher - theory[1]) / found.teacher_error,
                (found.difference - (theory[0] - theory[1])) / found.difference_error,
            ]
        )
        assert found.difference == pytest.approx(found.student - found.teacher, abs=1e-12)
        assert found.difference_error < found.student_error
    pulls = np.array(pulls)
    assert np.all(np.abs(pulls.mean(0)) < 0.45), pulls.mean(0)
    assert np.all((pulls.std(0) > 0.75) & (pulls.std(0) < 1.35)), pulls.std(0)


def test_another_student_is_predicted_from_the_frames_of_a_third() -> None:
    """Frames of a potential, weights of a softer and of a stiffer one, against theory."""
    pulls = []
    for seed in range(40):
        squares, stiff = oscillators(seed, 1.2)
        soft = teacher_weights(squares / 2, 0.9 * squares / 2 - 3.0, TEMPERATURE)
        found = reweight(squares, stiff, student_weights=soft)
        theory = 3 * THERMAL / 0.9, 3 * THERMAL / 1.2
        pulls.append(
            [
                (found.student - theory[0]) / found.student_error,
                (found.teacher - theory[1]) / found.teacher_error,
                (found.difference - (theory[0] - theory[1])) / found.difference_error,
            ]
        )
    pulls = np.array(pulls)
    assert np.all(np.abs(pulls.mean(0)) < 0.55), pulls.mean(0)
    assert np.all((pulls.std(0) > 0.7) & (pulls.std(0) < 1.4)), pulls.std(0)


def test_effective_share_follows_theory() -> None:
    """For equal weights it is 1; for oscillators <w>² / <w²> is a ratio of Gaussian integrals."""
    assert effective_share(np.full((2, 5), 0.1)) == pytest.approx(1)
    assert effective_share(np.eye(10)[:1]) == pytest.approx(0.1)
    stiffness = 1.5
    _, weights = oscillators(0, stiffness)
    theory = (2 * stiffness - 1) ** 1.5 / stiffness**3
    assert effective_share(weights) == pytest.approx(theory, rel=0.03)


def test_rare_frames_are_as_likely_as_theory_says() -> None:
    """Samples beyond a radius, of which half are taken, by the distribution of Maxwell."""
    stiffness, limit, pulls = 1.2, 9.0, []
    theory = chi2.sf(stiffness * limit, 3) / chi2.sf(limit, 3)
    blocks = np.arange(4)[:, None] * 5 + np.arange(2000) * 5 // 2000
    for seed in range(60):
        squares, _ = oscillators(seed)
        difference = (stiffness - 1) * squares / 2 + 17.0
        rare = squares > limit * THERMAL
        rare &= np.random.default_rng(seed).random(rare.shape) < 0.5
        all_frames = difference[:, ::4].ravel(), blocks[:, ::4].ravel()
        found, error = rate_ratio(*all_frames, difference[rare], blocks[rare], TEMPERATURE)
        pulls.append((found - theory) / error)
    assert abs(np.mean(pulls)) < 0.45, np.mean(pulls)
    assert 0.75 < np.std(pulls) < 1.35, np.std(pulls)


def test_events_of_one_block_have_no_known_error() -> None:
    many, some = np.linspace(0, 1e-3, 20), np.full(3, 2e-3)
    ratio, error = rate_ratio(many, np.arange(20), some, np.full(3, 7), TEMPERATURE)
    assert 0 < ratio < 1 and error == np.inf
    with pytest.raises(ValueError, match="no frames to compare"):
        rate_ratio(many, np.arange(20), some[:0], np.arange(0), TEMPERATURE)
    with pytest.raises(ValueError, match="NaN or infinite"):
        rate_ratio(many, np.arange(20), some * np.nan, np.full(3, 7), TEMPERATURE)
    with pytest.raises(ValueError, match="temperature must be positive"):
        rate_ratio(many, np.arange(20), some, np.full(3, 7), 0.0)


def test_bad_input_of_the_weights() -> None:
    flat = np.zeros((2, 8))
    with pytest.raises(ValueError, match="must be \\[R, T\\]"):
        teacher_weights(flat, flat[:1], 300.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        teacher_weights(flat, flat + np.nan, 300.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        teacher_weights(flat, flat, 0.0)
    with pytest.raises(ValueError, match="too few for blocks"):
        reweight(flat[:, :3], flat[:, :3], blocks=4)


def bonds(atoms: Atoms, factor: float) -> set[tuple[int, int]]:
    """Pairs within `factor` sums of covalent radii, by ASE."""
    cutoffs = factor * covalent_radii[atoms.numbers]
    pairs = zip(*neighbor_list("ij", atoms, cutoffs), strict=True)
    return {(int(i), int(j)) for i, j in pairs if i <= j}


def frames_of(path: Path) -> list[Atoms]:
    reader = TrajectoryReader(path)
    return [
        Atoms(reader.atoms.numbers, positions, cell=cell, pbc=True)
        for frames in reader.frames()
        for positions, cell in zip(frames.positions, frames.cell, strict=True)
    ]


def between(frames: list[Atoms]) -> float:
    """A factor below which a pair is in three of the frames."""
    near = [(i, j) for i, j in bonds(frames[0], 1.3) if i != j]
    ratios = np.array(
        [
            [one.get_distance(i, j, mic=True) / covalent_radii[one.numbers[[i, j]]].sum()]
            for one in frames
            for i, j in near[:1]
        ]
    )[:, 0]
    ordered = np.sort(ratios)
    return float((ordered[2] + ordered[3]) / 2)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("reweight")


@pytest.mark.usefixtures("quick_compilation")
def test_a_student_is_its_own_teacher(script: Any, tmp_path: Path) -> None:
    """Energies and stress of the labels against those of the calculator, on frames of NPT."""
    bundle = save_bundle(small_student(), tmp_path / "student", {})
    ase.io.write(tmp_path / "cell.xyz", triclinic_cell())
    folder = tmp_path / "run"
    md = "md={ensemble: npt_scr, timestep: 0.1, steps: 80, record_every: 5, block_steps: 40}"
    common = [f"model={bundle}", f"structure={tmp_path / 'cell.xyz'}", "replicas=2", "format=h5md"]
    safety = "safety={contacts: ignore, temperature: ignore, drift: ignore, bonds: ignore}"
    assert script.simulate.main([*common, md, safety, f"output={folder}"]) == 0
    record = tmp_path / "records.json"
    config = script.ReweightConfig(
        run=folder,
        teacher=f"ase:distill.calculators:StudentCalculator?model={bundle}",
        students=(bundle,),
        frames=12,
        start=0.002,
        output=tmp_path / "reweighted",
        record=record,
        case="cell",
    )
    found = script.run(config)
    assert found == json.loads((config.output / "reweighted.json").read_text())
    assert found["frames"] == 12 and found["effective_share"] > 0.999
    density, pressure = found["averages"].values()
    summary = json.loads((folder / "summary.json").read_text())
    mean = np.mean([own["density_g_per_cm3"] for own in summary["replicas"]])
    assert density["student"] == pytest.approx(mean, rel=0.02)
    assert abs(density["difference"]) < 1e-5 * mean and density["student_error"] > 0
    assert abs(pressure["student"]) < 1e-3
    (same,) = found["students"].values()
    assert same["effective_share"] == pytest.approx(1)
    assert set(same["averages"]) == set(found["averages"])
    for name, average in found["averages"].items():
        assert same["averages"][name] == pytest.approx(average, rel=1e-5, abs=1e-7)
    assert (config.output / "reweighted.png").stat().st_size > 1000
    figures = {r["metric"]: r["value"] for r in read_records(record)}
    names = importlib.import_module("simulation_records")
    assert abs(figures[names.DEVIATION]) < 1e-3 and figures[names.FRAMES] == 12

    every = [frames_of(path) for path in sorted(folder.glob("run_*.h5md"))]
    every = [own[4:] for own in every]  # those after `start`, all of which are chosen
    factor = between(every[0])
    other = replace(config, frames=40, start=0.0021, output=tmp_path / "events")
    events = script.run(replace(other, bond_factors=(factor,)))["events"][0]
    changed = []
    for own in every:
        found = [bonds(one, factor) for one in own]
        usual = {p for some in found for p in some if 2 * sum(p in b for b in found) > len(own)}
        changed += [one != usual for one in found]
    assert (events["frames"], events["searched"]) == (sum(changed), len(changed))
    assert 0 < events["frames"] < events["searched"]
    assert events["ratio"] == pytest.approx(1, abs=1e-3)
    figures = {r["metric"]: r["value"] for r in read_records(record)}
    assert sum(changed) in figures.values()
    for wrong in ((0.0,), (float("nan"),), (1.3, 1.3)):
        with pytest.raises(ValueError, match="bond_factors must be positive and different"):
            replace(config, bond_factors=wrong)

    with pytest.raises(DatasetError, match="run longer, leave less out"):
        script.run(replace(config, start=1.0))
    with pytest.raises(ConfigError, match="no folder of a finished run"):
        script.run(replace(config, run=tmp_path))
    settings = folder / "config.yaml"
    settings.write_text(settings.read_text().replace("npt_scr", "nve"))
    with pytest.raises(ConfigError, match="weights are defined for NVT and NPT"):
        script.run(config)
    with pytest.raises(ValueError, match="give case=NAME"):
        replace(config, case="")
