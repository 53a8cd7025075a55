"""Tables and plots of the documentation from the records in `docs/results`.

    python experiments/report_results.py

Text between `<!-- table: NAME -->` and `<!-- end -->` in `docs/teachers.md` is replaced.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from distill.errors import DistillError
from distill.evaluation.results import read_records, replace_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
COMPARISONS = (
    "speedup by batching",
    "overhead of the wrapper",
    "share of the bridge",
)
Records = list[dict[str, Any]]


def main() -> None:
    """Fill the page and draw the plot."""
    records = read_records(DOCS / "results" / "teachers.json")
    page = DOCS / "teachers.md"
    tables = {"sizes": size_table(records), "comparisons": comparison_table(records)}
    replace_text(page, fill(page.read_text(encoding="utf-8"), tables))
    plot_sizes(records, DOCS / "images" / "teachers.png")


def fill(text: str, tables: dict[str, str]) -> str:
    """`text` with its tables replaced.

    Raises:
        DistillError: a table that the text has no place for.
    """
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise DistillError(f"the page has no place for the table {name}")
        text = pattern.sub(lambda match, t=table: f"{match[1]}{t}\n{match[2]}", text)  # type: ignore[misc]
    return text


def size_table(records: Records) -> str:
    """Time and memory of each teacher, one column for each size."""
    times = {(r["subject"], r["case"]): r for r in records if r["metric"] == "time per call"}
    memory = {
        (r["subject"], r["case"]): r["value"]
        for r in records
        if r["metric"] == "peak memory of the process"
    }
    cases = sorted({case for _, case in times}, key=atoms_of)
    subjects = list(dict.fromkeys(subject for subject, _ in times))
    parameters = {r["subject"]: r["value"] for r in records if r["metric"] == "parameters"}
    lines = [
        "| teacher | parameters | " + " | ".join(cases) + " |",
        "|---|---|" + "---|" * len(cases),
    ]
    for subject in subjects:
        cells = []
        for case in cases:
            record = times.get((subject, case))
            if record is None:
                cells.append("")
                continue
            low, high = record["spread"]
            cells.append(
                f"{digits(record['value'])} ms ({digits(low)} to {digits(high)}), "
                f"{memory[subject, case]:.0f} MiB"
            )
        count = f"{parameters[subject]:,.0f}" if parameters.get(subject) else ""
        lines.append(f"| `{subject}` | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines + ["", origin(list(times.values()))])


def digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def comparison_table(records: Records) -> str:
    """Ratios that were measured side by side."""
    chosen = [r for r in records if r["metric"] in COMPARISONS]
    lines = ["| what | teacher | case | median | range |", "|---|---|---|---|---|"]
    for name in COMPARISONS:
        for r in (r for r in chosen if r["metric"] == name):
            low, high = r["spread"]
            lines.append(
                f"| {name} | `{r['subject']}` | {r['case']} | {r['value']:.3g} {r['unit']} | "
                f"{low:.3g} to {high:.3g} |"
            )
    return "\n".join(lines + ["", origin(chosen)])


def origin(records: Records) -> str:
    """Where and when the records were made."""
    parts = sorted({f"{r['date']}, commit {r['commit']}, {r['machine']}" for r in records})
    return "Measured " + "; ".join(parts) + "."


def atoms_of(case: str) -> int:
    """Number of atoms at the beginning of a case's name."""
    return int(case.split(" ", 1)[0])


def plot_sizes(records: Records, path: Path) -> None:
    """Time per call against the number of atoms, one line for each teacher."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    times = [r for r in records if r["metric"] == "time per call"]
    for subject in dict.fromkeys(r["subject"] for r in times):
        own = sorted(
            (atoms_of(r["case"]), r["value"], *r["spread"])
            for r in times
            if r["subject"] == subject
        )
        x, y, low, high = zip(*own, strict=True)
        axes.plot(x, y, ".-", label=subject.split("&")[0])
        axes.fill_between(x, low, high, alpha=0.2)
    axes.set(xscale="log", yscale="log", xlabel="atoms", ylabel="time per call, ms (one core)")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
