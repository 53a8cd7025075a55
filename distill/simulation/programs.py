"""The compiled blocks of a run with their neighbour lists: one for each reference cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.neighbors.device import next_rebuild_fraction
from distill.potential import Potential
from distill.simulation.barostat import require_barostat
from distill.simulation.bath import Bath
from distill.simulation.blocks import allocate_lists, first_of, make_block
from distill.simulation.config import BAROSTATS, MDConfig
from distill.simulation.strain import RUNG, SLACK, StrainedLists, rung_below


class Programs:
    """What runs between looks of the host.

    Where the cell moves, lists are made in a reference cell (see `distill.simulation.strain`). For
    each there is a block of its own, compiled when it is first needed.
    """

    def __init__(
        self,
        potential: Potential,
        config: MDConfig,
        replicas: bool,
        donate_lists: bool = False,
        devices: Sequence[jax.Device] = (),
    ) -> None:
        self._potential, self._config, self._replicas = potential, config, replicas
        self._donate, self._devices = donate_lists, devices
        self._moves = config.ensemble in BAROSTATS
        if self._moves:
            require_barostat(potential)
        self._made: dict[int, tuple[Potential, Any, Any]] = {}

    def first(
        self, key: jax.Array, positions: np.ndarray, velocities: Any, bath: Bath
    ) -> tuple[Any, Any]:
        """State and lists at the start."""
        rung = rung_below(1.0) if self._moves else 0
        potential, start, _ = self._at(rung)
        shrink = RUNG**rung
        lists = allocate_lists(potential, positions * shrink, None, self._replicas)
        cell = jnp.asarray(self._potential.cell, potential.dtype) if self._moves else None
        own = jnp.asarray(positions, potential.dtype)
        if velocities is not None:
            velocities = jnp.asarray(velocities, potential.dtype)
        state = start(key, own, lists, velocities, bath, cell)
        return state, self._strained(lists, rung) if self._moves else lists

    def block(self, state: Any, lists: Any, n_records: int) -> Any:
        """`(state, lists, records, overflow)` after `n_records * record_every` steps."""
        return self._at(_rung(lists))[2](state, lists, n_records)

    def reference(self, lists: Any) -> Potential:
        """The potential in whose cell the lists were made."""
        return self._at(_rung(lists))[0]

    def larger(self, state: Any, lists: Any, growths: int) -> Any:
        """Lists for `state` in place of `lists`, which overflowed or were crushed.

        `growths` tells how often this was asked for in this block.
        """
        if not self._moves:
            # The last good positions tell nothing of the crowding to come: the old capacity
            # plus one forces the next size of the ladder.
            positions = np.asarray(state.position)  # devices may hold parts of it
            return allocate_lists(self._potential, positions, lists, self._replicas)
        if bool(lists.crushed.any()):
            return self._elsewhere(_rung(lists) + growths, state, lists)
        return self._lists_at(_rung(lists), state, lists.lists)

    def adapted(self, state: Any, lists: Any) -> Any:
        """`lists`, or those of a larger reference where the cells of all replicas grew much."""
        if not self._moves:
            return lists
        smallest = float(np.min(state.stretch))
        if not 0 < smallest < np.inf or rung_below(smallest) + SLACK > _rung(lists):
            return lists
        return self._elsewhere(rung_below(smallest), state, lists)

    def _elsewhere(self, rung: int, state: Any, lists: StrainedLists) -> StrainedLists:
        """Lists in another reference cell, rebuilt as early as `lists` or their successors are."""
        made, before = self._lists_at(rung, state, None), lists.lists
        if not hasattr(before, "rebuild_fraction"):  # Other potentials have lists of their own.
            return made
        own = first_of(before) if self._replicas else before
        fraction = next_rebuild_fraction(own, own.rebuild_fraction.dtype)
        fractions = jnp.broadcast_to(fraction, made.lists.rebuild_fraction.shape)
        return replace(made, lists=replace(made.lists, rebuild_fraction=fractions))

    def _lists_at(self, rung: int, state: Any, previous: Any) -> StrainedLists:
        stretch = np.asarray(state.stretch, np.float64)[..., None, None]
        there = np.asarray(state.position, np.float64) * (RUNG**rung / stretch)
        potential = self._at(rung)[0]
        return self._strained(allocate_lists(potential, there, previous, self._replicas), rung)

    def _strained(self, lists: Any, rung: int) -> StrainedLists:
        many = jax.tree.leaves(lists)[0].shape[:1] if self._replicas else ()
        return StrainedLists(lists, jnp.full(many, rung, jnp.int32), jnp.zeros(many, bool))

    def _at(self, rung: int) -> tuple[Potential, Any, Any]:
        if rung not in self._made:
            potential = self._potential
            if self._moves:
                assert potential.with_cell is not None
                potential = potential.with_cell(potential.cell * RUNG**rung)
            settings = self._replicas, self._donate, self._devices
            made = make_block(potential, self._config, *settings)
            self._made[rung] = (potential, *made)
        return self._made[rung]


def _rung(lists: Any) -> int:
    return int(np.max(lists.rung)) if isinstance(lists, StrainedLists) else 0
