"""Train a student, or an ensemble of them, on labelled structures.

    python experiments/train.py --config experiments/configs/ethanol/moment_m.yaml
    python experiments/train.py --smoke

A run that was interrupted continues. Afterwards `evaluate.py` says how good the student is.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import config_to_dict
from distill.data.sanity import rare_elements
from distill.evaluation import measure_accuracy, save_learning_curve
from distill.evaluation.domain import training_domain
from distill.sampling import MDSamplingConfig
from distill.sampling.systems import SystemConfig
from distill.students import fit_uncertainty, save_bundle
from distill.training import FitResult, read_metrics
from distill.training.fit import teacher_spread
from label import LabelConfig
from label import run as label
from sample import SampleConfig
from sample import run as sample
from script import claim_folder, run_script
from training_job import Data, TrainConfig, load_data, train

SMOKE_DATA = Path("runs/smoke/train.h5")
SMOKE_RUN = Path("runs/smoke/train")
SMOKE = (
    f"datasets=[{SMOKE_DATA}]",
    "student={architecture: moment-s, cutoff: 4.0}",
    "training={max_steps: 100, validation_every: 50, batch_size: 4, warmup_steps: 10}",
    "split={train: 0.5, validation: 0.25, test: 0.25}",
    f"output={SMOKE_RUN}",
)


def main(argv: list[str] | None = None) -> int:
    """Train; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--smoke" in arguments and not SMOKE_DATA.is_file():
        make_smoke_data(SMOKE_DATA)
    return run_script(TrainConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def make_smoke_student() -> None:
    """Train the student that other scripts take for `--smoke`, unless it is there."""
    if not (SMOKE_RUN / "student").is_dir():
        main(["--smoke"])


def run(config: TrainConfig) -> dict[str, Any]:
    """Train and save the bundles; returns the summary of the errors."""
    claim_folder(config)
    data = load_data(config)
    result = train(config, data)
    summary = errors_of(result, data)
    students = [
        replace(
            member,
            uncertainty=fit_uncertainty(
                member, data.dataset, data.parts["train"], data.parts["validation"]
            ),
        )
        for member in result.members
    ]
    for number, member in enumerate(students):
        name = "student" if number == 0 else f"member_{number}"
        save_bundle(member, config.output / name, card(config, data, result, summary))
    save_learning_curve(
        read_metrics(config.output / "training" / "metrics.csv"),
        config.output / "learning_curve.png",
    )
    rare = rare_elements(data.dataset, data.parts["train"])
    if rare:
        seen = ", ".join(f"{symbol} {count}" for symbol, count in rare.items())
        print(f"warning: elements seen in fewer than 10 environments: {seen}")
    for name, value in summary.items():
        if isinstance(value, float):
            print(f"  {name:<32} {value:.4g}")
    print(f"  training: {result.steps} steps, {result.seconds:.0f} s; bundle in {config.output}")
    return summary


def errors_of(result: FitResult, data: Data) -> dict[str, Any]:
    """Errors on the held-out structures, with the teacher's own spread there."""
    test = data.parts["test"]
    summary = measure_accuracy(result.student.label, data.dataset, test).summary()
    spread = teacher_spread(data.dataset, test)
    if np.isfinite(spread):
        summary["teacher_spread_mev_per_ang"] = 1e3 * spread
    summary["training_seconds"] = result.seconds
    return summary


def card(
    config: TrainConfig, data: Data, result: FitResult, summary: dict[str, Any]
) -> dict[str, Any]:
    """What a user of the bundle must know."""
    provenance = data.dataset.provenance
    forces = data.dataset.forces[np.isfinite(data.dataset.forces).all(1)]
    return {
        "teacher": provenance,
        "dataset": {
            "sha256": data.dataset.sha256,
            **{name: len(indices) for name, indices in data.parts.items()},
            "rare_elements": rare_elements(data.dataset, data.parts["train"]),
        },
        "training_range": {
            "largest_force_ev_per_ang": float(np.linalg.norm(forces, axis=1).max()),
            "origins": sorted(set(data.dataset.origin[data.parts["train"]].tolist())),
        },
        "domain": training_domain(data.dataset, data.parts["train"]),
        "errors": summary,
        "training": {
            "steps": result.steps,
            "best_step": result.best_step,
            "seconds": round(result.seconds, 1),
            "rollbacks": list(result.rollbacks),
        },
        "configuration": config_to_dict(config),
        "licence": "unspecified; the teacher's licence is recorded with it",
    }


def make_smoke_data(path: Path) -> None:
    """A few labelled structures for `--smoke`."""
    structures = path.with_name("train_structures.h5")
    sampling = MDSamplingConfig((300.0,), replicas=4, frames=8, spacing=5.0, equilibration=10.0)
    sample(SampleConfig(system=SystemConfig(structure="CH3CH2OH"), md=sampling, output=structures))
    label(LabelConfig(structures=str(structures), output=path))


if __name__ == "__main__":
    sys.exit(main())
