"""Memory of molecular dynamics of large boxes, each size in a process of its own.

`memory_figures` starts this file as a script twice for each size: once the programs are compiled,
then they are taken from a folder, so that the compiler's own memory, which hardly depends on the
number of atoms, stands apart. What a process holds and its peaks are those that Linux tells.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmark_teachers import figure
from benchmark_water import WaterBoxes, load_student
from distill.errors import ConfigError, SimulationError
from distill.evaluation.results import Figure
from distill.simulation import MDConfig, make_block

PEAK = "peak of the process, beyond the list"
WARM = "the same with programs compiled before"


def memory_figures(
    subject: str, student: str, structure: Path | None, sizes: tuple[int, ...], steps: int
) -> list[Figure]:
    """kB per atom of lists, of a run beyond its lists, and of the compiled block.

    Args:
        subject: name of the student in the records.
        student: see `benchmark_water.load_student`.
        structure: see `benchmark_water.WaterBoxes`.
        sizes: numbers of atoms.
        steps: of NVE, after the allocation of the list.

    Raises:
        ConfigError: this is not Linux.
        SimulationError: a process failed.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError("memory_sizes needs Linux, which tells what a process holds")
    figures = []
    for size in sizes:
        given = {"student": student, "structure": structure and str(structure), "atoms": size}
        with tempfile.TemporaryDirectory() as cache:
            measured = _in_a_process({**given, "steps": steps}, cache)
            again = _in_a_process({**given, "steps": steps}, cache)
        measured[WARM] = again[PEAK]
        case = f"{size} atoms of water, memory"
        seconds = measured.pop("seconds per step")
        print(f"{case}: {steps} steps of {seconds:.2f} s each")
        for name, held in measured.items():
            print(f"{case}, {name}: {1e-3 * held / size:.2f} kB per atom")
            figures.append(figure(case, subject, name, [1e-3 * held / size], "kB/atom"))
        figures.append(figure(case, subject, "first steps", [1e6 * seconds / size], "us/atom/step"))
    return figures


def _in_a_process(given: dict[str, Any], cache: str) -> dict[str, Any]:
    """What `measure` gives, with programs from a folder if they are there already."""
    kept = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    found = subprocess.run(
        [sys.executable, __file__, json.dumps(given)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **kept},
    )
    if found.returncode:
        raise SimulationError(
            f"the run of {given['atoms']} atoms ended with status {found.returncode}; if the "
            "machine ran out of memory choose smaller memory_sizes"
        )
    measured: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return measured


def measure(student: str, structure: str | None, atoms: int, steps: int) -> dict[str, Any]:
    """Bytes by what they are for, in this process."""
    loaded = load_student(Path(student).name, student)
    box = WaterBoxes(None if structure is None else Path(structure), None, 0, 300.0).box(atoms)
    jax.block_until_ready(jnp.ones(8) @ jnp.ones(8))
    before = forget_peak()
    potential = loaded.student.potential(box)
    positions = box.positions.astype(np.float32)
    lists = potential.allocate(positions)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(lists))
    peaks = [peak()]
    resident = forget_peak()
    config = MDConfig(timestep=0.5, steps=steps, record_every=steps, block_steps=steps)
    start, block = make_block(potential, config, donate_lists=True)
    state = start(jax.random.PRNGKey(0), jnp.asarray(positions), lists)
    compiled = block.lower(state, lists, 1).compile()  # type: ignore[attr-defined]
    peaks.append(peak())
    ready = forget_peak()
    begun = time.perf_counter()
    state, lists, records, overflow = compiled(state, lists)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - begun) / steps
    peaks.append(peak())
    if bool(overflow) or not np.isfinite(records[2]).all():
        raise SimulationError("the list overflowed, or the energy is not finite")
    analysis = compiled.memory_analysis()
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    state_and_box = analysis.argument_size_in_bytes - held
    return {
        "seconds per step": seconds,
        "list": held,
        "peak of the allocation, beyond the list": peaks[0] - before - held,
        "held after the allocation, beyond the list": resident - before - held,
        "growth during the compilation (the compiler's own)": peaks[1] - resident,
        "growth during the run": peaks[2] - ready,
        PEAK: max(peaks) - before - held,
        "compiled block, temporary": analysis.temp_size_in_bytes,
        "compiled block, results beside the list": results,
        "compiled block, all beyond the list": analysis.temp_size_in_bytes
        + results
        + state_and_box,
    }


def peak() -> int:
    """Most bytes that this process held since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> int:
    """Give back what is free, let the peak begin anew, and say what is held, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
