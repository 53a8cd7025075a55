"""The parts of the complete certificate, each against something known."""

from __future__ import annotations

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from builders import ethanol, frames_of, morse_dataset, small_student, two_waters, water_box

from distill.data import Dataset, Labels
from distill.errors import DatasetError, SimulationError
from distill.evaluation.accuracy import Accuracy
from distill.evaluation.approach import contacts_check
from distill.evaluation.breakdown import calibration, error_breakdown
from distill.evaluation.consistency import energy_force_consistency
from distill.evaluation.domain import (
    closest_seen,
    density,
    outside_domain,
    shortest_distances,
    training_domain,
)
from distill.evaluation.kept_parts import KeptParts
from distill.evaluation.nve_drift import nve_drift
from distill.evaluation.report_page import Picture, Section, Table, to_html, to_markdown
from distill.evaluation.stability_time import run_until_event, summarise_outcomes
from distill.evaluation.verdict import Check, Limits, conclude, make_checks
from distill.simulation import MDConfig, SafetyConfig, Watch, run_md

pytestmark = pytest.mark.usefixtures("quick_compilation")


def unlabelled(structures: list[Atoms], origin: str = "md:teacher:500K") -> Dataset:
    return Dataset.from_structures(structures, "t", origin)


def test_shortest_distances_are_those_of_ase_and_count_images():
    box = water_box(2)
    everything = box.get_all_distances(mic=True)
    np.fill_diagonal(everything, np.inf)
    for pair, distance in shortest_distances(box).items():
        rows = [np.array(box.get_chemical_symbols()) == s for s in pair.split("-")]
        assert distance == pytest.approx(everything[rows[0]][:, rows[1]].min(), abs=1e-9)
    lone = Atoms("Cu", cell=[2.5, 9.0, 9.0], pbc=True)
    assert shortest_distances(lone) == pytest.approx({"Cu-Cu": 2.5})


def test_domain_of_molecules_and_of_liquids():
    domain = training_domain(unlabelled([ethanol(0), ethanol(1)]), [0, 1])
    assert domain["elements"] == ["H", "C", "O"] and domain["atoms"] == [9, 9]
    assert domain["vacuum"] and domain["densities_g_per_cm3"] is None
    assert domain["temperatures_k"] == [500.0]
    both = [shortest_distances(ethanol(seed))["C-H"] for seed in (0, 1)]
    assert domain["shortest_distances_ang"]["C-H"] == min(both)
    assert json.loads(json.dumps(domain)) == domain
    liquid = training_domain(unlabelled([water_box(2)], "packed"), [0])
    assert liquid["densities_g_per_cm3"] == pytest.approx([1.0, 1.0], rel=2e-3)
    assert not liquid["vacuum"] and liquid["temperatures_k"] == []
    # Copper, 8.96 g/cm³ at this lattice constant (textbook value).
    assert density(bulk("Cu", a=3.615)) == pytest.approx(8.94, abs=0.02)
    with pytest.raises(DatasetError, match="no structures"):
        training_domain(unlabelled([ethanol()]), [])


def test_what_lies_outside_the_domain_is_told():
    domain = training_domain(unlabelled([ethanol(seed) for seed in range(5)]), range(5))
    assert outside_domain(ethanol(0), domain) == []
    squeezed = ethanol(0)
    squeezed.positions[2] = squeezed.positions[8] + [0.0, 0.0, 0.7]
    (told,) = (t for t in outside_domain(squeezed, domain) if t.startswith("H-O"))
    assert "0.70 Å apart" in told
    assert "N is not among the training elements C, H, O" in outside_domain(molecule("N2"), domain)
    periodic = ethanol(0)
    periodic.set_cell([12.0] * 3)
    periodic.pbc = True
    assert "it is periodic, the training structures are not" in outside_domain(periodic, domain)
    liquid = training_domain(unlabelled([water_box(2)]), [0])
    dense = water_box(2)
    dense.set_cell(0.9 * dense.cell.array)
    assert any("density is 1.3" in told for told in outside_domain(dense, liquid))


