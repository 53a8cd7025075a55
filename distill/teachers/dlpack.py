"""Arrays between JAX and torch over DLPack, without copies where the layout allows.

Two arrays that share memory are one: a write on the torch side changes a JAX array, which JAX
takes to be constant. `to_torch` therefore is for the time of a call, and `to_jax` hands over a
clone that torch keeps no reference to. Keep both outside jit.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def to_torch(array: jax.Array, device: str | None = None) -> Any:
    """`array` as a torch tensor on `device` (its own by default); do not write into it.

    No copy is made if the array is on that device already. The work that makes the array is
    waited for.
    """
    import torch

    if array.dtype == jnp.bool_:
        # torch reads the 8-bit form; its bool has no DLPack code in older releases.
        tensor = torch.from_dlpack(jax.block_until_ready(array.astype(jnp.uint8))).bool()
    else:
        tensor = torch.from_dlpack(jax.block_until_ready(array))
    return tensor if device is None else tensor.to(device)


def to_jax(tensor: Any) -> jax.Array:
    """A JAX array with the values of `tensor`, which it does not share memory with.

    Raises:
        ValueError: a float64 tensor while JAX has no x64 mode, which would lose digits unseen.
    """
    import torch

    if tensor.dtype == torch.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "a float64 tensor would become float32 in JAX: convert it first, or switch on "
            "jax_enable_x64 in the script"
        )
    # The clone is contiguous and aligned, so that the hand-over itself copies nothing.
    return jnp.from_dlpack(tensor.detach().clone(memory_format=torch.contiguous_format))
