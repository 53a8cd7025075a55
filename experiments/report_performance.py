"""The tables and the plot of `docs/performance.md` from the records of the benchmark.

    python experiments/report_performance.py

Text between `<!-- table: NAME -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmark_calculator import OVERHEAD
from distill.evaluation.results import read_records, replace_text
from report_results import DOCS, atoms_of, digits, fill, origin

NOTHING = "Nothing is recorded yet."
PARTS = "parts of a step"
AGAINST = "speed against "
AGGREGATE = "aggregate throughput against one box of as many atoms"
Record = dict[str, Any]


def main() -> int:
    """Fill the page and draw the plot; returns the exit status."""
    path = DOCS / "results" / "performance.json"
    if not path.is_file():
        print(f"{path} is missing: run experiments/benchmark.py first", file=sys.stderr)
        return 1
    records = read_records(path)
    page = DOCS / "performance.md"
    replace_text(page, fill(page.read_text(encoding="utf-8"), tables(records)))
    plot(records, DOCS / "images" / "performance.png")
    return 0


def tables(records: list[Record]) -> dict[str, str]:
    """All tables of the page by name."""
    return {
        "cost": cost_table(records),
        "ratios": ratio_table(records),
        "replicas": replica_table(records),
        "calculator": calculator_table(records),
        "memory": memory_table(records),
        "parts": parts_table(records),
    }


def cost_table(records: list[Record]) -> str:
    """Cost of a step, one row for each subject and case."""
    chosen = [r for r in records if r["metric"] == "MD cost" and "of water" in r["case"]]
    if not chosen:
        return NOTHING
    lines = [
        "| case | subject | us/atom/step | range | force MAE (meV/Å) | steps per list rebuild "
        "| compilation (s) | processor |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for r in sorted(chosen, key=lambda r: (atoms_of(r["case"]), r["case"], r["value"])):
        beside = [
            value_of(records, r["case"], r["subject"], metric)
            for metric in ("force MAE", "steps per list rebuild", "compilation and warm-up")
        ]
        lines.append(
            f"| {r['case']} | {r['subject']} | {digits(r['value'])} | {span(r)} | "
            f"{' | '.join(beside)} | {processor(r)} |"
        )
    load = value_of(records, "the machine", "other work", "load average at start")
    words = f" Load average of the machine at the start: {load}." if load else ""
    return "\n".join([*lines, "", origin(chosen) + words])


def ratio_table(records: list[Record]) -> str:
    """How many times faster students are than others."""
    chosen = [r for r in records if r["metric"].startswith(AGAINST)]
    if not chosen:
        return NOTHING
    lines = [
        "| case | student | against | times faster | range | processor |",
        "|---|---|---|---:|---:|---|",
    ]
    for r in sorted(chosen, key=lambda r: (r["metric"], atoms_of(r["case"]), r["subject"])):
        other = r["metric"].removeprefix(AGAINST)
        lines.append(
            f"| {r['case']} | {r['subject']} | {other} | {digits(r['value'])} | {span(r)} | "
            f"{processor(r)} |"
        )
    return "\n".join([*lines, "", origin(chosen)])


def replica_table(records: list[Record]) -> str:
    """Many small systems against one large one."""
    chosen = [r for r in records if r["metric"] == AGGREGATE]
    if not chosen:
        return NOTHING
    lines = [
        "| replicas | student | us/atom/step | throughput against one box of as many atoms "
        "| range |",
        "|---|---|---:|---:|---:|",
    ]
    for r in chosen:
        cost = value_of(records, r["case"], r["subject"], "MD cost")
        lines.append(
            f"| {r['case']} | {r['subject']} | {cost} | {digits(r['value'])} | {span(r)} |"
        )
    return "\n".join([*lines, "", origin(chosen)])


def calculator_table(records: list[Record]) -> str:
    """Calls of the ASE calculator beside the compiled step."""
    chosen = [r for r in records if r["metric"] == OVERHEAD]
    if not chosen:
        return NOTHING
    lines = [
        "| case | student | call (ms) | compiled step (ms) | overhead (ms) | quartiles |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for r in sorted(chosen, key=lambda r: (atoms_of(r["case"]), r["subject"])):
        beside = [
            value_of(records, r["case"], r["subject"], metric)
            for metric in ("call", "compiled step")
        ]
        lines.append(
            f"| {r['case']} | {r['subject']} | {' | '.join(beside)} | {digits(r['value'])} | "
            f"{span(r)} |"
        )
    return "\n".join([*lines, "", origin(chosen)])


def memory_table(records: list[Record]) -> str:
    """Memory of large boxes."""
    chosen = [r for r in records if r["unit"] == "kB/atom"]
    if not chosen:
        return NOTHING
    lines = ["| case | student | memory | kB/atom |", "|---|---|---|---:|"]
    for r in sorted(chosen, key=lambda r: (atoms_of(r["case"]), r["subject"])):
        lines.append(f"| {r['case']} | {r['subject']} | {r['metric']} | {digits(r['value'])} |")
    return "\n".join([*lines, "", origin(chosen)])


def parts_table(records: list[Record]) -> str:
    """Parts of a step beside what the machine allows."""
    chosen = [r for r in records if PARTS in r["case"]]
    if not chosen:
        return NOTHING
    lines = [
        "| case | subject | part | us/atom | us/atom/step | attainable (us/atom) | reached |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for r in (r for r in chosen if r["unit"] == "us/atom" and ", " not in r["metric"]):
        case, subject, part = r["case"], r["subject"], r["metric"]
        reached = next(
            (
                f"{x['value']:.0f} % of the {x['metric'].split(' of the ')[1]}"
                for x in chosen
                if (x["case"], x["subject"]) == (case, subject)
                and x["metric"].startswith(f"{part}, reached")
            ),
            "",
        )
        per_step = value_of(records, case, subject, f"{part}, per step")
        attainable = value_of(records, case, subject, f"{part}, attainable")
        lines.append(
            f"| {case} | {subject} | {part} | {digits(r['value'])} | {per_step} | "
            f"{attainable} | {reached} |"
        )
    rest = [
        f"{r['metric']} {digits(r['value'])} {r['unit']} ({r['subject']}, "
        f"{atoms_of(r['case'])} atoms)"
        for r in chosen
        if r["subject"] == "machine" or r["metric"].startswith("memory, ")
    ]
    return "\n".join([*lines, "", "; ".join(rest) + ".", "", origin(chosen)])


def value_of(records: list[Record], case: str, subject: str, metric: str) -> str:
    """A value as text, or nothing."""
    wanted = case, subject, metric
    found = [r for r in records if (r["case"], r["subject"], r["metric"]) == wanted]
    return digits(found[0]["value"]) if found else ""


def span(record: Record) -> str:
    """Smallest and largest value."""
    low, high = record["spread"]
    return f"{digits(low)} to {digits(high)}"


def processor(record: Record) -> str:
    """Name of the processor: costs on different ones must not be compared."""
    name: str = record["machine"].split(",")[0].replace("(R)", "").replace(" Processor", "")
    return name.strip()


def plot(records: list[Record], path: Path) -> None:
    """Cost of a step in NVE against the number of atoms, one line for each subject.

    Of the processor of which most costs are recorded.
    """
    costs = [r for r in records if r["metric"] == "MD cost" and "of water, nve" in r["case"]]
    most = Counter(processor(r) for r in costs).most_common(1)[0][0]
    chosen = [r for r in costs if processor(r) == most]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for subject in dict.fromkeys(r["subject"] for r in chosen):
        own = sorted(
            (atoms_of(r["case"]), r["value"], *r["spread"])
            for r in chosen
            if r["subject"] == subject and "threads" not in r["case"]
        )
        if not own:
            continue
        x, y, low, high = zip(*own, strict=True)
        axes.plot(x, y, ".-", label=subject)
        axes.fill_between(x, low, high, alpha=0.2)
    axes.set(xscale="log", yscale="log", xlabel="atoms", ylabel="us per atom and step (one core)")
    axes.set_title(most)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
