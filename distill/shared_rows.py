"""One system on several devices: each evaluates a share of the rows, and forces are summed.

Positions and lists are the same on all devices, so that nothing but forces and energies travels.
The rows of each element are divided by themselves, which keeps the elements of a share static.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from distill.kernels.moment_blocks import element_runs

AXIS = "rows"
"""Name of the axis of the devices."""


class _Run(NamedTuple):
    """Rows of one element in a share.

    Attributes:
        first: `()` int32, the first row that counts.
        end: `()` int32, one more than the last that counts.
        begin: `()` int32, the first row that is evaluated.
        size: how many are.
        place: of the first of them among the rows of the share.
    """

    first: jax.Array
    end: jax.Array
    begin: jax.Array
    size: int
    place: int


class Share:
    """The rows of one device.

    A share has equally many rows of an element on each device. Where they do not divide evenly, the
    later devices repeat rows of earlier ones, which count once.

    Args:
        number: `()` int32, of the device.
        count: of devices.
        rows: `[n]`, sorted, static: the element of each row.
    """

    def __init__(self, number: jax.Array, count: int, rows: np.ndarray) -> None:
        runs = element_runs(rows)
        assert runs is not None
        self._number, self._count = number, count
        self._n_rows, self._runs = len(rows), []
        self._all_runs = [(start, stop) for _, start, stop in runs]
        place = 0
        for _, start, stop in runs:
            size = -(-(stop - start) // count)
            first = jnp.minimum(start + number * size, stop)
            end = jnp.minimum(first + size, stop)
            self._runs.append(_Run(first, end, jnp.minimum(first, stop - size), size, place))
            place += size
        sizes = [run.size for run in self._runs]
        self.elements = np.repeat([element for element, _, _ in runs], sizes)
        """`[b]`, static: the element of each row of the share."""

    def taken(self, arrays: Any) -> Any:
        """The rows of this share, `[b, ...]`, of arrays `[n, ...]`."""

        def take(array: jax.Array) -> jax.Array:
            return jnp.concatenate(
                [jax.lax.dynamic_slice_in_dim(array, run.begin, run.size) for run in self._runs]
            )

        return jax.tree.map(take, arrays)

    def counted(self, array: jax.Array) -> jax.Array:
        """The rows of this share, `[b, ...]`, zero where another share counts."""
        counts = []
        for run in self._runs:
            row = run.begin + jnp.arange(run.size)
            counts.append((row >= run.first) & (row < run.end))
        mask = jnp.concatenate(counts).reshape(-1, *[1] * (array.ndim - 1))
        return jnp.where(mask, array, 0)

    def spread(self, array: jax.Array) -> jax.Array:
        """`[n, ...]` from the rows of this share, `[b, ...]`: zero where another share counts."""
        found = jnp.zeros((self._n_rows, *array.shape[1:]), array.dtype)
        counted = self.counted(array)
        for run in self._runs:
            own = counted[run.place : run.place + run.size]
            there = jax.lax.dynamic_slice_in_dim(found, run.begin, run.size)
            found = jax.lax.dynamic_update_slice_in_dim(found, there + own, run.begin, 0)
        return found

    def rows(self, array: jax.Array) -> jax.Array:
        """As `taken`, of one array; with the next three a `distill.neighbors.division.Division`."""
        own: jax.Array = self.taken(array)
        return own

    def all_rows(self, array: jax.Array) -> jax.Array:
        """`[n, ...]` from the rows of every share, `[b, ...]`."""
        shares = jax.lax.all_gather(array, AXIS)
        found = []
        for (start, stop), run in zip(self._all_runs, self._runs, strict=True):
            for number in range(self._count):
                first, end, begin = _span(number, run.size, start, stop)
                place = run.place - begin
                found.append(shares[number, place + first : place + end])
        return jnp.concatenate(found)

    def part(self, array: jax.Array, axis: int) -> jax.Array:
        """Own part of an axis that is divided evenly."""
        length = array.shape[axis]
        size = -(-length // self._count)
        begin = jnp.minimum(self._number * size, length - size)
        return jax.lax.dynamic_slice_in_dim(array, begin, size, axis)

    def all_parts(self, array: jax.Array, axis: int, length: int) -> jax.Array:
        """The whole axis, of a length, from the parts of every device."""
        parts, found = jax.lax.all_gather(array, AXIS), []
        for number in range(self._count):
            first, end, begin = _span(number, array.shape[axis], 0, length)
            own = jax.lax.slice_in_dim(parts[number], first - begin, end - begin, axis=axis)
            found.append(own)
        return jnp.concatenate(found, axis)

    def of(self, rows: np.ndarray) -> Share:
        """The same device's share of other rows."""
        return Share(self._number, self._count, rows)

    def spans(self, width: int) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
        """Slots of rows that count, as ranges: the first, how many, and the first among own slots.

        `width` is that of the rows, in slots.
        """
        return [
            (
                run.first * width,
                (run.end - run.first) * width,
                (run.first - run.begin + run.place) * width,
            )
            for run in self._runs
        ]


def _span(number: int, size: int, start: int, stop: int) -> tuple[int, int, int]:
    """The first row of a share that counts, one more than the last, and the first evaluated."""
    first = min(start + number * size, stop)
    return first, min(first + size, stop), min(first, stop - size)


def on_devices(
    function: Callable[..., Any], rows: np.ndarray, devices: Sequence[jax.Device]
) -> Callable[..., Any]:
    """`function(None, positions, lists, cell, *settings)` from what the devices' shares add up to.

    Args:
        function: `(share, positions, lists, cell, *settings)`, gives sums over the rows of a share,
            or arrays that are zero for other rows.
        rows: `[n]`, sorted, static: the element of each row.
        devices: different ones, of one kind.
    """

    def together(positions: Any, lists: Any, cell: Any, *settings: Any) -> Any:
        def added(share: Share, positions: Any, lists: Any, cell: Any) -> Any:
            # Devices wait for each other at every sum: one for all arrays.
            found, back = ravel_pytree(function(share, positions, lists, cell, *settings))
            return back(jax.lax.psum(found, AXIS))

        cell = jnp.asarray(cell, positions.dtype)
        return with_shares(added, rows, devices)(positions, lists, cell)

    return together


def with_shares(
    function: Callable[..., Any], rows: np.ndarray, devices: Sequence[jax.Device]
) -> Callable[..., Any]:
    """`function(share, *arrays)` on every device, without the share.

    Arrays are the same on all devices, those that go in and those that come out.
    """
    mesh = Mesh(np.asarray(devices), (AXIS,))
    everywhere = PartitionSpec()

    def every(*arrays: Any) -> Any:
        return function(Share(jax.lax.axis_index(AXIS), len(devices), rows), *arrays)

    # What differs between devices is summed or gathered in the end; JAX need not follow it.
    return jax.shard_map(
        every, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False
    )
