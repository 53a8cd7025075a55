"""What a whole MD run costs beside the forces and neighbour lists in it.

    python experiments/benchmark_loop.py student=runs/water_nep/student/student \\
        structure=runs/water_nep/test.h5
    python experiments/benchmark_loop.py --smoke

`run_md` makes its blocks; after each of them a bare loop makes as many steps, which does nothing
but update the list and evaluate forces at the positions that an equal run went through: so it has
as many rebuilds. Blocks of both are taken in turn, in one process.
"""

from __future__ import annotations

if __name__ == "__main__":
    from pinned import restart_pinned

    restart_pinned()

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmark_teachers import figure
from benchmark_water import WaterBoxes, load_student
from distill.errors import CapacityError
from distill.evaluation.results import Figure, record_figures
from distill.potential import Potential
from distill.simulation import Frames, MDConfig, run_md
from distill.simulation.blocks import MAX_REALLOCATIONS
from pinned import pinning
from script import command_of, run_script

ROOT = Path(__file__).resolve().parent.parent
LOOP, BARE, RATIO = "MD run", "bare forces and lists", "MD run against bare forces and lists"
SMOKE = (
    "atoms=48",
    "ensembles=[nve]",
    "blocks=1",
    "block_steps=10",
    "record_every=5",
    "output=runs/smoke/simulation.json",
)


@dataclass(frozen=True)
class LoopConfig:
    """Settings.

    Attributes:
        student: a bundle (a folder), or a size (random weights).
        structure: dataset or file with a periodic frame of water; None packs a box.
        atoms: of the box.
        ensembles: that are timed, of constant volume.
        blocks: that are timed; one before them is not.
        block_steps: steps of a block.
        record_every: steps between recorded frames of the run.
        timestep: fs.
        temperature: K.
        output: JSON file of the records.
    """

    student: str = "moment-s"
    structure: Path | None = None
    atoms: int = 768
    ensembles: tuple[str, ...] = ("nve", "nvt_csvr", "nvt_langevin")
    blocks: int = 15
    block_steps: int = 500
    record_every: int = 100
    timestep: float = 0.5
    temperature: float = 300.0
    output: Path = ROOT / "docs" / "results" / "simulation.json"


def main(argv: list[str] | None = None) -> int:
    """Measure and record; returns the exit status."""
    return run_script(LoopConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: LoopConfig) -> None:
    """All ensembles."""
    pinned, words = pinning()
    print(f"threads: {words}" + ("" if pinned else "\nWARNING: not pinned"))
    path = Path(config.student)
    subject = load_student(
        path.parent.name if path.name == "student" else path.name, config.student
    )
    boxes = WaterBoxes(
        config.structure,
        subject.student.potential if subject.trained else None,
        1000,
        config.temperature,
    )
    atoms = boxes.box(config.atoms)
    potential = subject.student.potential(atoms)
    print(f"water: {boxes.origin}")
    figures: list[Figure] = []
    for ensemble in config.ensembles:
        md = MDConfig(
            ensemble=ensemble,
            timestep=config.timestep,
            temperature=config.temperature,
            steps=(config.blocks + 1) * config.block_steps,
            block_steps=config.block_steps,
            record_every=config.record_every,
        )
        whole, bare = loop_and_bare(potential, atoms.positions, md)
        scale = 1e6 / len(atoms) / config.block_steps
        case = f"{len(atoms)} atoms of water, {ensemble}, float32"
        figures += [
            figure(case, subject.label, LOOP, scale * whole, "us/atom/step"),
            figure(case, subject.label, BARE, scale * bare, "us/atom/step"),
            figure(case, subject.label, RATIO, whole / bare, "x"),
        ]
        for one in figures[-3:]:
            print(f"{case}: {one.metric} {one.value:.3f} {one.unit} {one.spread}")
    record_figures(figures, config.output, command_of("benchmark_loop", config))


def loop_and_bare(
    potential: Potential, positions: np.ndarray, config: MDConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each block but the first, of `run_md` and of the bare loop over the same steps."""
    walked = run_md(potential, positions, replace(config, record_every=1), progress=False).frames
    blocks = walked.positions.reshape(-1, config.block_steps, *positions.shape)
    follower = _InTurn(potential, jnp.asarray(blocks, potential.dtype))
    run_md(potential, positions, config, on_frames=follower, keep_frames=False, progress=False)
    return np.array(follower.whole[1:]), np.array(follower.bare[1:])


class _InTurn:
    """Makes the bare block after each block of the run, and takes the time of both."""

    def __init__(self, potential: Potential, blocks: jax.Array) -> None:
        self.whole: list[float] = []
        self.bare: list[float] = []
        self._potential, self._blocks = potential, blocks
        self._lists: Any = potential.allocate(blocks[0, 0])
        self._begun = time.perf_counter()

        @jax.jit
        def bare(lists: Any, block: jax.Array) -> Any:
            def step(carry: Any, positions: jax.Array) -> Any:
                lists, total = carry
                lists = potential.update(lists, positions)
                return (lists, total + potential.forces(positions, lists)), None

            start = lists, jnp.zeros_like(block[0])
            (lists, total), _ = jax.lax.scan(step, start, block)
            return lists, total, potential.overflow(lists, block[-1])

        self._bare = bare

    def __call__(self, frames: Frames) -> None:
        self.whole.append(time.perf_counter() - self._begun)
        block = self._blocks[len(self.bare)]
        for _ in range(MAX_REALLOCATIONS):
            begun = time.perf_counter()
            lists, _, overflow = jax.block_until_ready(self._bare(self._lists, block))
            seconds = time.perf_counter() - begun
            if not bool(overflow):
                break
            self._lists = self._potential.allocate(block[0], lists)
        else:
            raise CapacityError("the neighbour list of the bare loop keeps overflowing")
        self._lists = lists
        self.bare.append(seconds)
        self._begun = time.perf_counter()


if __name__ == "__main__":
    raise SystemExit(main())
