"""The choice of the skin."""

from __future__ import annotations

import numpy as np
import pytest
from builders import small_student, water_box

from distill.neighbors.device import REBUILD_FRACTION
from distill.neighbors.skin import choose_skin, cost_by_volume
from distill.simulation import MDConfig, tune_skin

STEP = cost_by_volume(5.0, (0.5, 1.5), (4.0, 4.0 * (6.5 / 5.5) ** 3))


def lasting(speed: float):
    """Steps per rebuild of atoms that fly straight on, in Å per step."""
    return lambda skin: max(REBUILD_FRACTION * skin / speed, 1.0) if speed else np.inf


def test_cost_grows_with_the_volume() -> None:
    assert STEP(0.5) == 4.0 and STEP(1.0) == pytest.approx(4.0 * (6.0 / 5.5) ** 3)
    constant = cost_by_volume(5.0, (0.4, 1.0), (3.0, 3.0 + 6.0**3 - 5.4**3))
    assert constant(2.0) == pytest.approx(3.0 + 7.0**3 - 5.4**3)
    assert cost_by_volume(5.0, (0.4, 1.0), (3.0, 1.0))(2.0) == 2.0, "noise, not a trend"


def test_dear_rebuilds_ask_for_wide_skins() -> None:
    skins = [
        choose_skin(STEP, cost_by_volume(5.0, (0.5, 1.5), (c, 1.6 * c)), lasting(0.01), 0.01)
        for c in (1.0, 10.0, 100.0)
    ]
    assert skins == sorted(skins) and skins[0] < skins[2]


def test_the_choice_is_the_cheapest() -> None:
    skins, steps = np.linspace(0.2, 2.0, 37), lasting(0.01)
    rebuild = cost_by_volume(5.0, (0.5, 1.5), (20.0, 33.0))
    chosen = choose_skin(STEP, rebuild, steps, 0.01, skins.tolist())
    costs = [STEP(s) + rebuild(s) / steps(s) for s in skins]
    assert STEP(chosen) + rebuild(chosen) / steps(chosen) == min(costs)
    assert skins[0] < chosen < skins[-1]


def test_atoms_at_rest_need_no_skin() -> None:
    assert choose_skin(STEP, lambda skin: 1e6, lasting(0.0), 0.0) == 0.2


def test_skins_that_a_step_could_cross_are_left_out() -> None:
    assert choose_skin(STEP, lambda skin: 0.0, lasting(0.049), 0.049) == 0.4
    with pytest.raises(ValueError, match="smaller timestep"):
        choose_skin(STEP, STEP, lasting(1.0), 1.0)
    with pytest.raises(ValueError, match="speed"):
        choose_skin(STEP, STEP, lasting(1.0), np.nan)
    with pytest.raises(ValueError, match="costs"):
        choose_skin(lambda skin: -1.0, lambda skin: 0.0, lasting(0.0), 0.0)


def test_measured_on_a_system(quick_compilation: None) -> None:
    """Rebuilds are counted as a list of that skin would ask for them."""
    student = small_student(max_l=1, n_channels=2, n_triples=0, hidden=(4,))
    atoms = water_box(2)
    config = MDConfig(timestep=0.5, temperature=300.0)
    rng = np.random.default_rng(0)
    velocities = rng.normal(scale=0.01, size=(len(atoms), 3))
    found = tune_skin(
        lambda skin: student.potential(atoms, skin=skin),
        atoms.positions,
        config,
        student.cutoff,
        velocities=velocities,
        steps=60,
        repeats=2,
    )
    assert found.skin in found.steps_per_rebuild and found.cost > 0
    lasts = list(found.steps_per_rebuild.values())
    assert lasts == sorted(lasts) and 1 <= lasts[0] < lasts[-1]
    assert f"{found.skin:g} Å" in str(found)
    alike = tune_skin(
        lambda skin: student.potential(atoms, skin=skin),
        atoms.positions,
        config,
        student.cutoff,
        velocities=np.zeros_like(velocities) + 0.01,
        steps=2,
        repeats=1,
        rebuilt_always=True,
    )
    assert set(alike.steps_per_rebuild.values()) == {1.0}
