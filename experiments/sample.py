"""Sample structures to be labelled, from a handful of starts.

    python experiments/sample.py --config experiments/configs/water/sample_seed.yaml
    python experiments/sample.py --smoke

A potential is a teacher (`fennol:ani1ccx`) or a student (`bundle:runs/x/student`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ase import Atoms

from distill import teachers
from distill.data import Dataset, concatenate, save
from distill.potential import Potential
from distill.sampling import MDSamplingConfig, sample_by_md
from distill.sampling.systems import SystemConfig, make_systems
from distill.students import load_bundle
from quickstart import resolve_teacher
from script import run_script

SMOKE = (
    "system={structure: CH3CH2OH}",
    "md={temperatures: [300.0], replicas: 2, frames: 4, spacing: 5.0, equilibration: 10.0}",
    "output=runs/smoke/structures.h5",
)


@dataclass(frozen=True)
class SampleConfig:
    """Settings.

    Attributes:
        system: starts.
        potential: teacher or `bundle:FOLDER` that drives the sampling.
        md: molecular dynamics, every start at every temperature.
        output: dataset file.
    """

    system: SystemConfig = field(default_factory=SystemConfig)
    potential: str = "fennol:models/demo_chno.fnx"
    md: MDSamplingConfig | None = None
    output: Path = Path("structures.h5")


def main(argv: list[str] | None = None) -> int:
    """Sample; returns the exit status."""
    return run_script(SampleConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: SampleConfig) -> Dataset:
    """The structures, which are also in `config.output`."""
    make_potential, name = find_potential(config.potential)
    parts = []
    for number, (system, atoms) in enumerate(make_systems(config.system).items()):
        if config.md is not None:
            md = config.md
            parts.append(
                sample_by_md(
                    make_potential,
                    atoms,
                    MDSamplingConfig(**{**vars(md), "seed": md.seed + 100_000 * number}),
                    name=f"md:{name}",
                    system=system,
                )
            )
    dataset = concatenate(parts)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    save(dataset, config.output)
    print(f"{config.output}: {len(dataset)} structures")
    return dataset


def find_potential(name: str) -> tuple[Callable[[Atoms], Potential], str]:
    """What makes the MD potential of a structure, and its name for the records."""
    kind, _, path = name.partition(":")
    if kind == "bundle":
        student = load_bundle(path).student
        return student.potential, f"student-{Path(path).parent.name}"
    teacher = teachers.load(resolve_teacher(name))
    return teacher.potential, teacher.info.name


if __name__ == "__main__":
    sys.exit(main())
