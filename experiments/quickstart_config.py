"""Settings of `quickstart.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.evaluation import Targets
from distill.sampling import MDSamplingConfig
from distill.training import TrainingConfig

SMOKE = (
    "output=runs/smoke",
    "sampling={temperatures: [500.0], replicas: 4, frames: 16, spacing: 10.0, equilibration: 40.0}",
    "training={max_steps: 400, validation_every: 200, warmup_steps: 20, learning_rate: 1e-2}",
    "student.options={n_channels: 4, n_radial: 6, max_l: 2, n_triples: 2, hidden: [16]}",
    "split={train: 0.5, validation: 0.25, test: 0.25}",
    "nve={duration: 0.1, temperature: 50.0}",
    "speed_repeats=2",
)
"""Overrides of `--smoke`: every stage, a few seconds each, a poor student."""


@dataclass(frozen=True)
class StudentConfig:
    """Architecture of the student; see `distill.students.ARCHITECTURES` for the options."""

    architecture: str = "moment"
    cutoff: float = 5.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitConfig:
    """Shares of the structures; whole trajectories go to one part."""

    train: float = 0.7
    validation: float = 0.1
    test: float = 0.2


@dataclass(frozen=True)
class NVEConfig:
    """The run in which energy conservation is tested: ps, K, fs."""

    duration: float = 5.0
    temperature: float = 300.0
    timestep: float = 0.5


@dataclass(frozen=True)
class QuickstartConfig:
    """Settings of the whole job.

    Attributes:
        teacher: name for `distill.teachers.load`; the path of a file may be relative to the
            folder of this script.
        structure: a molecule of `ase.build.molecule` or a file that ASE reads.
        output: folder of the run.
        label_batch_size: structures per call of the teacher.
        speed_repeats: timed runs of teacher and student.
        seed: of the split.
    """

    teacher: str = "fennol:models/demo_chno.fnx"
    structure: str = "CH3CH2OH"
    output: Path = Path("runs/quickstart")
    sampling: MDSamplingConfig = field(default_factory=MDSamplingConfig)
    label_batch_size: int = 32
    split: SplitConfig = field(default_factory=SplitConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    nve: NVEConfig = field(default_factory=NVEConfig)
    speed_repeats: int = 5
    targets: Targets = field(default_factory=Targets)
    seed: int = 0
