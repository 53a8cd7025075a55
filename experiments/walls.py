"""Do atoms of the student repel each other as the teacher's do, or does its energy fall?

    python experiments/walls.py bundle=runs/x/student structure=frame.xyz
    python experiments/walls.py --smoke

Pushes the nearest pair of each two elements that is not bonded together, by whole molecules and by
the atoms alone, and compares the energies of student and teacher on the way. A student whose energy
falls by 0.5 eV while it is as much lower than the teacher's has a hole. A run that crosses the
barrier before it may collapse: label close contacts (`squeeze` of `sample.py`) and train on. One
frame and the nearest pairs are looked at, so that no hole found is no proof that there is none.
Writes `walls.json` and `walls.png`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import train
from bundle_teacher import teacher_of
from distill.errors import ConfigError, TeacherError, UnsupportedStructureError
from distill.evaluation.approach import REACH, compare_contacts
from distill.evaluation.certificate_plots import plot_walls
from distill.evaluation.results import record_figures, replace_text
from distill.students import load_bundle
from script import command_of, run_script
from simulation_records import wall_figures
from simulation_start import read_start

SMOKE = (
    f"bundle={train.SMOKE_RUN}/student",
    "structure=CH3CH2OH",
    "teacher=fennol:models/demo_chno.fnx",
    "step=0.2",
    "output=runs/smoke/walls",
)


@dataclass(frozen=True)
class WallsConfig:
    """Settings.

    Attributes:
        bundle: the student.
        structure: file whose last frame is the start, or a molecule that ASE knows.
        teacher: see `distill.teachers.load`; that of the bundle by default.
        closest: shortest distance, in sums of covalent radii.
        step: Å, the largest between two distances.
        up_to: eV, rise of the teacher's energy up to which errors count.
        batch_size: structures per call of student and teacher.
        output: folder.
        record: JSON file to which the figures are added.
        case: name of what was pushed in the records.
        subject: name of the student there; its bundle's by default.
    """

    bundle: Path
    structure: str
    teacher: str = ""
    closest: float = 0.8
    step: float = 0.05
    up_to: float = 5.0
    batch_size: int = 32
    output: Path = Path("runs/walls")
    record: Path | None = None
    case: str = "close contacts"
    subject: str = ""

    def __post_init__(self) -> None:
        if not (self.closest > 0 and self.step > 0 and self.up_to > 0 and self.batch_size > 0):
            raise ConfigError("closest, step, up_to and batch_size must be positive")


def main(argv: list[str] | None = None) -> int:
    """Compare; returns the exit status, 0 also where there are holes."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--smoke" in arguments:
        train.make_smoke_student()
    return run_script(WallsConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: WallsConfig) -> dict[str, Any]:
    """What is in `walls.json`."""
    bundle = load_bundle(config.bundle)
    teacher = teacher_of(bundle, config.teacher, config.bundle)
    atoms = read_start(config.structure)
    compared = compare_contacts(
        atoms,
        bundle.student.label,
        teacher.label,
        closest=config.closest,
        step=config.step,
        up_to=config.up_to,
        batch_size=config.batch_size,
    )
    if "broke_down" in compared:
        raise TeacherError(f"{compared['broke_down']}: give a larger closest")
    walls = compared["approaches"]
    if not walls:
        raise UnsupportedStructureError(
            f"{config.structure}: there are no two atoms within {REACH:g} Å that are not bonded"
        )
    for wall in walls:
        report(wall)
    found = {"bundle": str(config.bundle), "structure": config.structure, "approaches": walls}
    config.output.mkdir(parents=True, exist_ok=True)
    replace_text(config.output / "walls.json", json.dumps(found, indent=1) + "\n")
    plot_walls(walls, config.up_to).savefig(config.output / "walls.png", dpi=150)
    if config.record is not None:
        subject = config.subject or str(config.bundle)
        figures = wall_figures(walls, config.case, subject)
        record_figures(figures, config.record, command_of("walls", config))
    return found


def report(wall: dict[str, Any]) -> None:
    """One line for one pair."""
    hole = "no hole"
    if wall["falls_at_ang"] is not None:
        at, barrier = wall["falls_at_ang"], wall["barrier_ev"]
        hole = f"a hole at {at:.2f} Å, behind a barrier of {barrier:.2f} eV"
    first, second = wall["atoms"]
    print(
        f"{wall['name']} (atoms {first} and {second}, from {wall['distances_ang'][0]:.2f} Å): "
        f"largest error {wall['largest_error_ev']:.2f} eV, {hole}"
    )


if __name__ == "__main__":
    sys.exit(main())
