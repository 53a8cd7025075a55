"""Architecture specs: plain data in, Flax module out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import flax.linen as nn
from ase.data import atomic_numbers, chemical_symbols

from distill.errors import ConfigError
from distill.students.message import MessageStudent
from distill.students.moment import MomentStudent

ARCHITECTURES: dict[str, type[nn.Module]] = {"moment": MomentStudent, "message": MessageStudent}
"""Modules by the name that a spec calls them."""

SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "moment-s": (
        "moment",
        {"n_radial": 8, "n_channels": 8, "max_l": 2, "n_triples": 6, "hidden": (32, 32)},
    ),
    "moment-m": (
        "moment",
        {"n_radial": 10, "n_channels": 10, "max_l": 3, "n_triples": 8, "hidden": (64, 64)},
    ),
    "moment-l": (
        "moment",
        {"n_radial": 12, "n_channels": 14, "max_l": 3, "n_triples": 16, "hidden": (128, 64)},
    ),
    "message-m": (
        "message",
        {"n_radial": 8, "n_channels": 10, "max_l": 3, "n_triples": 8, "hidden": (64, 64)},
    ),
}
"""The ladder: architecture and options by the name of the size."""


def passes_messages(module: nn.Module) -> bool:
    """Whether a module needs the indices of the neighbours, because rows are not independent."""
    return bool(getattr(module, "message_passing", False))


@dataclass(frozen=True)
class StudentSpec:
    """Everything that rebuilds a student's module; written to `model.yaml` of a bundle.

    Attributes:
        architecture: a name in `ARCHITECTURES`.
        elements: atomic numbers in increasing order; a species is an index into them.
        cutoff: Å.
        options: further fields of the module.
    """

    architecture: str
    elements: tuple[int, ...]
    cutoff: float
    options: Mapping[str, Any]

    @classmethod
    def of_size(
        cls,
        name: str,
        elements: tuple[int, ...],
        cutoff: float,
        options: Mapping[str, Any] | None = None,
    ) -> StudentSpec:
        """Spec of a size in `SIZES` or of an architecture, with `options` on top."""
        architecture, defaults = SIZES.get(name, (name, {}))
        return cls(architecture, elements, cutoff, {**defaults, **(options or {})})

    def build(self) -> nn.Module:
        """The module. Raises ConfigError for an unknown architecture or option."""
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(
                f"unknown student architecture {self.architecture!r}"
                f"{_nearest(self.architecture, [*SIZES, *ARCHITECTURES])}; "
                f"known: {', '.join([*SIZES, *ARCHITECTURES])}"
            )
        module = ARCHITECTURES[self.architecture]
        known = set(module.__dataclass_fields__) - {"parent", "name", "n_elements", "cutoff"}
        for key in self.options:
            if key not in known:
                raise ConfigError(
                    f"unknown option {key!r} of student {self.architecture!r}"
                    f"{_nearest(key, known)}; known: {', '.join(sorted(known))}"
                )
        angular = self.options.get("angular_cutoff", 0.0)
        if not 0 <= angular <= self.cutoff:
            raise ConfigError(
                f"angular_cutoff of student {self.architecture!r} is {angular} Å: give one of at "
                f"most the cutoff, {self.cutoff} Å, or 0 for none"
            )
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in self.options.items()}
        return module(n_elements=len(self.elements), cutoff=self.cutoff, **options)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML, elements as symbols."""
        record = asdict(self)
        record["elements"] = [chemical_symbols[z] for z in self.elements]
        record["options"] = {
            k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()
        }
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> StudentSpec:
        """Inverse of `to_dict`. Raises ConfigError when a key is missing or not understood."""
        missing = {"architecture", "elements", "cutoff", "options"} - set(record)
        if missing:
            raise ConfigError(f"model spec lacks {', '.join(sorted(missing))}")
        unknown = [s for s in record["elements"] if s not in atomic_numbers]
        if unknown:
            raise ConfigError(f"model spec names unknown elements: {', '.join(map(str, unknown))}")
        return cls(
            architecture=str(record["architecture"]),
            elements=tuple(atomic_numbers[s] for s in record["elements"]),
            cutoff=float(record["cutoff"]),
            options=dict(record["options"]),
        )


def _nearest(name: str, names: Any) -> str:
    close = get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
