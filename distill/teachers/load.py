"""Teachers by name: `fennol:ani1ccx`, `orb:orb-v2`, `ase:tblite.ase:TBLite?method=GFN2-xTB`."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import ConfigError
from distill.teachers.base import Teacher
from distill.teachers.names import TeacherName, card_of
from distill.teachers.weights import find_weights
from distill.teachers.zoo import FENNOL_MODELS


def load(name: str | Sequence[str], *, dtype: Any = np.float32) -> Teacher:
    """Load a teacher.

    Args:
        name: a list of names makes a committee of any teachers. One name is

            - `fennol:<model>` with a model of `distill.teachers.zoo.FENNOL_MODELS`, or the path
              of a `.fnx` file (several paths separated by commas make a committee that shares
              its descriptors). Options: `member=0` takes one network of a committee,
              `elements=H,C,O` says what a file was made for.
            - `orb:<model>` with a pretrained model of orb-models, or the path of a checkpoint.
              Options: see `distill.teachers.orb_loading.load_orb`.
            - `ase:<module>:<class>`, any ASE calculator; the options are its arguments.

            Options follow a `?`, separated by `&`.
        dtype: precision of the arithmetic; an ASE calculator has its own.

    Raises:
        ConfigError: the name, an option or a file is not known.
        WeightsError: weights are neither present nor to be downloaded, or damaged.
        MissingDependencyError: an optional package is not installed; names the extra.
    """
    if not isinstance(name, str):
        from distill.teachers.committee import CommitteeTeacher

        return CommitteeTeacher([load(each, dtype=dtype) for each in name])
    parsed = TeacherName.parse(name)
    if parsed.kind == "orb":
        from distill.teachers.orb_loading import load_orb

        return load_orb(parsed, dtype)
    if parsed.kind == "ase":
        from distill.teachers.ase_calculator import AseTeacher, parse_ase_name

        target, parameters = parse_ase_name(name)
        return AseTeacher(target, parameters=parameters)
    return _load_fennol(parsed, dtype)


def _load_fennol(name: TeacherName, dtype: Any) -> Teacher:
    from distill.teachers.fennol import FennolTeacher

    name.require_options(("member", "elements"))
    elements = name.elements()
    if name.target in FENNOL_MODELS:
        model = FENNOL_MODELS[name.target]
        chosen = _member(name, list(model.files))
        return FennolTeacher(
            [find_weights(model, file) for file in chosen],
            name=name.full,
            licence=model.licence,
            elements=elements,
            dtype=dtype,
        )
    paths = [Path(p) for p in name.target.split(",")]
    for path in paths:
        if not path.is_file():
            close = get_close_matches(name.target, list(FENNOL_MODELS), n=1)
            hint = f" Did you mean fennol:{close[0]}?" if close else ""
            raise ConfigError(
                f"teacher {name.full!r}: {path} is neither a file nor a known model "
                f"({', '.join(FENNOL_MODELS)}).{hint}"
            )
    chosen_paths = _member(name, paths)
    return FennolTeacher(
        chosen_paths,
        # Not the whole path: it says nothing on another machine, the checksum does.
        name="fennol:" + ",".join(path.name for path in chosen_paths),
        licence=str(card_of(chosen_paths[0]).get("licence", "unknown")),
        elements=elements,
        dtype=dtype,
    )


def _member(name: TeacherName, files: Sequence[Any]) -> list[Any]:
    member = name.options.get("member")
    if member is None:
        return list(files)
    if not member.isdigit() or int(member) >= len(files):
        raise ConfigError(f"teacher {name.full!r}: member must be 0 to {len(files) - 1}")
    return [files[int(member)]]