def test_watch_knows_the_shortest_distances_of_training():
    atoms = two_waters()
    seen = closest_seen(training_domain(unlabelled([atoms]), [0]))
    assert seen[1, 8] == pytest.approx(0.969, abs=1e-3) and (8, 1) not in seen
    moved = atoms.positions.copy()
    moved[1] = moved[0] + 0.7 * (moved[1] - moved[0])  # 0.68 Å: fine for 0.5 Å, not for 0.8 x 0.969
    frames = frames_of(moved[None])
    config = SafetyConfig(drift="ignore")
    Watch(atoms, atoms.positions, 300.0, config)(frames)
    with pytest.raises(SimulationError, match=r"atoms 0 and 1 were 0\.68 Å apart"):
        Watch(atoms, atoms.positions, 300.0, config, closest=seen)(frames)
    loose = replace(config, contact_factor=0.6)
    Watch(atoms, atoms.positions, 300.0, loose, closest=seen)(frames)


def test_errors_fall_into_the_right_rows():
    dataset = morse_dataset(("H2O",), 12, 4)
    test = np.arange(4, 12)
    rows = np.concatenate([dataset.forces[dataset.rows(int(i))] for i in test])
    lengths = np.linalg.norm(rows, axis=1)
    strong = lengths > np.quantile(lengths, 0.9)
    errors = np.where(strong, 0.3, 0.1)[:, None] * np.ones(3)
    energy = dataset.energy[test] / 3
    numbers = np.concatenate([dataset.numbers[dataset.rows(int(i))] for i in test])
    accuracy = Accuracy(rows, rows + errors, energy, energy + 0.01, numbers, errors[:, 0])
    found = error_breakdown(accuracy, dataset, test)
    by_force = found["by_force"]
    assert sum(row["atoms"] for row in by_force) == len(rows)
    assert [row["mae"] for row in by_force[:3]] == pytest.approx([100.0] * 3)
    assert by_force[-1]["mae"] == pytest.approx(300.0) and by_force[-1]["to"] == lengths.max()
    assert {row["trajectory"] for row in found["by_trajectory"]} == {"t1", "t2"}
    assert {row["element"]: row["atoms"] for row in found["by_element"]} == {"H": 16, "O": 8}
    assert found["energy_rmse_mev_per_atom"] == pytest.approx(10.0)
    spread = 1e3 * (energy - energy.mean())
    assert found["energy_r2"] == pytest.approx(1 - 8 * 100 / (spread**2).sum())
    bins = calibration(accuracy)
    assert bins is not None and len(bins["predicted"]) == 10
    assert calibration(replace(accuracy, expected_errors=None)) is None


def test_consistency_finds_what_is_not_a_gradient(x64):
    student = small_student()

    def label(structures):
        return student.label(structures, dtype=np.float64)

    structures = [ethanol(0), two_waters()]
    good = energy_force_consistency(label, structures, components=6)
    assert good["components"] == 12 and good["worst_ev_per_ang"] < 1e-7

    def twisted(structures):
        labels = label(structures)
        return Labels(labels.energy, [f + 1e-4 for f in labels.forces])

    bad = energy_force_consistency(twisted, structures, components=6)
    assert bad["worst_ev_per_ang"] == pytest.approx(1e-4, rel=1e-2)
    assert bad["rms_ev_per_ang"] == pytest.approx(1e-4, rel=1e-2)


def test_differences_agree_with_another_program():
    """Lennard-Jones of ASE: forces are the gradient up to rounding."""
    cluster = Atoms("Ar4", positions=[[0, 0, 0], [3.7, 0, 0], [0, 3.9, 0], [0.3, 0.2, 3.8]])

    def label(structures):
        for atoms in structures:
            atoms.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=12.0, smooth=True)
        return Labels(
            np.array([a.get_potential_energy() for a in structures]),
            [a.get_forces() for a in structures],
        )

    assert energy_force_consistency(label, [cluster])["worst_ev_per_ang"] < 1e-9


def springs(positions):
    """Twelve atoms at rest on a line, each held by a spring."""
    rest = jnp.arange(12.0)[:, None] * jnp.array([2.0, 0.0, 0.0])
    return 2.0 * ((positions - rest) ** 2).sum()


def on_a_line() -> Atoms:
    return Atoms("C12", positions=np.arange(12.0)[:, None] * [2.0, 0.0, 0.0])


