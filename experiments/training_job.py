"""What training scripts share: settings, data and split, and the student that comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.config import config_to_dict, load_config
from distill.data import Dataset, concatenate, load, split_by_trajectory
from distill.data.joining import structure_hashes
from distill.data.sanity import require_sane_labels
from distill.data.splits import assert_disjoint
from distill.errors import ConfigError
from distill.evaluation.results import replace_text
from distill.sampling import spread_order
from distill.students import Student, StudentSpec, initialise_student, load_bundle
from distill.training import FitResult, TrainingConfig, fit
from quickstart_config import SplitConfig, StudentConfig


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training.

    Attributes:
        datasets: labelled files, of one teacher.
        test: file with the held-out structures; without it a share of `datasets` is held out.
        trajectories: only those whose name fits this pattern (`*` and `?` as in a shell).
        split: shares of `datasets`; whole trajectories go to one part.
        duplicates: what to do with a structure of several parts, such as the common start of runs:
            `raise`, or `drop` it from all but the first (from all but `test`, where that is given).
        n_train: most training structures, spread evenly over the trajectories; 0 takes all.
        nested: choose them so that a smaller `n_train` is a subset of a larger one (data curves).
        student: architecture or size, cutoff, options.
        start: bundle of the same architecture whose parameters are the start; new ones without it.
        training: see `distill.training.TrainingConfig`.
        output: folder of the run.
        seed: of the split.
    """

    datasets: list[Path] = field(default_factory=list)
    test: Path | None = None
    trajectories: str = "*"
    split: SplitConfig = field(default_factory=SplitConfig)
    duplicates: Literal["raise", "drop"] = "raise"
    n_train: int = 0
    nested: bool = False
    student: StudentConfig = field(default_factory=StudentConfig)
    start: Path | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output: Path = Path("runs/train")
    seed: int = 0


@dataclass(frozen=True)
class Data:
    """Labelled structures and which of them serve what."""

    dataset: Dataset
    parts: dict[str, np.ndarray]


def load_data(config: TrainConfig) -> Data:
    """Read, check and split.

    Raises:
        ConfigError: no dataset is given, no trajectory fits, or `test` shares trajectories or all
            structures with the rest.
        DatasetError: a structure is in several parts and `duplicates` is `raise`; see also
            `distill.data.load` and `concatenate`.
        UnitError: the labels look as if they were in other units.
    """
    if not config.datasets:
        raise ConfigError("datasets is empty: give at least one labelled file, see label.py")
    sources = [load(path) for path in config.datasets]
    n_sources = sum(map(len, sources))
    if config.test is not None:
        sources.append(load(config.test))
    dataset = concatenate(sources)
    for warning in require_sane_labels(dataset):
        print(f"warning: {warning}")
    usable = np.flatnonzero(dataset.usable & named(dataset, config.trajectories))
    own, held_out = usable[usable < n_sources], usable[usable >= n_sources]
    if config.test is not None and not len(held_out):
        raise ConfigError(
            f"test={config.test} holds no usable structure of trajectories={config.trajectories!r}"
        )
    if config.test is not None and config.duplicates == "drop":
        hashes = structure_hashes(dataset)
        own = own[~np.isin(hashes[own], hashes[held_out])]
        if not len(own):
            raise ConfigError(f"all structures of datasets are in test={config.test} too")
    shares = dict(vars(config.split))
    if config.test is not None:
        total = shares["train"] + shares["validation"]
        shares = {name: shares[name] / total for name in ("train", "validation")}
    parts = {
        name: own[chosen]
        for name, chosen in split_by_trajectory(
            dataset.subset(own), shares, config.seed, config.duplicates
        ).items()
    }
    if config.test is not None:
        parts["test"] = held_out
        shared = set(dataset.trajectory[held_out]) & set(dataset.trajectory[own])
        if shared:
            raise ConfigError(
                f"{config.test} shares trajectories with the training data, for example "
                f"{min(shared)}: hold whole trajectories out"
            )
        assert_disjoint(dataset, parts)
    if config.n_train:
        if len(parts["train"]) < config.n_train:
            raise ConfigError(
                f"n_train is {config.n_train}, but there are {len(parts['train'])} structures"
            )
        chosen = np.linspace(0, len(parts["train"]) - 1, config.n_train).round().astype(int)
        if config.nested:
            chosen = spread_order(dataset.trajectory[parts["train"]])[: config.n_train]
        parts["train"] = parts["train"][np.sort(chosen)]
    return Data(dataset, parts)


