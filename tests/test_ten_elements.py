"""Ten elements that share parameters: a student learns what tells them apart."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from builders import TEN_ELEMENTS

from distill.data import Dataset, GraphLoader, Labels
from distill.students import StudentSpec, initialise_student
from distill.training import TrainingConfig
from distill.training.schedules import controls_at
from distill.training.step import initial_state, make_optimizer, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")
CUTOFF = 4.0
TRAIN, HELD_OUT = np.arange(256), np.arange(256, 304)
SMALL = {"n_radial": 6, "n_channels": 6, "n_triples": 0, "n_embeddings": 4, "hidden": (16,)}
OPTIONS = {
    "moment": {**SMALL, "max_l": 0},
    "message": {**SMALL, "max_l": 1, "n_messages": 4, "n_tensors": 2},
}


@lru_cache
def pair_parameters() -> tuple[np.ndarray, np.ndarray]:
    """Radii (Å) and depths (eV) `[119]` by atomic number, unrelated to each other."""
    radii, depths = np.zeros(119), np.zeros(119)
    radii[list(TEN_ELEMENTS)] = np.linspace(0.5, 0.9, 10)[[3, 0, 7, 5, 9, 1, 8, 2, 6, 4]]
    depths[list(TEN_ELEMENTS)] = np.linspace(0.1, 1.0, 10)[[2, 8, 5, 0, 3, 9, 6, 1, 4, 7]]
    return radii, depths


@jax.jit
@jax.vmap
@jax.value_and_grad
def pair_energy(positions: jax.Array, radii: jax.Array, depths: jax.Array) -> jax.Array:
    """Morse pairs, eV, that end smoothly at the cutoff; length and depth by element."""
    first, second = np.triu_indices(len(positions), 1)
    r = jnp.linalg.norm(positions[first] - positions[second], axis=1)
    decay = jnp.exp(radii[first] + radii[second] - r)
    depth = jnp.sqrt(depths[first] * depths[second])
    inside = jnp.maximum(1 - (r / CUTOFF) ** 2, 0)
    return (depth * (decay**2 - 2 * decay) * inside**3).sum()


@lru_cache
def make_dataset() -> Dataset:
    """Clusters of six atoms at random, labelled by pairs that depend on the elements."""
    rng = np.random.default_rng(0)
    structures: list[Atoms] = []
    while len(structures) < len(TRAIN) + len(HELD_OUT):
        atoms = Atoms(rng.choice(TEN_ELEMENTS, 6), rng.uniform(0, 3.2, (6, 3)))
        if atoms.get_all_distances()[np.triu_indices(6, 1)].min() > 1.0:
            structures.append(atoms)
    numbers = np.array([atoms.numbers for atoms in structures])
    positions = np.array([atoms.positions for atoms in structures])
    energy, gradient = pair_energy(positions, *(values[numbers] for values in pair_parameters()))
    names = [f"t{i}" for i in range(len(structures))]
    dataset = Dataset.from_structures(structures, names, "pairs")
    return dataset.labelled(Labels(np.asarray(energy), list(-np.asarray(gradient))))


@pytest.mark.parametrize("size", ["moment", pytest.param("message", marks=pytest.mark.slow)])
def test_what_tells_ten_elements_apart_is_learnt(size):
    dataset, steps = make_dataset(), 250
    assert dataset.elements == TEN_ELEMENTS
    spec = StudentSpec.of_size(size, TEN_ELEMENTS, CUTOFF, OPTIONS[size])
    student = initialise_student(spec, dataset, TRAIN)
    config = TrainingConfig(
        max_steps=steps, batch_size=32, warmup_steps=10, learning_rate=3e-2, ema_decay=0.95
    )
    loader = GraphLoader(
        dataset,
        TRAIN,
        CUTOFF,
        TEN_ELEMENTS,
        config.batch_size,
        atomic_energies=student.reference_energies,
        max_buckets=1,
    )
    optimizer = make_optimizer(config)
    statistics = student.variables["statistics"]
    step = make_train_step(student.module, statistics, optimizer, config)
    state = initial_state(student.variables["params"], optimizer)
    for number in range(steps):
        state, _ = step(state, loader.batch(number), controls_at(config, number))
    assert int(state.bad_step) < 0
    learnt = replace(student, variables={"params": state.ema_params, "statistics": statistics})

    held_out = [dataset.structure(int(i)) for i in HELD_OUT]
    forces = np.stack([dataset.forces[dataset.rows(int(i))] for i in HELD_OUT])
    rng = np.random.default_rng(1)
    shuffled = [Atoms(rng.permutation(atoms.numbers), atoms.positions) for atoms in held_out]
    error, error_shuffled = (
        np.sqrt(np.mean((np.stack(learnt.label(structures).forces) - forces) ** 2))
        for structures in (held_out, shuffled)
    )
    assert error < 0.25 * forces.std()
    # one that is blind to elements would do equally well
    assert error_shuffled > 2.5 * error