def test_drift_is_that_of_the_energy(toy_potential, x64):
    atoms = on_a_line()
    sound = toy_potential(springs, atoms.numbers, np.float64)
    common = {"temperature": 50.0, "duration": 0.5, "equilibration": 0.2, "replicas": 3}
    found = nve_drift(sound, atoms, progress=False, **common)
    assert abs(found["drift_mev_per_atom_per_ns"]) < 5 * found["standard_error"] + 1.0
    assert len(found["by_seed"]) == 3 and found["precision"] == "float64"
    slopes = [row["drift"] for row in found["by_seed"]]
    assert found["standard_error"] == pytest.approx(np.std(slopes, ddof=1) / np.sqrt(3))

    def heating(positions, lists):
        # Forces of another energy than the one that is told: the sum grows with the motion.
        energy, forces = sound.energy_and_forces(positions, lists)
        return 0.5 * energy, forces

    wrong = replace(sound, energy_and_forces=heating)
    assert (
        nve_drift(wrong, atoms, progress=False, **common)["fluctuation_mev_per_atom"]
        > 20 * found["fluctuation_mev_per_atom"]
    )
    with pytest.raises(ValueError, match="at least 2 replicas"):
        nve_drift(sound, atoms, **{**common, "replicas": 1})


def leaky(positions):
    """A bond that breaks beyond 0.35 Å of stretch, and nothing that brings the atoms back."""
    stretch = jnp.linalg.norm(positions[1] - positions[0] + 1e-9) - 1.2
    inside = 8.0 * stretch**2
    return jnp.where(jnp.abs(stretch) < 0.35, inside, 8.0 * 0.35**2)


def test_runs_last_when_cold_and_break_when_hot(toy_potential):
    atoms = Atoms("C2", positions=[[0, 0, 0], [0, 0, 1.2]])
    potential = toy_potential(leaky, atoms.numbers)
    starts = np.tile(atoms.positions, (4, 1, 1))
    md = MDConfig(
        ensemble="nvt_langevin", friction=0.05, steps=4000, record_every=20, block_steps=400
    )
    safety = SafetyConfig(bonds="stop", geometry_every=1)

    def outcomes(temperature):
        config = replace(md, temperature=temperature)
        return run_until_event(
            potential, atoms, starts, config, safety, keep_frames=True, progress=False
        )

    cold = outcomes(100.0)
    assert [o.event for o in cold] == [None] * 4
    assert all(o.time == pytest.approx(2.0) for o in cold)
    hot = outcomes(6000.0)
    assert all(o.event and "bonds of atoms [0, 1] had changed" in o.event for o in hot)
    for outcome in hot:
        assert outcome.frames is not None and 0 < outcome.time < 2.0
        assert outcome.frames.time[-1] == pytest.approx(1e3 * outcome.time)
        gaps = np.linalg.norm(np.diff(outcome.frames.positions, axis=1)[:, 0], axis=-1)
        bonded = gaps < 1.3 * 2 * 0.76
        assert bonded[:-1].all() and not bonded[-1]
    assert "frames" not in summarise_outcomes(hot)[0]


def test_a_run_that_breaks_down_does_not_take_others_along(toy_potential):
    atoms = Atoms("C", positions=[[0, 0, 0]])

    def cliff(positions):
        x = positions[0, 0]
        return 0.5 * (positions**2).sum() + jnp.where(x > 1.0, jnp.nan, 0.0) * x

    potential = toy_potential(cliff, atoms.numbers)
    starts = np.array([[[0.0, 0, 0]], [[2.0, 0, 0]]])
    md = MDConfig(
        ensemble="nvt_langevin", temperature=10.0, steps=40, record_every=10, block_steps=20
    )
    good, bad = run_until_event(potential, atoms, starts, md, SafetyConfig(), progress=False)
    assert good.event is None and good.time == pytest.approx(0.02)
    assert bad.event and "NaN" in bad.event and bad.time == 0.0
    with pytest.raises(SimulationError):
        run_md(potential, starts, md, progress=False)


GOOD = {
    "accuracy": {"force_r2": 0.9999, "force_mae_mev_per_ang": 10.0},
    "consistency": {"worst_ev_per_ang": 1e-9},
    "nve": {"drift_mev_per_atom_per_ns": 0.1, "standard_error": 0.2},
    "stability": {
        "duration_ps": 10.0,
        "runs": [{"event": None, "time": 10.0, "temperature": 400.0}],
    },
    "contacts_check": Check("energy of close contacts", "no hole", "no hole", "pass"),
    "dynamics_checks": [
        Check("RDF of student and teacher", "≥ 0.98", "0.99", "pass"),
        Check("density", "within 2 %", "+0.10 ± 0.10 %", "pass"),
    ],
    "calibration": {"predicted": [0.01, 0.02], "observed": [0.011, 0.021]},
    "domain": {"outside": []},
    "speed": {"md_speedup": 5.0},
}
BAD = {
    "accuracy": {"force_r2": 0.9, "force_mae_mev_per_ang": 10.0},
    "consistency": {"worst_ev_per_ang": 1e-3},
    "nve": {"drift_mev_per_atom_per_ns": -9.0, "standard_error": 0.2},
    "stability": {
        "duration_ps": 10.0,
        "runs": [{"event": "atoms 1 and 2", "time": 1.0, "temperature": 400.0}],
    },
    "contacts_check": Check("energy of close contacts", "no hole", "a hole", "fail"),
    "density_check": Check("density", "within 2 %", "+5.00 ± 0.10 %", "fail"),
    "density": {"broke_down": "NaN"},
    "calibration": {"predicted": [0.01, 0.02], "observed": [0.11, 0.21]},
    "domain": {"outside": ["N"]},
    "speed": {"md_speedup": 0.5},
}


