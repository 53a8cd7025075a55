"""Atoms pushed together: what is compared, and what counts as a hole."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from builders import small_student, water_box

from distill.data import Labels
from distill.errors import TeacherError, UnsupportedStructureError
from distill.evaluation.approach import approaches, compare_contacts, compare_walls
from distill.students import save_bundle
from distill.teachers import load

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def test_the_nearest_pairs_come_together_in_even_steps():
    atoms = water_box(2)
    ways = approaches(atoms, closest=0.9, step=0.1)
    names = [f"{pair}, {what}" for pair in ("H-H", "H-O", "O-O") for what in ("molecules", "atoms")]
    assert sorted(way.name for way in ways) == sorted(names)
    distances = atoms.get_all_distances(mic=True)
    member = np.arange(len(atoms)) // 3
    for way in ways:
        kinds = [atoms.symbols[atom] for atom in way.atoms]
        assert "-".join(sorted(kinds)) == way.name.split(",")[0]
        same = np.isin(atoms.symbols, kinds[:1])[:, None] & np.isin(atoms.symbols, kinds[1:])
        apart = member[:, None] != member
        assert way.distances[0] == pytest.approx(distances[same & apart].min())
        found = [one.get_distance(*way.atoms, mic=True) for one in way.structures]
        np.testing.assert_allclose(found, way.distances, atol=1e-9)
        steps = -np.diff(way.distances)
        np.testing.assert_allclose(steps, steps[0], atol=1e-9)
        assert 0.05 < steps[0] <= 0.1
        moved = np.abs(way.structures[-1].positions - atoms.positions).max(1) > 1e-9
        assert moved.sum() == (6 if "molecules" in way.name else 2)


def test_energies_along_the_way_agree_with_the_pair_potential():
    pair = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.8]])
    (way,) = [way for way in approaches(pair, closest=1.4) if way.name == "Ar-Ar, atoms"]
    energies = []
    for structure in way.structures:
        structure.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=12.0, smooth=False)
        energies.append(structure.get_potential_energy())
    energies = np.array(energies)
    ratio = (3.4 / way.distances) ** 6
    pairwise = 4 * 0.0104 * (ratio**2 - ratio)
    wall = compare_walls(way.distances, energies, pairwise)
    assert wall.largest_error < 1e-5 and wall.falls_at is None and wall.barrier is None


def test_a_hole_is_found_and_an_attraction_is_none():
    distances = np.linspace(2.0, 0.5, 31)
    teacher = 3 * (2.0 - distances)
    student = np.where(distances > 1.02, teacher, teacher - 60 * (1.02 - distances))
    wall = compare_walls(distances, student + 7.0, teacher - 3.0, up_to=2.0)
    # The teacher has risen by 2 eV at 1.33 Å, before the two part.
    assert wall.largest_error < 1e-9
    assert wall.barrier == pytest.approx(3 * (2.0 - 1.05), abs=0.01)
    assert wall.falls_at == pytest.approx(1.0)
    assert compare_walls(distances, student, teacher, up_to=4.0).largest_error > 5
    attracted = -4 * (2.0 - distances)
    assert compare_walls(distances, attracted - 0.2, attracted).falls_at is None
    # Far above the start, and still a way down that the teacher does not have.
    lasting = np.where(distances > 0.72, teacher, teacher - 20 * (0.72 - distances))
    high = compare_walls(distances, lasting, teacher)
    assert 0 < high.student[-1] < high.barrier - 0.5
    assert high.barrier == pytest.approx(3 * (2.0 - 0.75), abs=0.01)
    # Both go over a barrier, as where a bond forms.
    over = 3 * np.sin(np.linspace(0, np.pi, 31))
    assert compare_walls(distances, 0.9 * over, over).falls_at is None
    # Both fall, the student somewhat more.
    assert compare_walls(distances, 0.4 * over, over).falls_at is None
    well = -6 * np.sin(np.linspace(0, np.pi / 2, 31))
    assert compare_walls(distances, 1.1 * well, well).falls_at is None
    assert compare_walls(distances, 2.0 * well, well).barrier == 0.0
    # Softer than the teacher everywhere, and rising all the same.
    assert compare_walls(distances, 0.3 * teacher, teacher).falls_at is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"student": np.zeros(3)}, "must be"),
        ({"teacher": np.array([0.0, np.nan])}, "NaN or infinite"),
        ({"distances": np.array([1.0, 2.0])}, "must fall"),
        ({"up_to": 0.0}, "up_to be positive"),
        ({"distances": np.ones(1), "student": np.ones(1), "teacher": np.ones(1)}, "two or more"),
    ],
)
def test_energies_that_cannot_be_compared(change, match):
    given = {"distances": np.array([2.0, 1.0]), "student": np.zeros(2), "teacher": np.zeros(2)}
    with pytest.raises(ValueError, match=match):
        compare_walls(**(given | change))


def label_by(energy):
    return lambda structures: Labels(np.array([energy(atoms) for atoms in structures]), [])


def test_what_applies_to_which_structure():
    nothing = label_by(lambda atoms: 0.0)
    for atoms, applies in (
        (molecule("H2"), False),
        (Atoms("Ar"), False),
        (Atoms("Ar2", positions=[[0, 0, 0], [9, 0, 0]]), True),
        (bulk("Al"), True),
    ):
        found = compare_contacts(atoms, nothing, nothing)
        assert found["approaches"] == [] and found["applies"] == applies
    pair = Atoms("Ar2", positions=[[0, 0, 0], [3.5, 0, 0]])
    found = compare_contacts(pair, label_by(lambda atoms: atoms.get_distance(0, 1)), nothing)
    assert [wall["largest_error_ev"] > 1 for wall in found["approaches"]] == [True, True]
    lost = label_by(lambda atoms: np.nan if atoms.get_distance(0, 1) < 2 else 0.0)
    assert "the student, Ar-Ar" in compare_contacts(pair, lost, nothing)["broke_down"]
    with pytest.raises(TeacherError, match="the teacher, Ar-Ar"):
        compare_contacts(pair, nothing, lost)


def test_nothing_to_push_together():
    with pytest.raises(UnsupportedStructureError, match="no two atoms within"):
        approaches(molecule("H2O"), closest=3.0)
    with pytest.raises(ValueError, match="must be positive"):
        approaches(molecule("H2O"), step=0.0)


@pytest.mark.usefixtures("quick_compilation")
def test_the_script_writes_curves_a_picture_and_records(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    walls = importlib.import_module("walls")
    read_start = importlib.import_module("simulation_start").read_start
    arguments = [
        f"bundle={save_bundle(small_student(), tmp_path / 'student', {})}",
        "structure=CH3CH2OH",
        "teacher=fennol:models/demo_chno.fnx",
        "step=0.2",
        f"output={tmp_path / 'walls'}",
        f"record={tmp_path / 'records.json'}",
        "subject=smoke",
    ]
    assert walls.main(arguments) == 0
    found = json.loads((tmp_path / "walls/walls.json").read_text())
    names = [way["name"] for way in found["approaches"]]
    # One molecule: atoms move alone.
    assert "C-H, atoms" in names and not any("molecules" in name for name in names)
    teacher = load(f"fennol:{EXPERIMENTS / 'models/demo_chno.fnx'}")
    start = read_start("CH3CH2OH")
    for way, expected in zip(found["approaches"], approaches(start, step=0.2), strict=True):
        assert way["name"] == expected.name
        np.testing.assert_allclose(way["distances_ang"], expected.distances)
        for model, key in ((teacher, "teacher_ev"), (small_student(), "student_ev")):
            energy = model.label(expected.structures).energy
            np.testing.assert_allclose(way[key], energy - energy[0], rtol=1e-3, atol=1e-3)
    assert (tmp_path / "walls/walls.png").stat().st_size > 5000
    records = json.loads((tmp_path / "records.json").read_text())
    table = importlib.import_module("report_simulation").wall_table(records)
    for way in found["approaches"]:
        row = next(line for line in table.splitlines() if way["name"] in line)
        assert row.startswith(f"| close contacts, {way['name']} | smoke | ")
        hole = way["barrier_ev"] is not None
        assert ("| yes |" in row) == hole and ("| no |" in row) != hole
