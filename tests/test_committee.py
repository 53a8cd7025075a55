"""Committees of any teachers, and Hessian-vector products against each other."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from builders import ethanol, triclinic_cell

from distill.cli import main
from distill.data.labels import Labels
from distill.errors import ConfigError, UnknownElementError
from distill.teachers import load
from distill.teachers.base import HessianProduct, TeacherInfo
from distill.teachers.committee import CommitteeTeacher
from distill.teachers.hessian import numerical_hvp

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Springs:
    """E = k/2 Σ r²."""

    def __init__(self, k: float, elements=(1, 6, 8), stress=False):
        self.k = k
        self.info = TeacherInfo(
            f"springs:{k}", "springs", "1", str(k), elements, None, 1, 1, True, True, stress, "MIT"
        )

    def label(self, structures, uncertainty=False):
        energy = np.array([0.5 * self.k * (a.positions**2).sum() for a in structures])
        stress = np.full((len(structures), 3, 3), self.k) if self.info.stress else None
        return Labels(energy, [-self.k * a.positions for a in structures], stress)

    def hvp(self, structure, direction):
        return HessianProduct(self.k * np.asarray(direction), np.array(0.3 * self.k), True)


def test_means_and_spread():
    committee = CommitteeTeacher([Springs(1.0, stress=True), Springs(4.0, (1, 8, 17), stress=True)])
    atoms = [Atoms("OH", [[0, 0, 0], [0, 3, 4]]), Atoms("H", [[1, 0, 0]])]
    labels = committee.label(atoms, uncertainty=True)
    np.testing.assert_allclose(labels.energy, [2.5 * 12.5, 2.5 * 0.5])
    np.testing.assert_allclose(labels.forces[0][1], [0, -7.5, -10])
    np.testing.assert_allclose(labels.stress, 2.5)
    # Forces of 5 and 20 eV/Å in one direction: each is 7.5 from the mean.
    np.testing.assert_allclose(labels.uncertainty[0], [0, 7.5])
    np.testing.assert_allclose(labels.uncertainty[1], [1.5])
    assert committee.info.elements == (1, 8) and committee.info.n_members == 2
    product = committee.hvp(atoms[0], np.ones((2, 3)))
    np.testing.assert_allclose(product.values, 2.5)
    assert product.error == pytest.approx(0.3 * np.hypot(1, 4) / 2)
    with pytest.raises(UnknownElementError, match="C"):
        committee.label([ethanol()])


def test_committees_that_cannot_be():
    with pytest.raises(ConfigError, match="at least two"):
        CommitteeTeacher([Springs(1.0)])
    with pytest.raises(ConfigError, match="no element in common"):
        CommitteeTeacher([Springs(1.0, (1,)), Springs(1.0, (2,))])
    with pytest.raises(ConfigError, match="unknown teacher"):
        load(["ase:ase.calculators.emt:EMT", "femnol:x"])


def test_list_of_names_equals_the_vectorised_committee(models_folder):
    names = [f"fennol:ani1ccx?member={i}" for i in (0, 3)]
    files = [str(models_folder / "fennol/ANI/ANI1CCX" / f"ani1ccx_model{i}.fnx") for i in (0, 3)]
    listed, vectorised = load(names), load("fennol:" + ",".join(files))
    atoms = [ethanol(), triclinic_cell()]
    one, other = (t.label(atoms, uncertainty=True) for t in (listed, vectorised))
    np.testing.assert_allclose(one.energy, other.energy, atol=1e-3)
    for i in range(2):
        np.testing.assert_allclose(one.forces[i], other.forces[i], atol=1e-4)
        np.testing.assert_allclose(one.uncertainty[i], other.uncertainty[i], atol=1e-4)
        assert one.uncertainty[i].max() > 0.01
    np.testing.assert_allclose(one.stress[1], other.stress[1], atol=1e-5)


def test_exact_products_of_fennol_agree_with_differences(demo_teacher_path, x64):
    teacher = load(f"fennol:{demo_teacher_path}", dtype=np.float64)
    for atoms in (ethanol(), triclinic_cell()):
        directions = np.random.default_rng(0).standard_normal((2, len(atoms), 3))
        exact = teacher.hvp(atoms, directions)
        numerical = numerical_hvp(teacher.label, atoms, directions, step=0.004)
        assert exact.exact and not numerical.exact
        difference = np.abs(exact.values - numerical.values).max((1, 2))
        assert (difference < numerical.error).all()
        assert (difference < 1e-5 * np.abs(exact.values).max()).all()
        again = teacher.hvp(atoms, directions[1]).values
        np.testing.assert_allclose(again, exact.values[1], rtol=0, atol=1e-10)
    crowded = triclinic_cell()
    crowded.set_cell(0.75 * crowded.cell.array, scale_atoms=True)
    grown = teacher.hvp(crowded, np.ones((7, 3)))
    assert np.abs(grown.values).max() < 1e-6, "a shift of all atoms changes no force"


def test_products_are_finite_where_the_cutoff_of_fennol_rounds_to_zero(models_folder):
    teacher = load(f"fennol:{models_folder}/fennol/ANI/ANI1CCX/ani1ccx_model0.fnx")
    direction = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    for gap, exact in ((0.1, True), (1e-4, False)):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, teacher.model.cutoff - gap]])
        product = teacher.hvp(atoms, direction)
        assert product.exact is exact
        assert np.isfinite(product.values).all()


def test_the_command_lists_what_there_is(capsys):
    assert main(["teachers"]) == 0
    text = capsys.readouterr().out
    for part in ("fennol:ani1ccx", "orb:", "TBLite?method=GFN2-xTB", "EMT", "exact", "MIT"):
        assert part in text
