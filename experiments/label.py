"""Label structures by any teacher into a dataset file.

    python experiments/label.py --list-teachers
    python experiments/label.py teacher=fennol:ani1ccx structures=md.extxyz output=labels.h5
    python experiments/label.py --smoke

Started again with the same settings, it goes on after the last stored structure.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distill import teachers
from distill.data import Dataset, HessianConfig, flag_summary, label_structures, load
from distill.data import read_structures as read_file
from distill.data.flags import MAX_FORCE
from distill.sampling import rattle, read_structure
from distill.teachers.listing import format_teachers, list_teachers
from quickstart import resolve_teacher
from script import run_script

SMOKE = ("structures=CH3CH2OH", "rattled=8", "output=runs/smoke/labels.h5", "batch_size=4")


@dataclass(frozen=True)
class LabelConfig:
    """Settings.

    Attributes:
        teacher: a name for `distill.teachers.load`, or a list of names for a committee.
        structures: a file that ASE reads, a dataset (.h5), or a molecule of `ase.build.molecule`.
        output: dataset file, new or partly filled by an earlier run.
        rattled: displaced copies that are labelled instead of the structures as they are.
        rattle: Å, standard deviation of those displacements.
        batch_size: structures per call of the teacher.
        max_force: eV/Å, structures with longer forces are flagged.
        hessian: which Hessian-vector products are labelled too; none by default.
        uncertainty: store the spread of a committee's forces too.
        seed: of the displacements.
    """

    teacher: str | list[str] = "fennol:models/demo_chno.fnx"
    structures: str = "CH3CH2OH"
    output: Path = Path("labels.h5")
    rattled: int = 0
    rattle: float = 0.05
    batch_size: int = 32
    max_force: float = MAX_FORCE
    hessian: HessianConfig | None = field(default=None)
    uncertainty: bool = False
    seed: int = 0


def main(argv: list[str] | None = None) -> int:
    """Label, or list the teachers; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--list-teachers" in arguments:
        print(format_teachers(list_teachers()))
        return 0
    return run_script(LabelConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: LabelConfig) -> Dataset:
    """The labelled dataset, which is also in `config.output`."""
    names = [config.teacher] if isinstance(config.teacher, str) else config.teacher
    resolved = [resolve_teacher(name) for name in names]
    teacher = teachers.load(resolved[0] if isinstance(config.teacher, str) else resolved)
    dataset = label_structures(
        teacher,
        read_structures(config),
        config.output,
        batch_size=config.batch_size,
        max_force=config.max_force,
        hessian=config.hessian,
        uncertainty=config.uncertainty,
    )
    print(f"{config.output}: " + ", ".join(f"{k} {v}" for k, v in flag_summary(dataset).items()))
    return dataset


def read_structures(config: LabelConfig) -> Dataset:
    """What is to be labelled, displaced if that is asked for."""
    path = Path(config.structures)
    if path.suffix == ".h5":
        found = load(path)
    elif path.is_file():
        found = read_file(path)
    else:
        found = Dataset.from_structures([read_structure(config.structures)], path.name, "molecule")
    if config.rattled == 0:
        return found
    chosen = np.arange(config.rattled) % len(found)
    moved = rattle([found.structure(int(i)) for i in chosen], config.rattle, config.seed)
    trajectories = [f"{found.trajectory[i]}-rattled" for i in chosen]
    return Dataset.from_structures(moved, trajectories, f"rattle:{config.rattle}")


if __name__ == "__main__":
    raise SystemExit(main())
