"""The skin of a neighbour list, chosen from what steps and rebuilds cost in the user's system."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.errors import SimulationError
from distill.neighbors.device import REBUILD_FRACTION
from distill.neighbors.skin import SKINS, choose_skin, cost_by_volume
from distill.potential import Potential
from distill.simulation.config import MDConfig
from distill.simulation.ensembles import make_integrator

MEASURED_SKINS = (0.4, 1.0)
"""Å, at which costs are measured; those of others follow from the volume."""

AWAY = 3.0
"""Å, so far all atoms are moved to force a rebuild; wider than any skin asks for."""


@dataclass(frozen=True)
class SkinChoice:
    """A skin and what it was chosen by.

    Attributes:
        skin: Å.
        cost: of a step with its share of the rebuilds, s, as expected with this skin.
        step_cost: of a step without a rebuild, s.
        rebuild_cost: of a rebuild, s.
        steps_per_rebuild: by skin in Å, counted.
    """

    skin: float
    cost: float
    step_cost: float
    rebuild_cost: float
    steps_per_rebuild: dict[float, float]

    def __str__(self) -> str:
        return (
            f"skin {self.skin:g} Å: a step takes {1e3 * self.step_cost:.3g} ms, a rebuild of the "
            f"list {1e3 * self.rebuild_cost:.3g} ms every "
            f"{self.steps_per_rebuild[self.skin]:.3g} steps"
        )


def tune_skin(
    potential_of: Callable[[float], Potential],
    positions: np.ndarray,
    config: MDConfig,
    cutoff: float,
    *,
    velocities: np.ndarray | None = None,
    steps: int = 200,
    repeats: int = 7,
    rebuilt_always: bool = False,
) -> SkinChoice:
    """Measure the cost of steps and rebuilds and the pace of the atoms, and choose the skin.

    The choice rests on times and may differ from run to run: keep it with the settings of a run
    that is to be continued.

    Args:
        potential_of: the potential with a skin in Å.
        positions: `[n, 3]`, Å, where the run begins.
        config: of the run; the atoms are followed in NVE, from its highest temperature.
        cutoff: of the potential, Å.
        velocities: `[n, 3]`, Å/fs; drawn at the temperature by default.
        steps: that the atoms are followed.
        repeats: of every timing, of which the median counts.
        rebuilt_always: lists are rebuilt at every step, as those of replicas under vmap are.

    Raises:
        SimulationError: the atoms are lost or too fast for every skin.
    """
    positions = np.asarray(positions)
    step_costs, rebuild_costs = [], []
    for skin in MEASURED_SKINS:
        potential = potential_of(skin)
        where = jnp.asarray(positions, potential.dtype)
        lists = potential.allocate(where)
        update = jax.jit(potential.update)
        away = update(lists, where + AWAY)
        step_costs.append(_seconds(jax.jit(potential.energy_and_forces), (where, lists), repeats))
        rebuild_costs.append(_seconds(update, (away, where), repeats))
    lasting, speed = _pace(potential, positions, config, velocities, steps)
    if rebuilt_always:
        lasting = dict.fromkeys(lasting, 1.0)
    step_cost = cost_by_volume(cutoff, MEASURED_SKINS, (step_costs[0], step_costs[1]))
    rebuild_cost = cost_by_volume(cutoff, MEASURED_SKINS, (rebuild_costs[0], rebuild_costs[1]))
    try:
        skin = choose_skin(step_cost, rebuild_cost, lasting.__getitem__, speed, list(lasting))
    except ValueError as error:
        raise SimulationError(f"no skin suits the start: {error}") from error
    cost = step_cost(skin) + rebuild_cost(skin) / lasting[skin]
    return SkinChoice(skin, cost, step_cost(skin), rebuild_cost(skin), lasting)


def _seconds(function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> float:
    """Median wall time of a call, compilation apart."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def _pace(
    potential: Potential,
    positions: np.ndarray,
    config: MDConfig,
    velocities: np.ndarray | None,
    steps: int,
) -> tuple[dict[float, float], float]:
    """Steps that lists of each skin last, and the largest way of an atom in a step, Å."""
    hottest = max(config.temperatures or (config.temperature,))
    nve = MDConfig(timestep=config.timestep, temperature=hottest)
    start, step = make_integrator(potential, nve)
    limits = REBUILD_FRACTION**2 * jnp.asarray(SKINS, potential.dtype) ** 2

    def one_step(_: Any, carry: Any) -> Any:
        state, lists, lost, origins, counts, fastest = carry
        lists = potential.update(lists, state.position)
        new = step(state, neighbors=lists)
        lost = lost | potential.overflow(lists, new.position)
        moved = ((new.position - origins) ** 2).sum(-1).max(-1) > limits
        origins = jnp.where(moved[:, None, None], new.position, origins)
        way = ((new.position - state.position) ** 2).sum(-1).max()
        return new, lists, lost, origins, counts + moved, jnp.maximum(fastest, way)

    @jax.jit
    def follow(lists: Any) -> Any:
        state = start(jax.random.PRNGKey(config.seed), positions, lists, velocities)
        origins = jnp.broadcast_to(state.position, (len(SKINS), *state.position.shape))
        zero = jnp.zeros((), potential.dtype)
        counts = jnp.zeros(len(SKINS), jnp.int32)
        carry = state, lists, jnp.zeros((), bool), origins, counts, zero
        _, lists, lost, _, counts, fastest = jax.lax.fori_loop(0, steps, one_step, carry)
        return lists, lost, counts, jnp.sqrt(fastest)

    lists = potential.allocate(jnp.asarray(positions, potential.dtype))
    lists, lost, counts, fastest = follow(lists)
    if bool(lost):
        lists, lost, counts, fastest = follow(potential.allocate(positions, lists))
    if bool(lost):
        raise SimulationError(
            f"the skin cannot be chosen: within {steps} steps from the start the atoms crowd or "
            "fly apart. Equilibrate the structure, use a smaller timestep, or give skin=0.4"
        )
    lasting = steps / np.maximum(np.asarray(counts), 1)
    return dict(zip(SKINS, np.maximum.accumulate(lasting).tolist(), strict=True)), float(fastest)
