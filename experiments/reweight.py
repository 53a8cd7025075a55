"""The teacher's averages without a run of the teacher: those of a student's run, reweighted.

    python experiments/reweight.py run=runs/water/npt teacher=fennol:ani1ccx
    python experiments/reweight.py --smoke

Takes frames of a run of `simulate.py` (NVT or NPT, one temperature and pressure) that are far
apart, labels them by the teacher and weights them by exp(-(U_teacher - U_student) / kT). Gives
density and pressure of both ensembles, the pressure of the student against the teacher on equal
frames, and the effective share of the frames: how much the two ensembles overlap. With
`students=[BUNDLE]` also what runs of other students would give, which spares such runs while
students are compared; with `bond_factors=[1.3]` how often bonds change in both ensembles. Labelling
goes on where it was interrupted. Writes `reweighted.json` and `reweighted.png`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

import simulate
import train
from bundle_teacher import teacher_of
from distill.config import load_config
from distill.errors import ConfigError, DatasetError
from distill.evaluation.results import record_figures, replace_text
from distill.evaluation.reweighting import (
    BLOCKS,
    effective_share,
    evenly_spread,
    reweight,
    teacher_weights,
)
from distill.simulation import TrajectoryReader
from distill.simulation.config import BAROSTATS
from distill.simulation.frames import mass_density
from distill.students import load_bundle
from distill.units import BOLTZMANN
from reweight_events import event_figures, report_events, weigh_events
from reweight_labels import label, predicted
from reweight_report import figures_of, picture, report, report_predicted
from script import command_of, run_script
from simulation_records import DENSITY, PRESSURE_ON_FRAMES

SMOKE_RUN = Path("runs/smoke/reweight_run")
SMOKE = (
    f"run={SMOKE_RUN}",
    "teacher=fennol:models/demo_chno.fnx",
    "frames=10",
    "start=0.0",
    "output=runs/smoke/reweighted",
)


@dataclass(frozen=True)
class ReweightConfig:
    """Settings.

    Attributes:
        run: folder of a finished run of `simulate.py` of a student.
        teacher: see `distill.teachers.load`; that of the bundle by default.
        students: bundles of other students, whose averages are predicted from the same frames.
        frames: most of all replicas together, evenly spread in time.
        start: ps at the start of the run that are left out.
        bond_factors: sums of covalent radii up to which a pair is bonded, for each of which frames
            whose bonds are not those of most frames are counted and weighted; at most `frames` of
            them, chosen at random.
        batch_size: frames for each call of the teacher.
        output: folder.
        record: JSON file to which the figures are added.
        case: name of what was run in the records.
        subject: name of the student there; its bundle's by default.
    """

    run: Path
    teacher: str = ""
    students: tuple[Path, ...] = ()
    frames: int = 1000
    start: float = 5.0
    bond_factors: tuple[float, ...] = ()
    batch_size: int = 16
    output: Path = Path("runs/reweighted")
    record: Path | None = None
    case: str = ""
    subject: str = ""

    def __post_init__(self) -> None:
        if self.record is not None and not self.case:
            raise ValueError("records need a name of what was run: give case=NAME")
        if self.frames < 1 or self.batch_size < 1 or self.start < 0:
            raise ValueError("frames and batch_size must be at least 1, start at least 0")
        named = {f"{factor:g}" for factor in self.bond_factors}
        if not all(factor > 0 for factor in self.bond_factors) or len(named) < len(
            self.bond_factors
        ):
            raise ValueError(
                f"bond_factors must be positive and different, not {list(self.bond_factors)}"
            )


def main(argv: list[str] | None = None) -> int:
    """Reweight; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--smoke" in arguments and not (SMOKE_RUN / "summary.json").is_file():
        train.make_smoke_student()
        settings = "md={ensemble: nvt_langevin, steps: 200, record_every: 10, block_steps: 100}"
        model = f"model={train.SMOKE_RUN}/student"
        status = simulate.main(["--smoke", model, settings, "replicas=2", f"output={SMOKE_RUN}"])
        if status:
            return status
    return run_script(ReweightConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: ReweightConfig) -> dict[str, Any]:
    """What is in `reweighted.json`."""
    then = simulated(config)
    bundle = load_bundle(Path(then.model))
    teacher = teacher_of(bundle, config.teacher, then.model)
    frames = read_frames(config, then)
    student, labels = label(bundle.student, teacher, frames, config)
    weights = teacher_weights(student.energy, labels.energy, then.md.temperature)
    apart = labels.energy - student.energy
    difference = apart / (BOLTZMANN * then.md.temperature)
    density = frames_density(frames) if then.md.ensemble in BAROSTATS else None
    averages = {} if density is None else {DENSITY: reweight(density, weights)}
    if np.isfinite(labels.pressure).all():
        averages[PRESSURE_ON_FRAMES] = reweight(student.pressure - labels.pressure, weights)
    found: dict[str, Any] = {
        "run": str(config.run),
        "ensemble": then.md.ensemble,
        "temperature_k": then.md.temperature,
        "atoms": len(frames[0][0]),
        "replicas": len(frames),
        "frames": difference.size,
        "effective_share": effective_share(weights),
        "spread_of_energy_differences_kt": float(difference.std()),
        "averages": {name: asdict(average) for name, average in averages.items()},
    }
    found["students"] = {
        str(path): predicted(path, frames, student, labels, then.md.temperature, density)
        for path in config.students
    }
    save(found, config)
    if config.bond_factors:
        found["events"] = weigh_events(
            config,
            simulate.trajectories(replace(then, output=config.run)),
            frames,
            apart,
            then.md.temperature,
            lambda part, some: [
                own.energy[0] for own in label(bundle.student, teacher, [some], part)
            ],
        )
        save(found, config)
    picture(difference, weights, density).savefig(config.output / "reweighted.png", dpi=150)
    if config.record is not None:
        subject = config.subject or then.model
        figures = figures_of(found, config.case, subject)
        for name, other in found["students"].items():
            seen = other | {"frames": found["frames"]}
            figures += figures_of(seen, f"{config.case}, predicted", name)
        figures += event_figures(found.get("events", []), config.case, subject)
        record_figures(figures, config.record, command_of("reweight", config))
    report(found)
    report_predicted(found["students"])
    report_events(found.get("events", []))
    return found


