"""What `certify.py` measures: one method for each part of the certificate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from hashlib import sha256
from typing import Any

import jax
import numpy as np
from ase import Atoms

from bundle_teacher import teacher_of
from certify_config import CertifyConfig
from distill.calculators import TeacherCalculator
from distill.data import Dataset, load
from distill.errors import ConfigError
from distill.evaluation import compare_md_speed, measure_accuracy
from distill.evaluation.approach import compare_contacts
from distill.evaluation.breakdown import calibration, error_breakdown, shown_forces
from distill.evaluation.consistency import STEP, energy_force_consistency
from distill.evaluation.density import compare_density
from distill.evaluation.domain import closest_seen, outside_domain
from distill.evaluation.dynamics import observe, record_of
from distill.evaluation.energies import energies_of, label_frames
from distill.evaluation.environment import describe_environment
from distill.evaluation.kept_parts import KeptParts
from distill.evaluation.nve_drift import nve_drift
from distill.evaluation.stability_time import run_until_event, summarise_outcomes
from distill.evaluation.teacher_ase import run_with_ase
from distill.observables import Observables
from distill.simulation import MDConfig
from distill.simulation.config import BAROSTATS
from distill.students import Bundle, load_bundle
from distill.teachers import Teacher
from held_out import held_out
from simulation_start import read_start

ABOVE_TRAINING = (1.25, 1.5)
"""Default temperatures of the stability runs, over the highest of the training data."""


class Job:
    """The student, the data and the system of a certificate; one method for each part."""

    def __init__(self, config: CertifyConfig) -> None:
        self.config = config
        self.bundle: Bundle = load_bundle(config.bundle)
        self.student = self.bundle.student
        self.dataset: Dataset = load(config.dataset)
        self.test = held_out(config, self.bundle, self.dataset)
        start = self.dataset.structure(int(self.test[0]))
        self.atoms: Atoms = read_start(config.structure) if config.structure else start
        self.student.species(self.atoms.numbers)
        system = {
            "numbers": self.atoms.numbers.tolist(),
            "positions": self.atoms.positions.tolist(),
            "cell": self.atoms.cell.array.tolist(),
            "pbc": self.atoms.pbc.tolist(),
            "seed": config.seed,
        }
        identity = {
            "bundle": self.bundle.card["sha256"],
            "dataset": self.dataset.sha256,
            "test": self.test.tolist(),
            **system,
        }
        self.kept = KeptParts(config.output / "parts", identity)
        folder = config.dynamics.teacher_runs
        # The teacher's runs depend on no student.
        self.teacher_kept = KeptParts(folder, system) if folder else self.kept

    @cached_property
    def teacher(self) -> Teacher:
        """Loaded when first needed; raises ConfigError where it is not the bundle's."""
        return teacher_of(self.bundle, self.config.teacher, self.config.bundle)

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
        settings = asdict(self.config.consistency) | {"step": STEP}

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
        replicas = (chosen.teacher_replicas or chosen.replicas) if in_jax else 1

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
            calculator = TeacherCalculator(self.teacher)
            run_with_ase(calculator, self.atoms, md, measured, seed=md.seed, description=name)
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
            kept = self.kept if name == "student" else self.teacher_kept
            runs[name] = kept.get(f"dynamics_{name}", settings, partial(make, md, name))
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

    def contacts(self) -> dict[str, Any]:
        """Energies of atoms that are pushed together."""
        chosen = self.config.contacts
        settings = asdict(chosen) | {"teacher": self.teacher.info.weights_sha256}

        return self.kept.get(
            "contacts",
            settings,
            lambda: compare_contacts(
                self.atoms, self.student.label, self.teacher.label, **asdict(chosen)
            ),
        )

    def density(self) -> dict[str, Any] | None:
        """Density in NPT by weights; None for what has none or where the dynamics give it."""
        chosen = self.config.density
        if not self.atoms.pbc.all() or self.config.dynamics.md.ensemble in BAROSTATS:
            return None
        md = replace(chosen.md, seed=chosen.md.seed + self.config.seed)
        settings = asdict(replace(chosen, md=md)) | {"teacher": self.teacher.info.weights_sha256}

        def student(structures: Sequence[Atoms]) -> np.ndarray:
            label = partial(self.student.label, dtype=np.float64)
            with jax.enable_x64(True):
                return energies_of(label, structures, 16, whose="density: student", progress=True)

        def teacher(structures: Sequence[Atoms]) -> np.ndarray:
            per_run = len(structures) // chosen.replicas
            names = [f"density-{number // per_run}" for number in range(len(structures))]
            run = json.dumps([self.bundle.card["sha256"], settings], sort_keys=True, default=str)
            name = f"density_{sha256(run.encode()).hexdigest()[:12]}.h5"
            path = self.config.output / "parts" / name
            return label_frames(self.teacher, structures, names, "certify:density", path).energy

        return self.kept.get(
            "density",
            settings,
            lambda: compare_density(
                self.student.potential(self.atoms),
                self.atoms,
                md,
                student,
                teacher,
                replicas=chosen.replicas,
                start=chosen.start,
                frames=chosen.frames,
            ),
        )

    def speed(self) -> dict[str, Any]:
        """MD steps of teacher and student in turn."""
        repeats, timestep = self.config.speed_repeats, self.config.nve.timestep
        device = describe_environment()["device"]
        return self.kept.get(
            "speed",
            {
                "repeats": repeats,
                "timestep": timestep,
                "device": device,
                "teacher": self.teacher.info.weights_sha256,
            },
            lambda: compare_md_speed(
                self.teacher.potential(self.atoms),
                self.student.potential(self.atoms),
                self.atoms,
                temperature=self.config.nve.temperature,
                timestep=timestep,
                repeats=repeats,
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
