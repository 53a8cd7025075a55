"""The tables and plots of `docs/accuracy.md` from the records of `evaluate.py` and `study.py`.

python experiments/report_accuracy.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from distill.evaluation.plots import BLUE, GREY
from distill.evaluation.results import read_records, replace_text
from report_results import DOCS, fill

Students = dict[tuple[str, str], dict[str, Any]]
"""Records by metric for each case and subject."""

MAE, SPREAD = "force_mae_mev_per_ang", "teacher_spread_mev_per_ang"
COLUMNS = {
    "training structures": ("training_structures", "{:.0f}"),
    "parameters": ("parameters", "{:.0f}"),
    "force MAE (meV/Å)": (MAE, "{:.1f}"),
    "by trajectory": (MAE, "range"),
    "force RMSE (meV/Å)": ("force_rmse_mev_per_ang", "{:.1f}"),
    "teacher's spread (RMS, meV/Å)": (SPREAD, "{:.1f}"),
    "RMSE / spread": ("rmse_over_spread", "{:.2f}"),
    "energy MAE (meV/atom)": ("energy_mae_mev_per_atom", "{:.2f}"),
    "training (s)": ("training_seconds", "{:.0f}"),
}
"""Heading, metric and format of each column."""

MOLECULES, ABLATION = "six molecules", "ablation"
TOGETHER, ALONE = "together", " alone"
BASE = "base"
"""Names of cases and subjects in the configurations of the studies."""

REFERENCE = "{}_against_reference_mae_mev_per_ang"
"""Metrics of teacher and student where labels of a better method are at hand."""

CALIBRATED = "predicted_error_rms_mev_per_ang"
"""A metric of students with an uncertainty."""


def main() -> None:
    """Fill the page and draw the plots."""
    students = by_student(read_records(DOCS / "results" / "accuracy.json"))
    plain = {k: v for k, v in students.items() if not k[0].startswith((MOLECULES, ABLATION))}
    molecules = {k: v for k, v in students.items() if k[0].startswith(MOLECULES)}
    ablation = {k: v for k, v in students.items() if k[0].startswith(ABLATION)}
    page = DOCS / "accuracy.md"
    tables = {
        "accuracy": table(plain),
        "molecules": molecules_table(molecules),
        "ablation": ablation_table(ablation),
        "uncertainty": uncertainty_table(plain),
        "reference": reference_table(plain),
    }
    replace_text(page, fill(page.read_text(encoding="utf-8"), tables))
    images = DOCS / "images"
    images.mkdir(parents=True, exist_ok=True)
    save(plot_errors(plain), images / "accuracy.png")
    save(plot_curves(plain), images / "data_curves.png")
    save(plot_ablation(ablation), images / "ablation.png")
    save(plot_uncertainty(plain), images / "reliability.png")


def by_student(records: list[dict[str, Any]]) -> Students:
    """Records by metric for each case and subject, in the order in which they were measured."""
    rows: Students = {}
    for record in records:
        rows.setdefault((record["case"], record["subject"]), {})[record["metric"]] = record
    return rows


def table(students: Students) -> str:
    """One row for each student."""
    lines = [
        "| case | student | " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---:|" * len(COLUMNS),
    ]
    for (case, subject), metrics in students.items():
        cells = []
        for metric, form in COLUMNS.values():
            record = metrics.get(metric)
            if record is None:
                cells.append("")
            elif form == "range":
                cells.append("{:.1f} to {:.1f}".format(*record["spread"]))
            else:
                cells.append(form.format(record["value"]))
        lines.append(f"| {case} | {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def molecules_table(students: Students) -> str:
    """The student of all molecules beside the student of each."""
    lines = [
        "| molecule | alone (meV/Å) | together (meV/Å) | ratio | teacher's spread (RMS, meV/Å) |",
        "|---|---:|---:|---:|---:|",
    ]
    errors = {key: metrics[MAE]["value"] for key, metrics in students.items()}
    for (case, subject), together in errors.items():
        molecule = case.rsplit(", ", 1)[-1]
        alone = errors.get((case, molecule + ALONE))
        if subject == TOGETHER and alone is not None:
            spread = students[case, subject][SPREAD]["value"]
            lines.append(
                f"| {molecule} | {alone:.1f} | {together:.1f} | {together / alone:.2f} | "
                f"{spread:.1f} |"
            )
    return "\n".join(lines)


def ablation_table(students: Students) -> str:
    """What changes when one thing of the student or its training changes."""
    lines = [
        "| case | change | parameters | force MAE (meV/Å) | against the base | training (s) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for (case, subject), metrics in students.items():
        value = metrics[MAE]["value"]
        base = students.get((case, BASE))
        change = f"{100 * (value / base[MAE]['value'] - 1):+.0f} %" if base else ""
        lines.append(
            f"| {case} | {subject} | {metrics['parameters']['value']:.0f} | {value:.1f} | "
            f"{change} | {metrics['training_seconds']['value']:.0f} |"
        )
    return "\n".join(lines)


def uncertainty_table(students: Students) -> str:
    """Expected beside observed errors."""
    parts = ("rms", "tenth_1", "tenth_10")
    lines = [
        "| case | student | all atoms | least uncertain tenth | most uncertain tenth |",
        "|---|---|---:|---:|---:|",
    ]
    for (case, subject), metrics in students.items():
        if CALIBRATED in metrics:
            cells = [
                " / ".join(
                    f"{metrics[f'{kind}_error_{part}_mev_per_ang']['value']:.0f}"
                    for kind in ("predicted", "observed")
                )
                for part in parts
            ]
            lines.append(f"| {case} | {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reference_table(students: Students) -> str:
    """Student and teacher against the method that the teacher learnt."""
    lines = [
        "| case | student | student against teacher | teacher against reference "
        "| student against reference |",
        "|---|---|---:|---:|---:|",
    ]
    teacher, student = REFERENCE.format("teacher"), REFERENCE.format("student")
    for (case, subject), metrics in students.items():
        if teacher in metrics:
            cells = [f"{metrics[name]['value']:.1f}" for name in (MAE, teacher, student)]
            lines.append(f"| {case} | {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_errors(students: Students) -> Figure:
    """Force errors of all students, with the range over trajectories and the teacher's spread."""
    rows = [(f"{case}: {subject}", metrics) for (case, subject), metrics in students.items()]
    figure = Figure(figsize=(10, 0.32 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for height, (_, metrics) in enumerate(reversed(rows)):
        low, high = metrics[MAE]["spread"]
        axes.plot([low, high], [height, height], color=BLUE, linewidth=2)
        axes.plot(metrics[MAE]["value"], height, "o", color=BLUE)
        if SPREAD in metrics:
            axes.plot(metrics[SPREAD]["value"], height, "|", color=GREY, ms=12)
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axes.set_xlabel("force MAE, range over trajectories (meV/Å)")
    axes.set_xscale("log")
    ticks(axes, "x")
    figure.suptitle("errors against the teacher; grey: spread (RMS) of its members", fontsize=10)
    return figure


def plot_curves(students: Students) -> Figure:
    """Force error against training structures, for subjects named `student, number`."""
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for (case, subject), metrics in students.items():
        name, _, number = subject.rpartition(", ")
        if name and number.isdigit():
            record = metrics[MAE]
            point = (metrics["training_structures"]["value"], record["value"], *record["spread"])
            curves.setdefault(f"{case}: {name}", []).append(point)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        structures, values, low, high = zip(*sorted(points), strict=True)
        axes.plot(structures, values, "o-", label=name)
        axes.fill_between(structures, low, high, alpha=0.15)
    axes.set(xscale="log", yscale="log", xlabel="training structures", ylabel="force MAE (meV/Å)")
    ticks(axes, "x")
    ticks(axes, "y")
    if curves:
        axes.legend(fontsize=8)
    figure.suptitle("data curves; shaded: range over held-out trajectories", fontsize=10)
    return figure


def plot_ablation(students: Students) -> Figure:
    """Force error of each change relative to the base, one panel for each case."""
    cases = [case for case, subject in students if subject == BASE]
    figure = Figure(figsize=(6 * max(len(cases), 1), 5), layout="constrained")
    panels = figure.subplots(1, max(len(cases), 1), squeeze=False)[0]
    for axes, case in zip(panels, cases, strict=False):
        base = students[case, BASE][MAE]["value"]
        changes = {s: m[MAE]["value"] / base for (c, s), m in students.items() if c == case}
        order = sorted(changes, key=lambda name: -changes[name])
        axes.barh(order, [100 * (changes[name] - 1) for name in order], color=BLUE)
        axes.axvline(0, color=GREY)
        axes.set(title=case, xlabel="force MAE against the base (%)")
    return figure


def plot_uncertainty(students: Students) -> Figure:
    """Expected against observed force errors in tenths of the atoms, one panel for each case."""
    known = {key: metrics for key, metrics in students.items() if CALIBRATED in metrics}
    cases = list(dict.fromkeys(case for case, _ in known))
    rows = max(-(-len(cases) // 2), 1)
    figure = Figure(figsize=(9, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, case in zip(panels, cases, strict=False):
        for (own, subject), metrics in known.items():
            if own == case:
                predicted, observed = (
                    [metrics[f"{kind}_error_tenth_{n}_mev_per_ang"]["value"] for n in range(1, 11)]
                    for kind in ("predicted", "observed")
                )
                axes.plot(predicted, observed, "o-", ms=3, linewidth=1, label=subject)
        axes.axline((50.0, 50.0), slope=1.0, color=GREY, linewidth=1)
        axes.set(xlabel="expected error of an atom's force (meV/Å)", ylabel="observed RMS (meV/Å)")
        axes.set_title(case, fontsize=9)
        axes.legend(fontsize=7, loc="lower right")
    for axes in panels[len(cases) :]:
        axes.set_axis_off()
    figure.suptitle("tenths of the atoms, held-out trajectories", fontsize=10)
    return figure


def ticks(axes: Axes, which: str) -> None:
    """Labels at 1, 2 and 5 of a logarithmic axis."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())
    axes.grid(axis=which, which="both", alpha=0.3)  # type: ignore[arg-type]


def save(figure: Figure, path: Path) -> None:
    """Write a picture."""
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
