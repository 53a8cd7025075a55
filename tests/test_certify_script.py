"""`experiments/certify.py`: the whole page of a bad student, resumed, and what it refuses."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from builders import water_box

from distill.data import Dataset, Labels, save
from distill.evaluation.domain import training_domain
from distill.evaluation.results import read_records
from distill.sampling import rattle
from distill.students import (
    StudentSpec,
    fit_uncertainty,
    initialise_student,
    load_bundle,
    save_bundle,
)

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def certify(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("certify")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A student whose forces are next to nothing, and data of three trajectories of water."""
    folder = tmp_path_factory.mktemp("certify")
    water = molecule("H2O")
    structures = rattle([water] * 12, 0.05)
    moves = np.stack([atoms.positions - water.positions for atoms in structures])
    names = [f"t{i // 4}" for i in range(12)]
    dataset = Dataset.from_structures(structures, names, "rattle:400K").labelled(
        Labels(energy=10 * (moves**2).sum((1, 2)) - 100.0, forces=list(-20 * moves))
    )
    save(dataset, folder / "dataset.h5")
    train, held_out = np.arange(4), np.arange(4, 8)
    spec = StudentSpec("moment", dataset.elements, 4.0, {"n_channels": 2, "hidden": [4]})
    student = initialise_student(spec, dataset, train)
    statistics = {**student.variables["statistics"], "energy_scale": np.float32(1e-6)}
    student = replace(student, variables={**student.variables, "statistics": statistics})
    student = replace(student, uncertainty=fit_uncertainty(student, dataset, train, held_out))
    card = {
        "dataset": {"trajectories": {"test": ["t2"]}, "train": 4},
        "domain": training_domain(dataset, train),
    }
    bundle = save_bundle(student, folder / "student", card)
    return [f"bundle={bundle}", f"dataset={folder / 'dataset.h5'}"]


def test_smoke_again_and_in_parts(certify, case, tmp_path, demo_teacher_path, capsys):
    output = tmp_path / "certificate"
    arguments = ["--smoke", *case, f"teacher=fennol:{demo_teacher_path}", f"output={output}"]
    published = [f"record={tmp_path / 'a.json'}", f"curves={tmp_path / 'a_curves.json'}", "case=c"]
    assert certify.main([*arguments, *published, "subject=s"]) == 0
    certificate = json.loads((output / "certificate.json").read_text())
    checks = {check["name"]: check for check in certificate["checks"]}
    assert certificate["verdict"]["passed"] is False
    assert checks["force R²"]["status"] == "fail"
    assert checks["forces are the gradient of the energy"]["status"] == "pass"
    assert checks["density"]["status"] == checks["diffusion"]["status"] == "not applicable"
    assert checks["NVE drift"]["status"] in ("pass", "fail", "undecided")
    assert checks["RDF of student and teacher"]["value"].startswith("rdf")
    assert checks["the tested system lies within the training data"]["status"] in ("pass", "fail")
    assert certificate["provenance"]["licence of the teacher"] == "unknown"
    assert len(certificate["results"]["stability"]["runs"]) == 2
    html = (output / "certificate.html").read_text()
    for name in ("accuracy", "nve", "stability", "contacts", "calibration", "rdf", "vdos"):
        assert (output / f"{name}.png").stat().st_size > 3000
    assert html.count("data:image/png;base64,") == 7
    records = {(r["subject"], r["metric"]): r for r in read_records(tmp_path / "a.json")}
    drift, row = records["s", "NVE drift"], certificate["overlaps"][0]
    assert drift["value"] == certificate["results"]["nve"]["drift_mev_per_atom_per_ns"]
    assert drift["unit"] == "meV/atom/ns" and "case=c" in drift["command"]
    assert records["s", f"overlap, {row['curve']}"]["value"] == pytest.approx(row["overlap"])
    assert records["s", "runs with an unphysical event"]["value"] in (0, 1, 2)
    curves = json.loads((tmp_path / "a_curves.json").read_text())["c"]
    assert len(curves["rdf H-O"]["teacher"]["mean"]) == len(curves["rdf H-O"]["x"])
    page = (output / "certificate.md").read_text()
    for title in ("Verdict", "Stability", "Domain of validity", "Speed", "Provenance"):
        assert f"## {title}" in page
    walls = certificate["results"]["contacts"]["approaches"]
    assert walls and all(f"| {wall['name']} | " in page for wall in walls)
    # Again: nothing is measured; one part left out is one that was not measured.
    capsys.readouterr()
    parts = "parts=[accuracy, consistency, stability, contacts, dynamics, density, speed]"
    assert certify.main([*arguments, parts]) == 0
    printed = capsys.readouterr().out
    assert "kept from before" in printed and "measuring" not in printed
    again = json.loads((output / "certificate.json").read_text())
    checks = {check["name"]: check["status"] for check in again["checks"]}
    assert checks["NVE drift"] == "not measured" and "nve" not in again["results"]
    assert again["results"]["stability"] == certificate["results"]["stability"]
    # Other settings of a part: that part alone is measured again.
    assert (
        certify.main([*arguments, "parts=[consistency, accuracy]", "consistency.components=2"]) == 0
    )
    printed = capsys.readouterr().out
    assert "consistency: measuring" in printed and "accuracy: kept" in printed


