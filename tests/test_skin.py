"""The choice of the skin."""

from __future__ import annotations

import numpy as np
import pytest

from distill.neighbors.skin import choose_skin, cost_by_volume, cost_per_step, speed_of

STEP = cost_by_volume(4.0, 5.0, 0.5)


def test_cost_grows_with_the_volume() -> None:
    assert STEP(0.5) == 4.0
    assert STEP(1.5) == pytest.approx(4.0 * (6.5 / 5.5) ** 3)


def test_speed_and_cost_are_consistent() -> None:
    """A list that lasts 20 steps costs a twentieth of a rebuild in each."""
    speed = speed_of(0.5, 20)
    assert cost_per_step(0.5, 4.0, 40.0, speed) == pytest.approx(6.0)
    assert cost_per_step(1.0, 4.0, 40.0, speed) == pytest.approx(5.0)
    assert cost_per_step(0.5, 4.0, 40.0, 0.0) == 4.0


def test_dear_rebuilds_ask_for_wide_skins() -> None:
    speed = speed_of(0.5, 20)
    skins = [
        choose_skin(STEP, cost_by_volume(cost, 5.0, 0.5), speed) for cost in (1.0, 10.0, 100.0)
    ]
    assert skins == sorted(skins) and skins[0] < skins[2]


def test_the_choice_is_the_cheapest() -> None:
    speed = 0.01
    skins = np.linspace(0.2, 2.0, 37)
    rebuild = cost_by_volume(20.0, 5.0, 0.5)
    chosen = choose_skin(STEP, rebuild, speed, skins.tolist())
    costs = [cost_per_step(s, STEP(s), rebuild(s), speed) for s in skins]
    assert cost_per_step(chosen, STEP(chosen), rebuild(chosen), speed) == min(costs)
    assert skins[0] < chosen < skins[-1]


def test_atoms_at_rest_need_no_skin() -> None:
    assert choose_skin(STEP, cost_by_volume(1e6, 5.0, 0.5), 0.0) == 0.2


def test_skins_that_a_step_could_cross_are_left_out() -> None:
    assert choose_skin(STEP, lambda skin: 0.0, 0.05) >= 0.5
    with pytest.raises(ValueError, match="smaller timestep"):
        choose_skin(STEP, STEP, 1.0)
    with pytest.raises(ValueError, match="speed"):
        choose_skin(STEP, STEP, np.nan)
    with pytest.raises(ValueError, match="costs"):
        choose_skin(lambda skin: -1.0, lambda skin: 0.0, 0.0)
