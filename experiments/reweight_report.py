"""What `reweight.py` shows: figures for the records, a picture, and lines in the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture

from distill.evaluation.plots import BLUE, GREY
from distill.evaluation.results import Figure
from distill.evaluation.reweighting import LEAST_SHARE
from simulation_records import (
    DENSITY,
    DEVIATION,
    FRAMES,
    OF_TEACHER,
    SHARE,
)


def picture(difference: np.ndarray, weights: np.ndarray, density: np.ndarray | None) -> Picture:
    """How the two ensembles overlap: energy differences `[R, T]` in kT, and densities."""
    figure = Picture(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for given, color, name in (
        (None, GREY, "frames of the student"),
        (weights.ravel(), BLUE, "weighted for the teacher"),
    ):
        style = {"bins": 40, "density": True, "histtype": "step", "color": color, "label": name}
        left.hist((difference - difference.mean()).ravel(), weights=given, **style)
        if density is not None:
            right.hist(density.ravel(), weights=given, **style)
    left.set(xlabel="energy, teacher less student, from the mean (kT)", ylabel="probability")
    left.legend(frameon=False, fontsize=8)
    if density is None:
        right.plot(np.sort(weights.ravel())[::-1].cumsum(), color=BLUE)
        right.set(xlabel="frames, heaviest first", ylabel="sum of the weights")
    else:
        right.set(xlabel="density (g/cm³)")
    return figure


def figures_of(found: dict[str, Any], case: str, subject: str) -> list[Figure]:
    """Figures for the records; spreads are the estimate less and plus its standard error."""

    def estimate(metric: str, value: float, error: float, unit: str) -> Figure:
        return Figure(case, subject, metric, value, unit, (value - error, value + error))

    figures = [
        Figure(case, subject, SHARE, found["effective_share"], "1"),
        Figure(case, subject, FRAMES, found["frames"], "1"),
    ]
    for name, own in found["averages"].items():
        unit = "g/cm³" if name == DENSITY else "GPa"
        figures.append(estimate(name, own["student"], own["student_error"], unit))
        if name == DENSITY:
            difference = 100 * own["difference"] / own["teacher"]
            error = 100 * own["difference_error"] / own["teacher"]
            figures += [
                estimate(OF_TEACHER, own["teacher"], own["teacher_error"], unit),
                estimate(DEVIATION, difference, error, "%"),
            ]
    return figures


def report(found: dict[str, Any]) -> None:
    """The results in a few lines."""
    share = found["effective_share"]
    print(
        f"{found['frames']} frames of {found['atoms']} atoms: {100 * share:.0f} % of them in the "
        f"teacher's ensemble (energies differ by {found['spread_of_energy_differences_kt']:.2f} kT,"
        " standard deviation)"
    )
    if share < LEAST_SHARE:
        print(
            f"warning: less than {100 * LEAST_SHARE:.0f} %: the weighted averages rest on a few "
            "frames. Take a smaller system, or a better student"
        )
    for name, own in found["averages"].items():
        print(
            f"{name}: student {own['student']:.5g} ± {own['student_error']:.2g}, weighted for the "
            f"teacher {own['teacher']:.5g} ± {own['teacher_error']:.2g}, difference "
            f"{own['difference']:+.2g} ± {own['difference_error']:.2g}"
        )


def report_predicted(students: dict[str, dict[str, Any]]) -> None:
    """What is predicted for other students, one line for each."""
    for name, found in students.items():
        told = [
            f"{100 * found['effective_share']:.0f} % of the frames count",
            f"energies differ by {found['spread_of_energy_differences_kt']:.2f} kT",
        ]
        for quantity, own in found["averages"].items():
            told.append(
                f"{quantity} {own['student']:.5g}, less the teacher's {own['difference']:+.2g} ± "
                f"{own['difference_error']:.2g}"
            )
        print(f"predicted for {name}: {', '.join(told)}")
