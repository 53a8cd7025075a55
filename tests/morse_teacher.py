"""A teacher of Morse pairs, whose Hessian is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from distill.data import (
    Dataset,
    HessianConfig,
    Labels,
    label_structures,
)

DEPTH, WIDTH, LENGTH = 0.5, 1.3, 1.5
TEACHER = {"teacher": "morse", "teacher_version": "1", "weights_sha256": "ab"}


def morse(positions):
    """Energy (eV), forces and Hessian `[3n, 3n]` of Morse pairs in closed form."""
    n = len(positions)
    energy, forces, hessian = 0.0, np.zeros((n, 3)), np.zeros((n, 3, n, 3))
    for i in range(n):
        for j in range(i):
            vector = positions[i] - positions[j]
            r = np.linalg.norm(vector)
            unit, decay = vector / r, np.exp(-WIDTH * (r - LENGTH))
            first = 2 * DEPTH * WIDTH * decay * (1 - decay)
            second = 2 * DEPTH * WIDTH**2 * decay * (2 * decay - 1)
            energy += DEPTH * (1 - decay) ** 2
            forces[i] -= first * unit
            forces[j] += first * unit
            along = np.outer(unit, unit)
            block = second * along + first / r * (np.eye(3) - along)
            for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
                hessian[a, :, b] += sign * block
    return energy, forces, hessian.reshape(3 * n, 3 * n)


@dataclass
class Product:
    values: np.ndarray
    error: np.ndarray
    exact: bool


class Info:
    def provenance(self):
        return {"teacher": "morse", "version": "1", "weights_sha256": "ab", "hessian": "exact"}


class MorseTeacher:
    """Fails, or gives NaN, where asked to; counts the products."""

    info = Info()

    def __init__(self, exact=True, stop_after=None):
        self.exact, self.stop_after, self.asked = exact, stop_after, 0

    def label(self, structures):
        results = [morse(a.positions) for a in structures]
        if any(10 in a.numbers for a in structures):
            raise RuntimeError("no parameters for neon")
        return Labels(np.array([r[0] for r in results]), [r[1] for r in results])

    def hvp(self, structure, direction):
        if self.asked == self.stop_after:
            raise KeyboardInterrupt
        self.asked += 1
        if 2 in structure.numbers:
            raise RuntimeError("out of memory")
        values = direction.reshape(len(direction), -1) @ morse(structure.positions)[2]
        if 3 in structure.numbers:
            values[0, 0] = np.nan
        if 4 in structure.numbers:
            values = values[:, 1:]
        error = np.full(len(direction), 0.0 if self.exact else 1e-6)
        if 5 in structure.numbers:
            error = error + np.inf
        shape = direction.shape if 4 not in structure.numbers else values.shape
        return Product(values.reshape(shape), error, self.exact)


def make_structures(count=9, seed=0):
    rng = np.random.default_rng(seed)
    structures = []
    for i in range(count):
        n = 2 + i % 3
        positions = 1.6 * np.stack([np.arange(n), np.arange(n) % 2, np.zeros(n)], 1)
        structures.append(Atoms(f"C{n}", positions + 0.1 * rng.standard_normal((n, 3))))
    return Dataset.from_structures(structures, [f"run{i // 3}" for i in range(count)], "rattle")


def labelled(path, structures=None, teacher=None, batch_size=4, **config):
    structures = make_structures() if structures is None else structures
    hessian = HessianConfig(**config)
    teacher = teacher or MorseTeacher()
    return label_structures(teacher, structures, path, batch_size, progress=False, hessian=hessian)


def product_by_hand(dataset, index, directions):
    hessian = morse(dataset.positions[dataset.rows(index)])[2]
    return (directions.reshape(len(directions), -1) @ hessian).reshape(directions.shape)


def assert_right_products(dataset, count):
    for i in range(len(dataset)):
        directions, products = dataset.hessian.of(i)
        assert directions.shape == (count, dataset.n_atoms[i], 3)
        np.testing.assert_allclose(products, product_by_hand(dataset, i, directions), atol=1e-12)
