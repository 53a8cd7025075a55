"""The density by weights: an ideal gas, whose volumes are known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from ase import Atoms
from ase.data import atomic_masses
from listless import no_energy, potential_without_lists

from distill.data import Labels
from distill.errors import ConfigError, TeacherError
from distill.evaluation.certificate import finite
from distill.evaluation.density import compare_density, density_check, frames_to_weight
from distill.evaluation.energies import energies_of
from distill.simulation import MDConfig
from distill.units import BOLTZMANN, GPA

pytestmark = pytest.mark.usefixtures("x64")

CONFIG = MDConfig(
    "npt_scr",
    timestep=2.0,
    temperature=300.0,
    steps=30_000,
    record_every=25,
    block_steps=5000,
    thermostat_time=50.0,
    pressure=1.0,
    barostat_time=50.0,
    compressibility=1.0,
)


def under(pressure: float):
    """Labels of a gas with the energy pressure (GPa) times volume."""

    def label(structures):
        return Labels(
            np.array([pressure * GPA * atoms.cell.volume + 5.0 for atoms in structures]),
            [np.zeros((len(atoms), 3)) for atoms in structures],
        )

    return label


def gas(n: int = 20) -> Atoms:
    positions = np.random.default_rng(0).uniform(0, 4.4, (n, 3))
    return Atoms(f"Ar{n}", positions, cell=[4.4] * 3, pbc=True)


def test_both_densities_are_those_of_theory():
    """`<1/V> = P / ((n - 1) kT)`; the teacher's gas is under 5 % more pressure."""
    atoms = gas()
    found = compare_density(
        potential_without_lists(atoms, no_energy),
        atoms,
        CONFIG,
        partial(energies_of, under(0.0)),
        partial(energies_of, under(0.05)),
        replicas=4,
        start=2.0,
        frames=4000,
        progress=False,
    )
    grams = 20 * atomic_masses[18] / 6.02214076e23
    per_volume = GPA / (19 * BOLTZMANN * 300.0) * 1e24
    for key, pressure in (("student", 1.0), ("teacher", 1.05)):
        expected = grams * pressure * per_volume
        assert abs(found[key] - expected) < 4 * found[f"{key}_error"]
        assert found[f"{key}_error"] < 0.02 * expected
    assert abs(found["percent"] - 100 * (1 / 1.05 - 1)) < 4 * found["percent_error"]
    assert found["percent_error"] < 0.5
    assert 0.9 < found["effective_share"] < 1.0
    assert found["frames"] == 4 * 580
    assert density_check(found, 2.0).status == "fail"
    assert density_check(found, 10.0).status == "pass"
    assert density_check(found | {"percent_error": 20.0}, 2.0).status == "undecided"
    bad = finite(found | {"effective_share": 1e-3, "percent_error": float("nan")})
    assert density_check(bad, 10.0).status == "undecided"
    few = density_check(found | {"effective_share": 0.01}, 10.0)
    assert few.status == "undecided" and "smaller box" in few.reason


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"config": replace(CONFIG, ensemble="nve")}, "constant pressure"),
        ({"config": replace(CONFIG, pressures=(1.0, 2.0))}, "one pressure"),
        ({"config": replace(CONFIG, steps=100)}, "too few"),
        ({"frames": 8}, "too few"),
        ({"replicas": 0}, "too few"),
    ],
)
def test_runs_that_tell_nothing(change, match):
    atoms = gas()
    given = {"config": CONFIG, "replicas": 2, "start": 2.0, "frames": 4000} | change
    config = given.pop("config")
    ideal = potential_without_lists(atoms, no_energy)
    with pytest.raises(ConfigError, match=match):
        compare_density(ideal, atoms, config, len, len, **given)


def test_frames_are_spread_over_the_whole_run():
    for wanted in (37, 300, 1000, 1160, 5000):
        chosen = frames_to_weight(CONFIG, 2, 2.0, 2 * wanted)
        assert min(wanted, 1160) / 2 <= len(chosen) <= wanted
        assert len(set(np.diff(chosen))) == 1 and chosen[0] >= 40
        assert 1200 - chosen[-1] <= np.diff(chosen)[0]


def test_energies_in_batches():
    structures = [gas(n) for n in (2, 3, 4, 5, 6)]
    for number, atoms in enumerate(structures):
        atoms.set_cell(np.eye(3) * (number + 1))
    found = energies_of(under(1.0), structures, batch_size=2)
    np.testing.assert_allclose(found, [GPA * (i + 1) ** 3 + 5.0 for i in range(5)])
    assert len(energies_of(under(1.0), [])) == 0
    with pytest.raises(TeacherError, match=r"structure 0 \(and of 4 others\) is NaN"):
        energies_of(under(float("nan")), structures)
