"""The verdict of a certificate: every check with its limit, its value and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["pass", "fail", "undecided", "not measured", "not applicable"]


@dataclass(frozen=True)
class Limits:
    """What a student must reach.

    Attributes:
        force_r2: at least.
        force_mae_mev_per_ang: at most.
        consistency_ev_per_ang: largest difference between a force and the gradient of the energy
            in float64.
        nve_drift_mev_per_atom_per_ns: absolute value at most, of the mean over the seeds.
        calibration: expected and real RMS error of the forces differ by at most this factor.
        rdf_overlap: at least, for every pair of elements.
        vdos_overlap: at least.
        noise: times the teacher's difference from itself (with another seed) that the student's
            difference from the teacher may be.
        density_percent: largest deviation from the teacher's, in NPT.
        hole_barrier_kt: lowest barrier before a hole in the energy of close contacts, in kT of the
            dynamics.
        diffusion_errors: combined standard errors by which diffusion coefficients may differ.
        speedup: MD step of the teacher over that of the student, more than.
    """

    force_r2: float = 0.998
    force_mae_mev_per_ang: float = 50.0
    consistency_ev_per_ang: float = 1e-6
    nve_drift_mev_per_atom_per_ns: float = 1.0
    calibration: float = 2.0
    rdf_overlap: float = 0.98
    vdos_overlap: float = 0.9
    noise: float = 2.0
    density_percent: float = 2.0
    hole_barrier_kt: float = 50.0
    diffusion_errors: float = 3.0
    speedup: float = 1.0


@dataclass(frozen=True)
class Check:
    """One line of the verdict.

    Attributes:
        name: what was looked at.
        limit: as text.
        value: as text, empty where nothing was measured.
        status: `undecided` where error bars are too wide to tell.
        reason: why not passed, or what was missing.
    """

    name: str
    limit: str
    value: str
    status: Status
    reason: str = ""


def make_checks(results: Mapping[str, Any], limits: Limits) -> list[Check]:
    """All checks of the parts in `results`; a part that is None or missing was not measured.

    A part `{"broke_down": why}` is one whose runs the potential did not survive: it failed. Checks
    that other modules make are `dynamics_checks`, `density_check` (instead of that of the dynamics)
    and `contacts_check`.
    """
    dynamics = results.get("dynamics_checks") or _no_dynamics(results.get("dynamics"))
    density = results.get("density_check") or _broken_density(results.get("density"), limits)
    return [
        *_accuracy(results.get("accuracy"), limits),
        _consistency(results.get("consistency"), limits),
        _drift(results.get("nve"), limits),
        _stability(results.get("stability")),
        results.get("contacts_check") or _missing("energy of close contacts", "no hole"),
        *(density if density and c.name == density.name else c for c in dynamics),
        _calibration(results.get("calibration"), results.get("accuracy"), limits),
        _domain(results.get("domain")),
        _speed(results.get("speed"), limits),
    ]


def conclude(checks: Sequence[Check]) -> tuple[bool, str]:
    """Whether everything that applies was measured and passed, and that in a sentence."""
    failed = [c.name for c in checks if c.status == "fail"]
    open_ones = [c.name for c in checks if c.status in ("undecided", "not measured")]
    if failed:
        more = f" Not decided: {', '.join(open_ones)}." if open_ones else ""
        return False, f"Not certified: {', '.join(failed)} failed.{more}"
    if open_ones:
        return False, f"Not certified: nothing failed, but {', '.join(open_ones)} is not decided."
    return True, "Certified: every check that applies was measured and passed."


def at_most(name: str, value: float | None, limit: float, unit: str = "", digits: int = 4) -> Check:
    """Passed if the value is not above the limit; NaN and None were not measured."""
    text = f"≤ {limit:g} {unit}".strip()
    if value is None or value != value:
        return Check(name, text, "", "not measured", "no value")
    shown = f"{value:.{digits}g} {unit}".strip()
    return Check(name, text, shown, "pass" if value <= limit else "fail")


def at_least(name: str, value: float | None, limit: float, digits: int = 4) -> Check:
    """Passed if the value is not below the limit; NaN and None were not measured."""
    if value is None or value != value:
        return Check(name, f"≥ {limit:g}", "", "not measured", "no value")
    shown = f"{value:.{digits}g}"
    return Check(name, f"≥ {limit:g}", shown, "pass" if value >= limit else "fail")


def within_percent(name: str, percent: float, error: float, limit: float) -> Check:
    """Passed or failed only where the limit is two standard errors away."""
    text, shown = f"within {limit:g} %", f"{percent:+.2f} ± {error:.2f} %"
    if not abs(abs(percent) - limit) > 2 * error:
        return Check(name, text, shown, "undecided", "the error bar is too wide: run longer")
    return Check(name, text, shown, "pass" if abs(percent) <= limit else "fail")


def _missing(name: str, limit: str) -> Check:
    return Check(name, limit, "", "not measured", "this part was not run")


def _accuracy(result: Mapping[str, Any] | None, limits: Limits) -> list[Check]:
    result = result or {}
    return [
        at_least("force R²", result.get("force_r2"), limits.force_r2, 5),
        at_most(
            "force MAE", result.get("force_mae_mev_per_ang"), limits.force_mae_mev_per_ang, "meV/Å"
        ),
    ]


def _consistency(result: Mapping[str, Any] | None, limits: Limits) -> Check:
    worst = (result or {}).get("worst_ev_per_ang")
    return at_most(
        "forces are the gradient of the energy", worst, limits.consistency_ev_per_ang, "eV/Å", 2
    )


def _drift(result: Mapping[str, Any] | None, limits: Limits) -> Check:
    limit = limits.nve_drift_mev_per_atom_per_ns
    name, text = "NVE drift", f"≤ {limit:g} meV/atom/ns"
    if not result:
        return _missing(name, text)
    if "broke_down" in result:
        return Check(name, text, "", "fail", result["broke_down"])
    drift, error = result["drift_mev_per_atom_per_ns"], result["standard_error"]
    shown = f"{drift:+.2g} ± {error:.2g} meV/atom/ns"
    if abs(drift) + 2 * error <= limit:
        return Check(name, text, shown, "pass")
    if abs(drift) - 2 * error > limit:
        return Check(name, text, shown, "fail")
    return Check(
        name, text, shown, "undecided", "within two standard errors of the limit: run longer"
    )


def _stability(result: Mapping[str, Any] | None) -> Check:
    name, text = "runs without unphysical event", "all"
    if not result:
        return _missing(name, text)
    runs = result["runs"]
    lasted = sum(run["event"] is None for run in runs)
    shown = f"{lasted} of {len(runs)} over {result['duration_ps']:g} ps"
    if lasted == len(runs):
        return Check(name, text, shown, "pass")
    first = min((run for run in runs if run["event"]), key=lambda run: run["time"])
    return Check(name, text, shown, "fail", f"{first['temperature']:g} K: {first['event']}")


def _calibration(
    result: Mapping[str, Any] | None, accuracy: Mapping[str, Any] | None, limits: Limits
) -> Check:
    name, text = "expected against real force error", f"within a factor {limits.calibration:g}"
    if not result:
        why = "the student has no uncertainty" if accuracy else "this part was not run"
        return Check(name, text, "", "not measured", why)
    expected, real = (
        (sum(v**2 for v in result[key]) / len(result[key])) ** 0.5
        for key in ("predicted", "observed")
    )
    shown = f"{1e3 * expected:.1f} and {1e3 * real:.1f} meV/Å"
    if not (expected > 0 and real > 0):
        return Check(name, text, shown, "fail", "an error of zero")
    good = max(expected / real, real / expected) <= limits.calibration
    return Check(name, text, shown, "pass" if good else "fail")


def _domain(result: Mapping[str, Any] | None) -> Check:
    name, text = "the tested system lies within the training data", "nothing outside"
    if not result:
        return Check(name, text, "", "not measured", "the card has no domain: train again")
    outside = result["outside"]
    if outside:
        return Check(name, text, f"{len(outside)} outside", "fail", "; ".join(outside))
    return Check(name, text, "nothing outside", "pass")


def _speed(result: Mapping[str, Any] | None, limits: Limits) -> Check:
    name, text = "MD step, teacher over student", f"> {limits.speedup:g}"
    if not result:
        return _missing(name, text)
    value = result["md_speedup"]
    return Check(name, text, f"{value:.2f}", "pass" if value > limits.speedup else "fail")


def _broken_density(result: Mapping[str, Any] | None, limits: Limits) -> Check | None:
    if not result or "broke_down" not in result:
        return None
    text = f"within {limits.density_percent:g} %"
    return Check("density", text, "", "fail", result["broke_down"])


def _no_dynamics(result: Mapping[str, Any] | None) -> list[Check]:
    names = ("RDF of student and teacher", "VDOS of student and teacher", "density", "diffusion")
    if result and "broke_down" in result:
        return [Check(name, "see the limits", "", "fail", result["broke_down"]) for name in names]
    return [_missing(name, "see the limits") for name in names]
