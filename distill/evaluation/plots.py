"""The plots of a certificate. They use matplotlib's objects only, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from distill.evaluation.accuracy import Accuracy
from distill.simulation import Frames

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"


def plot_force_parity(accuracy: Accuracy, axes: Any) -> None:
    """Student against teacher, every force component."""
    labels, predictions = accuracy.force_labels.ravel(), accuracy.force_predictions.ravel()
    limit = 1.05 * max(np.abs(labels).max(), np.abs(predictions).max())
    axes.plot([-limit, limit], [-limit, limit], color=GREY, linewidth=0.8)
    axes.plot(labels, predictions, ".", markersize=2, color=BLUE, alpha=0.4, rasterized=True)
    summary = accuracy.summary()
    axes.text(
        0.04,
        0.96,
        f"MAE {summary['force_mae_mev_per_ang']:.1f} meV/Å\n"
        f"RMSE {summary['force_rmse_mev_per_ang']:.1f} meV/Å\n"
        f"R² {summary['force_r2']:.5f}",
        transform=axes.transAxes,
        va="top",
    )
    axes.set(
        xlim=(-limit, limit),
        ylim=(-limit, limit),
        aspect="equal",
        xlabel="teacher force (eV/Å)",
        ylabel="student force (eV/Å)",
        title="Forces on held-out trajectories",
    )


def plot_learning_curve(rows: Sequence[dict[str, float]], axes: Any) -> None:
    """Validation error against step, from `read_metrics`."""
    steps = [row["step"] for row in rows]
    for key, label, color in (
        ("validation_force_rmse", "validation RMSE", ORANGE),
        ("validation_force_mae", "validation MAE", BLUE),
    ):
        axes.semilogy(
            steps, [1e3 * row[key] for row in rows], "o-", markersize=3, label=label, color=color
        )
    axes.set(xlabel="step", ylabel="force error (meV/Å)", title="Learning curve")
    axes.grid(True, which="both", linewidth=0.3)
    for axis_ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_ticks(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(frameon=False)


def plot_nve_energy(frames: Frames, n_atoms: int, drift: float, axes: Any) -> None:
    """Total energy of an NVE run, per atom, relative to its mean."""
    energy = 1e3 * (frames.total_energy - frames.total_energy.mean()) / n_atoms
    time = frames.time / 1e3
    axes.plot(time, energy, linewidth=0.6, color=BLUE)
    axes.plot(
        time,
        drift * (time - time.mean()),
        color=ORANGE,
        label=f"drift {drift:+.4f} meV/atom/ps",
    )
    axes.set(
        xlabel="time (ps)", ylabel="total energy (meV/atom)", title="Energy conservation (NVE)"
    )
    axes.legend(frameon=False)


def plot_speed(speed: dict[str, Any], axes: Any) -> None:
    """Cost of an MD step, teacher against student, with the range of the repeats."""
    names = ("teacher", "student")
    values = [speed[f"{name}_us_per_atom_step"] for name in names]
    ranges = np.array([speed[f"{name}_range_us_per_atom_step"] for name in names]).T
    errors = np.abs(ranges - values)
    axes.bar(names, values, color=(GREY, BLUE), yerr=errors, capsize=4, width=0.6)
    for i, value in enumerate(values):
        axes.annotate(
            f"{value:.3g}", (i, value), xytext=(14, 4), textcoords="offset points", ha="left"
        )
    axes.set(
        ylabel="µs per atom and step",
        ylim=(0, 1.2 * ranges.max()),
        title=f"MD loop: student {speed['md_speedup']:.1f} times faster",
    )


def plot_reliability(bins: dict[str, np.ndarray], axes: Any) -> None:
    """Predicted against observed force errors of atoms in bins, meV/Å; see `reliability`."""
    predicted, observed = 1e3 * bins["predicted"], 1e3 * bins["observed"]
    limits = 0.9 * min(predicted.min(), observed.min()), 1.1 * max(predicted.max(), observed.max())
    axes.plot(limits, limits, color=GREY, linewidth=1)
    axes.plot(predicted, observed, "o-", color=BLUE)
    axes.set(xlim=limits, ylim=limits, xlabel="predicted error of the force (meV/Å)")
    axes.set(ylabel="observed RMS (meV/Å)", title="atoms in bins of predicted error")


def save_plots(
    folder: str | Path,
    *,
    accuracy: Accuracy,
    metrics: Sequence[dict[str, float]],
    nve: Frames,
    drift: float,
    speed: dict[str, Any],
    n_atoms: int,
    title: str,
) -> list[Path]:
    """Write each plot as a PNG, and all four as `summary.png`; returns the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {
        "force_parity": lambda axes: plot_force_parity(accuracy, axes),
        "learning_curve": lambda axes: plot_learning_curve(metrics, axes),
        "nve_energy": lambda axes: plot_nve_energy(nve, n_atoms, drift, axes),
        "speed": lambda axes: plot_speed(speed, axes),
    }
    paths = []
    for name, draw in drawings.items():
        figure = Figure(figsize=(5, 4), layout="constrained")
        draw(figure.subplots())
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    figure = Figure(figsize=(10, 8), layout="constrained")
    figure.suptitle(title)
    for draw, axes in zip(drawings.values(), figure.subplots(2, 2).ravel(), strict=True):
        draw(axes)
    paths.append(folder / "summary.png")
    figure.savefig(paths[-1], dpi=110)
    return paths


def save_learning_curve(rows: Sequence[dict[str, float]], path: Path) -> Path:
    """The learning curve alone, as a picture."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    plot_learning_curve(rows, figure.subplots())
    figure.savefig(path, dpi=150)
    return path
