"""Memory of molecular dynamics of large boxes, each size in a process of its own.

`memory_figures` starts this file as a script for each size: the peak of a process is that of all
it ever did.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmark_teachers import figure
from benchmark_water import WaterBoxes, load_student
from distill.errors import SimulationError
from distill.evaluation.results import Figure
from distill.simulation import MDConfig, make_block


def memory_figures(
    student: str, structure: Path | None, sizes: tuple[int, ...], steps: int
) -> list[Figure]:
    """kB per atom of lists, of a run beyond its lists, and of the compiled block.

    Args:
        student: see `benchmark_water.load_student`.
        structure: see `benchmark_water.WaterBoxes`.
        sizes: numbers of atoms.
        steps: of NVE, after the allocation of the list.

    Raises:
        SimulationError: a process failed.
    """
    figures = []
    for size in sizes:
        given = {"student": student, "structure": structure and str(structure), "atoms": size}
        found = subprocess.run(
            [sys.executable, __file__, json.dumps({**given, "steps": steps})],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if found.returncode:
            raise SimulationError(
                f"the run of {size} atoms ended with status {found.returncode}; if the machine ran "
                "out of memory choose smaller memory_sizes"
            )
        measured = json.loads(found.stdout.splitlines()[-1])
        subject, case = measured.pop("subject"), f"{size} atoms of water, memory"
        seconds = measured.pop("seconds per step")
        print(f"{case}: {steps} steps of {seconds:.2f} s each")
        for name, held in measured.items():
            print(f"{case}, {name}: {1e-3 * held / size:.2f} kB per atom")
            figures.append(figure(case, subject, name, [1e-3 * held / size], "kB/atom"))
        figures.append(figure(case, subject, "MD cost, first steps", [1e6 * seconds / size], "us"))
    return figures


def measure(student: str, structure: str | None, atoms: int, steps: int) -> dict[str, Any]:
    """Bytes by what they are for, in this process."""
    import time

    subject = load_student(Path(student).name, student)
    box = WaterBoxes(None if structure is None else Path(structure), None, 0, 300.0).box(atoms)
    jax.block_until_ready(jnp.ones(8) @ jnp.ones(8))
    before = peak()
    potential = subject.student.potential(box)
    positions = box.positions.astype(np.float32)
    lists = potential.allocate(positions)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(lists))
    allocated = peak()
    config = MDConfig(timestep=0.5, steps=steps, record_every=steps, block_steps=steps)
    start, block = make_block(potential, config)
    state = start(jax.random.PRNGKey(0), jnp.asarray(positions), lists)
    compiled = block.lower(state, lists, 1).compile()  # type: ignore[attr-defined]
    begun = time.perf_counter()
    state, lists, records, overflow = compiled(state, lists)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - begun) / steps
    if bool(overflow) or not np.isfinite(records[2]).all():
        raise SimulationError("the list overflowed, or the energy is not finite")
    analysis = compiled.memory_analysis()
    return {
        "subject": subject.label,
        "seconds per step": seconds,
        "list": held,
        "peak of the allocation beyond the list": allocated - before - held,
        "peak of the run beyond the list": peak() - before - held,
        "compiled block, arguments": analysis.argument_size_in_bytes,
        "compiled block, results": analysis.output_size_in_bytes,
        "compiled block, temporary": analysis.temp_size_in_bytes,
    }


def peak() -> int:
    """Most bytes that this process ever held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
