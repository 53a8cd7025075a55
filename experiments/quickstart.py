"""The main job in one script: label, train, evaluate and simulate, with a certificate at the end.

    python experiments/quickstart.py --config experiments/configs/quickstart.yaml
    python experiments/quickstart.py --config experiments/configs/ethanol_ani1ccx.yaml

A run that was interrupted continues where it stopped; a run with other settings needs another
`output=` folder.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from distill import teachers
from distill.config import config_to_dict
from distill.data import Dataset, flag_summary, label_structures, load, save, split_by_trajectory
from distill.errors import BundleError
from distill.evaluation import (
    compare_md_speed,
    make_certificate,
    measure_accuracy,
    run_nve,
    save_certificate,
    save_plots,
    summarise_nve,
)
from distill.evaluation.domain import training_domain
from distill.sampling import read_structure, sample_by_md
from distill.simulation import TrajectoryWriter
from distill.students import (
    Student,
    StudentSpec,
    initialise_student,
    load_bundle,
    save_bundle,
)
from distill.teachers import Teacher
from distill.training import fit, read_metrics
from quickstart_config import SMOKE, QuickstartConfig
from script import claim_folder, run_script

HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns the exit status."""
    return run_script(QuickstartConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: QuickstartConfig) -> dict[str, Any]:
    """All stages; returns the certificate."""
    output = config.output
    claim_folder(config)
    clock = Clock()
    teacher = teachers.load(resolve_teacher(config.teacher))
    atoms = read_structure(config.structure)

    with clock("sampling and labelling"):
        dataset = sample_and_label(teacher, atoms, config)
    usable = np.flatnonzero(dataset.usable)
    parts = {
        name: usable[indices]
        for name, indices in split_by_trajectory(
            dataset.subset(usable), vars(config.split), seed=config.seed
        ).items()
    }

    with clock("training"):
        spec = StudentSpec(
            config.student.architecture,
            dataset.elements,
            config.student.cutoff,
            config.student.options,
        )
        start = initialise_student(spec, dataset, parts["train"], config.training.seed)
        print(f"student: {start.n_parameters} parameters, {len(parts['train'])} structures")
        result = fit(
            start,
            dataset,
            parts["train"],
            parts["validation"],
            config.training,
            output / "training",
        )
    student = result.student

    accuracy = measure_accuracy(student.label, dataset, parts["test"])
    summary = accuracy.summary() | teacher_spread(teacher, dataset, parts["test"])
    with clock("MD"):
        nve, nve_summary = simulate(student, atoms, config)
    with clock("timing"):
        speed = compare_md_speed(
            teacher.potential(atoms),
            student.potential(atoms),
            atoms,
            temperature=config.nve.temperature,
            timestep=config.nve.timestep,
            repeats=config.speed_repeats,
        )

    certificate = make_certificate(
        teacher=teacher.info.provenance(),
        student=student,
        atoms=atoms,
        dataset=dataset,
        parts=parts,
        accuracy=summary,
        nve=nve_summary,
        speed=speed,
        precision="float32",
        targets=config.targets,
        timings=clock.seconds,
    )
    plots = save_plots(
        output,
        accuracy=accuracy,
        metrics=read_metrics(output / "training" / "metrics.csv"),
        nve=nve.frames,
        drift=nve_summary["drift_mev_per_atom_per_ps"],
        speed=speed,
        n_atoms=len(atoms),
        title=f"{atoms.get_chemical_formula()}: {student.spec.architecture} student of "
        f"{teacher.info.name}",
    )
    save_certificate(certificate, output, plots[:-1])
    domain = training_domain(dataset, parts["train"])
    bundle = save_bundle(
        student, output / "student", card(certificate, dataset, config) | {"domain": domain}
    )
    check_bundle(bundle, student, atoms)
    print_summary(certificate, bundle)
    return certificate


def resolve_teacher(name: str) -> str:
    """`name` with the path of a file made absolute if it is relative to this script."""
    kind, _, rest = name.partition(":")
    target, mark, options = rest.partition("?")
    if (HERE / target).is_file() and not Path(target).is_file():
        return f"{kind}:{HERE / target}{mark}{options}"
    return name


