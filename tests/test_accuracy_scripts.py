"""The scripts from sampling to evaluation run one after the other, and leave what they promise."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from builders import small_student

from distill.data import load, save
from distill.errors import ConfigError, TrainingError
from distill.evaluation.results import read_records
from distill.students import load_bundle, save_bundle
from distill.training import TrainingConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

MAE = "force_mae_mev_per_ang"
TINY = "n_radial: 4, n_channels: 2, max_l: 1, n_triples: 0"
"""Options of a student that compiles quickly."""

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script as a module, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scripts")


def test_train_and_evaluate(script, folder, monkeypatch, capsys):
    train, evaluate = script("train"), script("evaluate")
    report_accuracy = script("report_accuracy")
    monkeypatch.chdir(folder)
    options = ["training.max_steps=40", "training.validation_every=20"]
    options.append(f"student.options={{{TINY}}}")
    assert train.main(["--smoke", *options]) == 0
    run = folder / train.SMOKE_RUN
    for name in ("config.yaml", "split.json", "learning_curve.png", "student", "training"):
        assert (run / name).exists()
    student = load_bundle(run / "student").student
    assert student.uncertainty is not None
    records = folder / "accuracy.json"
    assert evaluate.main(["--smoke", f"record={records}", "case=ethanol"]) == 0
    errors = json.loads((run / "errors.json").read_text())
    assert (run / "reliability.png").exists() and (run / "force_parity.png").exists()
    by_metric = {r["metric"]: r for r in read_records(records)}
    tenths = [by_metric[f"predicted_error_tenth_{t}_mev_per_ang"]["value"] for t in range(1, 11)]
    assert tenths == sorted(tenths)
    assert tenths[0] <= by_metric["predicted_error_rms_mev_per_ang"]["value"] <= tenths[-1]
    assert by_metric["force_mae_mev_per_ang"]["value"] == errors["force_mae_mev_per_ang"] > 0
    assert by_metric["parameters"]["value"] == student.n_parameters
    students = report_accuracy.by_student(read_records(records))
    table = report_accuracy.table(students)
    assert "| ethanol | train | " in report_accuracy.uncertainty_table(students)
    assert f"| ethanol | train | 16 | {student.n_parameters} |" in table
    for plot in (report_accuracy.plot_errors, report_accuracy.plot_uncertainty):
        report_accuracy.save(plot(students), folder / "plot.png")
        assert (folder / "plot.png").stat().st_size > 5000
    # Against labels of another method: here the same ones, off by a constant.
    dataset = load(train.SMOKE_DATA)
    save(replace(dataset, forces=dataset.forces + 0.25), folder / "reference.h5")
    against = evaluate.main(["--smoke", f"reference={folder / 'reference.h5'}"])
    assert against == 0
    errors = json.loads((run / "errors.json").read_text())
    assert errors["teacher_against_reference_mae_mev_per_ang"] == pytest.approx(250.0)
    assert errors["student_against_reference_mae_mev_per_ang"] > 100.0
    # Other settings do not overwrite a run; the same ones find it done.
    assert train.main(["--smoke", *options, "seed=1"]) == 1
    assert "other settings" in capsys.readouterr().err
    split = json.loads((run / "split.json").read_text())
    assert not set(split["train"]) & set(split["test"])
    # Data that changed since: the record of what was held out stays as it is.
    whole = load(train.SMOKE_DATA)
    save(whole.subset(np.arange(len(whole) - 1)), train.SMOKE_DATA)
    assert train.main(["--smoke", *options]) == 1
    assert "holds a run on other data" in capsys.readouterr().err
    assert json.loads((run / "split.json").read_text()) == split
    save(whole, train.SMOKE_DATA)
    job = script("training_job")
    # Nested subsets of the same training structures.
    config = job.TrainConfig(
        datasets=[train.SMOKE_DATA], split=job.SplitConfig(train=0.5, validation=0.25, test=0.25)
    )
    subsets = [
        set(job.load_data(replace(config, nested=True, n_train=n)).parts["train"].tolist())
        for n in (3, 5, 11)
    ]
    assert [len(subset) for subset in subsets] == [3, 5, 11]
    assert subsets[0] < subsets[1] < subsets[2]


def test_sampling_without_a_potential(script, folder, monkeypatch, capsys):
    sample = script("sample")
    monkeypatch.chdir(folder)
    output = folder / "rattled.h5"
    arguments = [
        "system={crystal: {structure: Cu, repeats: [2, 2, 1], strains: [0.0, 0.02]}}",
        "rattle={copies: 6, standard_deviations: [0.05], strain: 0.01}",
        f"output={output}",
    ]
    assert sample.main([*arguments, "select=9"]) == 0
    dataset = load(output)
    assert len(dataset) == 9 and dataset.pbc.all()
    assert len(load(folder / "rattled_all.h5")) > 9
    assert set(dataset.parent) > {-1}
    moved = f"output={folder / 'moved.h5'}"
    last = [f"system={{dataset: {output}}}", "rattle={copies: 4, standard_deviations: [0.02]}"]
    assert sample.main([*last, moved, "spread=true"]) == 0
    spread = load(folder / "moved.h5")
    names = list(dict.fromkeys(dataset.trajectory))
    assert len(set(spread.trajectory[:2])) == len(names) == 2
    for name in names:  # the start of each is the last frame of a trajectory
        start = np.flatnonzero(np.char.startswith(spread.trajectory, f"{name}-rattle"))[0]
        last_frame = np.flatnonzero(dataset.trajectory == name)[-1]
        np.testing.assert_allclose(
            spread.structure(start).positions, dataset.structure(last_frame).positions
        )
    squeeze = [arguments[0], "squeeze={copies: 3, closest: 0.8}", f"output={folder / 'near.h5'}"]
    assert sample.main(squeeze) == 0
    near = load(folder / "near.h5")
    assert len(near) == 2 * (1 + 3)
    assert sum(origin.startswith("squeeze:Cu-Cu:") for origin in near.origin) == 6
    assert sample.main(arguments[:1]) == 1
    assert "at least one of md, tree, rattle and squeeze" in capsys.readouterr().err


def test_sampling_with_a_student(script, tmp_path):
    sample = script("sample")
    bundle = save_bundle(small_student(), tmp_path / "student", {"teacher": "fennol:test"})
    output = tmp_path / "sampled.h5"
    arguments = [
        "system={liquid: {molecules: {H2O: 3}, densities: [0.5]}}",
        f"potential=bundle:{bundle}",
        "md={temperatures: [50.0], replicas: 2, frames: 2, spacing: 1.0, equilibration: 1.0}",
        "tree={structures: 4, batch: 2, rattle: 0.02, relaxation_steps: 1, temperature: 5000.0}",
        f"output={output}",
    ]
    assert sample.main(arguments) == 0
    dataset = load(output)
    assert dataset.pbc.all() and len(dataset) == 2 * 2 + 4
    origins = " ".join(sorted(set(dataset.origin)))
    assert "md:student" in origins and "tree" in origins


def test_sweep_prunes_what_falls_behind(script, tmp_path, monkeypatch):
    sweep = script("sweep")
    asked: list[float] = []

    def stub(config, data, *, progress, on_validation):
        rate = config.training.learning_rate
        asked.append(rate)
        if len(asked) == 5:
            raise TrainingError("diverged")
        for step in (100, 200, 300, 400):
            on_validation(step, {"validation_force_mae": rate * (1 + 100 / step)})

    monkeypatch.setattr(sweep, "train_student", stub)
    monkeypatch.setattr(sweep, "load_data", lambda config: None)
    config = sweep.SweepConfig(
        train=sweep.TrainConfig(training=TrainingConfig(validation_every=100)),
        space={"training.learning_rate": [1e-4, 1e-1]},
        trials=12,
        warmup_validations=1,
        output=tmp_path,
    )
    best = sweep.run(config)
    assert best["force_mae_ev_per_ang"] == pytest.approx(1.25 * best["training.learning_rate"])
    trials = optuna.load_study(
        study_name="distill", storage=f"sqlite:///{tmp_path}/study.db"
    ).trials
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(trials) == 12 and len(pruned) + len(finished) == 12
    early = [trial for trial in pruned if trial.intermediate_values]
    assert early and all(len(trial.intermediate_values) < 4 for trial in early)
    worst = min(trial.params["training.learning_rate"] for trial in early)
    assert best["training.learning_rate"] < worst
    assert [trial.number for trial in pruned if not trial.intermediate_values] == [4]
    assert sweep.run(replace(config, trials=13)) and len(asked) == 13


@pytest.mark.slow
def test_sweep_finds_and_resumes(script, folder, monkeypatch):
    sweep = script("sweep")
    monkeypatch.chdir(folder)
    assert sweep.main(["--smoke"]) == 0
    best = json.loads((folder / "runs/smoke/sweep/best.json").read_text())
    assert 1e-3 <= best["training.learning_rate"] <= 1e-2
    assert sweep.main(["--smoke", "trials=3"]) == 0
    assert sweep.main(["--smoke", "seed=1"]) == 1
    assert sorted(p.name for p in (folder / "runs/smoke/sweep").glob("trial_*")) == [
        "trial_0",
        "trial_1",
        "trial_2",
    ]


def test_study(script, folder, monkeypatch, capsys):
    train, study = script("train"), script("study")
    monkeypatch.chdir(folder)
    quick = ["train.training.max_steps=2", "train.training.validation_every=2"]
    quick.append(f"train.student.options={{{TINY}}}")
    quick.append(
        f"variants={{small: {{student.options: {{{TINY}, hidden: [8]}}}}, few: {{n_train: 4}}}}"
    )
    records = folder / "study.json"
    arguments = ["--smoke", *quick, f"record={records}", "case=sizes"]
    assert study.main(arguments) == 0
    with pytest.raises(ConfigError, match="variants is empty"):
        study.run(study.StudyConfig())
    table = capsys.readouterr().out.split("force MAE, meV/Å")[1]
    values = {r["subject"]: r["value"] for r in read_records(records) if r["metric"] == MAE}
    assert set(values) == {"small", "few"} and values["small"] != values["few"]
    assert f"{values['few']:.2f}" in table
    few = load_bundle(folder / "runs/smoke/study/few/student")
    assert few.card["dataset"]["train"] == 4
    assert study.main([*arguments, "only=[few]"]) == 0
    assert "small" not in capsys.readouterr().out
    # Again: nothing is trained, the same comes out; other settings are refused.
    monkeypatch.setattr(train, "run", None)
    assert study.main(arguments) == 0
    assert f"{values['few']:.2f}" in capsys.readouterr().out
    assert study.main([*arguments, "train.training.seed=1"]) == 1
    assert "other settings" in capsys.readouterr().err
    # Tests by trajectory.
    names = sorted(set(load(train.SMOKE_DATA).trajectory[load_test(folder, "small")]))
    assert study.main([*arguments, f"tests={{first: '{names[0]}'}}"]) == 0
    assert {r["case"] for r in read_records(records)} == {"sizes", "sizes, first"}
    assert "few, first" in capsys.readouterr().out
    for wrong, message in (
        ("variants={a b: {}, a_b: {}}", "differ only in signs"),
        ("variants={a: {student.cutof: 4}}", "cutof"),
        ("only=[few, big]", "only names 'big'"),
        ("tests={none: 'x*'}", "no trajectory fits"),
    ):
        assert study.main([*arguments, wrong]) == 1
        assert message in capsys.readouterr().err


def load_test(folder: Path, name: str) -> np.ndarray:
    """The held-out structures of a variant."""
    split = json.loads((folder / "runs/smoke/study" / name / "split.json").read_text())
    return np.flatnonzero(np.isin(load(folder / "runs/smoke/train.h5").trajectory, split["test"]))


def test_report_of_studies(script):
    report = script("report_accuracy")

    def row(case: str, subject: str, mae: float, structures: int = 100) -> list[dict[str, Any]]:
        values = {
            MAE: mae,
            "parameters": 10,
            "training_seconds": 5,
            "training_structures": structures,
            "teacher_spread_mev_per_ang": 80.0,
        }
        return [
            {"case": case, "subject": subject, "metric": metric, "value": value, "spread": [1, 99]}
            for metric, value in values.items()
        ]

    molecules = row("six molecules, CH4", "together", 12.0) + row(
        "six molecules, CH4", "CH4 alone", 10.0
    )
    table = report.molecules_table(report.by_student(molecules))
    assert "| CH4 | 10.0 | 12.0 | 1.20 | 80.0 |" in table
    ablation = report.by_student(
        row("ablation, water", "base", 20.0) + row("ablation, water", "half the cutoff", 30.0)
    )
    assert "| half the cutoff | 10 | 30.0 | +50 % | 5 |" in report.ablation_table(ablation)
    assert len(report.plot_ablation(ablation).axes[0].patches) == 2
    curve = row("water", "s, 1000", 20.0, 1000) + row("water", "s, 100", 40.0)
    alone = report.by_student(row("ablation, water", "half the cutoff", 30.0))
    assert "| 30.0 |  | 5 |" in report.ablation_table(alone)
    assert not report.plot_ablation(alone).axes[0].patches
    (line,) = report.plot_curves(report.by_student(curve)).axes[0].get_lines()
    assert line.get_xdata().tolist() == [100, 1000] and line.get_ydata().tolist() == [40, 20]
