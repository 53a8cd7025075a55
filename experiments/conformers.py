"""Populations of a molecule's conformers, student against teacher, by replica exchange.

    python experiments/conformers.py student=runs/ethanol/student structure=CH3CH2OH
    python experiments/conformers.py --smoke

Student, teacher, and the teacher with another seed sample the same ladder of temperatures. A
dihedral angle of the frames at the lowest one says which conformer they are: `wells` names ranges
of it. The distribution of the angle is compared as curves are in a certificate, beside that of the
teacher with itself. A finished run is kept; the same command goes on with the next one.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import get_dihedrals

import train
from bundle_teacher import teacher_of
from distill.errors import ConfigError
from distill.evaluation.dynamics import compare_curves
from distill.evaluation.kept_parts import KeptParts
from distill.evaluation.results import Figure, record_figures
from distill.observables import Curve, block_average
from distill.potential import Potential
from distill.simulation import MDConfig, exchange_summary, run_md
from distill.students import load_bundle
from script import command_of, run_script
from simulation_records import POPULATION, add_curves, overlap_figures
from simulation_start import read_start

ROOT = Path(__file__).resolve().parent.parent
BIN = 10
"""Degrees."""

BLOCKS = 10
"""Parts of a run by which the distribution of the angle has its error."""

SMOKE = (
    f"student={train.SMOKE_RUN}/student",
    "teacher=fennol:models/demo_chno.fnx",
    "md={ensemble: nvt_langevin, timestep: 0.25, temperatures: [100.0, 120.0], steps: 400, "
    "record_every: 10, block_steps: 200, exchange_every: 100}",
    "start=0.02",
    "output=runs/smoke/conformers",
    "record=runs/smoke/simulation.json",
    "curves=runs/smoke/conformers_curves.json",
)


@dataclass(frozen=True)
class ConformersConfig:
    """Settings.

    Attributes:
        student: folder of a bundle.
        teacher: as for `certify.py`; by default that of the bundle.
        structure: a molecule, see `simulate.py`.
        dihedral: numbers of four atoms; those of C-C-O-H in ASE's ethanol.
        wells: degrees from and to, by name of the conformer; an angle is counted by what it is
            beyond the first, in whole turns, so (120, 240) is the range about 180.
        md: of the runs, with `temperatures` that rise.
        start: ps left out.
        output: folder in which finished runs are kept.
        case: name of what is run in the records.
        subject: name of the student there.
        record: JSON file of the records.
        curves: JSON file of the distributions, for the plot.
    """

    student: Path = Path("runs/train/student")
    teacher: str = ""
    structure: str = "CH3CH2OH"
    dihedral: tuple[int, int, int, int] = (0, 1, 2, 3)
    wells: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "trans": (120.0, 240.0),
            "gauche +": (0.0, 120.0),
            "gauche -": (-120.0, 0.0),
        }
    )
    md: MDConfig = field(
        default_factory=lambda: MDConfig(
            ensemble="nvt_langevin",
            timestep=0.5,
            friction=0.005,
            temperatures=(300.0, 350.0, 410.0, 480.0),
            exchange_every=100,
            record_every=20,
            steps=400_000,
            block_steps=4000,
        )
    )
    start: float = 10.0
    output: Path = Path("runs/conformers")
    case: str = "conformers"
    subject: str = "student"
    record: Path = ROOT / "docs" / "results" / "simulation.json"
    curves: Path = ROOT / "docs" / "results" / "conformers_curves.json"

    def __post_init__(self) -> None:
        for name, (low, high) in self.wells.items():
            if not 0 < high - low <= 360:
                raise ValueError(
                    f"wells: {name} must rise by at most 360, not from {low} to {high}"
                )
        if not self.md.exchange_every:
            raise ValueError("md.exchange_every must say when temperatures are exchanged")
        if not 0 <= 1000 * self.start < self.md.steps * self.md.timestep:
            raise ValueError(f"start={self.start} ps leaves nothing of the run")


def main(argv: list[str] | None = None) -> int:
    """Compare and record; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    own = any(argument.startswith("student=") for argument in arguments)
    if "--smoke" in arguments and not own:
        train.make_smoke_student()
    return run_script(ConformersConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: ConformersConfig) -> dict[str, float]:
    """Populations of the student, by conformer."""
    atoms = read_start(config.structure)
    if not 0 <= min(config.dihedral) <= max(config.dihedral) < len(atoms):
        raise ConfigError(f"dihedral={list(config.dihedral)} is not of {len(atoms)} atoms")
    bundle = load_bundle(config.student)
    teacher = teacher_of(bundle, config.teacher, config.student)
    system = {"numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist()}
    kept = KeptParts(config.output, system | {"dihedral": config.dihedral, "start": config.start})
    runs = {}
    for name, potential_of, weights, seed in (
        ("student", bundle.student.potential, bundle.card["sha256"], 0),
        ("teacher", teacher.potential, teacher.info.weights_sha256, 0),
        ("teacher, other seed", teacher.potential, teacher.info.weights_sha256, 1),
    ):
        settings = {"md": asdict(config.md), "weights": weights, "seed": seed}
        make = partial(angles_of, config, atoms, potential_of, seed, name)
        runs[name] = kept.get(name.replace(", ", "_").replace(" ", "_"), settings, make)
    found = {name: np.array(one["angles"]) for name, one in runs.items()}
    figures = population_figures(config, found, teacher.info.name)
    student, *teachers = (as_record(distribution(angles)) for angles in found.values())
    rows = compare_curves(student, teachers)
    figures += overlap_figures(rows, config.case, config.subject)
    for figure in figures:
        print(f"{figure.subject}: {figure.metric} {figure.value:.3f}")
    for name, one in runs.items():
        print(f"{name}: exchanges accepted {one['acceptance']}, round trips {one['round_trips']}")
    add_curves({"student": student, "teachers": teachers}, config.curves, config.case)
    record_figures(figures, config.record, command_of("conformers", config))
    return {
        name: float(belongs(found["student"], *ends).mean()) for name, ends in config.wells.items()
    }


def angles_of(
    config: ConformersConfig, atoms: Atoms, potential_of: Any, seed: int, name: str
) -> dict[str, Any]:
    """Angles in degrees of the frames at the lowest temperature, and how exchanges went."""
    potential: Potential = potential_of(atoms)
    md = replace(config.md, seed=config.md.seed + 1000 * seed)
    starts = np.tile(atoms.positions, (len(md.temperatures), 1, 1))
    result = run_md(potential, starts, md, description=name)
    later = result.frames.time >= 1000 * config.start
    positions = np.asarray(result.frames.positions[later, 0], np.float64)
    a, b, c, d = (positions[:, number] for number in config.dihedral)
    exchange = exchange_summary(result.state, md.steps * md.timestep / 1000)
    return {
        "angles": get_dihedrals(b - a, c - b, d - c).round(2).tolist(),
        "acceptance": [round(pair["acceptance"], 2) for pair in exchange["pairs"]],
        "round_trips": exchange["round_trips"],
    }


def belongs(angles: np.ndarray, low: float, high: float) -> np.ndarray:
    """Which angles lie between two, whole turns left aside."""
    return np.asarray((angles - low) % 360 < high - low)


def distribution(angles: np.ndarray) -> Curve:
    """Density of the angle, from blocks of the run."""
    edges = np.arange(-180, 181, BIN)
    within = (angles + 180) % 360 - 180
    parts = np.array_split(within, min(BLOCKS, len(within)))
    blocks = [np.histogram(part, edges, density=True)[0] for part in parts]
    return Curve(edges[:-1] + BIN / 2, np.stack(blocks), "dihedral angle (degrees)", "density")


def as_record(curve: Curve) -> dict[str, Any]:
    """As runs are kept in certificates."""
    own = {"x": curve.x, "blocks": curve.blocks, "x_label": curve.x_label, "y_label": curve.y_label}
    return {"curves": {"dihedral": own}}


def population_figures(
    config: ConformersConfig, found: dict[str, np.ndarray], teacher: str
) -> list[Figure]:
    """Shares of the frames; the teacher's are the means of its two runs."""
    figures = []
    for name, ends in config.wells.items():
        shares = [block_average(belongs(own, *ends).astype(float)) for own in found.values()]
        theirs = shares[1:]
        value = float(np.mean([one.value for one in theirs]))
        error = float(np.sqrt(sum(one.error**2 for one in theirs))) / len(theirs)
        for subject, share, half in (
            (config.subject, shares[0].value, shares[0].error),
            (teacher, value, error),
        ):
            span = (share - half, share + half)
            figures.append(Figure(config.case, subject, POPULATION + name, share, "1", span))
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
