"""Which structures differ: features of structures, farthest points among them, and duplicates.

The features need no training: smooth histograms of the distances to the neighbours and a few
angular power terms, averaged over the atoms of each element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from scipy.spatial import cKDTree

from distill.data import Dataset, structure_hashes
from distill.errors import ConfigError
from distill.graph import model_rows
from distill.neighbors import batch_graphs, bucket, neighbor_table

if TYPE_CHECKING:  # sampling knows potentials; a student is only looked at
    from distill.students import Student

N_RADIAL = 8
"""Gaussians per pair of elements."""

SCALE_FLOOR = 0.01
"""Smallest scale of a feature over the largest: what hardly varies is not blown up to noise."""


def structure_features(dataset: Dataset, cutoff: float = 5.0) -> np.ndarray:
    """Features `[S, F]` of all structures, invariant to rotation, reflection and order of atoms.

    Raises:
        UnitError: other units than eV and Å.
        ValueError: the cutoff (Å) is not positive.
    """
    dataset.require_standard_units("features are made")
    features = []
    for index in range(len(dataset)):
        numbers = dataset.numbers[dataset.rows(index)]
        pooled = _pool(_atomic_features(dataset, index, cutoff), numbers, dataset.elements)
        features.append([*(np.mean(numbers == z) for z in dataset.elements), *pooled])
    return np.reshape(features, (len(dataset), -1 if features else 0))


def student_features(student: Student, dataset: Dataset, batch_size: int = 32) -> np.ndarray:
    """Features `[S, F]` from the invariants that a student computes of each atom, all layers.

    Raises:
        UnitError: other units than eV and Å.
        UnknownElementError: an element that the student does not know.
    """
    dataset.require_standard_units("features are made")

    @jax.jit
    def invariants(graph: Any) -> Any:
        rows = model_rows(graph, student.message_passing)
        _, sown = student.module.apply(student.variables, *rows, mutable=["intermediates"])
        layers = sown["intermediates"]
        return [layers[k]["invariants"][0] for k in sorted(layers) if k.startswith("layer_")]

    features, cutoff = [], student.cutoff
    for start in range(0, len(dataset), batch_size):
        chosen = range(len(dataset))[start : start + batch_size]
        structures = [dataset.structure(i) for i in chosen]
        tables = [neighbor_table(a.positions, a.cell.array, a.pbc, cutoff) for a in structures]
        graph = batch_graphs(
            structures,
            cutoff,
            student.elements,
            n_atoms=bucket(sum(len(a) for a in structures) + 1),
            n_neighbors=bucket(max(table.capacity for table in tables)),
            n_systems=bucket(len(structures) + 1),
            tables=tables,
        )
        atomic = np.concatenate([np.asarray(x, np.float64) for x in invariants(graph)], axis=-1)
        for atoms in structures:
            own, atomic = atomic[: len(atoms)], atomic[len(atoms) :]
            features.append(_pool(own, atoms.numbers, student.elements))
    return np.reshape(features, (len(dataset), -1 if features else 0))


def farthest_points(features: np.ndarray, n: int, start: int = 0) -> np.ndarray:
    """Greedy choice of points far from each other: `[n]` indices, in the order of the choice.

    Each next point is the one whose nearest chosen point is farthest, in `features` `[S, F]`
    divided by their standard deviations; the first is `start`.

    Raises:
        ConfigError: `n` or `start` do not fit the features, or these are not finite.
    """
    points = np.asarray(features, np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ConfigError(f"features must be finite and of shape [S, F], not {points.shape}")
    if not (1 <= n <= len(points) and 0 <= start < len(points)):
        raise ConfigError(f"cannot choose {n} of {len(points)} structures, beginning at {start}")
    scale = points.std(0)
    points = (points - points.mean(0)) / np.maximum(scale, SCALE_FLOOR * scale.max(initial=1e-12))
    chosen = np.full(n, start, np.int64)
    nearest = np.full(len(points), np.inf)
    for k in range(1, n):
        nearest = np.minimum(nearest, np.sum((points - points[chosen[k - 1]]) ** 2, axis=1))
        nearest[chosen[:k]] = -1.0  # below the 0 of copies, so that none is chosen twice
        chosen[k] = np.argmax(nearest)
    return chosen


def select_diverse(dataset: Dataset, n: int, features: np.ndarray | None = None) -> Dataset:
    """The `n` most different structures in their old order; a parent left behind becomes -1.

    The first structure is always taken. `features` `[S, F]` are `structure_features` by default.

    Raises:
        ConfigError: `n` or the features do not fit the dataset.
    """
    features = structure_features(dataset) if features is None else np.asarray(features)
    if len(features) != len(dataset):
        raise ConfigError(f"{len(features)} rows of features do not fit {len(dataset)} structures")
    return dataset.subset(np.sort(farthest_points(features, n)))


def remove_duplicates(dataset: Dataset, tolerance: float = 1e-3, cutoff: float = 5.0) -> np.ndarray:
    """Indices of the structures that are left when copies are removed; the first of each stays.

    Copies may be moved, turned, mirrored, or have their atoms in another order: the sorted features
    of their atoms differ by at most `tolerance` (1e-3: displacements of about 2e-4 Å).

    Raises:
        ConfigError: a negative tolerance.
        UnitError: other units than eV and Å.
    """
    if not tolerance >= 0:
        raise ConfigError(f"tolerance must not be negative, it is {tolerance}")
    dataset.require_standard_units("structures are compared")
    first = np.sort(np.unique(structure_hashes(dataset), return_index=True)[1])
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in first.tolist():
        key = tuple(np.sort(dataset.numbers[dataset.rows(i)]).tolist()), int(dataset.pbc[i].sum())
        groups.setdefault(key, []).append(i)
    removed: set[int] = set()
    for members in groups.values():
        prints = [_fingerprint(dataset, i, cutoff) for i in members]
        # means differ by no more than what they are means of, and make a small search tree
        means = np.array([p.mean(0, dtype=np.float64) for p in prints])
        for a, b in sorted(cKDTree(means).query_pairs(tolerance * (1 + 1e-9), p=np.inf)):
            if members[a] not in removed and np.abs(prints[a] - prints[b]).max() <= tolerance:
                removed.add(members[b])
    return np.array([i for i in first.tolist() if i not in removed], np.int64)


def _fingerprint(dataset: Dataset, index: int, cutoff: float) -> np.ndarray:
    """Features of the atoms `[n, F + 2]`, float32, each column sorted within each element."""
    rows = dataset.rows(index)
    numbers, positions, pbc = dataset.numbers[rows], dataset.positions[rows], dataset.pbc[index]
    extra = np.zeros((len(numbers), 2))
    if not pbc.any():  # tells fragments apart that are further away than the cutoff
        extra[:, 0] = np.linalg.norm(positions - positions.mean(0), axis=1)
    if pbc.all():
        extra[:, 1] = np.cbrt(abs(np.linalg.det(dataset.cell[index])) / len(numbers))
    atomic = np.concatenate([_atomic_features(dataset, index, cutoff), extra], axis=1)
    parts = [np.sort(atomic[numbers == z], axis=0) for z in np.unique(numbers)]
    return np.concatenate(parts, dtype=np.float32)


def _atomic_features(dataset: Dataset, index: int, cutoff: float) -> np.ndarray:
    """Features of each atom `[n, F]`: histograms and angular powers per element around it."""
    rows = dataset.rows(index)
    numbers, positions = dataset.numbers[rows], dataset.positions[rows]
    table = neighbor_table(positions, dataset.cell[index], dataset.pbc[index], cutoff)
    i, j, _, vectors = table.pairs(positions, dataset.cell[index])
    r = np.linalg.norm(vectors, axis=1)[:, None]
    unit = vectors / np.maximum(r, 1e-9)
    smooth = 0.5 * (1 + np.cos(np.pi * r / cutoff))
    centers = np.linspace(0.5, cutoff, N_RADIAL)
    radial = smooth * np.exp(-0.5 * ((r - centers) / (centers[1] - centers[0])) ** 2)
    outer = (unit[:, :, None] * unit[:, None] - np.eye(3) / 3).reshape(-1, 9)
    # short and long range: bonds, and everything around
    weights = smooth * np.concatenate([np.exp(-0.5 * (r / 1.5) ** 2), np.ones_like(r)], axis=1)
    kind = np.searchsorted(dataset.elements, numbers[j])
    terms = [radial, *(w[:, None] * x for w in weights.T for x in (unit, outer))]
    sums = []
    for term in terms:
        sums.append(np.zeros((len(numbers), len(dataset.elements), term.shape[1])))
        np.add.at(sums[-1], (i, kind), term)
    powers = [np.linalg.norm(x, axis=-1, keepdims=True) for x in sums[1:]]
    return np.concatenate([sums[0], *powers], axis=-1).reshape(len(numbers), -1)


def _pool(atomic: np.ndarray, numbers: np.ndarray, elements: Any) -> np.ndarray:
    """Mean and standard deviation over the atoms of each element, `[n_elements * 2 F]`."""
    pooled = np.zeros((len(elements), 2, atomic.shape[1]))
    for k, z in enumerate(elements):
        own = atomic[numbers == z]
        if len(own):
            pooled[k] = own.mean(0), own.std(0)
    return pooled.ravel()