def sample_and_label(teacher: Teacher, atoms: Atoms, config: QuickstartConfig) -> Dataset:
    """Teacher MD, then labels; both are kept, so that a second call finds them done."""
    sampled = config.output / "structures.h5"
    if sampled.exists():
        structures = load(sampled)
    else:
        structures = sample_by_md(teacher.potential, atoms, config.sampling)
        save(structures, sampled)
    dataset = label_structures(
        teacher, structures, config.output / "dataset.h5", batch_size=config.label_batch_size
    )
    counts = ", ".join(f"{name} {count}" for name, count in flag_summary(dataset).items())
    print(f"labelled structures: {counts}")
    return dataset


def teacher_spread(teacher: Teacher, dataset: Dataset, indices: np.ndarray) -> dict[str, float]:
    """RMS difference of a committee's members from their mean, on the held-out structures."""
    if teacher.info.n_members < 2:
        return {}
    structures = [dataset.structure(int(i)) for i in indices]
    variances: list[float] = []
    for first in range(0, len(structures), 32):
        labels = teacher.label(structures[first : first + 32], uncertainty=True)
        variances.extend(np.concatenate(labels.uncertainty or []) ** 2 / 3)
    return {"teacher_spread_mev_per_ang": float(1e3 * np.sqrt(np.mean(variances)))}


def simulate(student: Student, atoms: Atoms, config: QuickstartConfig) -> tuple[Any, Any]:
    """NVE with the student; the trajectory is written beside the certificate."""
    result = run_nve(
        student.potential(atoms),
        atoms,
        temperature=config.nve.temperature,
        duration=config.nve.duration,
        timestep=config.nve.timestep,
        seed=config.seed,
    )
    path = config.output / "nve.extxyz"
    path.unlink(missing_ok=True)
    with TrajectoryWriter(path, atoms, student.reference_energy(atoms.numbers)) as writer:
        writer.write(result.frames)
    return result, summarise_nve(result, len(atoms), config.nve.timestep)


def card(
    certificate: Mapping[str, Any], dataset: Dataset, config: QuickstartConfig
) -> dict[str, Any]:
    """What a user of the bundle must know."""
    return {
        "system": certificate["system"],
        "teacher": certificate["teacher"],
        "dataset": {"sha256": dataset.sha256, **certificate["data"]},
        "training_range": {
            "temperatures_k": list(config.sampling.temperatures),
            "largest_force_ev_per_ang": float(
                np.linalg.norm(dataset.forces, axis=1)[np.isfinite(dataset.forces).all(1)].max()
            ),
        },
        "errors": certificate["accuracy"],
        "nve": certificate["nve"],
        "configuration": config_to_dict(config),
        "licence": "unspecified; the teacher's licence is recorded with it",
    }


def check_bundle(path: Path, student: Student, atoms: Atoms) -> None:
    """What was saved must give what was measured."""
    difference = (
        load_bundle(path).student.label([atoms]).forces[0] - student.label([atoms]).forces[0]
    )
    if np.abs(difference).max() > 1e-5:
        raise BundleError(f"{path} does not reproduce the forces of the student that was trained")


def print_summary(certificate: Mapping[str, Any], bundle: Path) -> None:
    """The result in a few lines."""
    print(f"\n{certificate['system']['formula']}: student of {certificate['teacher']['teacher']}")
    for check in certificate["checks"]:
        verdict = "ok  " if check["passed"] else "MISS"
        print(f"  {verdict} {check['name']:<26} {check['measured']:<12.5g} {check['target']}")
    speed = certificate["speed"]
    print(
        f"  MD step: teacher {speed['teacher_us_per_atom_step']:.3g}, student "
        f"{speed['student_us_per_atom_step']:.3g} µs/atom"
    )
    times = ", ".join(f"{k} {v:.0f} s" for k, v in certificate["timings_seconds"].items())
    print(f"  time: {times}")
    print(f"  bundle: {bundle}\n  certificate and plots: {bundle.parent}")


class Clock:
    """Seconds spent in named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name = ""
        self._begun = 0.0

    def __call__(self, name: str) -> Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self.seconds[self._name] = time.monotonic() - self._begun


if __name__ == "__main__":
    sys.exit(main())
