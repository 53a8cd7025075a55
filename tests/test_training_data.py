"""Which labelled structures a training script uses for what."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import morse_dataset

from distill.data import Dataset, concatenate, save
from distill.data.joining import structure_hashes
from distill.errors import ConfigError, DatasetError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("training_job")


def renamed(dataset: Dataset, suffix: str) -> Dataset:
    """Each structure a trajectory of its own."""
    names = np.array([f"run {i}{suffix}" for i in range(len(dataset))])
    return replace(dataset, trajectory=names)


def shared(dataset: Dataset, one: np.ndarray, other: np.ndarray) -> set[str]:
    hashes = structure_hashes(dataset)
    return set(hashes[one]) & set(hashes[other])


def test_a_structure_of_two_parts_is_an_error_or_left_out_of_the_second(job, tmp_path):
    whole = morse_dataset(count=12)
    save(concatenate([renamed(whole, ""), renamed(whole, " again")]), tmp_path / "twice.h5")
    config = job.TrainConfig(
        datasets=[tmp_path / "twice.h5"],
        split=job.SplitConfig(train=0.5, validation=0.25, test=0.25),
    )
    with pytest.raises(DatasetError, match="setting `duplicates` to drop"):
        job.load_data(config)
    found = job.load_data(replace(config, duplicates="drop"))
    train, validation, test = (found.parts[name] for name in ("train", "validation", "test"))
    for one, other in ((train, validation), (train, test), (validation, test)):
        assert len(one) and not shared(found.dataset, one, other)


def test_structures_of_the_test_file_are_not_trained_on(job, tmp_path):
    whole = renamed(morse_dataset(count=12), "")
    save(whole, tmp_path / "train.h5")
    save(renamed(whole.subset(np.arange(3)), " held out"), tmp_path / "test.h5")
    config = job.TrainConfig(datasets=[tmp_path / "train.h5"], test=tmp_path / "test.h5")
    with pytest.raises(DatasetError, match=r"occurs in both .* setting `duplicates` to drop"):
        job.load_data(config)
    found = job.load_data(replace(config, duplicates="drop"))
    train, validation, test = (found.parts[name] for name in ("train", "validation", "test"))
    assert len(test) == 3 and len(train) + len(validation) == 9
    assert not shared(found.dataset, test, np.concatenate([train, validation]))
    with pytest.raises(ConfigError, match=r"holds no usable structure of trajectories='run \?'"):
        job.load_data(replace(config, trajectories="run ?"))
    save(renamed(whole, " held out"), tmp_path / "test.h5")
    with pytest.raises(ConfigError, match="all structures of datasets are in test="):
        job.load_data(replace(config, duplicates="drop"))
    save(whole.subset(np.arange(3)), tmp_path / "test.h5")
    with pytest.raises(ConfigError, match="shares trajectories"):
        job.load_data(config)