def train(
    config: TrainConfig,
    data: Data,
    *,
    progress: bool = True,
    on_validation: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Train in `config.output / "training"`; the split is written beside it.

    Raises:
        ConfigError: see `claim_split` and `warm_start`.
    """
    student = config.student
    spec = StudentSpec.of_size(
        student.architecture, data.dataset.elements, student.cutoff, student.options
    )
    if config.start is None:
        start = initialise_student(spec, data.dataset, data.parts["train"], config.training.seed)
    else:
        start = warm_start(config.start, spec)
    claim_split(config, data)
    print(f"student: {start.n_parameters} parameters, {len(data.parts['train'])} structures")
    return fit(
        start,
        data.dataset,
        data.parts["train"],
        data.parts["validation"],
        config.training,
        config.output / "training",
        progress=progress,
        on_validation=on_validation,
    )


def warm_start(bundle: Path, spec: StudentSpec) -> Student:
    """The student of a bundle as a start, with its reference energies and scales.

    Its typical number of neighbours is kept, where `spec` asks for no other.

    Raises:
        ConfigError: it has another architecture, cutoff or elements than `spec`.
    """
    student = load_bundle(bundle).student
    asked = spec
    if "n_neighbors" not in spec.options and "n_neighbors" in student.spec.options:
        # Set from the data by the first training, where it was not asked for either.
        known = {"n_neighbors": student.spec.options["n_neighbors"]}
        asked = replace(spec, options={**spec.options, **known})
    if student.spec.to_dict() != asked.to_dict():
        raise ConfigError(
            f"start={bundle} cannot be trained on: it is {student.spec.to_dict()}, asked for is "
            f"{asked.to_dict()}. Make them the same, or leave start out"
        )
    return replace(student, uncertainty=None)


def claim_split(config: TrainConfig, data: Data) -> None:
    """Write which trajectories serve what into the output folder, or check that it holds the same.

    Raises:
        ConfigError: the folder holds a run on other data, for example before the dataset grew.
    """
    split: dict[str, Any] = {
        "dataset_sha256": data.dataset.sha256,
        **{
            name: sorted(set(data.dataset.trajectory[i].tolist())) for name, i in data.parts.items()
        },
    }
    path = config.output / "split.json"
    if path.is_file() and json.loads(path.read_text()) != split:
        raise ConfigError(
            f"{config.output} holds a run on other data (see {path}): the datasets changed since. "
            "Choose another folder with output=..., or delete it"
        )
    config.output.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(split, indent=1) + "\n")


def named(dataset: Dataset, pattern: str) -> np.ndarray:
    """`[n]` bool, which structures are of trajectories whose name fits.

    Raises:
        ConfigError: none does.
    """
    names = dataset.trajectory.tolist()
    fits = np.array([fnmatchcase(name, pattern) for name in names], bool)
    if not fits.any():
        raise ConfigError(
            f"no trajectory fits trajectories={pattern!r}; there are for example "
            f"{', '.join(sorted(set(names))[:5])}"
        )
    return fits


def with_values(base: TrainConfig, values: dict[str, Any], output: Path) -> TrainConfig:
    """The training with some keys changed (`training.learning_rate`) and another folder.

    Raises:
        ConfigError: an unknown key.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    plain = [f"{key}={json.dumps(value)}" for key, value in config_to_dict(base).items()]
    return load_config(TrainConfig, None, [*plain, *overrides, f"output={output}"])
