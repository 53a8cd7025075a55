"""How good is a student: against its teacher, beside the teacher's own spread, against a reference.

    python experiments/evaluate.py run=runs/ethanol/moment_s dataset=runs/ethanol/dataset.h5
    python experiments/evaluate.py --smoke

With `record=docs/results/accuracy.json case=...` the figures become records, see
`report_accuracy.py`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture

import train
from distill.data import Dataset, load, structure_hashes
from distill.errors import ConfigError
from distill.evaluation import measure_accuracy
from distill.evaluation.accuracy import Accuracy
from distill.evaluation.plots import plot_force_parity, plot_reliability
from distill.evaluation.results import Figure, record_figures
from distill.students import Student, load_bundle, reliability
from distill.training.fit import teacher_spread
from script import run_script
from training_job import named

SMOKE = (f"run={train.SMOKE_RUN}", f"dataset={train.SMOKE_DATA}")


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings.

    Attributes:
        run: folder of `train.py`, whose student is tested.
        dataset: labelled structures; those of the run's held-out trajectories are used.
        trajectories: of them, only those whose name fits this pattern (`*` and `?` as in a shell).
        reference: the same structures with labels of a better method; the teacher and the student
            are then both compared with those.
        case: name of the comparison in the records.
        subject: name of the student there; that of its folder by default.
        record: JSON file to which the figures are added.
    """

    run: Path = Path("runs/train")
    dataset: Path = Path("dataset.h5")
    trajectories: str = "*"
    reference: Path | None = None
    case: str = ""
    subject: str = ""
    record: Path | None = None


def main(argv: list[str] | None = None) -> int:
    """Evaluate; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--smoke" in arguments:
        train.make_smoke_student()
    return run_script(EvaluateConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Errors under the names of the records; written to `errors.json` of the run too."""
    bundle = load_bundle(config.run / "student")
    dataset = load(config.dataset)
    test = held_out(config.run, dataset, config.trajectories)
    accuracy = measure_accuracy(bundle.student.label, dataset, test)
    errors = accuracy.summary()
    errors["training_seconds"] = bundle.card["training"]["seconds"]
    errors["training_structures"] = bundle.card["dataset"]["train"]
    spread = teacher_spread(dataset, test)
    if np.isfinite(spread):
        errors["teacher_spread_mev_per_ang"] = 1e3 * spread
        errors["rmse_over_spread"] = errors["force_rmse_mev_per_ang"] / (1e3 * spread)
    if config.reference is not None:
        errors |= against_reference(bundle.student, dataset, test, load(config.reference))
    errors |= calibration(accuracy)
    per_trajectory = errors_by_trajectory(accuracy, dataset, test)
    draw(accuracy, config.run)
    (config.run / "errors.json").write_text(json.dumps(errors, indent=1) + "\n")
    for name, value in errors.items():
        if isinstance(value, (int, float)):
            print(f"  {name:<40} {value:.4g}")
    print(
        f"  force MAE by trajectory                  {min(per_trajectory):.4g} to "
        f"{max(per_trajectory):.4g}"
    )
    rare = bundle.card["dataset"].get("rare_elements")
    if rare:
        seen = ", ".join(f"{symbol} {count}" for symbol, count in rare.items())
        print(f"  warning: elements that training saw in fewer than 10 environments: {seen}")
    if config.record is not None:
        record(config, bundle.student, errors, per_trajectory)
    return errors


def held_out(run: Path, dataset: Dataset, pattern: str = "*") -> np.ndarray:
    """Usable structures of the trajectories that the run held out, of those that fit.

    Raises:
        ConfigError: the run has no split, or the dataset none of those trajectories.
    """
    path = run / "split.json"
    if not path.is_file():
        raise ConfigError(f"{run} has no split.json: give a folder written by train.py")
    trajectories = json.loads(path.read_text())["test"]
    usable = dataset.usable & named(dataset, pattern)
    found = np.flatnonzero(np.isin(dataset.trajectory, trajectories) & usable)
    if not len(found):
        raise ConfigError(
            f"the dataset holds none of the trajectories that {run} held out, for example "
            f"{trajectories[0]}: give the file that it was trained or is to be tested on"
        )
    return found


