"""Dataclasses with arrays as JSON beside a list of arrays, and back, exactly and without pickle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.errors import CheckpointError

_PLAIN = (bool, int, float, str, type(None))


def pack(value: Any, arrays: list[np.ndarray]) -> dict[str, Any]:
    """`value` for JSON; its arrays are appended to `arrays`.

    Serves jax-md states and neighbour lists: dataclasses, mappings, tuples and lists of arrays,
    numbers and strings, static fields included.

    Raises:
        CheckpointError: something else is in it.
    """
    if isinstance(value, jax.Array | np.ndarray):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _PLAIN):
        return {"value": value}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return {"fields": {name: pack(getattr(value, name), arrays) for name in names}}
    if isinstance(value, Mapping):
        keys = [key.item() if isinstance(key, np.generic) else key for key in value]
        return {"items": [[k, pack(v, arrays)] for k, v in zip(keys, value.values(), strict=True)]}
    if isinstance(value, tuple | list):
        return {"sequence": [pack(item, arrays) for item in value]}
    raise CheckpointError(
        f"a {type(value).__name__} in the state or the neighbour lists cannot be saved: run this "
        "potential without checkpoints"
    )


def unpack(packed: dict[str, Any], like: Any, arrays: list[np.ndarray]) -> Any:
    """What `pack` was given; classes are those of `like`, numbers and sizes those of `packed`.

    Raises:
        CheckpointError: `like` has another structure.
    """
    kind, content = next(iter(packed.items()))
    if kind == "array":
        return jnp.asarray(arrays[content])
    if kind == "value":
        return content
    make: Any = type(like)
    try:
        if kind == "fields":
            return make(**{n: unpack(p, getattr(like, n), arrays) for n, p in content.items()})
        if kind == "items":
            return make({key: unpack(item, like.get(key), arrays) for key, item in content})
        items = [
            unpack(item, like[min(i, len(like) - 1)] if len(like) else None, arrays)
            for i, item in enumerate(content)
        ]
        return make(*items) if hasattr(make, "_fields") else make(items)
    except (AttributeError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint was written by another version of distill or jax-md: its {kind} do "
            f"not fit a {make.__name__} ({error})"
        ) from error
