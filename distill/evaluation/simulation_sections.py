"""The sections of a certificate that tell of simulations and of close contacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.evaluation.report_page import Section, Table

NOT_MEASURED = "Not measured."


def nve_section(result: Mapping[str, Any] | None) -> Section:
    """Drift of the total energy."""
    if not result or "broke_down" in result:
        return Section("Energy conservation", [_why_nothing(result)])
    return Section(
        "Energy conservation",
        [
            f"{len(result['by_seed'])} NVE runs of {result['duration_ps']:g} ps of "
            f"{result['atoms']} atoms in {result['precision']}, timestep "
            f"{result['timestep_fs']:g} fs: drift {result['drift_mev_per_atom_per_ns']:+.3g} ± "
            f"{result['standard_error']:.2g} meV/atom/ns (mean and standard error over the seeds), "
            f"fluctuation {result['fluctuation_mev_per_atom']:.3g} meV/atom.",
            Table(
                ["seed", "mean temperature (K)", "drift (meV/atom/ns)"],
                [
                    [str(number), f"{row['temperature_k']:.0f}", f"{row['drift']:+.3g}"]
                    for number, row in enumerate(result["by_seed"])
                ],
            ),
        ],
    )


def stability_section(result: Mapping[str, Any] | None) -> Section:
    """How long hot runs lasted."""
    if not result:
        return Section("Stability", [NOT_MEASURED])
    highest = result["training_temperature_k"]
    training = f"{highest:g} K" if highest else "an unknown temperature"
    rows = [
        [
            f"{run['temperature']:g}",
            str(run["seed"]),
            f"{run['time']:.3g}" if run["event"] else f"≥ {run['time']:.3g}",
            run["event"] or "none",
            "–" if (e := run["largest_expected_error"]) is None else f"{e:.2f}",
        ]
        for run in result["runs"]
    ]
    return Section(
        "Stability",
        [
            f"Runs of {result['duration_ps']:g} ps in {result['ensemble']}, timestep "
            f"{result['timestep_fs']:g} fs; training went up to {training}. Looked for: "
            f"{result['looked_for']}.",
            Table(
                [
                    "temperature (K)",
                    "seed",
                    "time to the event (ps)",
                    "event",
                    "largest expected error (eV/Å)",
                ],
                rows,
            ),
        ],
    )


def contacts_section(result: Mapping[str, Any] | None) -> Section:
    """Energies of atoms that are pushed together."""
    title = "Close contacts"
    if not result:
        return Section(title, [NOT_MEASURED])
    if "broke_down" in result:
        return Section(title, [f"Broke down: {result['broke_down']}"])
    if not result["approaches"]:
        return Section(title, ["There are no two atoms to push together."])
    rows = [
        [
            wall["name"],
            f"{wall['distances_ang'][0]:.2f} to {wall['distances_ang'][-1]:.2f}",
            f"{wall['largest_error_ev']:.2g}",
            "none"
            if wall["barrier_ev"] is None
            else f"at {wall['falls_at_ang']:.2f} Å behind {wall['barrier_ev']:.2f} eV",
        ]
        for wall in result["approaches"]
    ]
    return Section(
        title,
        [
            "The nearest pair of each two elements that is not bonded, pushed together by whole "
            "molecules and by the two atoms alone; a hole is where the student's energy falls by "
            "0.5 eV and is as much lower than the teacher's. Errors count up to where the "
            "teacher's energy has risen by "
            f"{result['up_to_ev']:g} eV.",
            Table(["what moves", "distances (Å)", "largest error (eV)", "hole"], rows),
        ],
    )


def dynamics_section(
    result: Mapping[str, Any] | None, overlaps: Sequence[Mapping[str, Any]]
) -> Section:
    """Student against teacher, and teacher against itself."""
    title = "Dynamics of student and teacher"
    if not result or "broke_down" in result:
        return Section(title, [_why_nothing(result)])
    section = Section(
        title,
        [
            f"{result['conditions']} Overlap is 1 - ∫|a - b| / ∫(a + b). The last column is what "
            "two runs of the teacher with different seeds reach: more cannot be asked for.",
            Table(
                ["curve", "student with teacher", "teacher with itself"],
                [[r["curve"], _with_error(r), f"{r['teacher_with_itself']:.4f}"] for r in overlaps],
            ),
        ],
    )
    runs = [result["student"], *result["teachers"]]
    rows = [
        [name, *(_estimate(run["scalars"][name]) for run in runs)]
        for name in runs[0]["scalars"]
        if all(name in run["scalars"] for run in runs) and "energy" not in name
    ]
    rows += [
        [f"diffusion of {e} (cm²/s)", *(_estimate(run["diffusion_cm2_per_s"][e]) for run in runs)]
        for e in runs[0]["diffusion_cm2_per_s"]
        if all(e in run["diffusion_cm2_per_s"] for run in runs)
    ]
    if rows:
        section.content.append(Table(["", "student", "teacher", "teacher, other seed"], rows))
    section.content += sorted({note for run in runs for note in run["notes"]})
    return section


def density_section(result: Mapping[str, Any] | None) -> Section:
    """Student in NPT, and its teacher by weights."""
    title = "Density"
    if not result or "broke_down" in result:
        told = "Not measured apart from the dynamics."
        return Section(title, [_why_nothing(result) if result else told])
    student, teacher, percent = (
        _estimate({"value": result[key], "error": result[f"{key}_error"]})
        for key in ("student", "teacher", "percent")
    )
    return Section(
        title,
        [
            f"{result['conditions']}. Student {student} g/cm³; the teacher, from "
            f"{result['frames']} of these frames by their weights in its ensemble, {teacher} "
            f"g/cm³; student over teacher less 1: {percent} %. The frames are worth "
            f"{100 * result['effective_share']:.0f} % of their number for the teacher."
        ],
    )


def _with_error(row: Mapping[str, Any]) -> str:
    if row["error"] is None:
        return f"{row['overlap']:.4f}"
    return f"{row['overlap']:.4f} ± {row['error']:.4f}"


def _estimate(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "–"
    if estimate["error"] is None:
        return f"{estimate['value']:.4g}"
    return f"{estimate['value']:.4g} ± {estimate['error']:.1g}"


def _why_nothing(result: Mapping[str, Any] | None) -> str:
    return f"The runs broke down: {result['broke_down']}" if result else NOT_MEASURED
