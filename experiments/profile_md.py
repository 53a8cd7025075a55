"""Where a step of molecular dynamics spends its time and memory, part by part.

    python experiments/profile_md.py
    python experiments/profile_md.py student=runs/water/s/student trace=runs/trace
    python experiments/profile_md.py --smoke

Each part is compiled and timed alone; the machine's float32 matrix product and memory bandwidth
are measured in the same run, and the time that they allow stands beside the time that a part
takes. `trace` is a folder for TensorBoard or Perfetto (ui.perfetto.dev).
"""

from __future__ import annotations

if __name__ == "__main__":
    from pinned import restart_pinned

    restart_pinned()

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from benchmark_teachers import figure
from benchmark_water import WaterBoxes, load_student
from distill.evaluation.results import Figure, record_figures
from distill.evaluation.roofline import Machine, measure_machine, timed_seconds
from distill.evaluation.step_parts import Part, block_memory, dense_parts, loop_parts
from distill.evaluation.timing import TimedMD
from distill.kernels import KERNELS
from distill.simulation import MDConfig
from pinned import pinning
from script import command_of, run_script

ROOT = Path(__file__).resolve().parent.parent
SMOKE = (
    "atoms=48",
    "repeats=2",
    "steps=10",
    "min_seconds=0.05",
    "stream_mib=8",
    "output=runs/smoke/profile.json",
)


@dataclass(frozen=True)
class ProfileConfig:
    """Settings.

    Attributes:
        student: a bundle (a folder), or a size (random weights).
        kernel: of the student, see `distill.kernels`.
        structure: dataset or file with a periodic frame of water; None packs a box.
        atoms: of the box.
        repeats: of every measurement.
        steps: per compiled block.
        min_seconds: length of a timed run of whole steps.
        timestep: fs.
        temperature: K.
        stream_mib: MiB of the array with which the memory bandwidth is measured.
        trace: folder for a trace of one block; none by default.
        output: JSON file of the records.
    """

    student: str = "moment-s"
    kernel: str = "blocked"
    structure: Path | None = None
    atoms: int = 1536
    repeats: int = 7
    steps: int = 100
    min_seconds: float = 1.0
    timestep: float = 0.5
    temperature: float = 300.0
    stream_mib: int = 256
    trace: Path | None = None
    output: Path = ROOT / "docs" / "results" / "performance.json"


def main(argv: list[str] | None = None) -> int:
    """Profile and record; returns the exit status."""
    return run_script(ProfileConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: ProfileConfig) -> None:
    """All parts of one student."""
    pinned, words = pinning()
    print(f"threads: {words}" + ("" if pinned else "\nWARNING: not pinned"))
    subject = load_student(Path(config.student).name, config.student)
    plain = WaterBoxes(config.structure, None, 0, config.temperature)
    boxes = (
        WaterBoxes(config.structure, subject.student.potential, 1000, config.temperature)
        if subject.trained
        else plain
    )
    atoms = boxes.box(config.atoms)
    potential = subject.student.potential(atoms, kernel=config.kernel)
    settings = MDConfig(
        timestep=config.timestep,
        temperature=config.temperature,
        steps=config.steps,
        record_every=config.steps,
        block_steps=config.steps,
    )
    machine = measure_machine(config.repeats, config.stream_mib * 2**20)
    print(f"water: {boxes.origin}")
    print(
        f"machine: float32 matrix product {1e-9 * machine.flops:.1f} GFLOP/s, "
        f"memory {1e-9 * machine.bandwidth:.1f} GB/s"
    )
    whole = TimedMD(potential, atoms.positions, settings, min_seconds=config.min_seconds)
    steps_per_rebuild = whole.steps_per_rebuild()
    parts = loop_parts(potential, atoms.positions, settings, steps_per_rebuild)
    if not subject.student.message_passing:
        parts = [*dense_parts(subject.student, atoms, KERNELS[config.kernel]), *parts]
    case = f"{len(atoms)} atoms of water, parts of a step"
    figures = [
        figure(case, "machine", "float32 matrix product", [1e-9 * machine.flops], "GFLOP/s"),
        figure(case, "machine", "memory bandwidth", [1e-9 * machine.bandwidth], "GB/s"),
    ]
    if np.isfinite(steps_per_rebuild):
        figures.append(
            figure(case, subject.label, "steps per list rebuild", [steps_per_rebuild], "1")
        )
    print(f"{'part':22}{'us/atom':>9}{'us/atom/step':>14}{'attainable':>12}{'reached':>9}  limit")
    for part in parts:
        times = timed_seconds(jax.jit(part.function), part.arguments, config.repeats)
        figures += part_figures(case, subject.label, part, times, machine, len(atoms))
    step = np.array([whole.seconds_per_step() for _ in range(config.repeats)])
    figures += part_figures(
        case,
        subject.label,
        Part("whole step", whole.seconds_per_step, (), None),
        step,
        machine,
        len(atoms),
    )
    memory = block_memory(potential, atoms.positions, settings)
    for name, held in memory.items():
        print(f"compiled block, {name}: {held / len(atoms):.0f} bytes per atom")
        figures.append(
            figure(case, subject.label, f"memory, {name}", [held / len(atoms)], "B/atom")
        )
    record_figures(figures, config.output, command_of("profile_md", config))
    if config.trace is not None:
        with jax.profiler.trace(str(config.trace)):
            whole.seconds_per_step()
        print(f"trace in {config.trace}: open it with TensorBoard, or in ui.perfetto.dev")


def part_figures(
    case: str, subject: str, part: Part, seconds: np.ndarray, machine: Machine, n_atoms: int
) -> list[Figure]:
    """Figures of one part, printed as a row."""
    each = 1e6 * seconds / n_atoms
    figures = [
        figure(case, subject, part.name, each, "us/atom"),
        figure(case, subject, f"{part.name}, per step", each * part.per_step, "us/atom/step"),
    ]
    row = f"{part.name:22}{np.median(each):9.3f}{np.median(each) * part.per_step:14.3f}"
    if part.work is not None:
        attainable = 1e6 * part.work.attainable_seconds(machine) / n_atoms
        share = 100 * attainable / each
        limit = part.work.limit(machine)
        row += f"{attainable:12.3f}{np.median(share):8.0f}%  {limit}"
        figures += [
            figure(case, subject, f"{part.name}, attainable", [attainable], "us/atom"),
            figure(case, subject, f"{part.name}, reached of the {limit} limit", share, "%"),
            figure(
                case, subject, f"{part.name}, operations", [part.work.flops / n_atoms], "1/atom"
            ),
            figure(case, subject, f"{part.name}, traffic", [part.work.bytes / n_atoms], "B/atom"),
        ]
    print(row)
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
