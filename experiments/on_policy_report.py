"""Report of the rounds of `on_policy.py`: JSON, a table, and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distill.evaluation.plots import BLUE, GREY, ORANGE
from distill.evaluation.report_page import Picture, Section, Table, to_markdown
from distill.evaluation.results import replace_text


def write_report(
    folder: Path, rounds: Sequence[Mapping[str, Any]], ended: str, choice: Mapping[str, Any]
) -> None:
    """Write `report.json`, `report.md` and `report.png`."""
    record = {"ended": ended, "choice": dict(choice), "rounds": list(rounds)}
    replace_text(folder / "report.json", json.dumps(record, indent=1) + "\n")
    _plot(rounds).savefig(folder / "report.png", dpi=130)
    header = [
        "round",
        "training structures",
        "force MAE, held out (meV/Å)",
        "runs with an event",
        "mean time to it (ps)",
        "labelled (event, uncertain, ordinary)",
        "flagged",
    ]
    rows = [_row(one) for one in rounds]
    events: list[str | Table | Picture] = [
        f"Round {one['round']}, {run['system']} at {run['temperature']:g} K: {run['event']}."
        for one in rounds
        for run in one["runs"]
        if run["event"]
    ]
    sections = [
        Section("Rounds", [f"State: {ended}.", Table(header, rows)]),
        Section("Events", events or ["None."]),
        Section("Plot", [Picture(folder / "report.png", "error, stability and labels by round")]),
    ]
    replace_text(folder / "report.md", to_markdown("On-policy distillation", sections))


def _row(one: Mapping[str, Any]) -> list[str]:
    times = [run["time"] for run in one["runs"]]
    labelled = "–"
    if "chosen" in one:
        labelled = f"{one['labelled']} ({', '.join(str(n) for n in one['chosen'].values())})"
    flags = one.get("flags", {})
    flagged = flags.get("total", 0) - flags.get("usable", 0)
    return [
        str(one["round"]),
        str(one["training_structures"]),
        f"{one['force_mae_mev_per_ang']:.2f}",
        f"{one['events']} of {len(one['runs'])}",
        f"{np.mean(times):.3g} of {one['duration_ps']:g}",
        labelled,
        str(flagged) if flags else "–",
    ]


def _plot(rounds: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    error, stability, labels = figure.subplots(1, 3)
    x = [one["round"] for one in rounds]
    error.plot(x, [one["force_mae_mev_per_ang"] for one in rounds], "o-", color=BLUE)
    error.set(ylabel="force MAE, held out (meV/Å)", title="error")
    share = [np.mean([run["time"] for run in one["runs"]]) / one["duration_ps"] for one in rounds]
    stability.plot(x, 100 * np.array(share), "o-", color=ORANGE)
    stability.set(ylabel="mean share of the time survived (%)", ylim=(0, 105), title="stability")
    total = np.cumsum([one.get("labelled", 0) for one in rounds])
    labels.bar(x, total, color=GREY)
    labels.set(ylabel="labels of all rounds", title="labels")
    for axes in (error, stability, labels):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    error.set_ylim(bottom=0)
    return figure
