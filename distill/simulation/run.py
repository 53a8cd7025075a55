"""Molecular dynamics in compiled blocks, with the host in between.

The loop of a block stays on the device. Its carry holds the overflow flag of the neighbour list;
a block that overflowed is thrown away and run again from the last good state with a larger list,
so the result is the one that a large list would have given from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.errors import CapacityError, SimulationError
from distill.potential import Potential
from distill.progress import progress_bar
from distill.simulation.config import MDConfig
from distill.simulation.ensembles import kinetic_energy, make_integrator, mass_of
from distill.units import BOLTZMANN

MAX_REALLOCATIONS = 10
"""Growths of the list within one block after which the run is given up."""

SEQUENTIAL_FROM = 32
"""Atoms from which replicas run one after the other on a CPU."""


@dataclass(frozen=True)
class Frames:
    """What a run recorded, `T` frames of `R` replicas (no axis for a single one), as numpy arrays.

    Attributes:
        time: `[T]`, fs.
        positions: `[T, (R,) n, 3]`, Å, unwrapped.
        velocities: `[T, (R,) n, 3]`, Å/fs.
        potential_energy: `[T, (R)]`, eV, without reference energies.
        kinetic_energy: `[T, (R)]`, eV.
        temperature: `[T, (R)]`, K, of the 3n - 3 degrees of freedom of the motion relative to the
            centre of mass, which the Langevin bath moves too (of all 3 for a single atom).
        uncertainty: `[T, (R,) n]`, eV/Å, expected length of the force error of each atom; no
            atoms (`n = 0`) for a potential without uncertainty.
    """

    time: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    potential_energy: np.ndarray
    kinetic_energy: np.ndarray
    temperature: np.ndarray
    uncertainty: np.ndarray

    @property
    def total_energy(self) -> np.ndarray:
        """`[T, (R)]`, eV, in float64."""
        return self.potential_energy.astype(np.float64) + self.kinetic_energy.astype(np.float64)


@dataclass(frozen=True)
class MDResult:
    """Frames, the final jax-md state, and how often the list had to grow."""

    frames: Frames
    state: Any
    n_reallocations: int


def run_md(
    potential: Potential,
    positions: np.ndarray,
    config: MDConfig,
    *,
    velocities: np.ndarray | None = None,
    on_frames: Callable[[Frames], None] | None = None,
    progress: bool = True,
    description: str = "MD",
) -> MDResult:
    """Run molecular dynamics with jax-md.

    Args:
        potential: see `distill.potential.Potential`.
        positions: `[n, 3]` or, for replicas run side by side, `[R, n, 3]`, Å.
        config: settings.
        velocities: like positions, Å/fs; drawn from Maxwell-Boltzmann by default.
        on_frames: called with the frames of each block, e.g. `TrajectoryWriter.write`.
        progress: show a bar.
        description: label of the bar.

    Raises:
        SimulationError: positions or energies became NaN or infinite (names time and atoms).
        CapacityError: the neighbour list kept overflowing.
    """
    positions = np.asarray(positions)
    if positions.ndim not in (2, 3) or positions.shape[-2:] != (len(potential.numbers), 3):
        raise ValueError(
            f"positions must have shape [n, 3] or [R, n, 3] with n = {len(potential.numbers)}, "
            f"got {positions.shape}"
        )
    if not np.isfinite(positions).all():
        raise SimulationError("initial positions are NaN or infinite")
    replicas = positions.ndim == 3
    start, block = make_block(potential, config, replicas)
    neighbors = allocate_lists(potential, positions, None, replicas)
    key = jax.random.PRNGKey(config.seed)
    if replicas:
        key = jax.random.split(key, len(positions))
    state = start(key, jnp.asarray(positions, potential.dtype), neighbors, velocities)

    recorded: list[Frames] = []
    done = reallocations = 0
    with progress_bar(config.steps, description, disable=not progress) as bar:
        while done < config.steps:
            n_steps = min(config.block_steps, config.steps - done)
            for _ in range(MAX_REALLOCATIONS):
                new_state, new_neighbors, records, overflow = block(
                    state, neighbors, n_steps // config.record_every
                )
                if not bool(jnp.any(overflow)):
                    break
                reallocations += 1
                # The last good positions tell nothing of the crowding to come: the old capacity
                # plus one forces the next size of the ladder.
                neighbors = allocate_lists(potential, state.position, new_neighbors, replicas)
            else:
                # Lost atoms make every list look too old: say what really happened.
                _require_finite(_to_frames(records, potential, config, done), replicas)
                raise CapacityError(
                    f"the neighbour list still overflows after {MAX_REALLOCATIONS} growths at "
                    f"{done * config.timestep:.1f} fs: the atoms collapse or fly apart (the "
                    "potential is outside its range), or they move further than the skin within "
                    "one step: use a smaller timestep or a larger skin, and check the start"
                )
            frames = _to_frames(records, potential, config, done)
            _require_finite(frames, replicas)
            state, neighbors, done = new_state, new_neighbors, done + n_steps
            recorded.append(frames)
            if on_frames is not None:
                on_frames(frames)
            bar.update(n_steps)
            bar.set_postfix(temperature=f"{np.mean(frames.temperature[-1]):.0f} K")
    joined = Frames(
        *(
            np.concatenate([getattr(frames, name) for frames in recorded])
            for name in Frames.__dataclass_fields__
        )
    )
    return MDResult(joined, state, reallocations)


def make_block(
    potential: Potential, config: MDConfig, replicas: bool = False
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(start, block)`: the compiled loop that `run_md` is made of, for benchmarks.

    `start(key, positions, neighbors, velocities=None)` gives jax-md's state,
    `block(state, neighbors, n_records)` makes `n_records * record_every` steps and gives
    `(state, neighbors, records, overflow)`.
    """
    start, step = make_integrator(potential, config)

    def one_step(_: Any, carry: Any) -> Any:
        state, neighbors, overflow = carry
        neighbors = potential.update(neighbors, state.position)
        state = step(state, neighbors=neighbors)
        # Checked after the step: the list must have been valid where the force was evaluated.
        return state, neighbors, overflow | potential.overflow(neighbors, state.position)

    def record(carry: Any, _: Any) -> Any:
        state, neighbors, overflow = jax.lax.fori_loop(0, config.record_every, one_step, carry)
        if potential.with_uncertainty is None:
            energy, _ = potential.energy_and_forces(state.position, neighbors)
            uncertainty = jnp.zeros(0, potential.dtype)
        else:
            energy, _, uncertainty = potential.with_uncertainty(state.position, neighbors)
        velocity = state.momentum / state.mass
        seen = (state.position, velocity, energy, kinetic_energy(state), uncertainty)
        return (state, neighbors, overflow), seen

    def block(state: Any, neighbors: Any, n_records: int) -> Any:
        clear = jnp.zeros((), bool)
        (state, neighbors, overflow), seen = jax.lax.scan(
            record, (state, neighbors, clear), None, length=n_records
        )
        return state, neighbors, seen, overflow

    if not replicas:
        return jax.jit(start), jax.jit(block, static_argnums=2)

    def many(state: Any, neighbors: Any, n_records: int) -> Any:
        state, neighbors, seen, overflow = over_replicas(
            lambda own: block(own[0], own[1], n_records), (state, neighbors), len(potential.numbers)
        )
        seen = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), seen)
        return state, neighbors, seen, overflow

    def start_many(key: Any, positions: Any, neighbors: Any, velocities: Any = None) -> Any:
        if velocities is None:
            return jax.vmap(start)(key, positions, neighbors)
        return jax.vmap(start)(key, positions, neighbors, jnp.asarray(velocities))

    return jax.jit(start_many), jax.jit(many, static_argnums=2)


