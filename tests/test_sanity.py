"""Labels in other units, of the wrong sign or without a known teacher are noticed before training.

Data: ethanol in MD, argon and copper crystals in chains of small random steps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.md.verlet import VelocityVerlet

from distill.data import Dataset, Labels, concatenate, make_units
from distill.data.sanity import check_labels, rare_elements, require_sane_labels
from distill.errors import DatasetError
from distill.units import BOHR, ENERGY_UNITS, HARTREE, UnitError
from tests.builders import ethanol

TEACHER = {"teacher": "emt", "teacher_version": "1", "weights_sha256": "ab"}
KCAL, KJ = ENERGY_UNITS["kcal/mol"], ENERGY_UNITS["kJ/mol"]


def label(structures, calculator, trajectory="run", provenance=TEACHER) -> Dataset:
    energies, forces = [], []
    for atoms in structures:
        atoms = atoms.copy()
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    dataset = Dataset.from_structures(structures, trajectory, "test", provenance=provenance)
    return dataset.labelled(Labels(np.array(energies), forces))


def chain(atoms, calculator, count=30, step=0.02, seed=0) -> Dataset:
    """Small random steps away from displaced `atoms`, as of one trajectory."""
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.positions += 0.03 * rng.standard_normal((len(atoms), 3))
    structures = []
    for _ in range(count):
        atoms.positions += step * rng.standard_normal((len(atoms), 3))
        structures.append(atoms.copy())
        if atoms.pbc.all():
            structures[-1].wrap()
    return label(structures, calculator)


@lru_cache
def molecule_run() -> Dataset:
    """Ethanol in NVE, one frame per femtosecond."""
    atoms = ethanol()
    atoms.calc = EMT()
    structures = []
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.attach(lambda: structures.append(atoms.copy()), interval=2)
    dynamics.run(80)
    return label(structures, EMT())


@lru_cache
def argon() -> Dataset:
    crystal = bulk("Ar", cubic=True) * (2, 2, 2)
    return chain(crystal, LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0))


@lru_cache
def copper() -> Dataset:
    return chain(bulk("Cu", cubic=True) * (2, 2, 2), EMT())


@pytest.mark.parametrize("make", [molecule_run, argon, copper])
def test_correct_labels_pass_without_warning(make):
    assert check_labels(make()) == []
    assert require_sane_labels(make()) == []


def test_declared_units_are_respected():
    data = molecule_run()
    other = replace(
        data,
        positions=data.positions / BOHR,
        energy=data.energy / HARTREE,
        forces=data.forces / (HARTREE / BOHR),
    )
    assert check_labels(replace(other, units=make_units("Hartree", "Bohr"))) == []
    # all three undeclared: positions and the pair of energy and forces are both named
    with pytest.raises(UnitError, match=r"positions seem to be in Bohr.*forces in Hartree/Bohr"):
        require_sane_labels(other)


@pytest.mark.parametrize(
    ("unit", "name"), [(HARTREE, "Hartree"), (KCAL, "kcal/mol"), (KJ, "kJ/mol"), (1e-3, "meV")]
)
@pytest.mark.parametrize("make", [molecule_run, copper])
def test_energies_in_other_units(make, unit, name):
    data = replace(make(), energy=make().energy / unit)
    with pytest.raises(UnitError, match=f"energies seem to be in {name}, not in eV.*energy=") as e:
        require_sane_labels(data)
    assert f"{unit:.6g}" in str(e.value)
    assert check_labels(replace(data, energy=data.energy * unit)) == []


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        (HARTREE / BOHR, "Hartree/Bohr"),
        (KCAL, "kcal/mol/Angstrom"),
        (KJ, "kJ/mol/Angstrom"),
        (KJ / 10, "kJ/mol/nm"),
        (1 / BOHR, "eV/Bohr"),
    ],
)
@pytest.mark.parametrize("make", [molecule_run, argon])
def test_forces_in_other_units(make, unit, name):
    data = replace(make(), forces=make().forces / unit)
    with pytest.raises(UnitError, match=f"forces seem to be in {name}, not in eV/Ang.*forces="):
        require_sane_labels(data)


def test_energies_per_atom():
    data = replace(molecule_run(), energy=molecule_run().energy / molecule_run().n_atoms)
    with pytest.raises(UnitError, match="per atom"):
        require_sane_labels(data)


def test_gradients_instead_of_forces():
    data = replace(molecule_run(), forces=-molecule_run().forces)
    with pytest.raises(DatasetError, match=r"wrong sign.*forces=-dataset\.forces"):
        require_sane_labels(data)
    # two mistakes at once
    both = replace(data, forces=data.forces / (HARTREE / BOHR))
    with pytest.raises(UnitError, match=r"wrong sign.*Hartree/Bohr"):
        require_sane_labels(both)


@pytest.mark.parametrize(("unit", "name"), [(BOHR, "Bohr"), (10.0, "nm")])
@pytest.mark.parametrize("make", [molecule_run, argon, copper])
def test_positions_in_other_units(make, unit, name):
    data = replace(make(), positions=make().positions / unit, cell=make().cell / unit)
    with pytest.raises(UnitError, match=f"positions seem to be in {name}, not in Angstrom") as e:
        require_sane_labels(data)
    assert f"{unit:.6g}" in str(e.value) and "energies" not in str(e.value)
    # flags that the wrong units cause hide nothing
    with pytest.raises(UnitError, match=f"positions seem to be in {name}"):
        require_sane_labels(replace(data, flag=np.full(len(data), 4)))


@pytest.mark.parametrize("name", ["H2", "N2", "F2", "CO", "CH4", "NaCl", "C6H6", "SiH4", "Li2"])
def test_molecules_in_angstrom_and_bohr(name):
    atoms = molecule(name)
    good = Dataset.from_structures([atoms], "t", "o")
    assert check_labels(good) == []
    with pytest.raises(UnitError, match="Bohr"):
        require_sane_labels(replace(good, positions=good.positions / BOHR))


CRYSTALS = ["Ne", "Ar", "Kr", "Xe", "Cu", "Na", "Cs", "Be", "C", "Si", "Pb", "Ca", "Mg"]


@pytest.mark.parametrize("name", CRYSTALS)
def test_crystals_in_angstrom_and_bohr(name):
    good = Dataset.from_structures([bulk(name)], "t", "o")
    assert check_labels(good) == []
    with pytest.raises(UnitError, match="Bohr"):
        require_sane_labels(replace(good, positions=good.positions / BOHR, cell=good.cell / BOHR))


def test_nothing_is_said_of_what_cannot_be_measured():
    isolated = [Atoms("H"), Atoms("He2", [[0, 0, 0], [0, 0, 20]]), Atoms("C", cell=[9] * 3, pbc=1)]
    assert check_labels(Dataset.from_structures(isolated, "t", "o")) == []
    assert check_labels(Dataset.from_structures([], [], [])) == []
    slab = Atoms("Cu", cell=[[2.55, 0, 0], [1.27, 2.2, 0], [0, 0, 0]], pbc=[1, 1, 0])
    assert check_labels(Dataset.from_structures([slab], "t", "o")) == []
    # a scan of distances has no typical one; loose clusters warn
    scan = [Atoms("H2", [[0, 0, 0], [0, 0, d]]) for d in np.linspace(0.5, 2.0, 20)]
    require_sane_labels(Dataset.from_structures(scan, "t", "o"))
    loose = Dataset.from_structures([Atoms("Li2", [[0, 0, 0], [0, 0, 7.0]])], "t", "o")
    assert "check the unit" in require_sane_labels(loose)[0]


def test_far_structures_are_not_compared():
    rattled = [ethanol(seed, amplitude=0.2) for seed in range(20)]
    data = label(rattled, EMT())
    assert check_labels(data) == []
    assert check_labels(replace(data, energy=data.energy / HARTREE)) == []
    alone = replace(molecule_run(), trajectory=[str(i) for i in range(len(molecule_run()))])
    assert check_labels(replace(alone, forces=-alone.forces)) == []


def test_broken_frames_decide_nothing():
    data = molecule_run()
    energy, forces, positions = data.energy.copy(), data.forces.copy(), data.positions.copy()
    energy[7], energy[20] = 1e6, np.nan
    forces[data.rows(12)] = 1e4
    forces[data.rows(15)] = np.nan
    positions[data.rows(25)] *= 0.1
    broken = replace(data, energy=energy, forces=forces, positions=positions)
    assert check_labels(broken) == []
    with pytest.raises(UnitError, match="kcal/mol"):
        require_sane_labels(replace(broken, energy=energy / KCAL))


def test_labels_of_other_structures_warn():
    data = molecule_run()
    order = np.random.default_rng(0).permutation(len(data))
    assert "do not belong together" in check_labels(replace(data, energy=data.energy[order]))[0]


def test_sizes_of_forces_and_energies_warn():
    data = molecule_run()
    consistent = replace(data, energy=data.energy / KCAL, forces=data.forces / KCAL)
    assert "RMS force" in require_sane_labels(consistent)[0]
    tiny = replace(data, energy=data.energy * 1e-4, forces=data.forces * 1e-4)
    assert "RMS force" in require_sane_labels(tiny)[0]
    half = np.where(np.arange(len(data)) < len(data) // 2, 1.0, 1 / HARTREE)
    mixed = replace(data, energy=(data.energy - 4000.0) * half)
    assert any("eV/atom" in message for message in check_labels(mixed))


def test_several_compositions_fit_per_element_energies():
    parts = [label([molecule(n)] * 3, EMT()) for n in ("H2O", "CH4", "CH3CH2OH", "H2CO", "C6H6")]
    joined = concatenate(parts)
    owner = np.repeat(np.arange(len(joined)), joined.n_atoms)
    shift = np.bincount(owner, {1: -13.6, 6: -1035.0, 8: -2041.0}[6] * (joined.numbers == 6))
    assert check_labels(replace(joined, energy=joined.energy + shift)) == []


def test_teachers_are_never_mixed():
    data = molecule_run()
    for key in TEACHER:
        other = replace(data, provenance={**TEACHER, key: "other"})
        with pytest.raises(DatasetError, match="never mixed"):
            concatenate([data, other])
    # without a record two teachers could not be told apart
    nameless = replace(data, provenance={})
    assert concatenate([nameless, nameless]).provenance == {}
    assert "names no `teacher`" in require_sane_labels(nameless)[0]


def test_rare_elements():
    data = Dataset.from_structures([molecule("H2O"), molecule("CH4"), bulk("Si")], "t", "o")
    assert rare_elements(data, range(3)) == {"H": 6, "C": 1, "O": 1, "Si": 2}
    assert rare_elements(data, [0, 1], minimum=2) == {"C": 1, "O": 1, "Si": 0}
    assert rare_elements(data, np.array([False, False, True]), 1) == {"H": 0, "C": 0, "O": 0}
    assert rare_elements(data, [1] * 10) == {"O": 0, "Si": 0}
