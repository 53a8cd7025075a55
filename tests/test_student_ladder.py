"""Every size of the ladder, with and without embeddings: derivatives, symmetries, cutoff, reach."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from builders import (
    CUTOFF,
    ELEMENTS,
    TEN_ELEMENTS,
    numerical_forces,
    numerical_stress,
    random_rotation,
    triclinic_cell,
    two_paddings,
)

from distill.data import Labels
from distill.errors import ConfigError
from distill.potential import evaluate
from distill.students import Student, StudentSpec, load_bundle, save_bundle
from distill.students.spec import SIZES

pytestmark = pytest.mark.usefixtures("quick_compilation")

LADDER = [(name, n_embeddings) for name in SIZES for n_embeddings in (0, 4)]
REFERENCE = np.array([-0.5, -1.0, -2.0])
"""eV; small, so that energies keep the digits that the cutoff is looked at with."""

SMALL: dict[str, Any] = {"n_radial": 4, "n_channels": 3, "n_triples": 2, "max_l": 2, "hidden": (8,)}
SMALL_MESSAGE: dict[str, Any] = {**SMALL, "n_messages": 4, "n_tensors": 2}
FORCE_ROWS = (0, 4)
"""Atoms whose forces are differenced: one of each molecule."""

GAPS = (0.04, 0.02, 0.01, 0.0, -0.01)
"""Å inside the cutoff; the last two are at it and outside."""


def _parameter(size: str, n_embeddings: int) -> Any:
    # The sizes between differ in numbers only: they are compiled where there is time.
    marks = [pytest.mark.slow] if size in ("moment-m", "moment-l") else []
    name = f"{size}{'-embeddings' if n_embeddings else ''}"
    return pytest.param(size, n_embeddings, id=name, marks=marks)


on_the_ladder = pytest.mark.parametrize(
    ("size", "n_embeddings"), [_parameter(*entry) for entry in LADDER]
)
some_with_embeddings = pytest.mark.parametrize(
    "n_embeddings", [0, pytest.param(4, marks=pytest.mark.slow)]
)


@lru_cache
def student_of(size: str, n_embeddings: int = 0, **options: Any) -> Student:
    """Student with random parameters, no bias, factor or statistic left trivial."""
    options = {"n_embeddings": n_embeddings, "n_neighbors": 8.0, **options}
    spec = StudentSpec.of_size(size, ELEMENTS, CUTOFF, options)
    return Student(spec, random_variables(spec), REFERENCE)


def random_variables(spec: StudentSpec, seed: int = 0) -> Any:
    module = spec.build()
    rows: list[Any] = [
        jnp.zeros((1, 1, 3), jnp.float32),
        jnp.zeros((1, 1), jnp.int32),
        jnp.zeros((1, 1), bool),
        jnp.zeros(1, jnp.int32),
    ]
    if getattr(module, "message_passing", False):
        rows.append(jnp.zeros((1, 1), jnp.int32))
    shapes = jax.eval_shape(lambda *r: module.init(jax.random.PRNGKey(0), *r), *rows)
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name, draw = path[-1].key, rng.standard_normal(leaf.shape)
        if name in ("scale", "factor"):
            draw = 0.7 + 0.5 * np.abs(draw)
        elif name == "energy_scale":
            draw = np.asarray(0.7)
        elif name in ("mean", "bias"):
            draw = 0.3 * draw
        elif name == "kernel":
            draw = draw / np.sqrt(leaf.shape[-2])
        elif name != "embedding":  # radial weights
            draw = 0.5 * draw
        return draw.astype(np.float32)

    kept = {name: shapes[name] for name in ("params", "statistics")}
    return jax.tree_util.tree_map_with_path(fill, kept)


def label(structures: list[Atoms], student: Student) -> Labels:
    return student.label(structures, dtype=np.float64)


def water_dimer() -> Atoms:
    """Two waters, their atoms displaced so that no symmetry is left."""
    atoms = molecule("H2O") + molecule("H2O")
    atoms.positions[3:] = atoms.positions[3:] @ random_rotation(1).T + [0.4, 2.3, 1.8]
    atoms.positions += 0.05 * np.random.default_rng(0).standard_normal((6, 3))
    return atoms


def turned(atoms: Atoms, turn: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ turn.T)
    copy.positions = atoms.positions @ turn.T
    return copy


def passing(distance: float) -> Atoms:
    """C and O at the distance; the hydrogen is within reach of O only."""
    return Atoms("OHC", [[0, 0, 0], [0.1, 0.6, -0.7], [0, 0, distance]])


def chain(distance: float, aside: float = 0.0) -> Atoms:
    """O - C - H: hydrogen at a distance from C, and never within a cutoff of O."""
    return Atoms("OCH", [[0, 0, 0], [0, 0, 2.2], [aside, 0, 2.2 + distance]])


@dataclass
class Collector:
    """Structures asked for one after the other and labelled in one batch: it compiles once."""

    structures: list[Atoms]

    def add(self, structures: list[Atoms]) -> slice:
        start = len(self.structures)
        self.structures.extend(structures)
        return slice(start, len(self.structures))


@dataclass
class _Energies:
    energy: np.ndarray


def numerical(difference: Any, atoms: Atoms, collector: Collector, **options: Any) -> Any:
    """`labels -> numerical derivative`, whose structures are labelled with all others."""
    found: list[slice] = []

    def ask(structures: list[Atoms]) -> _Energies:
        found.append(collector.add(structures))
        return _Energies(np.zeros(len(structures)))

    difference(ask, atoms, **options)

    def derivative(labels: Labels) -> np.ndarray:
        return difference(lambda _: _Energies(labels.energy[found[0]]), atoms, **options)

    return derivative


TURN, MIRROR = random_rotation(3), -random_rotation(4)


@lru_cache
def everything() -> tuple[list[Atoms], dict[str, Any]]:
    """All structures of this file, where each is, and what makes derivatives of the labels."""
    collector, rng = Collector([]), np.random.default_rng(2)
    dimer, cell = water_dimer(), triclinic_cell()
    plan: dict[str, Any] = {"plain": collector.add([dimer, cell])}
    for name, turn in (("turned", TURN), ("mirrored", MIRROR)):
        plan[name] = collector.add([turned(dimer, turn), turned(cell, turn)])
    plan["orders"] = [rng.permutation(len(dimer)), rng.permutation(len(cell))]
    moved = [a[order] for a, order in zip((dimer, cell), plan["orders"], strict=True)]
    for atoms in moved:
        atoms.positions += [3.0, -50.0, 7.0]
    plan["moved"] = collector.add(moved)
    images = cell.copy()
    images.positions += rng.integers(-3, 4, (len(cell), 3)) @ cell.cell.array
    plan["images"] = collector.add([images])
    plan["forces"] = [
        numerical(numerical_forces, a, collector, rows=FORCE_ROWS) for a in (dimer, cell)
    ]
    plan["stress"] = numerical(numerical_stress, cell, collector)
    plan["passing"] = collector.add([passing(CUTOFF - gap) for gap in GAPS])
    plan["chain"] = collector.add([chain(CUTOFF - gap) for gap in GAPS])
    plan["aside"] = collector.add([chain(2.3), chain(2.3, 0.5)])
    plan["lonely"] = collector.add(
        [Atoms("OHC", 100.0 * np.arange(9).reshape(3, 3)), *(Atoms(s) for s in "OHC")]
    )
    plan["touching"] = collector.add([Atoms("OHH", [[0, 0, 0], [0, 0, 0], [0.9, 0, 0]])])
    return collector.structures, plan


@lru_cache
def labels_of(size: str, n_embeddings: int) -> tuple[Labels, dict[str, Any]]:
    structures, plan = everything()
    return label(structures, student_of(size, n_embeddings)), plan


@on_the_ladder
def test_forces_and_stress_are_derivatives(x64, size, n_embeddings):
    labels, plan = labels_of(size, n_embeddings)
    for forces, numerical_of in zip(labels.forces[plan["plain"]], plan["forces"], strict=True):
        largest = np.abs(forces).max()
        assert 0.02 < largest < 1e4
        np.testing.assert_allclose(
            forces[list(FORCE_ROWS)], numerical_of(labels), rtol=0, atol=2e-6 * largest
        )
        np.testing.assert_allclose(forces.sum(0), 0, atol=1e-11 * max(largest, 1.0))
    vacuum, stress = labels.stress[plan["plain"]]
    assert np.isnan(vacuum).all()
    assert np.abs(stress).max() > 1e-4
    np.testing.assert_allclose(stress, stress.T, atol=1e-12 * max(np.abs(stress).max(), 1))
    np.testing.assert_allclose(
        stress, plan["stress"](labels), rtol=0, atol=2e-6 * np.abs(stress).max()
    )


def assert_same(found: Any, expected: Any, scale: float = 1.0) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * max(scale, 1.0))


@on_the_ladder
def test_symmetries(x64, size, n_embeddings):
    labels, plan = labels_of(size, n_embeddings)
    scale = max(np.abs(f).max() for f in labels.forces[plan["plain"]])
    plain = range(2)
    for name, turn in (("turned", TURN), ("mirrored", MIRROR)):
        assert_same(labels.energy[plan[name]], labels.energy[plan["plain"]], scale)
        for k in plain:
            assert_same(labels.forces[plan[name]][k], labels.forces[k] @ turn.T, scale)
        assert_same(labels.stress[plan[name]][1], turn @ labels.stress[1] @ turn.T, scale)
    assert_same(labels.energy[plan["moved"]], labels.energy[plan["plain"]], scale)
    for k in plain:
        order = plan["orders"][k]
        assert_same(labels.forces[plan["moved"]][k], labels.forces[k][order], scale)
        atomic = labels.per_atom_energy[plan["moved"]][k]
        assert_same(atomic, labels.per_atom_energy[k][order], scale)
    assert_same(labels.energy[plan["images"]], labels.energy[[1]], scale)
    assert_same(labels.forces[plan["images"]][0], labels.forces[1], scale)
    assert_same(labels.stress[plan["images"]][0], labels.stress[1], scale)


@on_the_ladder
def test_an_atom_leaves_the_cutoff_smoothly(x64, size, n_embeddings):
    labels, plan = labels_of(size, n_embeddings)
    for name in ("passing", "chain"):
        energy = labels.energy[plan[name]]
        # The hydrogen feels no step either: all atoms count, not only the one that leaves.
        forces = np.stack(labels.forces[plan[name]])
        in_energy = np.abs(energy - energy[-1])
        in_force = np.abs(forces - forces[-1]).max((1, 2))
        # Two continuous derivatives: energies fall as the third power of the gap at least.
        assert 0 < in_energy[1] < in_energy[0] / 7 and 0 < in_force[1] < in_force[0] / 3.5
        assert in_energy[2] < in_energy[1] / 7 and in_force[2] < in_force[1] / 3.5
        assert in_energy[3] < 1e-10 and in_force[3] < 1e-10
        assert in_energy[0] < 1e-2 and in_force[0] < 0.3


@on_the_ladder
def test_only_messages_reach_beyond_the_cutoff(x64, size, n_embeddings):
    labels, plan = labels_of(size, n_embeddings)
    here, aside = (atomic[0] for atomic in labels.per_atom_energy[plan["aside"]])
    chains = np.array([atomic[0] for atomic in labels.per_atom_energy[plan["chain"]]])
    if student_of(size, n_embeddings).message_passing:
        assert abs(here - aside) > 1e-7
        # What is heard of the second shell fades where that atom leaves the neighbour's cutoff.
        fading = np.abs(chains - chains[-1])
        assert 0 < fading[1] < fading[0] / 7 and fading[3] < 1e-12
    else:
        assert here == pytest.approx(aside, abs=1e-12)
        np.testing.assert_allclose(chains, chains[-1], rtol=0, atol=1e-12)


@on_the_ladder
def test_lonely_and_touching_atoms(x64, size, n_embeddings):
    labels, plan = labels_of(size, n_embeddings)
    together, *alone = labels.energy[plan["lonely"]]
    assert np.isfinite(alone).all()
    assert together == pytest.approx(sum(alone), rel=1e-13)
    for forces in labels.forces[plan["lonely"]]:
        np.testing.assert_array_equal(forces, 0)
    assert np.isfinite(labels.energy[plan["touching"]]).all()
    assert np.isfinite(labels.forces[plan["touching"]][0]).all()


@on_the_ladder
def test_the_potential_for_dynamics_is_the_labels(x64, size, n_embeddings):
    """Also batched and alone: the potential has no padding atoms."""
    labels, _ = labels_of(size, n_embeddings)
    student, atoms = student_of(size, n_embeddings), triclinic_cell()
    potential = student.potential(atoms, dtype=np.float64)
    positions = jnp.asarray(atoms.positions)
    energy, forces = jax.jit(potential.energy_and_forces)(positions, potential.allocate(positions))
    total = float(energy) + student.reference_energy(atoms.numbers)
    scale = np.abs(labels.forces[1]).max()
    assert total == pytest.approx(labels.energy[1], rel=1e-12)
    assert_same(forces, labels.forces[1], scale)


@pytest.mark.parametrize(
    ("size", "n_embeddings"),
    [("moment-s", 4), pytest.param("message-m", 0, marks=pytest.mark.slow)],
)
def test_alone_and_in_single_precision(x64, size, n_embeddings):
    labels, _ = labels_of(size, n_embeddings)
    student = student_of(size, n_embeddings)
    structures = [water_dimer(), triclinic_cell()]
    for k, atoms in enumerate(structures):
        alone = label([atoms], student)
        scale = np.abs(labels.forces[k]).max()
        assert_same(alone.energy[0], labels.energy[k], scale)
        assert_same(alone.forces[0], labels.forces[k], scale)
        assert_same(alone.per_atom_energy[0], labels.per_atom_energy[k], scale)
    single = student.label(structures)
    for k, atoms in enumerate(structures):
        scale = np.abs(labels.forces[k]).max()
        residual = abs(labels.energy[k] - student.reference_energy(atoms.numbers))
        assert abs(single.energy[k] - labels.energy[k]) < 1e-5 * max(residual, scale)
        np.testing.assert_allclose(single.forces[k], labels.forces[k], rtol=0, atol=2e-5 * scale)


@some_with_embeddings
def test_messages_of_padding_change_no_gradient(x64, n_embeddings):
    student = student_of("message", n_embeddings, **SMALL_MESSAGE)
    touching = Atoms("OHH", [[0, 0, 0], [0, 0, 0], [0.9, 0, 0]])
    structures = [water_dimer(), Atoms("O"), touching]

    def loss(variables: Any, graph: Any) -> jax.Array:
        def atomic_energy(*rows: Any) -> Any:
            return student.module.apply(variables, *rows)

        result = evaluate(atomic_energy, graph, message_passing=True)
        return (result.forces**2).sum() + (result.energy**2).sum() + (result.virial**2).sum()

    found = []
    for graph in two_paddings(structures, CUTOFF, ELEMENTS):
        found.append(jax.tree.leaves(jax.jit(jax.grad(loss))(student.variables, graph)))
    for small, large in zip(*found, strict=True):
        assert np.isfinite(small).all()
        # Parameters are float32 and so is their gradient.
        np.testing.assert_allclose(small, large, rtol=0, atol=1e-5 * max(np.abs(small).max(), 1e-3))


# Elements


@pytest.mark.parametrize("size", SIZES)
def test_elements_share_parameters_through_embeddings(size):
    def parameters(elements: tuple[int, ...], n_embeddings: int) -> int:
        spec = StudentSpec.of_size(size, elements, CUTOFF, {"n_embeddings": n_embeddings})
        return Student(spec, random_variables(spec), np.zeros(len(elements))).n_parameters

    few, many = TEN_ELEMENTS[:3], TEN_ELEMENTS
    growth = {}
    for n_embeddings in (0, 4):
        first, last = parameters(few, n_embeddings), parameters(many, n_embeddings)
        growth[n_embeddings] = (last / first - 1) / (len(many) - len(few))
    assert 0 < growth[4] < 0.05
    assert growth[0] > 0.3


# Bundles and specs


@pytest.mark.parametrize("n_embeddings", [0, 4])
def test_a_bundle_of_a_message_student_is_read_back(tmp_path: Path, n_embeddings: int):
    student = student_of("message", n_embeddings, **SMALL_MESSAGE)
    loaded = load_bundle(save_bundle(student, tmp_path / "bundle", {})).student
    assert loaded.spec.to_dict() == student.spec.to_dict()
    first, second = (s.label([water_dimer()]) for s in (student, loaded))
    np.testing.assert_array_equal(first.forces[0], second.forces[0])
    np.testing.assert_array_equal(first.energy, second.energy)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mesage-m", {}, r"unknown student architecture 'mesage-m' \(did you mean 'message-m'\?\)"),
        ("moment-x", {}, r"'moment-x' \(did you mean 'moment-.'\?\); known: moment-s, moment-m"),
        ("zzz", {}, r"unknown student architecture 'zzz'; known: .*message"),
        ("moment-s", {"n_embedding": 4}, r"'n_embedding' of student 'moment' .*'n_embeddings'\?"),
        ("message-m", {"n_mesages": 4}, r"'n_mesages' of student 'message' .*'n_messages'\?"),
        ("moment-s", {"n_messages": 4}, r"unknown option 'n_messages' of student 'moment'"),
    ],
)
def test_names_that_are_not_understood(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        StudentSpec.of_size(name, ELEMENTS, CUTOFF, options).build()