def test_the_density_of_a_liquid(certify, case, tmp_path, demo_teacher_path):
    output, start = tmp_path / "certificate", tmp_path / "start.xyz"
    water_box(2).write(start)
    arguments = [
        *case,
        f"teacher=fennol:{demo_teacher_path}",
        f"structure={start}",
        f"output={output}",
        "parts=[density]",
        "density.md={temperature: 20.0, timestep: 0.1, steps: 60, record_every: 2}",
        "density.md.block_steps=20",
        "density.replicas=2",
        "density.start=0.001",
        "density.frames=20",
        f"record={tmp_path / 'a.json'}",
        "case=c",
        "subject=s",
    ]
    assert certify.main(arguments) == 0
    certificate = json.loads((output / "certificate.json").read_text())
    found = certificate["results"]["density"]
    checks = {check["name"]: check for check in certificate["checks"]}
    assert found["frames"] == 16 and 0.05 <= found["effective_share"] <= 1.0
    assert checks["density"]["value"].startswith(f"{found['percent']:+.2f}")
    assert checks["RDF of student and teacher"]["status"] == "not measured"
    assert "the teacher, from 16 of these frames" in (output / "certificate.md").read_text()
    assert (output / "density.png").stat().st_size > 3000
    records = {(r["case"], r["metric"]): r["value"] for r in read_records(tmp_path / "a.json")}
    assert records["c, density at 20 K and 1 bar", "density"] == pytest.approx(found["student"])
    assert len(list((output / "parts").glob("density_*.h5"))) == 1
    # A part of which the dynamics tell is not measured twice.
    assert certify.main([*arguments, "dynamics.md={ensemble: npt_scr}", "parts=[density]"]) == 0
    again = json.loads((output / "certificate.json").read_text())
    assert again["results"]["density"] is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("contacts.up_to=0.0", "must be positive"),
        ("density.md.ensemble=nve", "density: .* constant pressure"),
        ("density.frames=10", "density: .* too few"),
    ],
)
def test_settings_are_checked_before_anything_runs(setting, message, certify, case, capsys):
    with pytest.raises(SystemExit):
        certify.main([*case, setting])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (["t9"], "holds none of the held-out trajectories, for example t9"),
        ([], "which trajectories were held out: give split=FILE"),
    ],
)
def test_unknown_held_out_trajectories(test, message, certify, case, tmp_path, capsys):
    (tmp_path / "split.json").write_text(json.dumps({"test": test}))
    arguments = [*case, f"split={tmp_path / 'split.json'}", f"output={tmp_path / 'out'}"]
    assert certify.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_records_need_a_case(certify, case, tmp_path, capsys):
    with pytest.raises(SystemExit):
        certify.main([*case, f"record={tmp_path / 'a.json'}"])
    assert "give case=NAME" in capsys.readouterr().err


def test_another_teacher_is_refused(certify, case, tmp_path, demo_teacher_path, capsys):
    bundle = load_bundle(case[0].removeprefix("bundle="))
    card = {**bundle.card, "teacher": {"teacher": "fennol:other", "weights_sha256": "0" * 64}}
    other = save_bundle(bundle.student, tmp_path / "student", card)
    arguments = [f"bundle={other}", case[1], f"teacher=fennol:{demo_teacher_path}"]
    assert certify.main([*arguments, "parts=[speed]", f"output={tmp_path / 'out'}"]) == 1
    assert "other weights than fennol:other" in capsys.readouterr().err
