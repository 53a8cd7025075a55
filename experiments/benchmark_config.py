"""Settings of `benchmark.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distill.kernels import KERNELS
from distill.simulation import ENSEMBLES

ROOT = Path(__file__).resolve().parent.parent
SMOKE = (
    "students={moment-s: moment-s}",
    "sizes=[48]",
    "ensembles=[nve]",
    "peers=[]",
    "teachers=[]",
    "few_atoms=0",
    "replicas=2",
    "replica_atoms=24",
    "calculator_sizes=[9]",
    "calculator_calls=5",
    "repeats=2",
    "steps=10",
    "min_seconds=0.05",
    "output=runs/smoke/performance.json",
)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings.

    Attributes:
        students: name and bundle (a folder), or name and size (random weights); by default
            `moment-s` and `moment-m` with random weights.
        kernel: of the students, see `distill.kernels`; None for the default.
        skin: Å, of the students' lists; None for the default of `Student.potential`, `auto` for
            the one that `distill.simulation.tune_skin` finds for each student and size.
        structure: dataset or file with a periodic frame of water; None packs boxes.
        sizes: numbers of atoms.
        ensembles: of the students; peers run NVE.
        peers: parts of the names of peers to run; `all` runs those that are installed.
        teachers: names for `distill.teachers.load`, run in the loop of the students.
        peer_atoms: largest system of the peers and teachers.
        few_atoms: size at which models that take seconds per step are run; 0 leaves them out.
        few_steps: of a run of such a model.
        few_repeats: of these runs.
        nep: potential file of GPUMD for water, in place of random weights; its cutoffs are used.
        replicas: systems side by side, against one system of as many atoms; 0 leaves them out.
        replica_atoms: of each.
        one_box: file with one box to hold the replicas against, whose atoms all move on their own;
            by default `structure` repeated, or a packed box.
        calculator_sizes: numbers of atoms at which the ASE calculator's calls are timed; 9 is a
            molecule without a cell.
        calculator_calls: of each size.
        memory_sizes: numbers of atoms of runs whose memory is measured, each in a process of its
            own, with the first student.
        memory_steps: of these runs.
        repeats: of every run, but for models that take seconds per step.
        steps: per compiled block of a student; frames are recorded once per block.
        peer_steps: of a run of a peer.
        min_seconds: length of a student's run.
        timestep: fs.
        temperature: K.
        equilibration_steps: of packed boxes, with the first trained student.
        threads: cores that the script is restarted on. With several, the students alone are run:
            all cores share one system, against one core in turn.
        compilation_cache: folder in which compiled programs are kept for the next run; None for
            none. Times of compilation are not recorded then.
        output: JSON file of the records.
    """

    students: dict[str, str] = field(default_factory=dict)
    kernel: str | None = None
    skin: float | Literal["auto"] | None = None
    structure: Path | None = None
    sizes: tuple[int, ...] = (648, 1536, 5184)
    ensembles: tuple[str, ...] = ("nve", "nvt_langevin")
    peers: tuple[str, ...] = ("all",)
    teachers: tuple[str, ...] = ("fennol:ani1ccx?member=0",)
    peer_atoms: int = 5184
    few_atoms: int = 192
    few_steps: int = 1
    few_repeats: int = 2
    nep: Path | None = None
    replicas: int = 32
    replica_atoms: int = 96
    one_box: Path | None = None
    calculator_sizes: tuple[int, ...] = (9, 96, 768)
    calculator_calls: int = 300
    memory_sizes: tuple[int, ...] = ()
    memory_steps: int = 5
    repeats: int = 5
    steps: int = 100
    peer_steps: int = 10
    min_seconds: float = 1.0
    timestep: float = 0.5
    temperature: float = 300.0
    equilibration_steps: int = 2000
    threads: int = 1
    compilation_cache: Path | None = None
    output: Path = ROOT / "docs" / "results" / "performance.json"

    def __post_init__(self) -> None:
        unknown = set(self.ensembles) - set(ENSEMBLES)
        if unknown:
            raise ValueError(
                f"ensembles: {', '.join(sorted(unknown))} not in {', '.join(ENSEMBLES)}"
            )
        if self.kernel is not None and self.kernel not in KERNELS:
            raise ValueError(f"kernel: {self.kernel!r} not in {', '.join(KERNELS)}")
        if isinstance(self.skin, int | float) and not 0 < self.skin < math.inf:
            raise ValueError(f"skin must be positive, in Å, or `auto`, not {self.skin}")
