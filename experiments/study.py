"""Train variants of one student and compare them on the same held-out structures.

    python experiments/study.py --config experiments/configs/water/ablation.yaml
    python experiments/study.py --smoke

Each variant changes some keys of the training: its data, its size, its loss. Variants that were
finished by an earlier run are not trained again.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluate
import train
from distill.errors import ConfigError
from evaluate import EvaluateConfig
from script import claim_folder, run_script
from training_job import TrainConfig, claim_split, load_data, with_values

SMOKE = (
    *(f"train.{override}" for override in train.SMOKE if not override.startswith("output")),
    f"dataset={train.SMOKE_DATA}",
    "variants={small: {student.options: {hidden: [8]}}, few: {n_train: 4}}",
    "output=runs/smoke/study",
)


@dataclass(frozen=True)
class StudyConfig:
    """Settings.

    Attributes:
        train: the training that is varied; its `output` is not used.
        variants: by name, the keys of `train` that differ (`{student.cutoff: 6.0}`); several at
            once are good too.
        only: names of the variants to take now; all of them by default.
        dataset: labelled structures on which all are tested, see `evaluate.py`.
        tests: by name of a test, pattern of the trajectories that it takes from `dataset`; the name
            is added to the case. A variant that is trained on the trajectories of one pattern takes
            the test of that pattern alone. One test of everything by default.
        reference: the same structures with labels of a better method, see `evaluate.py`.
        output: folder of the runs, one for each variant.
        case: name of the comparison in the records.
        record: JSON file to which the figures are added.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    dataset: Path = Path("dataset.h5")
    tests: dict[str, str] = field(default_factory=dict)
    reference: Path | None = None
    output: Path = Path("runs/study")
    case: str = ""
    record: Path | None = None


def main(argv: list[str] | None = None) -> int:
    """Compare; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--smoke" in arguments and not train.SMOKE_DATA.is_file():
        train.make_smoke_data(train.SMOKE_DATA)
    return run_script(StudyConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: StudyConfig) -> dict[str, dict[str, float]]:
    """Force MAE in meV/Å of each variant on each test.

    Raises:
        ConfigError: no variants, two whose folders would be the same, or an unknown key or name.
    """
    trainings = plan(config)
    errors: dict[str, dict[str, float]] = {}
    for name, training in trainings.items():
        print(f"== {name}")
        if (training.output / "learning_curve.png").is_file():
            claim_folder(training)
            claim_split(training, load_data(training))
        else:
            train.run(training)
        errors[name] = {
            test: test_of(config, name, training, test, pattern)
            for test, pattern in (config.tests or {"": "*"}).items()
            if training.trajectories in ("*", pattern)
        }
    print("force MAE, meV/Å")
    for name, values in errors.items():
        for test, value in values.items():
            print(f"  {value:9.2f}  {name}" + f", {test}" * bool(test))
    return errors


def plan(config: StudyConfig) -> dict[str, TrainConfig]:
    """The training of each variant; all are checked before the first one starts."""
    if not config.variants:
        raise ConfigError("variants is empty: name at least one, e.g. variants={base: {}}")
    trainings = {
        name: with_values(config.train, values or {}, config.output / folder_of(name))
        for name, values in config.variants.items()
    }
    if len({training.output for training in trainings.values()}) < len(trainings):
        raise ConfigError("two variants have names that differ only in signs: rename one")
    unknown = set(config.only) - set(trainings)
    if unknown:
        raise ConfigError(f"only names {min(unknown)!r}; the variants are {', '.join(trainings)}")
    return {name: trainings[name] for name in config.only or trainings}


def folder_of(name: str) -> str:
    """A folder's name from a variant's."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "variant"


def test_of(
    config: StudyConfig, name: str, training: TrainConfig, test: str, pattern: str
) -> float:
    """Evaluate one variant on one test, and record it."""
    case = ", ".join(part for part in (config.case, test) if part)
    errors = evaluate.run(
        EvaluateConfig(
            run=training.output,
            dataset=config.dataset,
            trajectories=pattern,
            reference=config.reference,
            case=case,
            subject=name,
            record=config.record,
        )
    )
    return float(errors["force_mae_mev_per_ang"])


if __name__ == "__main__":
    sys.exit(main())
