"""Rows in parts: few need as many slots as the fullest, so most are given fewer.

A row pays for its slots whether they are filled or not. Rows are sorted into those for which the
usual slots suffice and the others, at each rebuild, in numbers that are fixed when the list is
allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill.neighbors.capacity import bucket

TWO_PARTS_FROM = 2048
"""Rows from which there may be two parts; each is compiled by itself."""

ROW_COST = 32
"""What a row costs besides its slots, in units of the cost of a slot."""

REGISTER = 16
"""Slots are computed with in such numbers (float32 in registers of 512 bits)."""

WORTH = 0.95
"""Two parts are made where they cost at most so much of one."""

QUANTILES = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Shares of the rows, for each of which the usual slots are considered."""

USUAL_ROOM = 0.75
"""Usual slots have at least so much of the room of the widest rows, above the mean: all rows of a
crystal are alike until it is warm."""

SPARE_SHARE = 0.05
"""Of all rows, places for wide ones beyond those needed: what a place too many costs is little, and
a place too few is a compilation."""

GROWTH = 2
"""Wide rows that lacked places get so many times as many."""

MOST_WIDE = 0.4
"""Share of wide rows, beyond which all get the most slots."""

COUNTED = 20_000
"""Rows of which slots are chosen, if there are more."""


@dataclass(frozen=True)
class Part:
    """Rows of equal width; hashable.

    Attributes:
        groups: slots of a row for neighbours of each species, multiples of 8.
        rows: how many there are of each species; they are sorted by species.
    """

    groups: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def slots(self) -> int:
        """Of a row."""
        return sum(self.groups)

    @property
    def count(self) -> int:
        """Rows in all."""
        return sum(self.rows)

    @property
    def species(self) -> np.ndarray:
        """Of each row, `[count]` int32."""
        return np.repeat(np.arange(len(self.rows), dtype=np.int32), self.rows)

    @property
    def neighbor_species(self) -> np.ndarray:
        """Of each slot of a row, `[slots]` int32."""
        return np.repeat(np.arange(len(self.groups), dtype=np.int32), self.groups)

    @property
    def first_slots(self) -> np.ndarray:
        """The first slot of each group, `[S]`."""
        return np.cumsum(self.groups) - np.asarray(self.groups)

    @property
    def cost(self) -> int:
        """Of all rows, in arbitrary units."""
        return self.count * (ROW_COST + -(-self.slots // REGISTER) * REGISTER)


class Placed(NamedTuple):
    """Where rows have been sorted to.

    Attributes:
        rows: `[n]` int32, the row at each place; the places of a part follow those of the one
            before.
        starts: `[S, n]` int32, of each row: where its slots for neighbours of a species begin,
            among those of all places.
        lacking: `[S]` bool, more rows of a species need the most slots than places have them. The
            places are of no use then.
    """

    rows: jax.Array
    starts: jax.Array
    lacking: jax.Array


def place_rows(parts: Sequence[Part], counts: jax.Array) -> Placed:
    """Sort rows into one or two parts.

    Args:
        parts: the one with fewer slots first.
        counts: `[S, n]`, neighbours of each species; rows are sorted by species.
    """
    n_species, n = counts.shape
    narrow, wide = parts[0], parts[-1]
    if len(parts) == 1:
        place = jnp.arange(n, dtype=jnp.int32)
        starts = jnp.asarray(wide.first_slots, jnp.int32)[:, None] + place * wide.slots
        return Placed(place, starts, jnp.zeros(n_species, bool))
    suffices = (counts <= np.asarray(narrow.groups)[:, None]).all(axis=0)
    places, lacking, first = [], [], 0
    for kind, (few, many) in enumerate(zip(narrow.rows, wide.rows, strict=True)):
        number = jnp.arange(few + many, dtype=jnp.int32)
        own = suffices[first : first + few + many]
        short = own.sum() < few
        own = jnp.where(short, number < few, own & (jnp.cumsum(own) <= few))
        before = jnp.cumsum(own, dtype=jnp.int32) - own
        of_narrow = sum(narrow.rows[:kind]) + before
        of_wide = narrow.count + sum(wide.rows[:kind]) + number - before
        places.append(jnp.where(own, of_narrow, of_wide))
        lacking.append(short)
        first += few + many
    place = jnp.concatenate(places)
    is_narrow = place < narrow.count
    begin = place * narrow.slots
    begin_wide = narrow.count * narrow.slots + (place - narrow.count) * wide.slots
    starts = jnp.where(
        is_narrow,
        begin + jnp.asarray(narrow.first_slots, jnp.int32)[:, None],
        begin_wide + jnp.asarray(wide.first_slots, jnp.int32)[:, None],
    )
    number = jnp.arange(n, dtype=jnp.int32)
    rows = jnp.zeros(n, jnp.int32).at[place].set(number, unique_indices=True)
    return Placed(rows, starts, jnp.stack(lacking))


def rows_of(species: np.ndarray) -> tuple[int, ...]:
    """How many rows each species has, from the species `[n]` of the atoms."""
    return tuple(np.bincount(species).tolist())


def split_rows(by_row: jax.Array, counts: Sequence[int]) -> list[jax.Array]:
    """Arrays `[count, ...]` from one with the rows of several parts."""
    return jnp.split(by_row, np.cumsum(counts)[:-1].tolist())


def choose_parts(
    groups: tuple[int, ...],
    species: np.ndarray,
    counts: np.ndarray,
    multiplier: float,
    minimum: int = 0,
    previous: Sequence[Part] = (),
    lacking: np.ndarray | None = None,
) -> tuple[Part, ...]:
    """One part, or two where they cost less; host code.

    Args:
        groups: slots of the widest rows for neighbours of each species.
        species: `[n]`.
        counts: `[S, n]`, neighbours of each species.
        multiplier: room for more, at least 1.
        minimum: usual slots for each species, at least.
        previous: parts whose slots are kept. Wide rows become no fewer, and more where they lacked
            places; so many that two parts are of no use lead to one part, which stays one. So
            however often something lacks, there is an end.
        lacking: `[3 + 2 S]` bool, see `build.Found`.
    """
    one = (Part(groups, rows_of(species)),)
    if len(previous) == 2:
        least = np.asarray(previous[1].rows)
        if lacking is not None:
            least = np.where(lacking[3 + len(groups) :], GROWTH * least, least)
        kept = _two(groups, previous[0].groups, species, counts, least)
        return one if kept is None or kept[1].count > MOST_WIDE * len(species) else kept
    if len(previous) == 1 or len(species) < TWO_PARTS_FROM:
        return one
    # Not every so many: atoms may be in a periodic order.
    chosen = np.random.default_rng(0).permutation(len(species))[:COUNTED]
    sample = np.sort(counts[:, chosen], axis=1)
    usual_room = sample.mean(axis=1) * (1 + USUAL_ROOM * (multiplier - 1))
    choices = []
    for share in QUANTILES:
        enough = sample[:, min(math.ceil(share * sample.shape[1]), sample.shape[1] - 1)]
        enough = np.maximum(np.maximum(enough, usual_room), minimum).tolist()
        usual = tuple(
            min(bucket(math.ceil(count), ratio=1.1), size) if size else 0
            for count, size in zip(enough, groups, strict=True)
        )
        choices.append(_two(groups, usual, species, counts, np.zeros(len(groups), int)))
    best = min((two for two in choices if two), key=_cost, default=one)
    return best if _cost(best) <= WORTH * _cost(one) else one


def _two(
    groups: tuple[int, ...],
    usual: tuple[int, ...],
    species: np.ndarray,
    counts: np.ndarray,
    least: np.ndarray,
) -> tuple[Part, ...] | None:
    """Parts with `usual` slots and with all, of the second at least so many rows; None if all."""
    full = (counts > np.asarray(usual)[:, None]).any(axis=0)
    rows = np.asarray(rows_of(species))
    needed = np.bincount(species[full], minlength=len(groups))
    # Their number fluctuates as that of independent events, or more: copies of a cell move alike.
    roomy = 1.25 * needed + 4 * np.sqrt(needed) + SPARE_SHARE * rows
    roomy = np.ceil(np.maximum(roomy, 1) / 8).astype(int) * 8
    wide = np.minimum(np.maximum(roomy, least), rows)
    narrow = Part(
        tuple(min(u, g) for u, g in zip(usual, groups, strict=True)), tuple((rows - wide).tolist())
    )
    widest = replace(narrow, groups=groups, rows=tuple(wide.tolist()))
    return (narrow, widest) if narrow.count else None


def _cost(parts: Sequence[Part]) -> int:
    return sum(part.cost for part in parts)
