"""Figures of runs and certificates for the records, and the curves for the plots.

Spreads: of a mean over runs the lowest and the highest, of an estimate with a standard error the
estimate less and plus this error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import DistillError
from distill.evaluation.dynamics import curve_of
from distill.evaluation.results import Figure, replace_text

EVENTS = "runs with an unphysical event"
RUNS, LENGTH = "runs", "length of each run"
DRIFT = "NVE drift"
OVERLAP, ITSELF, ATTAINABLE = "overlap, ", "teacher with itself, ", "attainable, "
DENSITY, DEVIATION = "density", "density against the teacher"
SHARE, FRAMES = "effective share of the frames in the teacher's ensemble", "frames weighted"
OF_TEACHER = "density, weighted for the teacher"
PRESSURE_ON_FRAMES = "pressure against the teacher on equal frames"
CHANGED = "frames with changed bonds, within {:g} sums of radii"
SEARCHED = "frames searched for changed bonds"
LIKELIER = (
    "probability of such frames for the teacher, over the student's, within {:g} sums of radii"
)
WALL_ERROR = "largest error of the energy of a contact"
HOLES, BARRIER = "holes on the way", "barrier before the hole"
DIFFUSION = "diffusion of "
POPULATION = "population of "
PER_NS = "meV/atom/ns"


def simulation_figures(summary: Mapping[str, Any], case: str, subject: str) -> list[Figure]:
    """Figures of a run of `simulate.py` from its summary; means over the replicas.

    A drift is no unphysical event but a figure of its own. Replicas with baths of their own are
    cases of their own.
    """
    replicas = summary["replicas"]
    baths = summary.get("baths") or [{}] * len(replicas)
    groups: dict[str, list[int]] = {}
    for number, bath in enumerate(baths):
        units = {"bath_K": "K", "bath_gpa": "GPa"}
        own = [f"{bath[key]:g} {unit}" for key, unit in units.items() if key in bath]
        groups.setdefault(", ".join([case, *own]), []).append(number)
    figures = []
    for name, members in groups.items():
        chosen = [replicas[number] for number in members]
        troubled = {
            fault["replica"]
            for fault in summary["faults"]
            if fault["kind"] != "drift" and fault["replica"] in members
        }
        figures += [
            Figure(name, subject, RUNS, len(members), "1"),
            Figure(name, subject, LENGTH, summary["time_ps"], "ps"),
            Figure(name, subject, EVENTS, len(troubled), "1"),
        ]
        for key, metric, unit, factor in (
            ("temperature_K", "temperature", "K", 1.0),
            ("density_g_per_cm3", DENSITY, "g/cm³", 1.0),
            ("pressure_gpa", "pressure", "GPa", 1.0),
            ("drift_mev_per_atom_ps", "drift of the conserved energy", PER_NS, 1e3),
        ):
            values = [factor * own[key] for own in chosen if own[key] is not None]
            if len(values) == len(chosen):
                span = (min(values), max(values))
                figures.append(Figure(name, subject, metric, float(np.mean(values)), unit, span))
    return figures


def certificate_figures(
    certificate: Mapping[str, Any], case: str, subject: str, teacher: str
) -> list[Figure]:
    """Figures of a certificate: drift, stability, and student against teacher in MD.

    Args:
        certificate: as `certify.py` writes it.
        case: what was run.
        subject: name of the student.
        teacher: its teacher's name, for what was measured of the teacher.
    """
    results = certificate["results"]
    figures = []
    nve = results.get("nve") or {}
    if "drift_mev_per_atom_per_ns" in nve:
        drift, error = nve["drift_mev_per_atom_per_ns"], nve["standard_error"]
        figures += [
            _estimate(case, subject, DRIFT, drift, error, PER_NS),
            Figure(case, subject, f"{DRIFT}, {RUNS}", len(nve["by_seed"]), "1"),
            Figure(case, subject, f"{DRIFT}, {LENGTH}", nve["duration_ps"], "ps"),
        ]
    stability = results.get("stability") or {}
    for temperature in sorted({run["temperature"] for run in stability.get("runs", ())}):
        runs = [run for run in stability["runs"] if run["temperature"] == temperature]
        times = [run["time"] for run in runs]
        own = f"{case}, stability at {temperature:g} K"
        span = (min(times), max(times))
        figures += [
            Figure(own, subject, RUNS, len(runs), "1"),
            Figure(own, subject, LENGTH, stability["duration_ps"], "ps"),
            Figure(own, subject, EVENTS, sum(run["event"] is not None for run in runs), "1"),
            Figure(own, subject, "time until an event or the end", min(times), "ps", span),
        ]
    contacts = results.get("contacts") or {"approaches": ()}
    figures += wall_figures(contacts["approaches"], case, subject)
    density = results.get("density") or {}
    if "percent" in density:
        figures += _weighted_density(density, case, subject)
    dynamics = results.get("dynamics") or {}
    if "student" in dynamics:
        figures += overlap_figures(certificate["overlaps"], case, subject)
        figures += _scalars(dynamics, case, subject, teacher)
    return figures


def wall_figures(walls: Sequence[Mapping[str, Any]], case: str, subject: str) -> list[Figure]:
    """Figures of records of `distill.evaluation.approach.Wall`; without a hole no barrier."""
    figures = []
    for wall in walls:
        own, barrier = f"{case}, {wall['name']}", wall["barrier_ev"]
        figures.append(Figure(own, subject, WALL_ERROR, wall["largest_error_ev"], "eV"))
        figures.append(Figure(own, subject, HOLES, int(barrier is not None), "1"))
        if barrier is not None:
            figures.append(Figure(own, subject, BARRIER, barrier, "eV"))
    return figures


def _weighted_density(density: Mapping[str, Any], case: str, subject: str) -> list[Figure]:
    bath = f"{density['temperature_k']:g} K and {1e4 * density['pressure_gpa']:.4g} bar"
    own = f"{case}, density at {bath}"
    return [
        Figure(own, subject, SHARE, density["effective_share"], "1"),
        Figure(own, subject, FRAMES, density["frames"], "1"),
        *(
            _estimate(own, subject, metric, density[key], density[f"{key}_error"], unit)
            for metric, key, unit in (
                (DENSITY, "student", "g/cm³"),
                (OF_TEACHER, "teacher", "g/cm³"),
                (DEVIATION, "percent", "%"),
            )
        ),
    ]


def overlap_figures(rows: Sequence[Mapping[str, Any]], case: str, subject: str) -> list[Figure]:
    """Figures of rows of `distill.evaluation.dynamics.compare_curves`."""
    figures = []
    for row in rows:
        name = row["curve"]
        figures += [
            _estimate(case, subject, OVERLAP + name, row["overlap"], row["error"], "1"),
            Figure(case, subject, ITSELF + name, row["teacher_with_itself"], "1"),
        ]
        if row["attainable"] is not None:
            figures.append(Figure(case, subject, ATTAINABLE + name, row["attainable"], "1"))
    return figures


def _scalars(dynamics: Mapping[str, Any], case: str, subject: str, teacher: str) -> list[Figure]:
    """Diffusion, and the density where the volume moved."""
    runs = [dynamics["student"], *dynamics["teachers"]]
    figures = []
    for element in runs[0]["diffusion_cm2_per_s"]:
        if all(element in run["diffusion_cm2_per_s"] for run in runs):
            found = [run["diffusion_cm2_per_s"][element] for run in runs]
            own, theirs = _student_and_teacher(found)
            for name, (value, error) in ((subject, own), (teacher, theirs)):
                figures.append(_estimate(case, name, DIFFUSION + element, value, error, "cm²/s"))
    if dynamics["conditions"].startswith("npt"):
        found = [run["scalars"]["density_g_per_cm3"] for run in runs]
        own, theirs = _student_and_teacher(found)
        for name, (value, error) in ((subject, own), (teacher, theirs)):
            figures.append(_estimate(case, name, DENSITY, value, error, "g/cm³"))
        percent = 100 * (own[0] / theirs[0] - 1)
        error = 100 * float(np.hypot(own[1], theirs[1])) / theirs[0]
        figures.append(_estimate(case, subject, DEVIATION, percent, error, "%"))
    return figures


def _student_and_teacher(
    found: Sequence[Mapping[str, Any]],
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Value and error of the first run, and of the mean of the others."""
    values = [float(one["value"]) for one in found]
    errors = [np.nan if one["error"] is None else float(one["error"]) for one in found]
    rest = np.sqrt(np.sum(np.square(errors[1:]))) / len(errors[1:])
    return (values[0], errors[0]), (float(np.mean(values[1:])), float(rest))


