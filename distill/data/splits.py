"""Training, validation and test parts that share no trajectory and no structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from distill.data.dataset import Dataset
from distill.data.joining import structure_hashes
from distill.errors import DatasetError

FRACTIONS: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}


def split_by_trajectory(
    dataset: Dataset,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    duplicates: Literal["raise", "drop"] = "raise",
) -> dict[str, np.ndarray]:
    """Divide whole trajectories among parts, close to the wanted fractions of structures.

    Args:
        dataset: structures; flagged ones are divided too, so filter before or after.
        fractions: positive share of each part, summing to 1.
        seed: the same seed gives the same parts.
        duplicates: what to do when one structure occurs in several parts (for example the common
            start of several runs): raise, or keep it in the first of these parts only.

    Returns:
        Ascending indices of each part.

    Raises:
        DatasetError: fractions that do not sum to 1, fewer trajectories than parts, or duplicates.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise DatasetError(f"fractions are {dict(fractions)}: give positive ones that sum to 1")
    names, inverse, sizes = np.unique(dataset.trajectory, return_inverse=True, return_counts=True)
    if len(names) < len(fractions):
        raise DatasetError(
            f"the dataset has {len(names)} trajectories ({', '.join(map(str, names[:5]))}), which "
            f"cannot fill the {len(fractions)} parts {', '.join(fractions)}: add independent "
            "trajectories, or ask for fewer parts"
        )
    part_of = _assign(sizes, np.array(list(fractions.values())), seed)[inverse]
    parts = {name: np.flatnonzero(part_of == i) for i, name in enumerate(fractions)}
    if duplicates == "drop":
        hashes = structure_hashes(dataset)
        seen: set[str] = set()
        for name, indices in parts.items():
            parts[name] = np.array([i for i in indices if hashes[i] not in seen], np.int64)
            seen.update(hashes[indices].tolist())
    assert_disjoint(dataset, parts)
    return parts


def assert_disjoint(dataset: Dataset, parts: Mapping[str, np.ndarray]) -> None:
    """Check that every part has structures and that no two parts share a trajectory or structure.

    Raises:
        DatasetError: naming the parts and what they share.
    """
    hashes = structure_hashes(dataset)
    for what, keys, advice in (
        ("trajectory", dataset.trajectory, "assign whole trajectories"),
        ("structure", hashes, "leave the copies out by setting `duplicates` to drop"),
    ):
        owner: dict[str, str] = {}
        for name, indices in parts.items():
            if len(indices) == 0:
                raise DatasetError(f"part {name!r} is empty: add trajectories or change the seed")
            for index in indices:
                other = owner.setdefault(str(keys[index]), name)
                if other != name:
                    label = keys[index] if what == "trajectory" else f"number {index}"
                    raise DatasetError(
                        f"{what} {label} occurs in both {other!r} and {name!r}, which would leak "
                        f"between them: {advice}"
                    )


def _assign(sizes: np.ndarray, fractions: np.ndarray, seed: int) -> np.ndarray:
    """Part of each trajectory, `[T]`: largest first, each to the part that lacks most."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    wanted = fractions * sizes.sum()
    filled = np.zeros(len(fractions))
    part_of = np.zeros(len(sizes), np.int64)
    for trajectory in order:
        part = int(np.argmax(wanted - filled))
        part_of[trajectory] = part
        filled[part] += sizes[trajectory]
    for part in range(len(fractions)):
        if not (part_of == part).any():
            counts = np.bincount(part_of, minlength=len(fractions))
            giving = [t for t in order if counts[part_of[t]] > 1]
            part_of[giving[-1]] = part
    return part_of
