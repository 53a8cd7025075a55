"""Branches: arrays kept for several users, and results that are not always wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

HUGE = 1e30
"""No coordinate or component of a unit vector is as large."""


def kept(function: Callable[[], Any], like: jax.Array) -> Any:
    """What `function` gives, written to memory on a CPU before anything uses it.

    XLA fuses a product or sum into each of its users and so repeats it. An optimization barrier
    does not keep it from that, a branch does. The branch taken is always that of `function`.

    Args:
        function: of no arguments, gives arrays.
        like: coordinates that are not known at compile time, or the branch would be
            resolved then.
    """
    shapes = jax.eval_shape(function)

    def branch() -> Any:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        # True for NaN too: what is lost must not look like nothing.
        return jax.lax.cond(~(like.reshape(-1)[0] > HUGE), function, lambda: nothing)

    return jax.lax.platform_dependent(cpu=branch, default=function)


def if_wanted(wanted: Any, function: Callable[[], Any]) -> Any:
    """What `function` gives, or zeros where `wanted` `()` is an array that is false."""
    if wanted is True:
        return function()

    def nothing() -> Any:
        shapes = jax.eval_shape(function)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return jax.lax.cond(wanted, function, nothing)
