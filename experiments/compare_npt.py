"""The density of a student in NPT by two programs: our loop in JAX, and ASE.

    python experiments/compare_npt.py student=runs/water_nep/student/student \\
        structure=runs/water_nep/test.h5 case='water, 300 K, 1 bar'
    python experiments/compare_npt.py --smoke

Stochastic cell rescaling on the device lists against the dynamics of Martyna, Tobias and Klein in
ASE with `StudentCalculator`: other integrators, other neighbour lists, another way to the virial.
Both sample the same ensemble, so the densities must agree within their error bars.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import train
from distill.calculators import StudentCalculator
from distill.errors import UnsupportedStructureError
from distill.evaluation.results import Figure, record_figures
from distill.evaluation.teacher_ase import run_with_ase
from distill.observables import Estimate, Observables, ObservablesConfig
from distill.sampling import pack_liquid
from distill.simulation import MDConfig, run_md
from distill.students import load_bundle
from script import command_of, run_script
from simulation_records import DENSITY
from simulation_start import read_start

ROOT = Path(__file__).resolve().parent.parent
AGREEMENT = "density in NPT, our loop against ASE"
SMOKE_START = Path("runs/smoke/liquid.xyz")
SMOKE = (
    f"student={train.SMOKE_RUN}/student",
    f"structure={SMOKE_START}",
    "md={ensemble: npt_scr, timestep: 0.1, temperature: 50.0, steps: 20, record_every: 2, "
    "block_steps: 10}",
    "start=0.0",
    "replicas=2",
    "output=runs/smoke/simulation.json",
)


@dataclass(frozen=True)
class CompareConfig:
    """Settings.

    Attributes:
        student: folder of a bundle.
        structure: start, periodic; a file that ASE reads or a dataset, of which the last frame is
            taken.
        md: of both; ASE takes `thermostat_time` and `barostat_time` for periods.
        replicas: of both, one after the other in ASE.
        start: ps left out.
        case: name of what is run in the records.
        subject: name of the student there.
        output: JSON file of the records.
    """

    student: Path = Path("runs/train/student")
    structure: str = "water.xyz"
    md: MDConfig = field(
        default_factory=lambda: MDConfig(
            ensemble="npt_scr",
            steps=100_000,
            record_every=20,
            block_steps=2000,
            thermostat_time=200.0,
            barostat_time=300.0,
        )
    )
    replicas: int = 4
    start: float = 5.0
    case: str = "density in NPT"
    subject: str = "student"
    output: Path = ROOT / "docs" / "results" / "simulation.json"


def main(argv: list[str] | None = None) -> int:
    """Compare and record; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    own = any(argument.startswith("student=") for argument in arguments)
    if "--smoke" in arguments and not own:
        train.make_smoke_student()
        pack_liquid({"CH3CH2OH": 2}, 0.7).write(SMOKE_START)
    return run_script(CompareConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: CompareConfig) -> float:
    """Both runs; returns the difference of the densities in standard errors."""
    atoms = read_start(config.structure)
    if not atoms.pbc.all():
        raise UnsupportedStructureError(f"{config.structure} is not periodic: it has no density")
    bundle = load_bundle(config.student)
    interval = config.md.timestep * config.md.record_every
    wanted = ObservablesConfig(start=config.start)
    ours = Observables(atoms, wanted, interval, config.replicas, pooled=False)
    run_md(
        bundle.student.potential(atoms),
        np.tile(atoms.positions, (config.replicas, 1, 1)),
        config.md,
        on_frames=ours,
        keep_frames=False,
        description="our loop",
    )
    runs = {"our loop": [one.scalars["density_g_per_cm3"] for one in ours.results()], "ASE": []}
    for seed in range(config.replicas):
        theirs = Observables(atoms, wanted, interval)
        run_with_ase(
            StudentCalculator(bundle),
            atoms,
            config.md,
            theirs,
            seed=config.md.seed + seed,
            description=f"ASE, run {seed}",
        )
        runs["ASE"].append(theirs.results()[0].scalars["density_g_per_cm3"])
    found = {name: mean_of(estimates) for name, estimates in runs.items()}
    figures = []
    for name, (value, error) in found.items():
        span = (value - error, value + error)
        figures.append(
            Figure(f"{config.case}, {name}", config.subject, DENSITY, value, "g/cm³", span)
        )
        print(f"{name}: {value:.4f} ± {error:.4f} g/cm³")
    (one, first), (other, second) = found.values()
    distance = (one - other) / float(np.hypot(first, second))
    print(f"difference {distance:+.2f} standard errors")
    figures.append(
        Figure(config.case, config.subject, AGREEMENT, float(distance), "standard errors")
    )
    record_figures(figures, config.output, command_of("compare_npt", config))
    return float(distance)


def mean_of(estimates: list[Estimate]) -> tuple[float, float]:
    """Mean of independent runs, and its standard error from their differences.

    A single run has the error of its blocks.
    """
    values = np.array([estimate.value for estimate in estimates])
    if len(values) == 1:
        return float(values[0]), float(estimates[0].error)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


if __name__ == "__main__":
    raise SystemExit(main())
