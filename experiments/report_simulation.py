"""The tables and plots of `docs/trust.md` from the records of simulations and certificates.

    python experiments/report_simulation.py

Reads `docs/results/simulation.json` and, for the plots, every `docs/results/*_curves.json`. Text
between `<!-- table: NAME -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmark_loop import BARE, LOOP, RATIO
from compare_npt import AGREEMENT
from distill.evaluation.plots import BLUE, GREY
from distill.evaluation.results import read_records, replace_text
from report_results import DOCS, digits, fill, origin
from simulation_records import (
    ATTAINABLE,
    BARRIER,
    CHANGED,
    DENSITY,
    DEVIATION,
    DIFFUSION,
    DRIFT,
    EVENTS,
    FRAMES,
    HOLES,
    ITSELF,
    LENGTH,
    LIKELIER,
    OF_TEACHER,
    OVERLAP,
    POPULATION,
    PRESSURE_ON_FRAMES,
    RUNS,
    SEARCHED,
    SHARE,
    WALL_ERROR,
    read_curves,
)

NOTHING = "Nothing is recorded yet."
Record = dict[str, Any]


def main() -> int:
    """Fill the page and draw the plots; returns the exit status."""
    path = DOCS / "results" / "simulation.json"
    if not path.is_file():
        print(f"{path} is missing: see docs/trust.md for what writes it", file=sys.stderr)
        return 1
    pictures = []
    for curves in sorted(path.parent.glob("*_curves.json")):
        for number, (case, found) in enumerate(read_curves(curves).items()):
            name = f"{curves.stem}_{number}.png"
            plot(case, found, DOCS / "images" / name)
            pictures.append((case, name))
    page = DOCS / "trust.md"
    filled = fill(page.read_text(encoding="utf-8"), tables(read_records(path), pictures))
    replace_text(page, filled)
    return 0


def tables(records: list[Record], pictures: list[tuple[str, str]]) -> dict[str, str]:
    """All tables of the page by name, and the plots of the curves, `(case, file)`."""
    shapes = [picture for picture in pictures if picture[1].startswith("conformers")]
    return {
        "runs": runs_table(records),
        "events": event_table(records),
        "walls": wall_table(records),
        "drift": drift_table(records),
        "overlaps": overlap_table(records),
        "bulk": bulk_table(records),
        "loop": loop_table(records),
        "conformers": population_table(records),
        "curves": shown([picture for picture in pictures if picture not in shapes]),
        "shapes": shown(shapes),
    }


def shown(pictures: list[tuple[str, str]]) -> str:
    """Links to the pictures, one below the other."""
    return "\n\n".join(f"![{case}](images/{name})" for case, name in pictures) or NOTHING


def runs_table(records: list[Record]) -> str:
    """Runs and how many of them met something unphysical."""
    chosen = [r for r in records if r["metric"] == EVENTS]
    columns = ("temperature", DENSITY, "pressure", "drift of the conserved energy")
    heads = (
        "| case | model | runs | length of each (ps) | runs with an unphysical event "
        "| mean temperature (K) | density (g/cm³) | pressure (GPa) "
        "| drift of the conserved energy (meV/atom/ns) |"
    )
    rows = [
        [
            plain(records, r, RUNS),
            plain(records, r, LENGTH),
            f"{r['value']:.0f}",
            *(ranged(find(records, r, name)) for name in columns),
        ]
        for r in chosen
    ]
    return table(heads, chosen, rows)


def event_table(records: list[Record]) -> str:
    """Frames with changed bonds, and how likely they are for the teacher."""
    before, after = CHANGED.split("{:g}")
    chosen = [r for r in records if r["metric"].startswith(before)]
    factors = [r["metric"].removeprefix(before).removesuffix(after) for r in chosen]
    heads = (
        "| case | student | bonds within (sums of radii) | frames with changed bonds "
        "| probability for the teacher, over the student's |"
    )
    ratios = [
        find(records, r, LIKELIER.format(float(factor)))
        for r, factor in zip(chosen, factors, strict=True)
    ]
    rows = [
        [
            factor,
            f"{r['value']:.0f} of {plain(records, r, SEARCHED)}",
            likelier(r, ratio),
        ]
        for r, factor, ratio in zip(chosen, factors, ratios, strict=True)
    ]
    return table(heads, chosen, rows)


def likelier(count: Record, ratio: Record | None) -> str:
    """The ratio of probabilities; one with frames of too few stretches has no known error."""
    if ratio is None or not count["value"]:
        return ""
    return error(ratio) if ratio["spread"] else f"{error(ratio)}, error unknown"


def wall_table(records: list[Record]) -> str:
    """Atoms pushed together, student against teacher."""
    chosen = [r for r in records if r["metric"] == WALL_ERROR]
    heads = "| case | student | largest error (eV) | hole | barrier before it (eV) |"
    rows = []
    for r in chosen:
        hole = find(records, r, HOLES)
        there = hole is not None and hole["value"] > 0
        barrier = plain(records, r, BARRIER) if there else ""
        rows.append([digits(r["value"]), "yes" if there else "no", barrier])
    return table(heads, chosen, rows)


def drift_table(records: list[Record]) -> str:
    """Drift of the total energy in NVE."""
    chosen = [r for r in records if r["metric"] == DRIFT]
    heads = "| case | student | runs | length of each (ps) | drift (meV/atom/ns) |"
    rows = [
        [plain(records, r, f"{DRIFT}, {RUNS}"), plain(records, r, f"{DRIFT}, {LENGTH}"), error(r)]
        for r in chosen
    ]
    return table(heads, chosen, rows)


def overlap_table(records: list[Record]) -> str:
    """Curves of student and teacher, beside those of the teacher with itself."""
    chosen = [r for r in records if r["metric"].startswith(OVERLAP)]
    heads = "| case | student | curve | overlap | teacher with itself | attainable |"
    rows = []
    for r in chosen:
        curve = r["metric"].removeprefix(OVERLAP)
        others = (find(records, r, name + curve) for name in (ITSELF, ATTAINABLE))
        rows.append([curve, error(r, 4), *(f"{o['value']:.4f}" if o else "" for o in others)])
    return table(heads, chosen, rows)


def bulk_table(records: list[Record]) -> str:
    """Diffusion and density of student and teacher."""
    chosen = [
        r
        for r in records
        if r["metric"].startswith(DIFFUSION)
        or r["metric"] in (DEVIATION, AGREEMENT, OF_TEACHER, PRESSURE_ON_FRAMES, SHARE, FRAMES)
        or (r["metric"] == DENSITY and any(is_compared(r, other) for other in records))
    ]
    rows = [
        [r["metric"], f"{error(r)} {r['unit']}" if r["unit"] != "1" else f"{r['value']:.4g}"]
        for r in chosen
    ]
    return table("| case | model | what | value |", chosen, rows)


def population_table(records: list[Record]) -> str:
    """Conformers of a molecule."""
    chosen = [r for r in records if r["metric"].startswith(POPULATION)]
    rows = [[r["metric"].removeprefix(POPULATION), error(r)] for r in chosen]
    return table("| case | model | conformer | population |", chosen, rows)


def is_compared(density: Record, other: Record) -> bool:
    """Whether `density` belongs to a comparison, with a teacher or of two programs."""
    same, longer = other["case"] == density["case"], density["case"].startswith(other["case"])
    return (other["metric"] == DEVIATION and same) or (other["metric"] == AGREEMENT and longer)


def loop_table(records: list[Record]) -> str:
    """The MD run against the bare evaluation of forces and lists."""
    chosen = [r for r in records if r["metric"] == RATIO]
    heads = (
        "| case | student | MD run (us/atom/step) | bare forces and lists (us/atom/step) "
        "| ratio, median (range) |"
    )
    rows = [[plain(records, r, LOOP), plain(records, r, BARE), ranged(r)] for r in chosen]
    return table(heads, chosen, rows)


def table(heads: str, chosen: list[Record], rows: list[list[str]]) -> str:
    """A table with case and subject in front of each row, and where it was measured."""
    if not chosen:
        return NOTHING
    lines = [heads, "|---|---|" + "---:|" * len(rows[0])]
    for r, row in zip(chosen, rows, strict=True):
        lines.append("| " + " | ".join([r["case"], r["subject"], *row]) + " |")
    return "\n".join([*lines, "", origin(chosen)])


def find(records: list[Record], of: Record, metric: str) -> Record | None:
    """The record of the same case and subject with another metric."""
    wanted = of["case"], of["subject"], metric
    return next((r for r in records if (r["case"], r["subject"], r["metric"]) == wanted), None)


def plain(records: list[Record], of: Record, metric: str) -> str:
    """Its value as text, or nothing."""
    found = find(records, of, metric)
    return digits(found["value"]) if found else ""


def ranged(record: Record | None) -> str:
    """Value, lowest and highest."""
    if record is None:
        return ""
    low, high = record["spread"] or (record["value"], record["value"])
    return f"{record['value']:.4g} ({low:.4g} to {high:.4g})"


def error(record: Record, decimals: int | None = None) -> str:
    """Value with its standard error, where that is known."""
    form = ".3g" if decimals is None else f".{decimals}f"
    value = f"{record['value']:{form}}"
    if record["spread"] is None:
        return value
    half = (record["spread"][1] - record["spread"][0]) / 2
    return f"{value} ± {half:{'.2g' if decimals is None else form}}"


def plot(case: str, curves: dict[str, Any], path: Path) -> None:
    """RDFs, MSDs and VDOS of student and teacher with bands of two standard errors."""
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, curve) in zip(axes, curves.items(), strict=False):
        for who, colour in (("teacher", GREY), ("student", BLUE)):
            mean, error = curve[who]["mean"], curve[who]["error"]
            low, high = ([m + f * e for m, e in zip(mean, error, strict=True)] for f in (-2, 2))
            axis.plot(curve["x"], mean, color=colour, lw=1, label=who)
            axis.fill_between(curve["x"], low, high, color=colour, alpha=0.25, lw=0)
        axis.set(xlabel=curve["x_label"], ylabel=curve["y_label"], title=name)
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    axes[0].legend(fontsize=7)
    figure.suptitle(case, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
