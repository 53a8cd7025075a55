"""The complete certificate of a bundle: one page with a verdict, its reasons, and all figures.

    python experiments/certify.py bundle=runs/ethanol/moment_s/student \\
        dataset=runs/ethanol/dataset.h5 teacher=fennol:ani1ccx output=runs/ethanol/certificate
    python experiments/certify.py --smoke

Writes `certificate.md`, `certificate.html` (one file, plots inside) and `certificate.json`. The
same command goes on after the last finished part; with `record=docs/results/simulation.json
case=...` its figures become records. `evaluate.py` compares students by their
errors; this script judges one, mostly by simulations.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import train
from certify_config import CertifyConfig
from certify_job import Job
from distill.config import config_to_dict
from distill.errors import CapacityError, SimulationError
from distill.evaluation.approach import contacts_check
from distill.evaluation.certificate import finite
from distill.evaluation.certificate_page import certificate_sections
from distill.evaluation.certificate_plots import save_certificate_plots
from distill.evaluation.density import density_check
from distill.evaluation.dynamics import compare_curves, dynamics_checks
from distill.evaluation.environment import describe_environment
from distill.evaluation.report_page import to_html, to_markdown
from distill.evaluation.results import record_figures, replace_text
from distill.evaluation.verdict import conclude, make_checks
from script import command_of, run_script
from simulation_records import add_curves, certificate_figures

FORMAT_VERSION = 2
MAY_BREAK = ("nve", "dynamics", "density")
"""Parts whose runs a bad student does not survive, which is a result and no error."""

SMOKE = (
    f"bundle={train.SMOKE_RUN}/student",
    f"dataset={train.SMOKE_DATA}",
    "teacher=fennol:models/demo_chno.fnx",
    "consistency={structures: 2, components: 4}",
    "nve={temperature: 50.0, duration: 0.05, equilibration: 0.05, replicas: 2}",
    "stability={temperatures: [400.0], replicas: 2, duration: 0.05}",
    "dynamics.md={ensemble: nvt_csvr, temperature: 100.0, steps: 200, record_every: 4, "
    "block_steps: 100}",
    "dynamics.replicas=2",
    "dynamics.observables={rdf: true, vdos: true, start: 0.0, rdf_interval: 4.0, vdos_window: 0.1}",
    "speed_repeats=2",
    "output=runs/smoke/certificate",
)


def main(argv: list[str] | None = None) -> int:
    """Certify; returns the exit status, 0 also for a student that did not pass."""
    arguments = sys.argv[1:] if argv is None else argv
    own = any(argument.startswith("bundle=") for argument in arguments)
    if "--smoke" in arguments and not own:
        train.make_smoke_student()
    return run_script(CertifyConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: CertifyConfig) -> dict[str, Any]:
    """Measure what is asked for and write the page; returns the certificate."""
    job = Job(config)
    measured: dict[str, Callable[[], dict[str, Any] | None]] = {
        "accuracy": job.accuracy,
        "consistency": job.consistency,
        "nve": job.nve,
        "stability": job.stability,
        "contacts": job.contacts,
        "dynamics": job.dynamics,
        "density": job.density,
        "speed": job.speed,
    }
    results: dict[str, Any] = {
        name: _unless_broken(measure) if name in MAY_BREAK else measure()
        for name, measure in measured.items()
        if name in config.parts
    }
    if "accuracy" in results:
        results["calibration"] = results["accuracy"].pop("calibration")
    results["domain"] = job.domain()
    certificate, sections = assemble(job, results)
    replace_text(
        config.output / "certificate.json",
        json.dumps(finite(certificate), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    for name, write in (("md", to_markdown), ("html", to_html)):
        page = write(certificate["title"], sections)
        replace_text(config.output / f"certificate.{name}", page)
    publish(config, certificate)
    print(certificate["verdict"]["sentence"])
    for check in certificate["checks"]:
        print(f"  {check['status']:<14} {check['name']:<44} {check['value']}")
    print(f"  {config.output / 'certificate.html'}")
    return certificate


def publish(config: CertifyConfig, certificate: dict[str, Any]) -> None:
    """Add the figures to the records and the curves to their file, where that is asked for."""
    subject = config.subject or config.bundle.name
    if config.record is not None:
        teacher = config.teacher or str(certificate["provenance"]["teacher"])
        figures = certificate_figures(certificate, config.case, subject, teacher)
        record_figures(figures, config.record, command_of("certify", config))
    dynamics = certificate["results"].get("dynamics") or {}
    if config.curves is not None and "student" in dynamics:
        add_curves(dynamics, config.curves, config.case)


def _unless_broken(measure: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """The result, or why the potential did not survive the measurement."""
    try:
        return measure()
    except (SimulationError, CapacityError) as error:
        return {"broke_down": str(error)}


def assemble(job: Job, results: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Certificate and sections of the page from the results; plots are written on the way."""
    config, dynamics = job.config, results.get("dynamics")
    overlaps, judged = [], dict(results)
    if dynamics and "broke_down" not in dynamics:
        overlaps = compare_curves(dynamics["student"], dynamics["teachers"])
        judged["dynamics_checks"] = dynamics_checks(
            dynamics["student"],
            dynamics["teachers"],
            config.limits,
            periodic=bool(job.atoms.pbc.all()),
            constant_pressure=config.dynamics.md.ensemble.startswith("npt"),
        )
    contacts, density = results.get("contacts"), results.get("density")
    if contacts:
        temperature = config.dynamics.md.temperature
        judged["contacts_check"] = contacts_check(contacts, config.limits, temperature)
    if density and "broke_down" not in density:
        judged["density_check"] = density_check(density, config.limits.density_percent)
    checks = make_checks(judged, config.limits)
    passed, sentence = conclude(checks)
    formula = job.atoms.get_chemical_formula()
    certificate = {
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": f"Certificate: {formula}, student of {provenance(job)['teacher']}",
        "verdict": {"passed": passed, "sentence": sentence},
        "checks": [asdict(check) for check in checks],
        "overlaps": finite(overlaps),
        "results": results,
        "provenance": provenance(job),
        **describe_environment(),
        "configuration": config_to_dict(config),
    }
    config.output.mkdir(parents=True, exist_ok=True)
    plots = save_certificate_plots(config.output, results)
    return certificate, certificate_sections(certificate, checks, plots)


def provenance(job: Job) -> dict[str, Any]:
    """Of student, teacher and data; what is not stated is `unknown`."""
    card, data = job.bundle.card, job.dataset.provenance
    teacher = card.get("teacher") or {}
    found = {
        "student": f"{job.student.spec.architecture}, {job.student.n_parameters} parameters",
        "student SHA-256": card["sha256"].get("parameters.safetensors"),
        "licence of the student": card.get("licence"),
        "teacher": teacher.get("teacher"),
        "teacher version": teacher.get("teacher_version") or teacher.get("version"),
        "teacher weights SHA-256": teacher.get("weights_sha256"),
        "licence of the teacher": teacher.get("licence"),
        "training data SHA-256": (card.get("dataset") or {}).get("sha256"),
        "training structures": (card.get("dataset") or {}).get("train"),
        "test data SHA-256": job.dataset.sha256,
        "licence of the data": data.get("data_licence") or card.get("data_licence"),
        "origins of the data": ", ".join(sorted(set(job.dataset.origin.tolist()))),
        "bundle made": card.get("created"),
    }
    return {key: "unknown" if value in (None, "") else value for key, value in found.items()}


if __name__ == "__main__":
    sys.exit(main())
