"""The teacher of a bundle: that of its card, or one with the same weights.

For an ASE calculator, whose weights are not known, they are its recipe: name, settings and version.
"""

from __future__ import annotations

from distill import teachers
from distill.errors import ConfigError
from distill.students import Bundle
from distill.teachers import Teacher
from quickstart import resolve_teacher


def teacher_of(bundle: Bundle, name: str, bundle_name: object) -> Teacher:
    """Load teacher `name`, by default that of the card.

    Raises:
        ConfigError: it has other weights than the card says.
    """
    recorded = bundle.card.get("teacher") or {}
    name = name or str(recorded.get("teacher", ""))
    teacher = teachers.load(resolve_teacher(name))
    weights = recorded.get("weights_sha256")
    if weights and weights != teacher.info.weights_sha256:
        raise ConfigError(
            f"teacher {name} has other weights than {recorded.get('teacher')}, of which "
            f"{bundle_name} was distilled: give that one with teacher=NAME"
        )
    return teacher
