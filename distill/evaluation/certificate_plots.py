"""The plots of the complete certificate, drawn from its kept results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from distill.evaluation.dynamics import curve_of
from distill.evaluation.plots import BLUE, GREY, ORANGE, plot_reliability


def save_certificate_plots(folder: Path, results: Mapping[str, Any]) -> dict[str, Path]:
    """A PNG for each part that was measured, by its name."""
    drawings = {
        "accuracy": _accuracy,
        "nve": _nve,
        "stability": _stability,
        "contacts": _contacts,
        "calibration": _calibration,
        "rdf": _radial,
        "vdos": _vibrations,
        "density": _density,
    }
    paths = {}
    for name, draw in drawings.items():
        source = results.get("dynamics" if name in ("rdf", "vdos") else name)
        if not source or "broke_down" in source:
            continue
        figure = draw(source)
        if figure is None:
            continue
        paths[name] = folder / f"{name}.png"
        figure.savefig(paths[name], dpi=130)
    return paths


def _accuracy(result: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    parity, bars = figure.subplots(1, 2)
    labels, predictions = (np.array(result["shown"][k]) for k in ("labels", "predictions"))
    limit = 1.05 * max(np.abs(labels).max(), np.abs(predictions).max())
    parity.plot([-limit, limit], [-limit, limit], color=GREY, linewidth=0.8)
    parity.plot(labels, predictions, ".", markersize=2, color=BLUE, alpha=0.4, rasterized=True)
    parity.set(xlabel="teacher force (eV/Å)", ylabel="student force (eV/Å)", aspect="equal")
    parity.set(title=f"held-out trajectories, R² {result['force_r2']:.5f}")
    rows = result["by_force"]
    names = [f"{row['from']:.2g} to {row['to']:.2g}" for row in rows]
    bars.bar(names, [row["mae"] for row in rows], color=BLUE, width=0.6)
    bars.set(xlabel="length of the teacher's force (eV/Å)", ylabel="force MAE (meV/Å)")
    bars.set(title="error by size of the force")
    bars.tick_params(axis="x", rotation=20)
    return figure


def _nve(result: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    curves = result["curves"]
    for number, energy in enumerate(curves["energy_mev_per_atom"]):
        axes.plot(curves["time_ps"], energy, linewidth=0.7, label=f"seed {number}")
    axes.set(xlabel="time (ps)", ylabel="total energy (meV/atom)")
    axes.set(
        title=f"NVE: drift {result['drift_mev_per_atom_per_ns']:+.2g} ± "
        f"{result['standard_error']:.2g} meV/atom/ns"
    )
    axes.legend(frameon=False, ncols=2)
    return figure


def _stability(result: Mapping[str, Any]) -> Figure:
    runs = result["runs"]
    figure = Figure(figsize=(6, 1 + 0.22 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for row, run in enumerate(runs):
        axes.barh(row, run["time"], color=ORANGE if run["event"] else BLUE, height=0.7)
    axes.set_yticks(range(len(runs)), [f"{r['temperature']:g} K, seed {r['seed']}" for r in runs])
    axes.invert_yaxis()
    axes.set(xlabel="time (ps)", title="time without unphysical event (orange: an event)")
    return figure


def _calibration(result: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(5, 4), layout="constrained")
    plot_reliability({k: np.array(v) for k, v in result.items()}, figure.subplots())
    return figure


def _radial(result: Mapping[str, Any]) -> Figure | None:
    return _curves(result, "rdf")


def _vibrations(result: Mapping[str, Any]) -> Figure | None:
    return _curves(result, "vdos")


def _curves(result: Mapping[str, Any], kind: str) -> Figure | None:
    """Student and teacher with bands of two standard errors, a panel for each curve."""
    runs = {"student": result["student"], "teacher": result["teachers"][0]}
    runs["teacher, other seed"] = result["teachers"][1]
    names = [name for name in runs["student"]["curves"] if name.startswith(kind)]
    names = [name for name in names if all(name in run["curves"] for run in runs.values())]
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    panels: Any = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, name in zip(panels, names, strict=False):
        for (label, run), colour in zip(runs.items(), (BLUE, GREY, ORANGE), strict=True):
            curve = curve_of(run, name)
            axes.plot(curve.x, curve.mean, color=colour, linewidth=1, label=label)
            low, high = curve.mean - 2 * curve.error, curve.mean + 2 * curve.error
            axes.fill_between(curve.x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(title=name, xlabel=curve.x_label, ylabel=curve.y_label)
        if kind == "vdos":
            axes.set_xlim(0, 4000)
        elif not curve.mean[-1]:  # a molecule ends before the axis does
            axes.set_xlim(0, 1.15 * curve.x[np.flatnonzero(curve.mean)[-1]])
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    panels[0].legend(frameon=False, fontsize="small")
    return figure


def _density(result: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    histogram = result["histogram"]
    for key, color, name in (
        ("student", BLUE, "student"),
        ("teacher", GREY, "weighted for the teacher"),
    ):
        axes.stairs(histogram[key], histogram["edges"], color=color, label=name)
    axes.set(xlabel="density (g/cm³)", ylabel="probability density (cm³/g)")
    axes.legend(frameon=False)
    return figure


def _contacts(result: Mapping[str, Any]) -> Figure | None:
    return plot_walls(result["approaches"], result["up_to_ev"]) if result["approaches"] else None


def plot_walls(walls: Sequence[Mapping[str, Any]], up_to: float) -> Figure:
    """Energies of student and teacher along every approach.

    Args:
        walls: records of `distill.evaluation.approach.Wall`, at least one.
        up_to: eV, as for `compare_walls`.
    """
    columns = min(len(walls), 3)
    rows = -(-len(walls) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(walls) :]:
        panel.set_visible(False)
    for panel, wall in zip(panels, walls, strict=False):
        distances = wall["distances_ang"]
        panel.plot(distances, wall["teacher_ev"], color=GREY, linewidth=3, label="teacher")
        panel.plot(distances, wall["student_ev"], color=BLUE, label="student")
        panel.set(title=wall["name"], xlabel="distance (Å)", ylabel="energy (eV)")
        panel.set_ylim(min(-0.4 * up_to, *wall["teacher_ev"]), 2 * up_to)
    panels[0].legend(frameon=False)
    return figure
