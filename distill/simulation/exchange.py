"""Replica exchange between neighbouring temperatures, on the device.

Sugita and Okamoto, Chem. Phys. Lett. 314, 141 (1999). Replicas (walkers) stay where they are in
memory, with their atoms, neighbour lists and random keys; temperatures are handed around, and with
them the heat of the bath, so that what is recorded at one temperature is one conserved energy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.simulation.ensembles import bath_energy, kinetic_energy
from distill.simulation.nose_hoover import scaled_chain
from distill.simulation.thermostats import heated
from distill.units import BOLTZMANN

OF_THE_BATH = ("thermal_energy", "heat", "heat_rest")
"""Fields of a state that stay with the temperature when walkers exchange theirs."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Exchange:
    """Where the `R` walkers are in the ladder, and what has happened.

    Attributes:
        rng: key of the attempts to come.
        rung: `[R]`, index of the temperature of each walker.
        rounds: `[]`, of attempts; in even ones temperatures 0 and 1, 2 and 3, ... are pairs, in odd
            ones 1 and 2, 3 and 4, ...
        tried: `[R - 1]`, attempts between each temperature and the next.
        accepted: `[R - 1]`, those that succeeded.
        heading: `[R]`, of each walker: 1 since it was at the lowest temperature, 2 since it was at
            the highest after that, 0 before.
        round_trips: `[R]`, from the lowest to the highest temperature and back, of each walker.
    """

    rng: jax.Array
    rung: jax.Array
    rounds: jax.Array
    tried: jax.Array
    accepted: jax.Array
    heading: jax.Array
    round_trips: jax.Array

    @property
    def walker(self) -> jax.Array:
        """`[R]`, the walker at each temperature."""
        return jnp.argsort(self.rung).astype(self.rung.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExchangeState:
    """State of a run with exchanges.

    Attributes:
        walkers: state of the ensemble, arrays with a leading axis of walkers.
        exchange: see there.
    """

    walkers: Any
    exchange: Exchange

    @property
    def position(self) -> jax.Array:
        """`[R, n, 3]`, Å, of the walkers."""
        return self.walkers.position


def first_exchange(rng: jax.Array, n_replicas: int) -> Exchange:
    """Walker `i` at temperature `i`, before the first attempt."""
    none = jnp.zeros(n_replicas, jnp.int32)
    return Exchange(
        rng=rng,
        rung=jnp.arange(n_replicas, dtype=jnp.int32),
        rounds=jnp.zeros((), jnp.int32),
        tried=none[1:],
        accepted=none[1:],
        heading=none.at[0].set(1),
        round_trips=none,
    )


def attempt(exchange: Exchange, energy: jax.Array, thermal_energy: jax.Array) -> Exchange:
    """Every other pair of neighbouring temperatures tries to exchange its walkers.

    Accepted with probability min(1, exp((1/kT - 1/kT') (E - E'))), which keeps the product of the
    canonical distributions, the momenta being scaled by the roots of the temperatures.

    Args:
        exchange: before.
        energy: `[R]`, potential energy of the walkers, eV.
        thermal_energy: `[R]`, kT of the walkers' temperatures, eV.
    """
    key, own = jax.random.split(exchange.rng)
    walker = exchange.walker
    pairs = jnp.arange(len(walker) - 1)
    chosen = pairs % 2 == exchange.rounds % 2
    cold = 1 / thermal_energy[walker]
    logarithm = (cold[:-1] - cold[1:]) * (energy[walker[:-1]] - energy[walker[1:]])
    # 1 - u is never 0, of which there is no logarithm.
    draw = jnp.log1p(-jax.random.uniform(own, pairs.shape, energy.dtype))
    accepted = chosen & (draw < logarithm)
    none = jnp.zeros(1, bool)
    up, down = jnp.concatenate([accepted, none]), jnp.concatenate([none, accepted])
    rungs = jnp.arange(len(walker), dtype=walker.dtype)
    taken_from = rungs + up.astype(walker.dtype) - down.astype(walker.dtype)
    rung = jnp.zeros_like(rungs).at[walker[taken_from]].set(rungs)
    returned = (rung == 0) & (exchange.heading == 2)
    heading = jnp.where((rung == len(rung) - 1) & (exchange.heading == 1), 2, exchange.heading)
    return Exchange(
        rng=key,
        rung=rung,
        rounds=exchange.rounds + 1,
        tried=exchange.tried + chosen,
        accepted=exchange.accepted + accepted,
        heading=jnp.where(rung == 0, 1, heading),
        round_trips=exchange.round_trips + returned,
    )


def exchanged(state: ExchangeState, energy: jax.Array) -> ExchangeState:
    """`state` after an attempt at potential energies `[R]` in eV of the walkers.

    What an exchange changes of the energy recorded at a temperature is booked as heat there.
    """
    old, before = state.walkers, state.exchange
    after = attempt(before, energy, old.thermal_energy)
    source = before.walker[after.rung]  # who had the temperature that each walker has now
    given = {name: getattr(old, name)[source] for name in OF_THE_BATH}
    ratio = given["thermal_energy"] / old.thermal_energy

    def scaled(walker: Any, ratio: jax.Array) -> Any:
        changes = {"momentum": walker.momentum * jnp.sqrt(ratio)}
        if hasattr(walker, "chain"):
            changes["chain"] = scaled_chain(walker.chain, ratio)
        return replace(walker, **changes)

    new = replace(jax.vmap(scaled)(old, ratio), **given)
    then = energy + _without_heat(old)
    now = energy + _without_heat(new)
    gain = jnp.where(source == jnp.arange(len(source)), 0, now - then[source])
    return ExchangeState(heated(new, gain), after)


def _without_heat(walkers: Any) -> jax.Array:
    """`[R]`, eV: kinetic energy and that of a chain."""
    return jax.vmap(lambda walker: kinetic_energy(walker) + bath_energy(walker) + walker.heat)(
        walkers
    )


def with_exchanges(
    segment: Callable[[Any, Any], Any], start: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(start, block)` of a run that attempts an exchange after every `segment`.

    Args:
        segment: `(states, lists) -> (states, lists, records, overflow)`, arrays of all with a
            leading axis of walkers; after that, records have one of frames, and the potential
            energy is the third.
        start: of the walkers.
    """

    def start_exchange(key: jax.Array, *arguments: Any) -> ExchangeState:
        # A number that `split` does not use, so that no noise of the first walker comes back.
        own = jax.random.fold_in(key[0], 2**31 - 1)
        return ExchangeState(start(key, *arguments), first_exchange(own, len(key)))

    def one(carry: Any, _: Any) -> Any:
        state, lists, overflow = carry
        walkers, lists, seen, now = segment(state.walkers, lists)
        walker = state.exchange.walker
        in_order = jax.tree.map(lambda leaf: jnp.moveaxis(leaf[walker], 0, 1), seen)
        n_frames = in_order[2].shape[0]
        records = (*in_order, jnp.broadcast_to(walker, (n_frames, len(walker))))
        state = exchanged(ExchangeState(walkers, state.exchange), seen[2][:, -1])
        return (state, lists, overflow | now), records

    def block(state: ExchangeState, lists: Any, n_segments: int) -> Any:
        clear = jnp.zeros(len(state.exchange.rung), bool)
        (state, lists, overflow), records = jax.lax.scan(
            one, (state, lists, clear), None, length=n_segments
        )
        flat = jax.tree.map(lambda leaf: jax.lax.collapse(leaf, 0, 2), records)
        return state, lists, flat, overflow

    return start_exchange, block


def exchange_summary(state: ExchangeState, time_ps: float) -> dict[str, Any]:
    """Acceptance of each pair of temperatures and round trips of each walker, ready for JSON.

    Args:
        state: at the end of the run.
        time_ps: length of the run.
    """
    exchange = state.exchange
    walker = np.asarray(exchange.walker)
    temperatures = np.asarray(state.walkers.thermal_energy, np.float64)[walker] / BOLTZMANN
    tried, accepted = np.asarray(exchange.tried), np.asarray(exchange.accepted)
    trips = np.asarray(exchange.round_trips)
    return {
        "rounds": int(exchange.rounds),
        "pairs": [
            {
                "temperatures_K": [float(temperatures[i]), float(temperatures[i + 1])],
                "attempts": int(tried[i]),
                "acceptance": float(accepted[i] / tried[i]) if tried[i] else None,
            }
            for i in range(len(tried))
        ],
        "round_trips": trips.tolist(),
        "round_trips_per_walker_and_ns": float(1000 * trips.mean() / time_ps),
    }
