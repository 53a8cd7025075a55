"""Which structures of a dataset a training held out."""

from __future__ import annotations

import json

import numpy as np

from certify_config import CertifyConfig
from distill.data import Dataset
from distill.errors import ConfigError
from distill.students import Bundle


def held_out(config: CertifyConfig, bundle: Bundle, dataset: Dataset) -> np.ndarray:
    """Usable structures of the trajectories that the training held out.

    Raises:
        ConfigError: it is not known which those are, or the dataset has none of them.
    """
    path = config.split or config.bundle.parent / "split.json"
    if path.is_file():
        trajectories = json.loads(path.read_text())["test"]
    else:
        recorded = (bundle.card.get("dataset") or {}).get("trajectories") or {}
        trajectories = recorded.get("test")
    if not trajectories:
        raise ConfigError(
            f"neither {path} nor the card of {config.bundle} says which trajectories were held "
            "out: give split=FILE, as train.py writes it"
        )
    found = np.flatnonzero(np.isin(dataset.trajectory, trajectories) & dataset.usable)
    if not len(found):
        raise ConfigError(
            f"{config.dataset} holds none of the held-out trajectories, for example "
            f"{trajectories[0]}: give the file that the student is to be tested on"
        )
    return found
