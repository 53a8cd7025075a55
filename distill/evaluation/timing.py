"""Time of MD steps in compiled blocks: compilation apart, rebuilds of the list included."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.errors import CapacityError
from distill.potential import Potential
from distill.simulation import MDConfig, bath_of
from distill.simulation.blocks import MAX_REALLOCATIONS, list_functions
from distill.simulation.observed import lacks_forces, make_observed_step
from distill.simulation.programs import Programs


class TimedMD:
    """A compiled and warmed-up MD loop that makes the same steps from the same state every time.

    Attributes:
        compile_seconds: of the first block: compilation, allocation of the lists, and its steps.
        steps: of one run.
    """

    def __init__(
        self,
        potential: Potential,
        positions: np.ndarray,
        config: MDConfig,
        *,
        velocities: np.ndarray | None = None,
        min_seconds: float = 0.5,
        devices: Sequence[jax.Device] = (),
    ):
        """Compile, warm up, and choose the number of blocks of a run.

        Args:
            potential: what is timed.
            positions: `[n, 3]`, or `[R, n, 3]` for replicas, Å.
            config: `block_steps` are compiled as one call; frames are recorded as it says.
            velocities: like positions, Å/fs; drawn at `config.temperature` by default.
            min_seconds: a run makes as many blocks as take so long.
            devices: that divide the replicas among them.

        Raises:
            CapacityError: the neighbour list kept overflowing.
        """
        self._config = config
        self._replicas = np.ndim(positions) == 3
        self._records = config.block_steps // config.record_every
        begun = time.perf_counter()
        self._programs = Programs(potential, config, self._replicas, devices=devices)
        key = jax.random.PRNGKey(config.seed)
        if self._replicas:
            key = jax.random.split(key, len(positions))
        bath = bath_of(config, len(positions) if self._replicas else None)
        self._first = self._programs.first(key, np.asarray(positions), velocities, bath)
        self._n_blocks = 1
        self._run_with_growing_lists()
        self.compile_seconds = time.perf_counter() - begun
        # From the end of the first block, which finds the forces at the start besides.
        self._first = self._last
        self._run_with_growing_lists()
        seconds, _ = self._run()
        self._n_blocks = max(1, math.ceil(min_seconds / seconds))
        self._run_with_growing_lists()
        self.steps = self._n_blocks * config.block_steps

    def seconds_per_step(self) -> float:
        """Wall time of a run over its steps; one step moves all replicas."""
        seconds, overflow = self._run()
        if overflow is not None:
            raise CapacityError("the neighbour list overflowed in a run that had passed before")
        return seconds / self.steps

    def steps_per_rebuild(self) -> float:
        """Steps of a run over the rebuilds of the list among them, of the first replica."""
        state, lists = self._first
        if self._replicas:
            state, lists = jax.tree.map(lambda leaf: leaf[0], self._first)
        potential = self._programs.reference(self._first[1])
        rebuilds = count_rebuilds(potential, self._config, state, lists, self.steps)
        return self.steps / rebuilds if rebuilds else math.inf

    def _run(self) -> tuple[float, Any]:
        """Seconds, and the lists that overflowed or None."""
        state, lists = self._first
        flags = []
        begun = time.perf_counter()
        for _ in range(self._n_blocks):
            state, lists, _, overflow = self._programs.block(state, lists, self._records)
            flags.append(overflow)
            lists = self._programs.adapted(state, lists)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - begun
        self._last = state, lists
        return seconds, lists if any(bool(jnp.any(flag)) for flag in flags) else None

    def _run_with_growing_lists(self) -> None:
        for growths in range(1, MAX_REALLOCATIONS + 1):
            _, overflowed = self._run()
            if overflowed is None:
                return
            state, _ = self._first
            self._first = state, self._programs.larger(state, overflowed, growths)
        raise CapacityError(
            f"the neighbour list still overflows after {MAX_REALLOCATIONS} growths: the potential "
            "is outside its range; time it from another start"
        )


def count_rebuilds(
    potential: Potential, config: MDConfig, state: Any, lists: Any, n_steps: int
) -> int:
    """How often the lists, those of `make_block`, changed in `n_steps` from a state of it."""
    step = make_observed_step(potential, config)
    functions = list_functions(potential, config)
    unwanted = jnp.zeros((), bool)

    def one_step(number: Any, carry: Any) -> Any:
        state, lists, count = carry
        new = functions.update(lists, state)
        pairs = zip(jax.tree.leaves(lists), jax.tree.leaves(new), strict=True)
        changed = jnp.any(jnp.stack([jnp.any(old != now) for old, now in pairs]))
        moved, _ = step(state, functions.of_potential(new), unwanted, number < 0)
        return moved, functions.check(new, moved)[0], count + changed

    @jax.jit
    def run(state: Any, lists: Any) -> jax.Array:
        first = jnp.where(lacks_forces(state), -1, 0)
        count: jax.Array = jax.lax.fori_loop(
            first, n_steps, one_step, (state, lists, jnp.zeros((), jnp.int32))
        )[2]
        return count

    return int(run(state, lists))
