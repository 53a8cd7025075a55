"""The parts of a teacher's name: `kind:target?option=value&option=value`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml
from ase.data import atomic_numbers

from distill.errors import ConfigError

KINDS = ("fennol", "orb", "ase")


@dataclass(frozen=True)
class TeacherName:
    """A name taken apart.

    Attributes:
        full: as the user wrote it.
        kind: one of `KINDS`.
        target: model, file or import path.
        options: what follows the `?`.
    """

    full: str
    kind: str
    target: str
    options: dict[str, str]

    @classmethod
    def parse(cls, name: str) -> TeacherName:
        """Take `name` apart.

        Raises:
            ConfigError: no kind, an unknown one, or no target.
        """
        kind, separator, rest = name.partition(":")
        target, _, query = rest.partition("?")
        if not separator or kind not in KINDS or not target:
            close = get_close_matches(kind, KINDS, n=1)
            hint = f" Did you mean {close[0]}:{target}?" if close and separator else ""
            raise ConfigError(
                f"unknown teacher {name!r}: a teacher is called fennol:<model or file>, "
                "orb:<model or file>, or ase:<module>:<class>, for example fennol:ani1ccx, "
                f"orb:orb-v3-conservative-inf-omat, ase:tblite.ase:TBLite?method=GFN2-xTB.{hint}"
            )
        return cls(name, kind, target, dict(parse_qsl(query, keep_blank_values=True)))

    def require_options(self, known: Iterable[str]) -> None:
        """Raise `ConfigError` for an option that is not in `known`."""
        unknown = set(self.options) - set(known)
        if unknown:
            raise ConfigError(
                f"teacher {self.full!r} has unknown options {', '.join(sorted(unknown))}; "
                f"known: {', '.join(known)}"
            )

    def elements(self) -> tuple[int, ...] | None:
        """Atomic numbers of the option `elements`, or None."""
        symbols = self.options.get("elements")
        if symbols is None:
            return None
        try:
            return tuple(sorted(atomic_numbers[s] for s in symbols.split(",")))
        except KeyError as error:
            raise ConfigError(
                f"teacher {self.full!r}: elements holds {error}, which is no chemical symbol; "
                "write for example elements=H,C,O"
            ) from error

    def number(self, option: str, default: float) -> float:
        """Value of a numerical option."""
        text = self.options.get(option)
        if text is None:
            return default
        try:
            return float(text)
        except ValueError as error:
            raise ConfigError(f"teacher {self.full!r}: {option} must be a number") from error


def card_of(path: Path) -> dict[str, Any]:
    """The card that may stand beside a model, `<model>.card.yaml`; empty if there is none.

    Raises:
        ConfigError: a card that is no YAML mapping.
    """
    card = path.with_suffix(".card.yaml")
    if not card.is_file():
        return {}
    try:
        content = yaml.safe_load(card.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{card} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{card} must hold a mapping")
    return content
