"""A table of the teachers that can be named, and what each of them can do."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from distill.teachers.weights import is_present
from distill.teachers.zoo import FENNOL_MODELS


@dataclass(frozen=True)
class ListedTeacher:
    """One row.

    Attributes:
        name: for `distill.teachers.load`.
        elements: which it is meant for.
        periodic: structures it takes.
        stress: `yes`, `no` or `if the calculator has it`.
        hessian: `exact` or `numerical` products.
        licence: of the weights.
        ready: whether it could be loaded now, or what is missing.
    """

    name: str
    elements: str
    periodic: str
    stress: str
    hessian: str
    licence: str
    ready: str


def list_teachers() -> list[ListedTeacher]:
    """All teachers with a name; files and other ASE calculators can be loaded besides."""
    rows = []
    for name, model in FENNOL_MODELS.items():
        present = all(is_present(f"fennol/{model.folder}/{file}") for file in model.files)
        rows.append(
            ListedTeacher(
                f"fennol:{name}",
                model.elements,
                "none or all three",
                "yes",
                "exact",
                model.licence,
                "yes" if present else "after a download",
            )
        )
    return rows + _orb_rows() + _ase_rows()


def _orb_rows() -> list[ListedTeacher]:
    try:
        from distill.teachers._orb_model import pretrained_names
        from distill.teachers.orb_loading import LICENCE, orb_place

        names = pretrained_names()
    except ImportError:
        missing = 'needs pip install "distill-mlip[orb]"'
        common = ("none or all three", "yes", "exact or numerical", "Apache-2.0", missing)
        return [ListedTeacher("orb:<model>", "H to Og", *common)]
    return [
        ListedTeacher(
            f"orb:{name}",
            "of its training data",
            "none or all three",
            "no" if "omol" in name else "yes",
            "exact" if "conservative" in name else "numerical",
            LICENCE,
            "yes" if is_present(orb_place(name)) else "after a download",
        )
        for name in names
    ]


def _ase_rows() -> list[ListedTeacher]:
    def ready(package: str, advice: str) -> str:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return f"needs pip install {advice}"
        return "yes"

    common = ("numerical",)
    return [
        ListedTeacher(
            "ase:tblite.ase:TBLite?method=GFN2-xTB",
            "H to Rn",
            "any",
            "yes",
            *common,
            "LGPL-3.0",
            ready("tblite", '"distill-mlip[xtb]"'),
        ),
        ListedTeacher(
            "ase:ase.calculators.emt:EMT",
            "H C N O Al Ni Cu Pd Ag Pt Au",
            "any",
            "yes",
            *common,
            "LGPL-2.1",
            ready("ase", "ase"),
        ),
        ListedTeacher(
            "ase:<module>:<class>",
            "of the calculator",
            "any",
            "if it has it",
            *common,
            "of the calculator",
            "see the calculator",
        ),
    ]


def format_teachers(rows: list[ListedTeacher]) -> str:
    """The rows as a table for a terminal."""
    heads = ("name", "elements", "periodic", "stress", "hvp", "licence", "ready")
    cells = [heads] + [
        (r.name, r.elements, r.periodic, r.stress, r.hessian, r.licence, r.ready) for r in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
