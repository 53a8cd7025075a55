"""Student against teacher: what passes, what fails, and what cannot be told; ASE's integrators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from morse_teacher import LENGTH, morse

from distill.calculators import TeacherCalculator
from distill.data import Labels
from distill.errors import ConfigError
from distill.evaluation.dynamics import compare_curves, dynamics_checks, overlap_check, record_of
from distill.evaluation.teacher_ase import run_with_ase
from distill.evaluation.verdict import Limits
from distill.observables import Observables, ObservablesConfig
from distill.simulation import MDConfig


def gaussian_run(seed: int, centre: float = 2.0, blocks: int = 8, noise: float = 0.02) -> Any:
    """A record whose curves are a Gaussian peak with noise."""
    x = np.linspace(0.0, 4.0, 81)
    peak = np.exp(-0.5 * ((x - centre) / 0.3) ** 2)
    rng = np.random.default_rng(seed)
    curve = {
        "x": x.tolist(),
        "blocks": np.abs(peak + noise * peak * rng.standard_normal((blocks, 1))).tolist(),
        "x_label": "r",
        "y_label": "g",
    }
    rng = np.random.default_rng(100 + seed)
    return {
        "curves": {"rdf O-H": curve, "vdos all": curve, "msd O": curve},
        "scalars": {"density_g_per_cm3": {"value": 1.0 + 1e-3 * rng.normal(), "error": 1e-3}},
        "diffusion_cm2_per_s": {
            "O": {"value": 2e-5 + 1e-6 * rng.normal(), "error": 1e-6, "exponent": 1.0}
        },
    }


def statuses(student: Any, **options: Any) -> dict[str, str]:
    given = {"periodic": True, "constant_pressure": True, **options}
    checks = dynamics_checks(student, [gaussian_run(1), gaussian_run(2)], Limits(), **given)
    return {check.name.partition(" ")[0]: check.status for check in checks}


def test_equal_runs_pass_and_others_fail():
    assert set(statuses(gaussian_run(3)).values()) == {"pass"}
    moved = gaussian_run(3, centre=2.1)
    assert statuses(moved)["RDF"] == "fail"
    dense = gaussian_run(3)
    dense["scalars"]["density_g_per_cm3"]["value"] = 1.05
    dense["diffusion_cm2_per_s"]["O"]["value"] = 4e-5
    assert statuses(dense)["density"] == statuses(dense)["diffusion"] == "fail"


def test_what_error_bars_leave_open_is_not_decided():
    vague = gaussian_run(3)
    vague["scalars"]["density_g_per_cm3"]["error"] = 0.02
    vague["diffusion_cm2_per_s"]["O"]["error"] = None
    found = statuses(vague)
    assert found["density"] == found["diffusion"] == "undecided"
    caged = gaussian_run(3)
    caged["diffusion_cm2_per_s"]["O"]["exponent"] = 0.3
    assert statuses(caged)["diffusion"] == "undecided"
    isolated = statuses(gaussian_run(3), periodic=False)
    assert isolated["density"] == isolated["diffusion"] == "not applicable"
    assert statuses(gaussian_run(3), constant_pressure=False)["density"] == "not measured"
    short = {**gaussian_run(3), "curves": {}, "diffusion_cm2_per_s": {}}
    found = statuses(short)
    assert found["RDF"] == found["VDOS"] == found["diffusion"] == "not measured"


def test_overlap_is_judged_by_the_teacher_with_itself():
    def status(overlap: float, itself: float, attainable: float = 1.0) -> str:
        row = {
            "curve": "rdf O-H",
            "overlap": overlap,
            "teacher_with_itself": itself,
            "attainable": attainable,
        }
        return overlap_check("RDF", [row], limit=0.98, noise=2.0).status

    assert status(0.99, 0.995) == "pass"
    assert status(0.985, 0.999) == "fail"  # above the limit, but 15 times the noise
    assert status(0.985, 0.999, 0.99) == "pass"  # the teacher's runs agree by chance
    assert status(0.985, 0.999, np.nan) == "fail"
    assert status(0.95, 0.99) == "fail"
    assert status(0.95, 0.96) == "undecided"  # the runs are too short to tell


def test_only_densities_are_compared():
    rows = compare_curves(gaussian_run(3), [gaussian_run(1), gaussian_run(2)])
    assert [row["curve"] for row in rows] == ["rdf O-H", "vdos all"]
    assert all(row["overlap"] > 0.95 and row["teacher_with_itself"] > 0.95 for row in rows)


class PairTeacher:
    """Morse pairs, by the closed form."""

    def label(self, structures: Any, uncertainty: bool = False) -> Labels:
        energies, forces, _ = zip(*(morse(a.positions) for a in structures), strict=True)
        return Labels(np.array(energies), list(forces))


def test_ase_runs_conserve_energy_and_are_measured():
    atoms = Atoms("N2", positions=[[0, 0, 0], [0, 0, LENGTH]])
    config = MDConfig(timestep=1.0, temperature=200.0, steps=400, record_every=4, block_steps=400)
    frames: list[Any] = []
    run_with_ase(TeacherCalculator(PairTeacher()), atoms, config, frames.append, progress=False)
    total = np.array([f.total_energy[0, 0] for f in frames])
    times = [f.time[0] for f in frames]
    assert len(frames) == 100 and times[-1] == 400.0
    assert total.std() < 1e-3 * np.array([f.kinetic_energy[0, 0] for f in frames]).max()
    moved = frames[1].positions[0, 0] - frames[0].positions[0, 0]
    mean = 0.5 * (frames[1].velocities + frames[0].velocities)[0, 0]
    assert np.abs(moved / 4.0 - mean).max() < 2e-4  # Å/fs
    measured = Observables(
        atoms, ObservablesConfig(rdf=True, rdf_interval=4.0, r_max=3.0, r_width=0.1), 4.0
    )
    for frame in frames:
        measured(frame)
    record = record_of(measured.results()[0])
    curve = record["curves"]["rdf N-N"]
    density = np.mean(curve["blocks"], 0)
    assert density.sum() * 0.1 == pytest.approx(1.0)  # one distance, at the length of the bond
    assert abs(curve["x"][int(np.argmax(density))] - LENGTH) < 0.2
    with pytest.raises(ConfigError, match="which has no nvt_nose_hoover here"):
        hoover = MDConfig(ensemble="nvt_nose_hoover")
        run_with_ase(TeacherCalculator(PairTeacher()), atoms, hoover, frames.append, progress=False)
