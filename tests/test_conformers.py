"""Populations of conformers, student against teacher."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import small_student

from distill.config import load_config
from distill.errors import ConfigError
from distill.evaluation.results import read_records
from distill.observables import Curve, overlap
from distill.students import save_bundle

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def conformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("conformers")


def test_wells_are_ranges_of_whole_turns(conformers: Any) -> None:
    angles = np.array([-179.0, 121.0, 239.0, 181.0, 60.0, 420.0, -60.0, 300.0, 0.0, 120.0])
    wells = conformers.ConformersConfig().wells
    found = {name: conformers.belongs(angles, *ends) for name, ends in wells.items()}
    assert found["trans"].tolist() == [True] * 4 + [False] * 5 + [True]
    assert found["gauche +"].tolist() == [False] * 4 + [True, True, False, False, True, False]
    assert (sum(found.values()) == 1).all(), "every angle belongs to one"


def test_the_distribution_is_that_of_the_angles(conformers: Any) -> None:
    rng = np.random.default_rng(0)
    angles = 180 + 15 * rng.standard_normal(4000)  # about the place where angles jump
    curve = conformers.distribution(angles)
    assert np.trapezoid(np.append(curve.mean, curve.mean[0]), dx=conformers.BIN) == pytest.approx(1)
    # A normal distribution of 15 degrees, of which the bins take averages.
    away = (curve.x + 360) % 360 - 180
    exact = np.exp(-0.5 * (away / 15) ** 2) / (15 * np.sqrt(2 * np.pi))
    assert overlap(curve, Curve(curve.x, exact[None])).value > 0.95
    assert np.abs(curve.mean - exact).max() < 5 * curve.error.max() + 0.002


def test_the_teachers_population_is_the_mean_of_its_runs(conformers: Any) -> None:
    rng = np.random.default_rng(1)
    shares = {"student": 0.5, "teacher": 0.7, "teacher, other seed": 0.8}
    found = {name: np.where(rng.random(5000) < p, 180.0, 60.0) for name, p in shares.items()}
    config = conformers.ConformersConfig(subject="small")
    figures = conformers.population_figures(config, found, "large")
    own, theirs = (f for f in figures if f.metric.endswith("trans"))
    assert (own.subject, theirs.subject) == ("small", "large")
    for figure, exact, samples in ((own, 0.5, 5000), (theirs, 0.75, 10_000)):
        half = 0.5 * (figure.spread[1] - figure.spread[0])
        assert abs(figure.value - exact) < 4 * half
        assert half == pytest.approx(np.sqrt(exact * (1 - exact) / samples), rel=0.5)


def test_the_settings_of_the_page_are_valid(conformers: Any) -> None:
    folder = ROOT / "experiments" / "configs" / "conformers"
    ladder = load_config(conformers.ConformersConfig, folder / "ladder.yaml")
    student = load_config(
        importlib.import_module("quickstart").QuickstartConfig, folder / "student.yaml"
    )
    assert ladder.student == student.output / "student" and ladder.structure == student.structure
    # The student knows all that the hottest replica sees.
    assert max(student.sampling.temperatures) > 1.2 * max(ladder.md.temperatures)


@pytest.mark.usefixtures("quick_compilation")
def test_the_script_keeps_finished_runs(
    conformers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = save_bundle(small_student(), tmp_path / "student", {})
    arguments = [
        "--smoke",
        f"student={student}",
        f"output={tmp_path / 'runs'}",
        f"record={tmp_path / 'a.json'}",
        f"curves={tmp_path / 'curves.json'}",
    ]
    assert conformers.main(arguments) == 0
    records = read_records(tmp_path / "a.json")
    for subject in ("student", "fennol:demo_chno.fnx"):
        shares = [
            r["value"]
            for r in records
            if r["subject"] == subject and r["metric"].startswith("population of ")
        ]
        assert len(shares) == 3 and sum(shares) == pytest.approx(1)
    assert any(r["metric"] == "overlap, dihedral" for r in records)
    curves = json.loads((tmp_path / "curves.json").read_text())["conformers"]["dihedral"]
    assert len(curves["x"]) == len(curves["student"]["mean"]) == len(curves["teacher"]["mean"])
    capsys.readouterr()
    assert conformers.main(arguments) == 0
    assert capsys.readouterr().out.count("kept from before") == 3
    with pytest.raises(ConfigError, match="is not of 9 atoms"):
        conformers.run(
            load_config(
                conformers.ConformersConfig, None, [f"student={student}", "dihedral=[0,1,2,9]"]
            )
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wells": {"trans": (10.0, 10.0)}}, "must rise"),
        ({"start": 1e6}, "leaves nothing"),
    ],
)
def test_bad_settings(conformers: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conformers.ConformersConfig(**values)