def over_replicas(function: Callable[[Any], Any], replicas: Any, n_atoms: int) -> Any:
    """`function` of each replica (leading axis of all arrays), results stacked.

    Under vmap a list would be rebuilt for all replicas in every step, because a branch becomes a
    choice between two computed results. A CPU gains nothing from vmap beyond small systems, so
    there the replicas run one after the other within the compiled loop.
    """
    if jax.default_backend() == "cpu" and n_atoms >= SEQUENTIAL_FROM:
        return jax.lax.map(function, replicas)
    return jax.vmap(function)(replicas)


def allocate_lists(potential: Potential, positions: Any, previous: Any, replicas: bool) -> Any:
    """Lists for `positions`, larger than `previous` if there is one; one each for replicas."""
    if not replicas:
        return potential.allocate(positions, previous)
    large = None if previous is None else _one_of(previous)
    for own in positions:  # No capacity shrinks from one to the next: the last suits all.
        large = potential.allocate(own, large)
    lists = jax.vmap(potential.update, in_axes=(None, 0))(large, jnp.asarray(positions))
    if bool(jax.vmap(potential.overflow)(lists, jnp.asarray(positions)).any()):
        # A list is too old for a replica that is further away than the skin: one of its own.
        single = [potential.allocate(own, large) for own in positions]
        lists = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    return lists


def _one_of(lists: Any) -> Any:
    """The first of the replicas' lists with the flags of all: what lacks in one lacks in it."""
    return jax.tree.map(lambda leaf: leaf.any(axis=0) if leaf.dtype == bool else leaf[0], lists)


def _to_frames(records: Any, potential: Potential, config: MDConfig, done: int) -> Frames:
    positions, velocities, potential_energy, kinetic, expected = (np.asarray(r) for r in records)
    steps = done + config.record_every * np.arange(1, len(positions) + 1)
    return Frames(
        time=steps * config.timestep,
        positions=positions,
        velocities=velocities,
        potential_energy=potential_energy,
        kinetic_energy=kinetic,
        temperature=_temperature(velocities.astype(np.float64), mass_of(potential.numbers)),
        uncertainty=expected,
    )


def _temperature(velocities: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """K, from velocities `[..., n, 3]` in Å/fs and masses `[n, 1]` in eV fs²/Å²."""
    freedom = 3 * len(mass)
    if len(mass) > 1:
        centre = (mass * velocities).sum(-2, keepdims=True) / mass.sum()
        velocities, freedom = velocities - centre, freedom - 3
    return (mass * velocities**2).sum((-2, -1)) / (freedom * BOLTZMANN)


def _require_finite(frames: Frames, replicas: bool) -> None:
    good = np.isfinite(frames.positions).all(-1)
    energies = np.isfinite(frames.potential_energy) & np.isfinite(frames.kinetic_energy)
    if good.all() and energies.all():
        return
    fine = good.reshape(len(good), -1).all(1) & energies.reshape(len(good), -1).all(1)
    first = int(np.argmin(fine))
    where = np.argwhere(~good[first])
    atoms = sorted({int(w[-1]) for w in where})
    lost = f"atoms {atoms[:10]}" if atoms else "the energy"
    of = f" of replicas {sorted({int(w[0]) for w in where})[:10]}" if replicas and atoms else ""
    raise SimulationError(
        f"{lost}{of} became NaN or infinite at or before {frames.time[first]:.1f} fs: the "
        "structure left the range of the potential, or the timestep is too large"
    )
