"""The tables and the plot of `docs/accuracy.md` from the records of `evaluate.py`.

python experiments/report_accuracy.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from distill.evaluation.plots import BLUE, GREY
from distill.evaluation.results import read_records, replace_text
from report_results import DOCS, fill

COLUMNS = {
    "training structures": ("training_structures", "{:.0f}"),
    "parameters": ("parameters", "{:.0f}"),
    "force MAE (meV/Å)": ("force_mae_mev_per_ang", "{:.1f}"),
    "by trajectory": ("force_mae_mev_per_ang", "range"),
    "force RMSE (meV/Å)": ("force_rmse_mev_per_ang", "{:.1f}"),
    "teacher's spread (RMS, meV/Å)": ("teacher_spread_mev_per_ang", "{:.1f}"),
    "energy MAE (meV/atom)": ("energy_mae_mev_per_atom", "{:.2f}"),
    "training (s)": ("training_seconds", "{:.0f}"),
}
"""Heading, metric and format of each column."""


def main() -> None:
    """Fill the page and draw the plot."""
    records = read_records(DOCS / "results" / "accuracy.json")
    page = DOCS / "accuracy.md"
    tables = {"accuracy": table(records)}
    replace_text(page, fill(page.read_text(encoding="utf-8"), tables))
    plot(records, DOCS / "images" / "accuracy.png")


def by_student(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Records by metric for each case and subject, in the order in which they were measured."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        rows.setdefault((record["case"], record["subject"]), {})[record["metric"]] = record
    return rows


def table(records: list[dict[str, Any]]) -> str:
    """One row for each student."""
    lines = [
        "| case | student | " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---:|" * len(COLUMNS),
    ]
    for (case, subject), metrics in by_student(records).items():
        cells = []
        for metric, form in COLUMNS.values():
            record = metrics.get(metric)
            if record is None:
                cells.append("")
            elif form == "range":
                low, high = record["spread"]
                cells.append(f"{low:.1f} to {high:.1f}")
            else:
                cells.append(form.format(record["value"]))
        lines.append(f"| {case} | {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Force errors of all students, with the range over trajectories and the teacher's spread."""
    rows = [
        (f"{case}: {subject}", metrics)
        for (case, subject), metrics in by_student(records).items()
        if "force_mae_mev_per_ang" in metrics
    ]
    figure = Figure(figsize=(10, 0.32 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for height, (_, metrics) in enumerate(reversed(rows)):
        record = metrics["force_mae_mev_per_ang"]
        low, high = record["spread"]
        axes.plot([low, high], [height, height], color=BLUE, linewidth=2)
        axes.plot(record["value"], height, "o", color=BLUE)
        if "teacher_spread_mev_per_ang" in metrics:
            axes.plot(
                metrics["teacher_spread_mev_per_ang"]["value"], height, "|", color=GREY, ms=12
            )
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axes.set(xscale="log", xlabel="force MAE, range over trajectories (meV/Å)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.suptitle("errors against the teacher; grey: spread (RMS) of its members", fontsize=10)
    axes.grid(axis="x", which="both", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
