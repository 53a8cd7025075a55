"""Settings of `on_policy.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from distill.errors import ConfigError
from distill.sampling import SystemConfig
from distill.sampling.on_policy import ChoiceConfig
from distill.simulation import SafetyConfig
from training_job import TrainConfig


@dataclass(frozen=True)
class RunsConfig:
    """The student's runs of each round, which are the gate and show where labels are needed.

    Attributes:
        temperatures: K.
        replicas: of each start at each temperature.
        duration: ps, of each.
        timestep: fs.
        friction: 1/fs, of the Langevin bath.
        record_every: steps between frames that are looked at and may be labelled.
        rattle: Å, displacements that part the replicas at the start.
        safety: what counts as an unphysical event.
    """

    temperatures: tuple[float, ...] = (300.0, 500.0)
    replicas: int = 4
    duration: float = 20.0
    timestep: float = 0.5
    friction: float = 0.01
    record_every: int = 40
    rattle: float = 0.02
    safety: SafetyConfig = field(
        default_factory=lambda: SafetyConfig(bonds="stop", bond_time=50.0, geometry_every=1)
    )


@dataclass(frozen=True)
class OnPolicyConfig:
    """Settings.

    Attributes:
        teacher: name for `distill.teachers.load`, the one that labelled `train.datasets`.
        train: training of each round. `train.datasets` are the first labels; `train.test`, or else
            the test share of the split, stays held out in all rounds. `output` is not used.
        system: starts of the runs.
        runs: the student's.
        choice: which frames are labelled.
        force_mae_mev_per_ang: of the gate, largest error on the held-out trajectories.
        rounds: most trainings.
        labels: most structures labelled in all rounds together.
        warm: each training starts from the student of the round before, not anew.
        batch_size: structures per call of the teacher.
        output: folder.
        seed: of the runs; each round has its own noise.
    """

    teacher: str = "fennol:models/demo_chno.fnx"
    train: TrainConfig = field(default_factory=TrainConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    runs: RunsConfig = field(default_factory=RunsConfig)
    choice: ChoiceConfig = field(default_factory=ChoiceConfig)
    force_mae_mev_per_ang: float = 50.0
    rounds: int = 5
    labels: int = 1000
    warm: bool = True
    batch_size: int = 32
    output: Path = Path("runs/on_policy")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.labels < 0 or self.batch_size < 1:
            raise ConfigError("rounds and batch_size are at least 1, labels not negative")