def against_reference(
    student: Student, dataset: Dataset, test: np.ndarray, reference: Dataset
) -> dict[str, float]:
    """Force errors of teacher and student against other labels of the same structures.

    Raises:
        ConfigError: the reference lacks some of the structures.
    """
    where = {h: i for i, h in enumerate(structure_hashes(reference).tolist())}
    wanted = structure_hashes(dataset.subset(test)).tolist()
    if not set(wanted) <= set(where):
        missing = sum(h not in where for h in wanted)
        raise ConfigError(f"the reference lacks {missing} of the {len(wanted)} test structures")
    own = np.array([where[h] for h in wanted])
    truth = np.concatenate([reference.forces[reference.rows(int(i))] for i in own])
    teacher = np.concatenate([dataset.forces[dataset.rows(int(i))] for i in test])
    error = measure_accuracy(student.label, reference, own).force_errors
    return {
        "teacher_against_reference_mae_mev_per_ang": float(1e3 * np.abs(teacher - truth).mean()),
        "student_against_reference_mae_mev_per_ang": float(1e3 * np.abs(error).mean()),
        "student_against_reference_rmse_mev_per_ang": float(1e3 * np.sqrt((error**2).mean())),
    }


def calibration(accuracy: Accuracy) -> dict[str, float]:
    """Expected and real lengths of the force errors, RMS of all atoms and of ten parts of them.

    The first tenth are the atoms of which least error is expected, the last those of which most.
    """
    if accuracy.expected_errors is None:
        return {}
    lengths = np.linalg.norm(accuracy.force_errors, axis=1)
    bins = reliability(accuracy.expected_errors, lengths)
    return {
        f"{kind}_error_{part}_mev_per_ang": float(1e3 * value)
        for kind, values in bins.items()
        for part, value in (
            ("rms", np.sqrt((values**2).mean())),
            *((f"tenth_{number}", value) for number, value in enumerate(values, 1)),
        )
    }


def errors_by_trajectory(accuracy: Accuracy, dataset: Dataset, test: np.ndarray) -> list[float]:
    """Force MAE of each held-out trajectory, meV/Å."""
    names = np.repeat(dataset.trajectory[test], dataset.n_atoms[test])
    errors = 1e3 * np.abs(accuracy.force_errors)
    return [float(errors[names == name].mean()) for name in np.unique(names)]


def draw(accuracy: Accuracy, folder: Path) -> None:
    """Parity of the forces, and predicted against real errors."""
    figure = Picture(figsize=(5, 4), layout="constrained")
    plot_force_parity(accuracy, figure.subplots())
    figure.savefig(folder / "force_parity.png", dpi=150)
    if accuracy.expected_errors is None:
        return
    lengths = np.linalg.norm(accuracy.force_errors, axis=1)
    bins = reliability(accuracy.expected_errors, lengths)
    figure = Picture(figsize=(5, 4), layout="constrained")
    plot_reliability(bins, figure.subplots())
    figure.savefig(folder / "reliability.png", dpi=150)


def record(
    config: EvaluateConfig, student: Student, errors: dict[str, Any], per_trajectory: list[float]
) -> None:
    """Add the figures to the records.

    Raises:
        ConfigError: no case is given.
    """
    assert config.record is not None
    if not config.case:
        raise ConfigError("records need a case=NAME")
    units = {"_mev_per_ang": "meV/Å", "_mev_per_atom": "meV/atom", "_seconds": "s"}
    subject = config.subject or config.run.name
    figures = [Figure(config.case, subject, "parameters", float(student.n_parameters), "")]
    for name, value in errors.items():
        if not isinstance(value, (int, float)) or name == "structures":
            continue
        unit = next((u for end, u in units.items() if name.endswith(end)), "")
        span = (
            (min(per_trajectory), max(per_trajectory)) if name == "force_mae_mev_per_ang" else None
        )
        figures.append(Figure(config.case, subject, name, float(value), unit, span))
    command = (
        f"python experiments/evaluate.py run={config.run} dataset={config.dataset}"
        + (f" trajectories='{config.trajectories}'" if config.trajectories != "*" else "")
        + (f" reference={config.reference}" if config.reference else "")
        + f" case='{config.case}' subject='{subject}' record={config.record}"
    )
    record_figures(figures, config.record, command)


if __name__ == "__main__":
    sys.exit(main())
