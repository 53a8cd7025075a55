"""Dynamics of a student against its teacher's, judged by the teacher against itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from distill.evaluation.verdict import Check, Limits, within_percent
from distill.observables import Curve, Observables, ObservablesConfig, Observed, overlap
from distill.potential import Potential
from distill.simulation import MDConfig, run_md

DIFFUSIVE = (0.8, 1.2)
"""Exponents of ln MSD against ln t between which a motion is taken for diffusive."""


def observe(
    potential: Potential,
    atoms: Atoms,
    config: MDConfig,
    observables: ObservablesConfig,
    *,
    replicas: int,
    progress: bool = True,
    description: str = "MD",
) -> dict[str, Any]:
    """Run replicas of the same conditions and measure them together, see `record_of`."""
    interval = config.timestep * config.record_every
    measured = Observables(atoms, observables, interval, replicas)
    run_md(
        potential,
        np.tile(atoms.positions, (replicas, 1, 1)),
        config,
        on_frames=measured,
        keep_frames=False,
        progress=progress,
        description=description,
    )
    return record_of(measured.results()[0])


def record_of(observed: Observed) -> dict[str, Any]:
    """Scalars, diffusion coefficients and curves with their blocks, ready for JSON."""
    record = observed.record()
    record["curves"] = {
        name: {
            "x": curve.x.tolist(),
            "blocks": [[float(f"{v:.6g}") for v in block] for block in curve.blocks],
            "x_label": curve.x_label,
            "y_label": curve.y_label,
        }
        for name, curve in observed.curves.items()
    }
    return record


def curve_of(record: Mapping[str, Any], name: str) -> Curve:
    """A curve of a record of `record_of`."""
    kept = record["curves"][name]
    return Curve(np.array(kept["x"]), np.array(kept["blocks"]), kept["x_label"], kept["y_label"])


def compare_curves(
    student: Mapping[str, Any], teachers: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Overlap of every RDF and VDOS of the student with both runs of the teacher.

    Args:
        student: record of the student's run.
        teachers: records of two runs of the teacher with different seeds, of the same length.

    Returns:
        Rows `curve`, `overlap` (mean over the teacher's runs), `error` (its standard error),
        `teacher_with_itself`, and `attainable`, what two runs with these error bars reach on
        average if they sample the same: one pair of runs may agree by chance.
    """
    first, second = teachers
    rows = []
    for name in first["curves"]:
        if name.startswith("msd") or any(name not in run["curves"] for run in (student, second)):
            continue
        own, a, b = (curve_of(run, name) for run in (student, first, second))
        scores, itself = (overlap(own, a), overlap(own, b)), overlap(a, b)
        expected = [score.attainable for score in (*scores, itself)]
        rows.append(
            {
                "curve": name,
                "overlap": float(np.mean([score.value for score in scores])),
                "error": float(np.sqrt(np.mean([score.error**2 for score in scores]))),
                "teacher_with_itself": itself.value,
                "attainable": float(np.mean(expected)),
            }
        )
    return rows


def dynamics_checks(
    student: Mapping[str, Any],
    teachers: Sequence[Mapping[str, Any]],
    limits: Limits,
    *,
    periodic: bool,
    constant_pressure: bool,
) -> list[Check]:
    """Checks of RDF, VDOS, density and diffusion from the records of the runs."""
    rows = compare_curves(student, teachers)
    radial = [row for row in rows if row["curve"].startswith("rdf")]
    vibrations = [row for row in rows if row["curve"] == "vdos all"]
    return [
        overlap_check("RDF of student and teacher", radial, limits.rdf_overlap, limits.noise),
        overlap_check("VDOS of student and teacher", vibrations, limits.vdos_overlap, limits.noise),
        _density(student, teachers, limits, periodic, constant_pressure),
        _diffusion(student, teachers, limits, periodic),
    ]


def overlap_check(
    name: str, rows: Sequence[Mapping[str, Any]], limit: float, noise: float
) -> Check:
    """The worst curve decides: at least `limit`, and `noise` times the teacher's own difference."""
    text = f"≥ {limit:g}, and difference ≤ {noise:g} times that of the teacher from itself"
    if not rows:
        return Check(name, text, "", "not measured", "the runs are shorter than one window")
    worst = min(rows, key=lambda row: row["overlap"])
    value, itself = worst["overlap"], worst["teacher_with_itself"]
    shown = f"{worst['curve']}: {value:.4f} (teacher with itself {itself:.4f})"
    # The larger of the noise seen and the noise expected; NaN where there is one block only.
    noisy = [
        r
        for r in rows
        if 1 - r["overlap"] > noise * (1 - np.fmin(r["teacher_with_itself"], r["attainable"]))
    ]
    if value < limit and itself < limit:
        why = "the teacher does not reach the limit with itself either: run longer"
        return Check(name, text, shown, "undecided", why)
    if value < limit:
        return Check(name, text, shown, "fail", "below the limit")
    if noisy:
        told = ", ".join(f"{r['curve']} ({r['overlap']:.4f})" for r in noisy)
        why = f"differs by more than {noise:g} times the teacher's own noise: {told}"
        return Check(name, text, shown, "fail", why)
    return Check(name, text, shown, "pass")


def _density(
    student: Mapping[str, Any],
    teachers: Sequence[Mapping[str, Any]],
    limits: Limits,
    periodic: bool,
    constant_pressure: bool,
) -> Check:
    name, text = "density", f"within {limits.density_percent:g} %"
    if not periodic:
        return Check(name, text, "", "not applicable", "an isolated molecule has none")
    if not constant_pressure:
        return Check(name, text, "", "not measured", "the runs were at constant volume")
    own, mean, error = _difference(
        [run["scalars"]["density_g_per_cm3"] for run in (student, *teachers)]
    )
    percent, error = 100 * (own / mean - 1), 100 * error / mean
    return within_percent(name, percent, error, limits.density_percent)


def _diffusion(
    student: Mapping[str, Any],
    teachers: Sequence[Mapping[str, Any]],
    limits: Limits,
    periodic: bool,
) -> Check:
    name = "diffusion"
    text = f"equal within {limits.diffusion_errors:g} standard errors"
    if not periodic:
        return Check(name, text, "", "not applicable", "an isolated molecule does not diffuse")
    runs = [run["diffusion_cm2_per_s"] for run in (student, *teachers)]
    elements = [element for element in runs[0] if all(element in run for run in runs)]
    if not elements:
        return Check(name, text, "", "not measured", "the runs are shorter than one window")
    worst, shown = 0.0, []
    for element in elements:
        found = [run[element] for run in runs]
        if not all(DIFFUSIVE[0] <= d["exponent"] <= DIFFUSIVE[1] for d in found):
            why = f"the motion of {element} is not diffusive in the window"
            return Check(name, text, "", "undecided", why)
        own, mean, error = _difference(found)
        if not error > 0:
            return Check(name, text, "", "undecided", "no error bars: run longer")
        worst = max(worst, abs(own - mean) / error)
        shown.append(f"{element} {own:.3g} and {mean:.3g} ± {error:.1g} cm²/s")
    passed = worst <= limits.diffusion_errors
    return Check(name, text, "; ".join(shown), "pass" if passed else "fail")


def _difference(estimates: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Student's value, mean of the teacher's, and standard error of their difference."""
    values = [float(estimate["value"]) for estimate in estimates]
    errors = [np.nan if e["error"] is None else float(e["error"]) for e in estimates]
    of_mean = np.sqrt(np.sum(np.square(errors[1:]))) / len(errors[1:])
    return values[0], float(np.mean(values[1:])), float(np.hypot(errors[0], of_mean))
