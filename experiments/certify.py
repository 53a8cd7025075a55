"""The complete certificate of a bundle: one page with a verdict, its reasons, and all figures.

    python experiments/certify.py bundle=runs/ethanol/moment_s/student \\
        dataset=runs/ethanol/dataset.h5 teacher=fennol:ani1ccx output=runs/ethanol/certificate
    python experiments/certify.py --smoke

Writes `certificate.md`, `certificate.html` (one file, plots inside) and `certificate.json`. The same
command goes on after the last finished part. `evaluate.py` compares students by their errors;
this script judges one, mostly by simulations.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import jax
import numpy as np
from ase import Atoms

import train
from certify_config import CertifyConfig
from distill import teachers
from distill.config import config_to_dict
from distill.data import Dataset, load
from distill.errors import ConfigError
from distill.evaluation import compare_md_speed, measure_accuracy
from distill.evaluation.breakdown import calibration, error_breakdown, shown_forces
from distill.evaluation.certificate import finite
from distill.evaluation.certificate_page import certificate_sections
from distill.evaluation.certificate_plots import save_certificate_plots
from distill.evaluation.consistency import energy_force_consistency
from distill.evaluation.domain import closest_seen, outside_domain
from distill.evaluation.dynamics import compare_curves, dynamics_checks, observe, record_of
from distill.evaluation.environment import describe_environment
from distill.evaluation.kept_parts import KeptParts
from distill.evaluation.nve_drift import nve_drift
from distill.evaluation.report_page import to_html, to_markdown
from distill.evaluation.results import replace_text
from distill.evaluation.stability_time import run_until_event, summarise_outcomes
from distill.evaluation.teacher_ase import run_with_ase
from distill.evaluation.verdict import conclude, make_checks
from distill.observables import Observables
from distill.sampling import read_structure
from distill.simulation import MDConfig
from distill.students import Bundle, load_bundle
from distill.teachers import Teacher
from quickstart import resolve_teacher
from script import run_script

FORMAT_VERSION = 2
ABOVE_TRAINING = (1.25, 1.5)
"""Default temperatures of the stability runs, over the highest of the training data."""

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
    "dynamics.observables={rdf: true, vdos: true, rdf_interval: 4.0, vdos_window: 0.1}",
    "speed_repeats=2",
    "output=runs/smoke/certificate",
)


def main(argv: list[str] | None = None) -> int:
    """Certify; returns the exit status, 0 also for a student that did not pass."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--smoke" in arguments and not (train.SMOKE_RUN / "student").is_dir():
        train.main(["--smoke"])
    return run_script(CertifyConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: CertifyConfig) -> dict[str, Any]:
    """Measure what is asked for and write the page; returns the certificate."""
    job = Job(config)
    measured: dict[str, Callable[[], dict[str, Any]]] = {
        "accuracy": job.accuracy,
        "consistency": job.consistency,
        "nve": job.nve,
        "stability": job.stability,
        "dynamics": job.dynamics,
        "speed": job.speed,
    }
    results: dict[str, Any] = {
        name: measure() for name, measure in measured.items() if name in config.parts
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
    print(certificate["verdict"]["sentence"])
    for check in certificate["checks"]:
        print(f"  {check['status']:<14} {check['name']:<44} {check['value']}")
    print(f"  {config.output / 'certificate.html'}")
    return certificate


class Job:
    """The student, the data and the system of a certificate; one method for each part."""

    def __init__(self, config: CertifyConfig) -> None:
        self.config = config
        self.bundle: Bundle = load_bundle(config.bundle)
        self.student = self.bundle.student
        self.dataset: Dataset = load(config.dataset)
        self.test = held_out(config, self.bundle, self.dataset)
        start = self.dataset.structure(int(self.test[0]))
        self.atoms: Atoms = read_structure(config.structure) if config.structure else start
        self.student.species(self.atoms.numbers)
        identity = {
            "bundle": self.bundle.card["sha256"],
            "dataset": self.dataset.sha256,
            "test": self.test.tolist(),
            "numbers": self.atoms.numbers.tolist(),
            "positions": self.atoms.positions.tolist(),
            "cell": self.atoms.cell.array.tolist(),
            "pbc": self.atoms.pbc.tolist(),
            "seed": config.seed,
        }
        self.kept = KeptParts(config.output / "parts", identity)

    @cached_property
    def teacher(self) -> Teacher:
        """Loaded when first needed; raises ConfigError where it is not the bundle's."""
        recorded = self.bundle.card.get("teacher") or {}
        name = self.config.teacher or str(recorded.get("teacher", ""))
        teacher = teachers.load(resolve_teacher(name))
        weights = recorded.get("weights_sha256")
        if weights and weights != teacher.info.weights_sha256:
            raise ConfigError(
                f"teacher {name} has other weights than {recorded.get('teacher')}, of which "
                f"{self.config.bundle} was distilled: give that one with teacher=NAME"
            )
        return teacher

    def accuracy(self) -> dict[str, Any]:
        """Errors by element, force and trajectory, and the calibration."""

        def measure() -> dict[str, Any]:
            found = measure_accuracy(self.student.label, self.dataset, self.test)
            return error_breakdown(found, self.dataset, self.test) | {
                "shown": shown_forces(found),
                "calibration": calibration(found),
            }

        return self.kept.get("accuracy", {}, measure)

    def consistency(self) -> dict[str, Any]:
        """Forces against differences of the energy."""
        settings = asdict(self.config.consistency)

        def measure() -> dict[str, Any]:
            spread = np.linspace(0, len(self.test) - 1, settings["structures"]).astype(int)
            structures = [self.dataset.structure(int(i)) for i in self.test[np.unique(spread)]]
            with jax.enable_x64(True):
                return energy_force_consistency(
                    lambda batch: self.student.label(batch, dtype=np.float64),
                    structures,
                    components=settings["components"],
                    seed=self.config.seed,
                )

        return self.kept.get("consistency", settings, measure)

    def nve(self) -> dict[str, Any]:
        """Drift of the total energy."""
        settings = asdict(self.config.nve)
        return self.kept.get(
            "nve",
            settings,
            lambda: nve_drift(
                self.student.potential(self.atoms), self.atoms, seed=self.config.seed, **settings
            ),
        )

    def stability(self) -> dict[str, Any]:
        """Time until the first event, at temperatures above training."""
        chosen = self.config.stability
        domain = self.bundle.card.get("domain") or {}
        highest = max(domain.get("temperatures_k") or [0.0])
        temperatures = chosen.temperatures or tuple(f * highest for f in ABOVE_TRAINING if highest)
        if not temperatures:
            raise ConfigError(
                f"{self.config.bundle} does not say at what temperatures its training data were "
                "sampled: give stability.temperatures"
            )
        settings = asdict(replace(chosen, temperatures=temperatures))
        every, step = chosen.record_every, chosen.timestep
        block = every * 25
        md = MDConfig(
            ensemble="nvt_langevin",
            timestep=step,
            steps=max(round(1e3 * chosen.duration / step / every), 1) * every,
            record_every=every,
            block_steps=block,
        )
        kinds = ("contacts", "bonds", "temperature", "uncertainty")
        looked = [kind for kind in kinds if getattr(chosen.safety, kind) != "ignore"]

        def measure() -> dict[str, Any]:
            potential = self.student.potential(self.atoms)
            outcomes = [
                outcome
                for number, temperature in enumerate(temperatures)
                for outcome in run_until_event(
                    potential,
                    self.atoms,
                    np.tile(self.atoms.positions, (chosen.replicas, 1, 1)),
                    replace(md, temperature=temperature, seed=self.config.seed + 1000 * number),
                    chosen.safety,
                    closest=closest_seen(domain) if domain else None,
                )
            ]
            return {
                "runs": summarise_outcomes(outcomes),
                "duration_ps": md.steps * step / 1e3,
                "timestep_fs": step,
                "ensemble": md.ensemble,
                "training_temperature_k": highest or None,
                "looked_for": ", ".join(looked),
            }

        return self.kept.get("stability", settings, measure)

    def dynamics(self) -> dict[str, Any]:
        """Three runs of the same conditions: student, teacher, teacher with another seed."""
        chosen = self.config.dynamics
        in_jax = self.teacher.info.kind == "fennol"
        replicas = chosen.replicas if in_jax else 1

        def teacher_run(md: MDConfig, name: str) -> dict[str, Any]:
            if in_jax:
                potential = self.teacher.potential(self.atoms)
                return observe(
                    potential,
                    self.atoms,
                    md,
                    chosen.observables,
                    replicas=replicas,
                    description=name,
                )
            measured = Observables(self.atoms, chosen.observables, md.timestep * md.record_every)
            run_with_ase(self.teacher, self.atoms, md, measured, seed=md.seed, description=name)
            return record_of(measured.results()[0])

        def student_run(md: MDConfig, name: str) -> dict[str, Any]:
            return observe(
                self.student.potential(self.atoms),
                self.atoms,
                md,
                chosen.observables,
                replicas=chosen.replicas,
                description=name,
            )

        runs = {}
        for number, (name, make) in enumerate(
            (
                ("student", student_run),
                ("teacher_first", teacher_run),
                ("teacher_second", teacher_run),
            )
        ):
            md = replace(chosen.md, seed=chosen.md.seed + self.config.seed + 1000 * number)
            settings = {
                "md": asdict(md),
                "replicas": chosen.replicas if name == "student" else replicas,
                "observables": asdict(chosen.observables),
                "teacher": "" if name == "student" else self.teacher.info.weights_sha256,
            }
            runs[name] = self.kept.get(
                f"dynamics_{name}", settings, lambda make=make, md=md, name=name: make(md, name)
            )
        return {
            "student": runs["student"],
            "teachers": [runs["teacher_first"], runs["teacher_second"]],
            "conditions": (
                f"{chosen.md.ensemble} at {chosen.md.temperature:g} K, {chosen.md.timestep:g} fs, "
                f"{chosen.md.steps * chosen.md.timestep / 1e3:g} ps, the first "
                f"{chosen.observables.start:g} ps left out; {chosen.replicas} replicas of the "
                f"student, {replicas} in each of the two runs of the teacher."
            ),
        }

    def speed(self) -> dict[str, Any]:
        """MD steps of teacher and student in turn."""
        settings = {"repeats": self.config.speed_repeats, "timestep": self.config.nve.timestep}
        device = describe_environment()["device"]
        return self.kept.get(
            "speed",
            {**settings, "device": device, "teacher": self.teacher.info.weights_sha256},
            lambda: compare_md_speed(
                self.teacher.potential(self.atoms),
                self.student.potential(self.atoms),
                self.atoms,
                temperature=self.config.nve.temperature,
                **settings,
            ),
        )

    def domain(self) -> dict[str, Any] | None:
        """What the training data cover, and what of the tested system lies outside."""
        domain = self.bundle.card.get("domain")
        if not domain:
            return None
        return {
            "domain": domain,
            "cutoff_ang": self.student.cutoff,
            "outside": outside_domain(self.atoms, domain, distance_factor=0.95),
        }


def held_out(config: CertifyConfig, bundle: Bundle, dataset: Dataset) -> np.ndarray:
    """Usable structures of the trajectories that the training held out.

    Raises:
        ConfigError: it is not known which those are, or the dataset has none of them.
    """
    path = config.split or config.bundle.parent / "split.json"
    if path.is_file():
        trajectories = json.loads(path.read_text())["test"]
    else:
        recorded = (bundle.card.get("dataset") or {}).get("trajectories") or {}
        trajectories = recorded.get("test")
    if not trajectories:
        raise ConfigError(
            f"neither {path} nor the card of {config.bundle} says which trajectories were held "
            "out: give split=FILE, as train.py writes it"
        )
    found = np.flatnonzero(np.isin(dataset.trajectory, trajectories) & dataset.usable)
    if not len(found):
        raise ConfigError(
            f"{config.dataset} holds none of the held-out trajectories, for example "
            f"{trajectories[0]}: give the file that the student is to be tested on"
        )
    return found


def assemble(job: Job, results: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Certificate and sections of the page from the results; plots are written on the way."""
    config, dynamics = job.config, results.get("dynamics")
    overlaps, judged = [], dict(results)
    if dynamics:
        overlaps = compare_curves(dynamics["student"], dynamics["teachers"])
        judged["dynamics_checks"] = dynamics_checks(
            dynamics["student"],
            dynamics["teachers"],
            config.limits,
            periodic=bool(job.atoms.pbc.all()),
            constant_pressure=config.dynamics.md.ensemble.startswith("npt"),
        )
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
