"""Records of runs and certificates, and the page `docs/trust.md` that is made of them."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import small_student, triclinic_cell

from distill.config import load_config
from distill.errors import DistillError
from distill.evaluation.results import read_records
from distill.students import save_bundle

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script as a module, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module


def run_of(density: float, diffusion: float, shift: float) -> dict[str, Any]:
    x = np.linspace(0, 5, 11)
    blocks = [[shift + k * 0.1 + float(v) for v in x] for k in range(3)]
    return {
        "scalars": {"density_g_per_cm3": {"value": density, "error": 0.003}},
        "diffusion_cm2_per_s": {"O": {"value": diffusion, "error": None}},
        "curves": {
            "rdf H-O": {"x": x.tolist(), "blocks": blocks, "x_label": "Å", "y_label": "g"},
        },
    }


CERTIFICATE = {
    "overlaps": [
        {
            "curve": "rdf H-O",
            "overlap": 0.987,
            "error": 0.002,
            "teacher_with_itself": 0.991,
            "attainable": None,
        }
    ],
    "results": {
        "nve": {
            "drift_mev_per_atom_per_ns": -0.25,
            "standard_error": 0.1,
            "by_seed": [{}] * 4,
            "duration_ps": 50.0,
        },
        "stability": {
            "duration_ps": 20.0,
            "runs": [
                {"temperature": 400.0, "time": 20.0, "event": None},
                {"temperature": 400.0, "time": 7.5, "event": "atoms 1 and 2 were close"},
            ],
        },
        "dynamics": {
            "conditions": "npt_scr at 300 K",
            "student": run_of(1.03, 2e-5, 0.0),
            "teachers": [run_of(0.99, 1e-5, 0.1), run_of(1.01, 3e-5, 0.3)],
        },
    },
}
SUMMARY = {
    "time_ps": 100.0,
    "replicas": [
        {"temperature_K": 299.0, "density_g_per_cm3": None, "pressure_gpa": 0.2} | own
        for own in ({"drift_mev_per_atom_ps": 1e-3}, {"drift_mev_per_atom_ps": 3e-3})
    ],
    "faults": [{"kind": "drift", "replica": 0}, {"kind": "contacts", "replica": 1}],
}


def records_of(figures: list[Any]) -> list[dict[str, Any]]:
    made = {"command": "c", "machine": "m", "versions": {}, "commit": "1", "date": "2026-01-01"}
    return [{**json.loads(json.dumps(asdict(figure))), **made} for figure in figures]


def test_tables_of_runs_and_certificates(script):
    records, report = script("simulation_records"), script("report_simulation")
    figures = records.certificate_figures(CERTIFICATE, "water", "s", "t")
    figures += records.simulation_figures(SUMMARY, "300 K", "s")
    tables = report.tables(records_of(figures), [("water", "w.png")])
    assert "| water | s | 4 | 50 | -0.25 ± 0.1 |" in tables["drift"]
    assert "| water | s | rdf H-O | 0.9870 ± 0.0020 | 0.9910 |  |" in tables["overlaps"]
    # 1.03 against the mean of 0.99 and 1.01.
    assert "| water | s | density against the teacher | 3 ± 0.37 % |" in tables["bulk"]
    assert "| water | t | density | 1 ± 0.0021 g/cm³ |" in tables["bulk"]
    assert "| water | t | diffusion of O | 2e-05 cm²/s |" in tables["bulk"]
    assert "| water, stability at 400 K | s | 2 | 20 | 1 |" in tables["runs"]
    # A drift is no event; the drift of the two is 1 and 3 meV/atom/ns.
    assert "| 300 K | s | 2 | 100 | 1 | 299 (299 to 299) |  |" in tables["runs"]
    assert "| 2 (1 to 3) |" in tables["runs"]
    assert tables["curves"] == "![water](images/w.png)"
    assert tables["loop"] == report.NOTHING


def test_replicas_of_a_ladder_are_cases_of_their_own(script):
    baths = [{"bath_K": 300.0, "bath_gpa": 0.1}, {"bath_K": 400.0, "bath_gpa": 0.1}]
    figures = script("simulation_records").simulation_figures(
        {**SUMMARY, "baths": baths}, "water", "s"
    )
    events = {f.case: f.value for f in figures if f.metric == "runs with an unphysical event"}
    assert events == {"water, 300 K, 0.1 GPa": 0, "water, 400 K, 0.1 GPa": 1}


def test_curves_are_means_of_both_runs_of_the_teacher(script, tmp_path):
    records, path = script("simulation_records"), tmp_path / "a_curves.json"
    for case in ("first", "second"):
        records.add_curves(CERTIFICATE["results"]["dynamics"], path, case)
    found = records.read_curves(path)
    assert list(found) == ["first", "second"]
    curve = found["second"]["rdf H-O"]
    # Blocks are 0.1 apart, the two runs 0.1 and 0.3 above the student's.
    np.testing.assert_allclose(np.subtract(curve["teacher"]["mean"], curve["student"]["mean"]), 0.2)
    assert curve["student"]["error"][0] == pytest.approx(0.1 / 3**0.5, rel=1e-3)
    script("report_simulation").plot("first", found["first"], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    for content in ("[]", '{"a": {"b": {}}}', "{"):
        path.write_text(content)
        with pytest.raises(DistillError, match="does not hold curves"):
            records.read_curves(path)


def test_the_page_shows_what_was_recorded(script):
    report = script("report_simulation")
    page = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    path = ROOT / "docs" / "results" / "simulation.json"
    records = read_records(path) if path.is_file() else []
    tables = report.tables(records, [])
    del tables["curves"], tables["shapes"]  # made of other files
    assert script("report_results").fill(page, tables) == page


def test_settings_of_the_runs_are_valid(script):
    folder = ROOT / "experiments" / "configs" / "water_nep"
    for name, settings in (("simulate", "SimulateConfig"), ("certify", "CertifyConfig")):
        paths = sorted(folder.glob(f"{name}_*.yaml"))
        assert paths
        for path in paths:
            config = load_config(getattr(script(name), settings), path)
            assert config.record == Path("docs/results/simulation.json") and config.case
    assert load_config(script("simulate").SimulateConfig, folder / "box_5184.yaml").repeat == (
        3,
        3,
        6,
    )


@pytest.mark.usefixtures("quick_compilation")
def test_densities_of_both_programs_are_recorded(script, tmp_path):
    student = save_bundle(small_student(), tmp_path / "student", {})
    triclinic_cell().write(tmp_path / "cell.xyz")
    arguments = [
        f"student={student}",
        f"structure={tmp_path / 'cell.xyz'}",
        f"output={tmp_path / 'a.json'}",
    ]
    compare = script("compare_npt")
    assert compare.main(["--smoke", *arguments]) == 0
    found = {(r["case"], r["metric"]): r["value"] for r in read_records(tmp_path / "a.json")}
    ours, theirs = (found[f"density in NPT, {name}", "density"] for name in ("our loop", "ASE"))
    # Over 2 fs the volume hardly moves: both are near the start.
    grams = triclinic_cell().get_masses().sum() * 1.66053907
    start = grams / triclinic_cell().cell.volume
    assert ours == pytest.approx(start, rel=0.05) and theirs == pytest.approx(start, rel=0.05)
    assert ours != theirs and np.isfinite(found["density in NPT", compare.AGREEMENT])