def save(found: dict[str, Any], config: ReweightConfig) -> None:
    """The results in `reweighted.json`."""
    replace_text(config.output / "reweighted.json", json.dumps(found, indent=1) + "\n")


def frames_density(frames: list[list[Atoms]]) -> np.ndarray:
    """`[R, T]`, g/cm³."""
    cells = np.array([[atoms.cell.array for atoms in own] for own in frames])
    return mass_density(frames[0][0].numbers, cells)


def simulated(config: ReweightConfig) -> simulate.SimulateConfig:
    """The settings of the run.

    Raises:
        ConfigError: it is not finished, or was made in an ensemble without a temperature, by a
            teacher, or at several temperatures or pressures.
    """
    if not (config.run / "summary.json").is_file():
        raise ConfigError(f"run={config.run} is no folder of a finished run of simulate.py")
    then = load_config(simulate.SimulateConfig, config.run / "config.yaml")
    if then.md.ensemble == "nve" or then.md.temperatures or then.md.pressures:
        raise ConfigError(
            f"{config.run} is not a run at one temperature (and pressure), {then.md.ensemble}: "
            "weights are defined for NVT and NPT, one condition at a time"
        )
    if not Path(then.model).is_dir():
        raise ConfigError(f"{config.run} is a run of {then.model}, which is no student's bundle")
    return then


def read_frames(config: ReweightConfig, then: simulate.SimulateConfig) -> list[list[Atoms]]:
    """Frames of each replica, evenly spread.

    Raises:
        DatasetError: too few are left, or the trajectories are not equally long.
    """
    paths = simulate.trajectories(replace(then, output=config.run))
    found = [list(_chosen(path, config, max(config.frames // len(paths), 1))) for path in paths]
    if len({len(own) for own in found}) > 1:
        raise DatasetError(f"{config.run}: the trajectories are not equally long")
    return found


def _chosen(path: Path, config: ReweightConfig, wanted: int) -> Iterator[Atoms]:
    reader = TrajectoryReader(path)
    times = np.concatenate([frames.time for frames in reader.frames()])
    kept = np.flatnonzero(times > 1000 * config.start)
    if min(len(kept), wanted) < BLOCKS:
        raise DatasetError(
            f"{path} holds {len(kept)} frames after {config.start:g} ps, of which {wanted} are "
            f"wanted; at least {BLOCKS} are needed: run longer, leave less out (start), or take "
            "more (frames)"
        )
    taken, first = set(kept[evenly_spread(len(kept), wanted)].tolist()), 0
    for frames in reader.frames():
        for number in range(len(frames.time)):
            if first + number in taken:
                atoms = Atoms(reader.atoms.numbers, frames.positions[number], pbc=reader.atoms.pbc)
                atoms.set_cell(frames.cell[number])
                yield atoms
        first += len(frames.time)


if __name__ == "__main__":
    sys.exit(main())