def test_verdict_counts_only_what_was_measured():
    passed, sentence = conclude(make_checks(GOOD, Limits()))
    assert passed and sentence.startswith("Certified")
    for part, worse in BAD.items():
        failed, sentence = conclude(make_checks({**GOOD, part: worse}, Limits()))
        assert not failed and "failed" in sentence
        if part.startswith("density"):  # That of the dynamics counts where there is no other.
            continue
        missing = make_checks({**GOOD, part: None}, Limits())
        assert "not measured" in {check.status for check in missing}
        assert not conclude(missing)[0]
    assert not conclude(make_checks({**GOOD, "dynamics_checks": None}, Limits()))[0]
    assert not conclude(make_checks({}, Limits()))[0]
    # A density of its own takes the place of one that the dynamics did not measure.
    without = [Check("density", "within 2 %", "", "not measured", "at constant volume")]
    weighted = {**GOOD, "dynamics_checks": without, "density_check": GOOD["dynamics_checks"][1]}
    assert conclude(make_checks(weighted, Limits()))[0]
    # An error bar that reaches over the limit decides nothing, on either side.
    for drift in (0.9, 1.1):
        unsure = {**GOOD, "nve": {"drift_mev_per_atom_per_ns": drift, "standard_error": 0.2}}
        statuses = {check.name: check.status for check in make_checks(unsure, Limits())}
        assert (
            statuses["NVE drift"] == "undecided" and not conclude(make_checks(unsure, Limits()))[0]
        )
    nan = {**GOOD, "accuracy": {"force_r2": None, "force_mae_mev_per_ang": float("nan")}}
    assert [c.status for c in make_checks(nan, Limits())[:2]] == ["not measured"] * 2


def test_a_hole_counts_by_its_barrier():
    def wall(barrier=None):
        return {"name": "H-H, atoms", "barrier_ev": barrier, "largest_error_ev": 0.2}

    def check(*walls, temperature=300.0, **others):
        found = {"approaches": list(walls), "applies": True} | others
        return contacts_check(found, Limits(), temperature)

    assert check(applies=False).status == "not applicable"
    assert check().status == "not measured"
    assert check(broke_down="the energy is NaN").status == "fail"
    assert check(wall(), wall()).status == "pass"
    # 50 kT are 1.29 eV at 300 K.
    low = check(wall(3.0), wall(1.2))
    assert low.status == "fail" and "1.20 eV (46 kT)" in low.value
    assert check(wall(1.4)).status == check(wall(1.4), temperature=0.0).status == "pass"
    assert check(wall(1.4), temperature=400.0).status == "fail"


def test_parts_are_kept_until_something_changes(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"value": np.float64(len(calls)), "nothing": float("nan")}

    def get(identity="a", settings=3):
        return KeptParts(tmp_path, {"bundle": identity}).get("part", {"n": settings}, measure)

    assert get() == get() == {"value": 1.0, "nothing": None}
    assert get(settings=4)["value"] == 2.0
    assert get("b", 4)["value"] == 3.0
    (tmp_path / "part.json").write_text('{"key": "trunc')
    assert get("b", 4)["value"] == 4.0 and len(calls) == 4


def test_page_is_whole_and_escaped(tmp_path):
    picture = tmp_path / "plot.png"
    picture.write_bytes(b"\x89PNG not really")
    sections = [
        Section("A", ["x < y", Table(["a", "b"], [["1|2", "not measured"]])]),
        Section("B", [Picture(picture, "a plot")]),
    ]
    html = to_html("T & U", sections)
    assert "x &lt; y" in html and "T &amp; U" in html and 'class="not-measured"' in html
    assert "data:image/png;base64,iVBORyBub3QgcmVhbGx5" in html and "plot.png" not in html
    markdown = to_markdown("T", sections)
    assert "| 1\\|2 | not measured |" in markdown and "![a plot](plot.png)" in markdown
