"""Settings of `certify.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from distill.errors import ConfigError
from distill.evaluation.density import frames_to_weight
from distill.evaluation.verdict import Limits
from distill.observables import ObservablesConfig
from distill.simulation import MDConfig, SafetyConfig

Part = Literal[
    "accuracy", "consistency", "nve", "stability", "contacts", "dynamics", "density", "speed"
]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class ConsistencyConfig:
    """Held-out structures, and force components of each, that are compared."""

    structures: int = 8
    components: int = 30


@dataclass(frozen=True)
class DriftConfig:
    """See `distill.evaluation.nve_drift`: K, ps, ps, fs."""

    temperature: float = 300.0
    duration: float = 50.0
    equilibration: float = 5.0
    timestep: float = 0.5
    replicas: int = 4


@dataclass(frozen=True)
class StabilityConfig:
    """Runs until the first unphysical event.

    Attributes:
        temperatures: K; by default 1.25 and 1.5 times the highest of the training data.
        replicas: at each temperature.
        duration: ps.
        timestep: fs.
        record_every: steps between looks.
        safety: what counts as an event.
    """

    temperatures: tuple[float, ...] = ()
    replicas: int = 4
    duration: float = 50.0
    timestep: float = 0.5
    record_every: int = 20
    safety: SafetyConfig = field(
        default_factory=lambda: SafetyConfig(bonds="stop", bond_time=50.0, geometry_every=1)
    )


@dataclass(frozen=True)
class DynamicsConfig:
    """Student against teacher, and teacher against itself.

    Attributes:
        md: the runs of both; a constant-pressure ensemble measures the density too.
        replicas: side by side in each of the three runs.
        teacher_replicas: those of the teacher, where they are to be fewer; always one for a teacher
            outside JAX.
        teacher_runs: folder that keeps the teacher's runs, for certificates of several students
            that share `structure`, `seed` and this part; by default they are kept in `output`.
        observables: what is measured in them.
    """

    md: MDConfig = field(
        default_factory=lambda: MDConfig(
            ensemble="nvt_csvr",
            thermostat_time=500.0,
            steps=100_000,
            record_every=4,
            block_steps=2000,
        )
    )
    replicas: int = 4
    teacher_replicas: int | None = None
    teacher_runs: Path | None = None
    observables: ObservablesConfig = field(
        default_factory=lambda: ObservablesConfig(rdf=True, msd=True, vdos=True, start=5.0)
    )


@dataclass(frozen=True)
class ContactsConfig:
    """See `distill.evaluation.approach`: sums of covalent radii, Å, eV."""

    closest: float = 0.8
    step: float = 0.05
    up_to: float = 5.0

    def __post_init__(self) -> None:
        if not (self.closest > 0 and self.step > 0 and self.up_to > 0):
            raise ConfigError("contacts.closest, contacts.step and contacts.up_to must be positive")


@dataclass(frozen=True)
class DensityConfig:
    """The density of a periodic system, where the dynamics are at constant volume.

    Attributes:
        md: the student's run in NPT.
        replicas: side by side.
        start: ps at the start that are left out.
        frames: most that the teacher labels, of all replicas together.
    """

    md: MDConfig = field(
        default_factory=lambda: MDConfig(
            ensemble="npt_scr",
            thermostat_time=200.0,
            barostat_time=200.0,
            steps=200_000,
            record_every=100,
            block_steps=2000,
        )
    )
    replicas: int = 4
    start: float = 10.0
    frames: int = 2000

    def __post_init__(self) -> None:
        try:
            frames_to_weight(self.md, self.replicas, self.start, self.frames)
        except ConfigError as error:
            raise ConfigError(f"density: {error}") from error


@dataclass(frozen=True)
class CertifyConfig:
    """Settings.

    Attributes:
        bundle: the student.
        dataset: labelled structures, of which the held-out trajectories are used.
        split: file that says which those are; by default `split.json` beside the bundle, or what
            the bundle's card says.
        structure: start of all MD: the last frame of a dataset or of a file that ASE reads, or a
            molecule that ASE knows; by default the first held-out structure.
        teacher: for dynamics and speed, as for `distill.teachers.load`; the one of the bundle.
        parts: what is measured, of `PARTS`. What is left out is reported as not measured.
        limits: for the verdict.
        speed_repeats: timed runs of teacher and student.
        output: folder; results of finished parts are kept in it and used again.
        seed: of all draws.
        record: JSON file to which the figures are added, see `simulation_records`.
        curves: JSON file to which the curves of student and teacher are added, for plots.
        case: name of what was run in the records.
        subject: name of the student there; that of the bundle's folder by default.
    """

    bundle: Path = Path("runs/train/student")
    dataset: Path = Path("dataset.h5")
    split: Path | None = None
    structure: str = ""
    teacher: str = ""
    parts: tuple[Part, ...] = PARTS
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    nve: DriftConfig = field(default_factory=DriftConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    contacts: ContactsConfig = field(default_factory=ContactsConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    density: DensityConfig = field(default_factory=DensityConfig)
    limits: Limits = field(default_factory=Limits)
    speed_repeats: int = 5
    output: Path = Path("runs/certificate")
    seed: int = 0
    record: Path | None = None
    curves: Path | None = None
    case: str = ""
    subject: str = ""

    def __post_init__(self) -> None:
        if (self.record or self.curves) and not self.case:
            raise ValueError("records and curves need a name of what is run: give case=NAME")
