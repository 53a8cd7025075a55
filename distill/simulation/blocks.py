"""The compiled loop of molecular dynamics, and the neighbour lists that go with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from distill.potential import Potential
from distill.simulation.bath import Bath, bath_of
from distill.simulation.config import BAROSTATS, MDConfig
from distill.simulation.ensembles import bath_energy, kinetic_energy
from distill.simulation.exchange import with_exchanges
from distill.simulation.measure import nothing_seen, pressure_of
from distill.simulation.observed import (
    lacks_forces,
    make_observed_step,
    make_start,
)
from distill.simulation.strain import ListFunctions, fixed_lists, strained_lists

MAX_REALLOCATIONS = 10
"""Growths of the list within one block after which the run is given up."""

WHOLE_OPERATIONS = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
"""Options of the compiler: XLA divides no operation among the threads of a CPU. Those of a student
are too small to gain from it, and the threads have other devices to serve."""

SEQUENTIAL_FROM = 32
"""Atoms from which replicas run one after the other on a CPU."""


def make_block(
    potential: Potential,
    config: MDConfig,
    replicas: bool = False,
    donate_lists: bool = False,
    devices: Sequence[jax.Device] = (),
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(start, block)`: the compiled loop that `run_md` is made of, for benchmarks.

    `start(key, positions, neighbors, velocities=None, bath=None, cell=None)` gives the state of the
    ensemble, whose forces are NaN: the first block finds them. `block(state, neighbors, n_records)`
    makes `n_records * record_every` steps and gives `(state, neighbors, records, overflow)`. Keys,
    positions and a `Bath` have a leading axis for `replicas`; the default bath is that of `config`.
    With `config.exchange_every` the state is an `ExchangeState`, and records are in the order of
    the temperatures. In NPT the lists of `block` are `StrainedLists`, those of `start` the ones
    within.

    With `donate_lists` a call of `block` uses up its lists: those that it gives take their memory.
    A block that overflowed is run again with lists made anew, so only who wants to keep the lists
    (in a checkpoint) needs them. The state is never given up: such a block begins at it again. The
    lists must share no array with it.

    With `devices` each of them runs an equal part of the replicas.
    """
    start = make_start(potential, config)
    step = make_observed_step(potential, config)
    moves = config.ensemble in BAROSTATS
    lists = list_functions(potential, config)
    whole = jax.default_backend() == "cpu" and (devices or potential.kernel is not None)
    compiled = partial(
        jax.jit,
        static_argnums=2,
        donate_argnums=1 if donate_lists else (),
        compiler_options=WHOLE_OPERATIONS if whole else None,
    )

    def record(first: jax.Array, carry: Any) -> Any:
        def one_step(number: Any, carry: Any) -> Any:
            state, neighbors, overflow, _ = carry
            neighbors = lists.update(neighbors, state)
            own = lists.of_potential(neighbors)
            state, seen = step(state, own, number == config.record_every - 1, number < 0)
            # Checked after the step: the list must have been valid where the force was evaluated.
            neighbors, bad = lists.check(neighbors, state)
            return state, neighbors, overflow | bad, seen

        state, neighbors, overflow, seen = jax.lax.fori_loop(
            jnp.where(first, -1, 0),
            config.record_every,
            one_step,
            (*carry, nothing_seen(potential)),
        )
        pressure = pressure_of(potential, state, seen)
        velocity = state.momentum / state.mass
        bath = bath_energy(state)
        cell = state.cell if moves else jnp.zeros((), potential.dtype)
        energies = (seen.energy, kinetic_energy(state), bath)
        recorded = (state.position, velocity, *energies, seen.uncertainty, pressure, cell)
        return (state, neighbors, overflow), recorded

    def block(state: Any, neighbors: Any, fresh: jax.Array, n_records: int) -> Any:
        first = fresh & (jnp.arange(n_records) == 0)
        carry = state, neighbors, jnp.zeros((), bool)
        (state, neighbors, overflow), seen = jax.lax.scan(
            lambda carry, first: record(first, carry), carry, first
        )
        return state, neighbors, seen, overflow

    if not replicas:

        def single(state: Any, neighbors: Any, n_records: int) -> Any:
            fresh = lacks_forces(state)
            state, neighbors, seen, overflow = block(state, neighbors, fresh, n_records)
            return state, neighbors, (*seen, jnp.zeros(n_records, jnp.int32)), overflow

        return jax.jit(start), compiled(single)

    def side_by_side(state: Any, neighbors: Any, n_records: int) -> Any:
        return over_replicas(
            lambda own, fresh: block(own[0], own[1], fresh, n_records),
            (state, neighbors),
            len(potential.numbers),
            devices,
            together=lambda every: lacks_forces(every[0]),
        )

    def many(state: Any, neighbors: Any, n_records: int) -> Any:
        state, neighbors, seen, overflow = side_by_side(state, neighbors, n_records)
        seen = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), seen)
        walker = jnp.arange(len(overflow), dtype=jnp.int32)
        walker = jnp.broadcast_to(walker, (n_records, len(overflow)))
        return state, neighbors, (*seen, walker), overflow

    def start_many(
        key: Any,
        positions: Any,
        neighbors: Any,
        velocities: Any = None,
        bath: Bath | None = None,
        cell: Any = None,
    ) -> Any:
        bath = bath_of(config, len(positions)) if bath is None else bath
        own = None if velocities is None else 0
        return jax.vmap(start, in_axes=(0, 0, 0, own, 0, None))(
            key, positions, neighbors, velocities, bath, cell
        )

    if not config.exchange_every:
        return jax.jit(start_many), compiled(many)

    per_segment = config.exchange_every // config.record_every
    start_exchange, segments = with_exchanges(
        lambda state, neighbors: side_by_side(state, neighbors, per_segment), start_many
    )
    return (
        jax.jit(start_exchange),
        compiled(
            lambda state, neighbors, n_records: segments(state, neighbors, n_records // per_segment)
        ),
    )


def list_functions(potential: Potential, config: MDConfig) -> ListFunctions:
    """How the steps of a block use their lists: strained ones in NPT."""
    if config.ensemble in BAROSTATS:
        return strained_lists(potential)
    return fixed_lists(potential)


def over_replicas(
    function: Callable[..., Any],
    replicas: Any,
    n_atoms: int,
    devices: Sequence[jax.Device] = (),
    together: Callable[[Any], Any] = lambda every: None,
) -> Any:
    """`function` of each replica (leading axis of all arrays), results stacked.

    With `devices` each of them takes an equal part; replicas need nothing of each other. Of the
    replicas of a device `together` makes the second argument of `function`, the same for all.

    Under vmap a list would be rebuilt for all replicas in every step, because a branch becomes a
    choice between two computed results. A CPU gains nothing from vmap beyond small systems, so
    there the replicas run one after the other within the compiled loop.
    """

    def every(replicas: Any) -> Any:
        shared = together(replicas)
        if runs_in_turn(n_atoms):
            return jax.lax.map(lambda own: function(own, shared), replicas)
        return jax.vmap(function, in_axes=(0, None))(replicas, shared)

    if not devices:
        return every(replicas)
    parts = PartitionSpec("replicas")
    mesh = Mesh(np.asarray(devices), ("replicas",))
    # JAX need not follow what differs between devices: nothing is summed over them.
    divided = jax.shard_map(every, mesh=mesh, in_specs=parts, out_specs=parts, check_vma=False)
    return divided(replicas)


def runs_in_turn(n_atoms: int) -> bool:
    """Whether replicas of so many atoms run one after the other, see `over_replicas`."""
    return jax.default_backend() == "cpu" and n_atoms >= SEQUENTIAL_FROM


def allocate_lists(potential: Potential, positions: Any, previous: Any, replicas: bool) -> Any:
    """Lists for `positions`, larger than `previous` if there is one; one each for replicas."""
    if not replicas:
        return potential.allocate(positions, previous)
    large = None if previous is None else first_of(previous)
    for own in positions:  # No capacity shrinks from one to the next: the last suits all.
        large = potential.allocate(own, large)
    lists = jax.vmap(potential.update, in_axes=(None, 0))(large, jnp.asarray(positions))
    if bool(jax.vmap(potential.overflow)(lists, jnp.asarray(positions)).any()):
        # A list is too old for a replica that is further away than the skin: one of its own.
        single = [potential.allocate(own, large) for own in positions]
        lists = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    return lists


def first_of(lists: Any) -> Any:
    """The first of the replicas' lists with the flags of all: what lacks in one lacks in it."""
    return jax.tree.map(lambda leaf: leaf.any(axis=0) if leaf.dtype == bool else leaf[0], lists)
