"""Teachers by name: `fennol:ani1ccx`, `fennol:/path/model.fnx`, with options after a `?`."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import yaml
from ase.data import atomic_numbers

from distill.errors import ConfigError
from distill.teachers.base import JaxTeacher
from distill.teachers.weights import find_weights
from distill.teachers.zoo import FENNOL_MODELS


def load(name: str, *, dtype: Any = np.float32) -> JaxTeacher:
    """Load a teacher.

    Args:
        name: `fennol:<model>` with a name in `distill.teachers.zoo.FENNOL_MODELS` or the path of
            a `.fnx` file (several paths separated by commas make a committee). Options follow a
            `?`, separated by `&`: `member=0` takes one network of a committee,
            `elements=H,C,O` says what a file was made for.
        dtype: precision of the arithmetic.

    Raises:
        ConfigError: the name, an option or a file is not known.
        WeightsError: weights are neither present nor to be downloaded, or damaged.
    """
    kind, separator, rest = name.partition(":")
    if not separator or kind != "fennol":
        raise ConfigError(
            f"unknown teacher {name!r}: a teacher is called fennol:<model or file>, for example "
            "fennol:ani1ccx"
        )
    target, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = set(options) - {"member", "elements"}
    if unknown:
        raise ConfigError(
            f"teacher {name!r} has unknown options {', '.join(sorted(unknown))}; "
            "known: member, elements"
        )
    return _load_fennol(name, target, options, dtype)


def _load_fennol(name: str, target: str, options: dict[str, str], dtype: Any) -> JaxTeacher:
    from distill.teachers.fennol import FennolTeacher

    elements = _elements(name, options.get("elements"))
    if target in FENNOL_MODELS:
        model = FENNOL_MODELS[target]
        files = list(model.files)
        chosen = _member(name, options.get("member"), files)
        return FennolTeacher(
            [find_weights(model, file) for file in chosen],
            name=name,
            licence=model.licence,
            elements=elements,
            dtype=dtype,
        )
    paths = [Path(p) for p in target.split(",")]
    for path in paths:
        if not path.is_file():
            close = get_close_matches(target, list(FENNOL_MODELS), n=1)
            hint = f" Did you mean fennol:{close[0]}?" if close else ""
            raise ConfigError(
                f"teacher {name!r}: {path} is neither a file nor a known model "
                f"({', '.join(FENNOL_MODELS)}).{hint}"
            )
    chosen_paths = _member(name, options.get("member"), paths)
    return FennolTeacher(
        chosen_paths,
        # Not the whole path: it says nothing on another machine, the checksum does.
        name="fennol:" + ",".join(path.name for path in chosen_paths),
        licence=_licence(chosen_paths[0]),
        elements=elements,
        dtype=dtype,
    )


def _licence(path: Path) -> str:
    """The licence in the card that may stand beside a model, `<model>.card.yaml`."""
    card = path.with_suffix(".card.yaml")
    content = yaml.safe_load(card.read_text()) if card.is_file() else None
    return str(content.get("licence", "unknown")) if isinstance(content, dict) else "unknown"


def _member(name: str, member: str | None, files: Sequence[Any]) -> list[Any]:
    if member is None:
        return list(files)
    if not member.isdigit() or int(member) >= len(files):
        raise ConfigError(f"teacher {name!r}: member must be 0 to {len(files) - 1}")
    return [files[int(member)]]


def _elements(name: str, symbols: str | None) -> tuple[int, ...] | None:
    if symbols is None:
        return None
    try:
        return tuple(sorted(atomic_numbers[s] for s in symbols.split(",")))
    except KeyError as error:
        raise ConfigError(f"teacher {name!r}: unknown element {error.args[0]!r}") from error
