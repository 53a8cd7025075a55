"""The complete certificate as a page: verdict first, then what was measured and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.evaluation.report_page import Picture, Section, Table
from distill.evaluation.simulation_sections import (
    NOT_MEASURED,
    contacts_section,
    density_section,
    dynamics_section,
    nve_section,
    stability_section,
)
from distill.evaluation.verdict import Check

SHOWN_TRAJECTORIES = 20
"""Most trajectories listed, those with the largest errors."""


def certificate_sections(
    certificate: Mapping[str, Any], checks: Sequence[Check], plots: Mapping[str, Path]
) -> list[Section]:
    """All sections, in the order of the page; parts that are missing say so."""
    results = certificate["results"]
    sections = [
        _verdict(certificate["verdict"], checks),
        _accuracy(results.get("accuracy")),
        _consistency(results.get("consistency")),
        nve_section(results.get("nve")),
        stability_section(results.get("stability")),
        contacts_section(results.get("contacts")),
        dynamics_section(results.get("dynamics"), certificate.get("overlaps") or []),
        density_section(results.get("density")),
        _calibration(results.get("calibration")),
        _domain(results.get("domain")),
        _speed(results.get("speed"), certificate["device"]),
        _provenance(certificate),
    ]
    places = {
        "accuracy": 1,
        "nve": 3,
        "stability": 4,
        "contacts": 5,
        "rdf": 6,
        "vdos": 6,
        "density": 7,
        "calibration": 8,
    }
    for name, path in plots.items():
        sections[places[name]].content.append(Picture(path, name))
    return sections


def _verdict(verdict: Mapping[str, Any], checks: Sequence[Check]) -> Section:
    rows = [[c.name, c.limit, c.value or "–", c.status, c.reason] for c in checks]
    return Section(
        "Verdict",
        [
            verdict["sentence"],
            Table(["check", "limit", "value", "status", "reason"], rows),
            "A check that was not measured or not decided never counts as passed.",
        ],
    )


def _accuracy(result: Mapping[str, Any] | None) -> Section:
    section = Section("Errors on held-out trajectories")
    if not result:
        section.content.append(NOT_MEASURED)
        return section
    by_error = sorted(result["by_trajectory"], key=lambda row: -row["mae"])
    shown = by_error[:SHOWN_TRAJECTORIES]
    left = len(by_error) - len(shown)
    r2 = result["energy_r2"]
    section.content += [
        f"{result['structures']} structures of {len(by_error)} trajectories that training never "
        f"saw. Forces: MAE {result['force_mae_mev_per_ang']:.2f} meV/Å, RMSE "
        f"{result['force_rmse_mev_per_ang']:.2f} meV/Å, R² {result['force_r2']:.5f}, of labels "
        f"whose standard deviation is {result['force_label_std_mev_per_ang']:.0f} meV/Å. "
        f"Energies: MAE {result['energy_mae_mev_per_atom']:.3f} meV/atom, RMSE "
        f"{result['energy_rmse_mev_per_atom']:.3f} meV/atom, R² "
        f"{'undefined' if r2 is None else format(r2, '.5f')}.",
        Table(
            ["element", "atoms", "force MAE (meV/Å)", "RMSE (meV/Å)"],
            [[row["element"], *_errors(row)] for row in result["by_element"]],
        ),
        Table(
            ["teacher's force on the atom (eV/Å)", "atoms", "force MAE (meV/Å)", "RMSE (meV/Å)"],
            [[f"{r['from']:.3g} to {r['to']:.3g}", *_errors(r)] for r in result["by_force"]],
        ),
        Table(
            ["trajectory", "atoms", "force MAE (meV/Å)", "RMSE (meV/Å)"],
            [[row["trajectory"], *_errors(row)] for row in shown],
        ),
    ]
    if left:
        section.content.append(f"{left} more trajectories have smaller errors.")
    return section


def _errors(row: Mapping[str, Any]) -> list[str]:
    return [str(row["atoms"]), f"{row['mae']:.2f}", f"{row['rmse']:.2f}"]


def _consistency(result: Mapping[str, Any] | None) -> Section:
    if not result:
        return Section("Forces and energy", [NOT_MEASURED])
    return Section(
        "Forces and energy",
        [
            f"Forces against fourth-order central differences of the energy in float64 (step "
            f"{result['step_ang']:g} Å), {result['components']} components of "
            f"{result['structures']} held-out structures: worst difference "
            f"{result['worst_ev_per_ang']:.1e} eV/Å ({result['worst_relative']:.1e} of the RMS "
            f"force), RMS {result['rms_ev_per_ang']:.1e} eV/Å."
        ],
    )


def _calibration(result: Mapping[str, Any] | None) -> Section:
    if not result:
        return Section("Expected errors", [NOT_MEASURED])
    rows = [
        [str(number), f"{1e3 * expected:.1f}", f"{1e3 * real:.1f}"]
        for number, (expected, real) in enumerate(
            zip(result["predicted"], result["observed"], strict=True), 1
        )
    ]
    return Section(
        "Expected errors",
        [
            "Atoms of the held-out structures in ten parts of equal size, by the force error that "
            "the student expects: root mean squares.",
            Table(["tenth", "expected (meV/Å)", "real (meV/Å)"], rows),
        ],
    )


def _domain(result: Mapping[str, Any] | None) -> Section:
    title = "Domain of validity"
    if not result:
        return Section(title, ["The bundle's card says nothing of its training data."])
    domain = result["domain"]
    densities = domain["densities_g_per_cm3"]
    temperatures = ", ".join(f"{t:g}" for t in domain["temperatures_k"]) or "unknown"
    return Section(
        title,
        [
            f"Elements {', '.join(domain['elements'])}; temperatures of the sampling "
            f"{temperatures} K; cutoff {result['cutoff_ang']:g} Å; {domain['atoms'][0]} to "
            f"{domain['atoms'][1]} atoms; "
            + (
                f"densities {densities[0]:.3f} to {densities[1]:.3f} g/cm³."
                if densities
                else "molecules in vacuum only."
                if domain["vacuum"]
                else "slabs or wires only."
            ),
            Table(
                ["pair", "shortest distance in training (Å)"],
                [[pair, f"{d:.3f}"] for pair, d in domain["shortest_distances_ang"].items()],
            ),
            *(f"Outside, in the tested system: {told}." for told in result["outside"]),
        ],
    )


def _speed(result: Mapping[str, Any] | None, device: Mapping[str, Any]) -> Section:
    if not result:
        return Section("Speed", [NOT_MEASURED])
    low, high = result["md_speedup_range"]
    return Section(
        "Speed",
        [
            f"MD step ({result['ensemble']}, {result['timestep_fs']:g} fs, {result['atoms']} "
            f"atoms, one system per call, neighbour lists included) on {device['processor']} "
            f"({device['kind']}, {device['cores']} cores), medians of {result['repeats']} runs in "
            f"turn: teacher {result['teacher_us_per_atom_step']:.3g} µs/atom "
            f"({result['dtype']['teacher']}), student {result['student_us_per_atom_step']:.3g} "
            f"µs/atom ({result['dtype']['student']}, kernel {result['kernel']}): "
            f"{result['md_speedup']:.2f} times faster ({low:.2f} to {high:.2f})."
        ],
    )


def _provenance(certificate: Mapping[str, Any]) -> Section:
    rows = [[key, str(value)] for key, value in certificate["provenance"].items()]
    rows += [[f"version of {name}", value] for name, value in certificate["versions"].items()]
    return Section(
        "Provenance",
        [f"Made {certificate['created']}.", Table(["what", "value"], rows)],
    )
