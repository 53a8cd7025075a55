"""Starting structures: packed liquids, crystals, named systems, and their relaxation."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list
from morse_teacher import DEPTH, LENGTH, WIDTH, morse

from distill.errors import ConfigError, SimulationError, UnsupportedStructureError
from distill.potential import Potential, local_potential
from distill.sampling.packing import CONTACT, make_crystal, pack_liquid, read_structure
from distill.sampling.systems import CrystalConfig, LiquidConfig, SystemConfig, make_systems
from distill.simulation.relax import make_relaxer, relax

GRAM_PER_CM3 = units.kg / 1e3 / 1e24  # u/Å³


def owners(molecules: dict[str, int]) -> np.ndarray:
    """Molecule that each atom of a packed box belongs to."""
    sizes = [len(molecule(name)) for name, count in molecules.items() for _ in range(count)]
    return np.repeat(np.arange(len(sizes)), sizes)


def closest_contact(box: Atoms, owner: np.ndarray) -> float:
    """Å between atoms of two molecules, or of a molecule and its image, found by ASE."""
    unwrapped = [box.positions[owner == k] for k in np.unique(owner)]
    i, j, distance, shift = neighbor_list("ijdS", box, 3.0)
    foreign = (owner[i] != owner[j]) | shift.any(1)
    assert all(np.ptp(part, axis=0).max() < 10 for part in unwrapped)  # whole molecules
    return float(distance[foreign].min(initial=np.inf))


BOXES = [
    ({"H2O": 12}, 1.0),
    ({"CH3OH": 6, "H2O": 5}, 0.9),
    ({"H2O": 1}, 0.2),
]


@pytest.mark.parametrize(("molecules", "density"), BOXES)
def test_a_packed_box_is_what_was_asked_for(molecules, density):
    box = pack_liquid(molecules, density, seed=3)
    owner = owners(molecules)
    parts = [molecule(name) for name, count in molecules.items() for _ in range(count)]
    assert box.pbc.all()
    assert box.numbers.tolist() == [z for part in parts for z in part.numbers]
    np.testing.assert_allclose(box.cell.array, np.eye(3) * box.cell[0, 0])
    found = box.get_masses().sum() / box.get_volume() / GRAM_PER_CM3
    assert found == pytest.approx(density, rel=1e-6)
    assert closest_contact(box, owner) >= CONTACT
    for k, part in enumerate(parts):
        own = box[owner == k].get_all_distances()
        np.testing.assert_allclose(own, part.get_all_distances(), atol=1e-9)


def test_handedness_is_kept():
    """A mirror image has the same distances."""
    box = pack_liquid({"CH3OH": 2}, 0.5)
    whole = molecule("CH3OH").positions
    for own in (box.positions[:6], box.positions[6:]):
        volumes = [np.linalg.det(p[1:4] - p[0]) for p in (own, whole)]
        assert volumes[0] == pytest.approx(volumes[1], abs=1e-9)


def test_the_seed_decides_the_box():
    first, second, other = (pack_liquid({"H2O": 8}, 1.0, seed).positions for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)


def test_molecules_come_from_files_too(tmp_path: Path):
    path = tmp_path / "mine.xyz"
    molecule("CO").write(path)
    assert len(read_structure(str(path))) == 2
    box = pack_liquid({str(path): 4}, 0.5)
    assert box.get_chemical_formula() == "C4O4"


def test_too_dense_is_refused(monkeypatch):
    monkeypatch.setattr("distill.sampling.packing.MAX_SWEEPS", 50)
    with pytest.raises(UnsupportedStructureError, match=r"8 molecules at 5\.0 g/cm³ .*lower dens"):
        pack_liquid({"H2O": 8}, 5.0)


@pytest.mark.parametrize("name", ["H", "H2O"])
def test_a_molecule_too_close_to_its_own_image_is_refused(monkeypatch, name):
    """Pushes of two opposite images cancel: that there is none does not mean no contact."""
    monkeypatch.setattr("distill.sampling.packing.MAX_SWEEPS", 20)
    density = molecule(name).get_masses().sum() / 1.4**3 / GRAM_PER_CM3
    with pytest.raises(UnsupportedStructureError, match="still have contacts"):
        pack_liquid({name: 1}, density)


@pytest.mark.parametrize("molecules", [{}, {"H2O": 0}])
def test_nothing_to_pack(molecules):
    with pytest.raises(ConfigError, match="at least one molecule"):
        pack_liquid(molecules, 1.0)


@pytest.mark.parametrize("density", [0.0, -1.0, float("nan")])
def test_no_density(density):
    with pytest.raises(ConfigError, match="density above 0"):
        pack_liquid({"H2O": 1}, density)


@pytest.mark.parametrize("name", ["H2Oo", "no/such/file.xyz", "water"])
def test_unknown_molecules_are_named(name):
    with pytest.raises(ConfigError, match=f"structure '{name}' is neither a file nor"):
        pack_liquid({name: 2}, 1.0)


# Crystals


def test_supercells_and_strain():
    cell, large = bulk("Cu"), make_crystal("Cu", (2, 1, 3))
    assert len(large) == 6 * len(cell)
    assert large.get_volume() == pytest.approx(6 * cell.get_volume())
    strained = make_crystal("Cu", (2, 1, 3), 0.02)
    np.testing.assert_allclose(strained.cell.array, 1.02 * large.cell.array)
    np.testing.assert_allclose(strained.positions, 1.02 * large.positions)
    nearest = [neighbor_list("d", a, 3.0).min() for a in (cell, large, strained)]
    np.testing.assert_allclose(nearest, nearest[0] * np.array([1, 1, 1.02]))


def test_crystals_come_from_files_and_must_be_periodic(tmp_path: Path):
    crystal, slab = tmp_path / "nacl.extxyz", tmp_path / "slab.extxyz"
    bulk("NaCl", "rocksalt", a=5.64).write(crystal)
    assert make_crystal(str(crystal), (1, 1, 2)).get_chemical_formula() == "Cl2Na2"
    flat = bulk("Cu")
    flat.pbc = [True, True, False]
    flat.write(slab)
    with pytest.raises(ConfigError, match=r"slab\.extxyz is not periodic in all directions"):
        make_crystal(str(slab))


@pytest.mark.parametrize("name", ["Xy", "unobtainium", "H2O", ""])
def test_unknown_crystals_are_named(name):
    with pytest.raises(ConfigError, match=f"crystal '{name}' is neither a file nor an element"):
        make_crystal(name)


# Systems


def test_systems_have_names_of_their_own():
    liquid = LiquidConfig({"H2O": 2}, densities=(0.3, 0.4), boxes=2)
    systems = make_systems(SystemConfig(liquid=liquid, seed=7))
    assert list(systems) == [f"2H2O-{d}gcc-b{b}" for d in (0.3, 0.4) for b in (7, 8)]
    starts = [a.positions for a in systems.values()]
    assert all(not np.allclose(a, b) for i, a in enumerate(starts) for b in starts[:i])
    np.testing.assert_array_equal(starts[1], pack_liquid({"H2O": 2}, 0.3, seed=8).positions)
    crystal = CrystalConfig("Cu", (2, 1, 1), strains=(-0.01, 0.0, 0.01))
    names = list(make_systems(SystemConfig(crystal=crystal)))
    assert names == ["Cu-2x1x1-strain-0.01", "Cu-2x1x1-strain0", "Cu-2x1x1-strain0.01"]
    assert list(make_systems(SystemConfig(structure="CH3OH"))) == ["CH3OH"]


@pytest.mark.parametrize(
    "config",
    [
        SystemConfig(),
        SystemConfig(structure="H2O", crystal=CrystalConfig("Cu")),
        SystemConfig(liquid=LiquidConfig({"H2O": 1}), crystal=CrystalConfig("Cu")),
    ],
)
def test_exactly_one_kind(config):
    with pytest.raises(ConfigError, match="exactly one of structure, liquid, crystal and dataset"):
        make_systems(config)


# Relaxation


def morse_potential(atoms: Atoms, factor: float = 1.0) -> Potential:
    """Morse pairs within 4 Å on real neighbour lists; `factor` of NaN breaks it."""

    def atomic_energy(vectors: jax.Array, others: jax.Array, mask: jax.Array, species: jax.Array):
        r = jnp.sqrt((vectors**2).sum(-1))
        decay = jnp.exp(-WIDTH * (r - LENGTH))
        # From zero at infinity, and cut off smoothly: the energy knows no step.
        window = jnp.maximum(1 - (r / 4.0) ** 2, 0.0) ** 3
        pair = DEPTH * ((1 - decay) ** 2 - 1) * window
        return 0.5 * factor * jnp.where(mask, pair, 0).sum(-1)

    return local_potential(atomic_energy, atoms, np.zeros(len(atoms), np.int32), 4.0)


@pytest.fixture
def rattled(quick_compilation) -> tuple[Atoms, np.ndarray]:
    """A packed box and two rattled copies of it, `[2, n, 3]`."""
    box = pack_liquid({"CO": 6}, 0.2)
    noise = np.random.default_rng(0).normal(scale=0.15, size=(2, len(box), 3))
    return box, box.positions + noise


def test_relaxation_goes_downhill(rattled):
    box, starts = rattled
    potential = morse_potential(box)
    before = [potential.energy_and_forces(jnp.asarray(x), potential.allocate(x)) for x in starts]
    walk = make_relaxer(potential)  # it compiles once: 60 steps are six blocks of 10
    first, second = (walk(starts, steps) for steps in (10, 60))
    assert second.positions.shape == starts.shape and second.energy.shape == (2,)
    for k, (energy, forces) in enumerate(before):
        assert second.energy[k] < first.energy[k] < float(energy) - 0.01
        assert second.largest_force[k] < np.linalg.norm(forces, axis=1).max()
    moved = np.linalg.norm(first.positions - starts, axis=-1)
    assert 0 < moved.max() <= 10 * 0.05 + 1e-4  # as far as its steps allow


def test_zero_steps_only_evaluate(toy_potential):
    atoms = molecule("H2O")

    def energy(x: jax.Array) -> jax.Array:
        i, j = np.triu_indices(3, 1)
        r = jnp.linalg.norm(x[i] - x[j], axis=-1)
        return (DEPTH * (1 - jnp.exp(-WIDTH * (r - LENGTH))) ** 2).sum()

    result = relax(toy_potential(energy, atoms.numbers), atoms.positions[None], 0)
    expected_energy, forces, _ = morse(atoms.positions)
    np.testing.assert_allclose(result.positions[0], atoms.positions, atol=1e-6)
    assert result.energy[0] == pytest.approx(expected_energy, rel=1e-5)
    expected = np.linalg.norm(forces, axis=1).max()
    assert result.largest_force[0] == pytest.approx(expected, rel=1e-4)


def test_a_broken_potential_is_named(quick_compilation):
    """Not the neighbour lists, which look too old once atoms are lost."""
    atoms = molecule("H2O")
    with pytest.raises(SimulationError, match=r"replicas \[0\] became NaN or infinite"):
        relax(morse_potential(atoms, float("nan")), atoms.positions[None], 5)
