"""`experiments/on_policy.py`: the smoke run, interruptions at every stage, gate and budget."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import ethanol, frames_of, small_student

from distill.data import load
from distill.errors import ConfigError
from distill.evaluation.domain import training_domain
from distill.sampling.on_policy import ChoiceConfig, candidates_of_run, choose_frames
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
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script as a module, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module


def test_frames_before_an_event_come_first_then_uncertain_ones():
    atoms = ethanol()
    rng = np.random.default_rng(0)
    positions = atoms.positions + 0.05 * rng.standard_normal((12, 9, 3))
    positions[11, 0] = positions[11, 1] + [0.1, 0.0, 0.0]  # the event itself is too close
    expected = np.full((12, 9), 0.1)
    expected[3, 4] = expected[5, 2] = 0.9
    frames = frames_of(positions, uncertainty=expected)
    config = ChoiceConfig(before_event=3)
    found, reasons = candidates_of_run(atoms, frames, True, "run", "on_policy", 0.5, config)
    assert reasons == ["ordinary"] * 3 + ["uncertain", "ordinary", "uncertain"] + (
        ["ordinary"] * 3 + ["event"] * 2
    )
    np.testing.assert_allclose(found.structure(10).positions, positions[10])
    chosen, why = choose_frames(found, reasons, 6)
    assert sorted(why) == ["event", "event", "ordinary", "ordinary", "uncertain", "uncertain"]
    for i in range(4):
        assert chosen.structure(i).positions.tolist() in positions[[3, 5, 9, 10]].tolist()
    few, why = choose_frames(found, reasons, 2)
    assert len(few) == 2 and "ordinary" not in why
    with pytest.raises(ConfigError, match="no frame of the runs can be labelled"):
        choose_frames(found.subset(np.zeros(0, int)), [], 3)
    with pytest.raises(ConfigError, match="quantile lies between 0 and 1"):
        ChoiceConfig(quantile=1.5)


def test_a_warm_start_is_the_student_of_the_bundle(script, tmp_path):
    job = script("training_job")
    student = small_student()
    bundle = save_bundle(student, tmp_path / "student", {})
    start = job.warm_start(bundle, student.spec)
    atoms = [ethanol()]
    np.testing.assert_array_equal(start.label(atoms).forces[0], student.label(atoms).forces[0])
    with pytest.raises(ConfigError, match="cannot be trained on"):
        job.warm_start(bundle, replace(student.spec, cutoff=3.0))
    # What the first training found out from its data need not be asked for.
    options = {**student.spec.options, "n_neighbors": 12.5}
    known = replace(student, spec=replace(student.spec, options=options))
    bundle = save_bundle(known, tmp_path / "known", {})
    asked = {key: value for key, value in options.items() if key != "n_neighbors"}
    start = job.warm_start(bundle, replace(student.spec, options=asked))
    assert start.spec.options["n_neighbors"] == 12.5
    with pytest.raises(ConfigError, match="cannot be trained on"):
        job.warm_start(bundle, replace(student.spec, options={**asked, "n_neighbors": 20.0}))


def fake_training(job: Any, asked: list[Any]) -> Any:
    """In place of a training: a student of almost no forces whose error falls with the data."""

    def run(config: Any) -> None:
        asked.append(config)
        data = job.load_data(config)
        train, validation = data.parts["train"], data.parts["validation"]
        spec = StudentSpec("moment", data.dataset.elements, 4.0, {"n_channels": 2, "hidden": [4]})
        student = initialise_student(spec, data.dataset, train)
        statistics = {**student.variables["statistics"], "energy_scale": np.float32(1e-6)}
        student = replace(student, variables={**student.variables, "statistics": statistics})
        expected = fit_uncertainty(student, data.dataset, train, validation)
        n = len(train) + len(validation)
        card = {
            "dataset": {"train": len(train)},
            "errors": dict.fromkeys(
                ("force_mae_mev_per_ang", "force_rmse_mev_per_ang"), 1000.0 / n
            ),
            "training": {"steps": 1},
            "domain": training_domain(data.dataset, train),
        }
        save_bundle(replace(student, uncertainty=expected), config.output / "student", card)
        (config.output / "split.json").write_text("{}")

    return run


STAGES = ("prepare", "train_round", "run_student", "choose", "label")


def interrupted_after(stage: Any) -> Any:
    def run(*arguments: Any) -> None:
        stage(*arguments)
        raise KeyboardInterrupt

    return run


def test_interrupted_at_every_stage_gives_the_same(
    script, tmp_path, monkeypatch, demo_teacher_path, capsys
):
    on_policy, train, job = script("on_policy"), script("train"), script("training_job")
    monkeypatch.chdir(tmp_path)
    train.make_smoke_data(train.SMOKE_DATA)
    asked: list[Any] = []
    monkeypatch.setattr(train, "run", fake_training(job, asked))
    arguments = [
        "--smoke",
        f"teacher=fennol:{demo_teacher_path}",
        "runs={temperatures: [300.0], replicas: 2, duration: 0.01, record_every: 5}",
        "runs.safety.bonds=ignore",
        "force_mae_mev_per_ang=1.0",
    ]
    assert on_policy.main([*arguments, "output=whole"]) == 0
    assert "the rounds are used up: force MAE" in capsys.readouterr().out
    assert [config.start for config in asked] == [None, Path("whole/round_00/train/student")]
    for name in STAGES:
        stage = getattr(on_policy, name)
        monkeypatch.setattr(on_policy, name, interrupted_after(stage))
        with pytest.raises(KeyboardInterrupt):
            on_policy.main([*arguments, "output=parts"])
        monkeypatch.setattr(on_policy, name, stage)
    assert on_policy.main([*arguments, "output=parts"]) == 0
    reports = []
    for folder in ("whole", "parts"):
        report = json.loads(Path(folder, "report.json").read_text())
        for one in report["rounds"]:
            one.pop("seconds_of_runs")
        reports.append(report)
        assert Path(folder, "report.png").stat().st_size > 3000
    assert reports[0] == reports[1]
    first, second = reports[0]["rounds"]
    assert first["labelled"] == 6 and "labelled" not in second
    assert second["force_mae_mev_per_ang"] < first["force_mae_mev_per_ang"]
    for name in ("candidates", "chosen", "labels"):
        files = [load(f"{folder}/round_00/{name}.h5") for folder in ("whole", "parts")]
        assert files[0].sha256 == files[1].sha256
    labels, held_out = files[0], load("whole/held_out.h5")
    assert np.isfinite(labels.energy).all()
    assert not set(labels.trajectory) & set(held_out.trajectory)
    assert set(asked[-1].datasets) == {
        Path("parts/seed.h5"),
        Path("parts/round_00/labels.h5"),
    }
    # A larger budget goes on; the gate ends the loop, other settings are refused.
    assert on_policy.main([*arguments, "output=parts", "force_mae_mev_per_ang=1e9"]) == 0
    assert "the gate is passed" in capsys.readouterr().out
    assert len(json.loads(Path("parts/report.json").read_text())["rounds"]) == 1
    assert on_policy.main([*arguments, "output=parts", "choice.labels=3"]) == 1
    assert "other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_smoke(script, tmp_path, monkeypatch, demo_teacher_path):
    on_policy = script("on_policy")
    monkeypatch.chdir(tmp_path)
    assert on_policy.main(["--smoke", f"teacher=fennol:{demo_teacher_path}"]) == 0
    report = json.loads((tmp_path / "runs/smoke/on_policy/report.json").read_text())
    assert report["rounds"][0]["labelled"] == 6
    last = tmp_path / f"runs/smoke/on_policy/round_{len(report['rounds']) - 1:02d}/train/student"
    assert load_bundle(last).student.uncertainty is not None
    found = load_bundle(tmp_path / "runs/smoke/on_policy/student").card
    assert found["sha256"] == load_bundle(last).card["sha256"]