def _estimate(
    case: str, subject: str, metric: str, value: float, error: float | None, unit: str
) -> Figure:
    known = error is not None and np.isfinite(error)
    spread = (float(value - error), float(value + error)) if known and error is not None else None
    return Figure(case, subject, metric, float(value), unit, spread)


def add_curves(dynamics: Mapping[str, Any], path: Path, case: str) -> None:
    """Means and errors of every curve of student and teacher, under `case` of a JSON file.

    Raises:
        DistillError: the file holds something else.
    """
    runs = {"student": [dynamics["student"]], "teacher": dynamics["teachers"]}
    curves: dict[str, Any] = {}
    for name in dynamics["student"]["curves"]:
        if not all(name in run["curves"] for run in dynamics["teachers"]):
            continue
        first = curve_of(dynamics["student"], name)
        curves[name] = {
            "x": _rounded(first.x),
            "x_label": first.x_label,
            "y_label": first.y_label,
        }
        for who, theirs in runs.items():
            blocks = np.concatenate([curve_of(run, name).blocks for run in theirs])
            error = blocks.std(0, ddof=1) / len(blocks) ** 0.5 if len(blocks) > 1 else 0 * first.x
            curves[name][who] = {"mean": _rounded(blocks.mean(0)), "error": _rounded(error)}
    found = {**(read_curves(path) if path.is_file() else {}), case: curves}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(found, ensure_ascii=False) + "\n")


def read_curves(path: Path) -> dict[str, Any]:
    """What `add_curves` wrote, by case.

    Raises:
        DistillError: the file holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        good = all("student" in curve for case in found.values() for curve in case.values())
    except (ValueError, AttributeError, TypeError) as error:
        raise DistillError(f"{path} does not hold curves: {error}") from error
    if not good:
        raise DistillError(f"{path} does not hold curves of students and teachers")
    return dict(found)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{v:.4g}") for v in values]
