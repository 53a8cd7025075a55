"""Close contacts: which atoms are pushed together, how far, and what stays as it was."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from builders import water_box

from distill.errors import ConfigError, UnsupportedStructureError
from distill.sampling.squeezed import SqueezeConfig, sample_squeezed


def distances(atoms: Atoms) -> np.ndarray:
    return atoms.get_all_distances(mic=bool(atoms.pbc.any()))


def between_molecules(atoms: Atoms, size: int = 3) -> np.ndarray:
    member = np.arange(len(atoms)) // size
    return member[:, None] != member


def contact(origin: str) -> tuple[str, float]:
    pair, length = origin.removeprefix("squeeze:").split(":")
    return pair, float(length.removesuffix("A"))


def test_the_named_pair_is_at_the_named_distance():
    atoms = water_box(2)
    config = SqueezeConfig(copies=60, displacement=0.0, closest=1.1, reach=3.0)
    dataset = sample_squeezed(atoms, config, system="water")
    assert set(dataset.trajectory) == {"water-squeeze-s0"}
    assert dataset.parent.tolist() == [-1, *[0] * 60]
    radii = covalent_radii[atoms.numbers]
    floor = 1.1 * (radii[:, None] + radii)
    apart = between_molecules(atoms)
    seen = set()
    for i in range(1, 61):
        copy = dataset.structure(i)
        pair, length = contact(dataset.origin[i])
        symbols = np.array(copy.get_chemical_symbols())
        names = np.array([["-".join(sorted((a, b))) for b in symbols] for a in symbols])
        found = distances(copy)[apart & (names == pair)]
        # The name has two digits.
        assert abs(found - length).min() < 0.006
        assert (distances(copy)[apart] > floor[apart] - 1e-6).all()
        seen.add(pair)
        moved = np.linalg.norm(copy.positions - atoms.positions, axis=1) > 1e-9
        by_molecule = moved.reshape(-1, 3).sum(1)
        assert sorted(by_molecule[by_molecule > 0].tolist()) in ([1, 1], [3, 3])
    assert seen == {"H-H", "H-O", "O-O"}


def test_whole_molecules_keep_their_shape_and_the_pair_its_middle():
    atoms = water_box(2)
    dataset = sample_squeezed(atoms, SqueezeConfig(copies=40, displacement=0.0))
    inside = ~between_molecules(atoms)
    rigid = 0
    for i in range(1, 41):
        copy = dataset.structure(i)
        steps = copy.positions - atoms.positions
        moved = np.flatnonzero(np.linalg.norm(steps, axis=1) > 1e-9)
        np.testing.assert_allclose(steps[moved[0]], -steps[moved[-1]], atol=1e-9)
        if len(moved) == 6:
            rigid += 1
            np.testing.assert_allclose(distances(copy)[inside], distances(atoms)[inside])
    assert 8 < rigid < 32


def test_contacts_across_the_boundary():
    atoms = Atoms("Ar2", positions=[[0.3, 5, 5], [6.9, 5, 5]], cell=[10] * 3, pbc=True)
    dataset = sample_squeezed(atoms, SqueezeConfig(copies=20, displacement=0.0))
    lengths = [distances(dataset.structure(i))[0, 1] for i in range(1, 21)]
    assert 2.12 < min(lengths) < 2.5 and 3.0 < max(lengths) < 3.4
    with pytest.raises(UnsupportedStructureError, match="larger reach"):
        sample_squeezed(atoms, SqueezeConfig(reach=3.0))


def test_several_contacts_in_one_copy_stay_as_they_are_said_to_be():
    """Also where a contact is so short that it would be taken for a bond."""
    atoms = water_box(2)
    config = SqueezeConfig(copies=30, contacts=3, closest=0.9, reach=2.6, displacement=0.0)
    several = sample_squeezed(atoms, config)
    radii = covalent_radii[atoms.numbers]
    apart, inside = between_molecules(atoms), ~between_molecules(atoms)
    short = 0
    for i in range(1, 31):
        copy = several.structure(i)
        said = several.origin[i].removeprefix("squeeze:").split("+")
        assert 2 <= len(said) <= 3
        relative = distances(copy) / (radii[:, None] + radii)
        assert (relative[apart] > 0.9 - 1e-6).all()
        symbols = np.array(copy.get_chemical_symbols())
        names = np.array([["-".join(sorted((a, b))) for b in symbols] for a in symbols])
        # Both sides of a contact move by opposite steps, and no other atoms by such.
        step = copy.positions - atoms.positions
        opposite = (abs(step[:, None] + step) < 1e-6).all(-1) & (abs(step).max(1) > 1e-9)
        for one in said:
            pair, length = contact(one)
            both = opposite & apart & (names == pair)
            assert abs(distances(copy)[both] - length).min() < 0.006
        short += (relative[apart] < 1.3).any()
        steps = (copy.positions - atoms.positions).reshape(-1, 3, 3)
        moved = np.linalg.norm(steps, axis=2) > 1e-9
        assert moved.any(1).sum() == 2 * len(said)
        assert set(moved.sum(1)) <= {0, 1, 3}
        rigid = np.repeat(moved.sum(1) == 3, 3)
        both = inside & rigid[:, None] & rigid
        np.testing.assert_allclose(distances(copy)[both], distances(atoms)[both])
    assert short > 10


def test_a_start_whose_atoms_overlap_is_refused():
    atoms = water_box(2)
    atoms.positions[3] = atoms.positions[0] + [0.3, 0, 0]
    for displacement in (0.0, 0.03):
        with pytest.raises(UnsupportedStructureError, match=r"atoms 0 and 3 .* 0\.30 Å apart"):
            sample_squeezed(atoms, SqueezeConfig(displacement=displacement))


def test_one_molecule_and_a_network_move_atoms_alone():
    for atoms in (molecule("CH3CH2OH"), bulk("Cu", cubic=True).repeat(2)):
        start = atoms.copy()
        dataset = sample_squeezed(atoms, SqueezeConfig(copies=6, displacement=0.0))
        for i in range(1, 7):
            steps = np.linalg.norm(dataset.structure(i).positions - start.positions, axis=1)
            assert (steps > 1e-9).sum() == 2
        assert atoms == start


def test_same_seed_same_copies():
    atoms = water_box(2)
    config = SqueezeConfig(copies=4)
    assert sample_squeezed(atoms, config).sha256 == sample_squeezed(atoms, config).sha256
    other = SqueezeConfig(copies=4, seed=1)
    assert sample_squeezed(atoms, config).sha256 != sample_squeezed(atoms, other).sha256


def test_nothing_to_push_and_bad_settings():
    with pytest.raises(UnsupportedStructureError, match="H2O: no two atoms"):
        sample_squeezed(molecule("H2O"), SqueezeConfig(reach=1.2))
    for counts in ({"copies": 0}, {"contacts": 0}, {"copies": 2.5}):
        with pytest.raises(ConfigError, match="whole numbers from 1 on"):
            SqueezeConfig(**counts)
    with pytest.raises(ConfigError, match=r"from 0\.3 to"):
        SqueezeConfig(closest=2.0)
    with pytest.raises(ConfigError, match=r"from 0\.3 to"):
        SqueezeConfig(reach=-1.0)
    with pytest.raises(ConfigError, match=r"displacement is -0\.1"):
        SqueezeConfig(displacement=-0.1)
