"""Is this machine ready for `distill` on an NVIDIA GPU? A plain verdict, and exit status 0 or 1.

    python experiments/check_cuda.py

Looks at the driver, the build of jax and its CUDA plugin, the profilers, and then computes: a
matrix product against the CPU, and molecular dynamics of a small student against the CPU.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from benchmark_water import WaterBoxes, load_student
from distill.simulation import MDConfig, make_block
from distill.students import Student

PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")
ATOMS = 648
MATRIX = 2048


class Problem(Exception):
    """A check that failed; the message says what to do."""


def main() -> int:
    """Run the checks; returns the exit status."""
    checks: list[tuple[str, Callable[[], str], bool]] = [
        ("driver", driver, True),
        ("jax", jax_build, True),
        ("GPU in jax", device, True),
        ("nsys", lambda: tool("nsys", "Nsight Systems"), False),
        ("ncu", lambda: tool("ncu", "Nsight Compute"), False),
        ("matrix product", matrix_product, True),
        ("molecular dynamics", molecular_dynamics, True),
    ]
    failed = False
    for name, check, needed in checks:
        if failed and check in (matrix_product, molecular_dynamics):
            print(f"[skip] {name}: no usable GPU")
            continue
        try:
            print(f"[ ok ] {name}: {check()}")
        except Problem as problem:
            print(f"[{'FAIL' if needed else 'none'}] {name}: {problem}")
            failed = failed or needed
    if failed:
        print("Not ready: see the first FAIL above and docs/cuda_setup.md.")
        return 1
    print("Ready: distill runs on this GPU.")
    return 0


def driver() -> str:
    """GPUs and driver as `nvidia-smi` names them."""
    if shutil.which("nvidia-smi") is None:
        raise Problem("nvidia-smi is not found: this machine has no NVIDIA driver, or no GPU")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.strip():
        raise Problem(f"nvidia-smi fails: {(found.stderr or found.stdout).strip()}")
    return "; ".join(found.stdout.strip().splitlines())


def jax_build() -> str:
    """Versions of jax and of its CUDA plugin, which must agree."""
    versions = {}
    for name in ("jax", "jaxlib", *PLUGINS):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    plugins = [name for name in PLUGINS if name in versions]
    if not plugins:
        raise Problem(
            f'{words}, without a CUDA plugin: pip install -e ".[cuda12]" -c constraints.txt'
        )
    if any(versions[name] != versions["jaxlib"] for name in plugins):
        raise Problem(f"{words}: plugin and jaxlib must have the same version")
    return words


def device() -> str:
    """The GPU that jax computes on."""
    try:
        found = jax.devices("gpu")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise Problem(f"jax computes on {jax.default_backend()} ({reason})") from error
    return ", ".join(f"{each.device_kind} ({each})" for each in found)


def tool(name: str, product: str) -> str:
    """Where a profiler is."""
    path = shutil.which(name)
    if path is None:
        raise Problem(f"not found; {product} is needed for profiles only")
    return path


def matrix_product() -> str:
    """A float32 product in full precision against the CPU's in float64."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((MATRIX, MATRIX)).astype(np.float32) for _ in range(2))
    multiply = jax.jit(lambda x, y: jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST))
    found = np.asarray(multiply(*jax.device_put((a, b), jax.devices("gpu")[0])), np.float64)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error < 1e-5:
        raise Problem(f"the product differs from the CPU's by {error:.1e} of its largest element")
    return f"{MATRIX} x {MATRIX}, largest error {error:.1e}"


def molecular_dynamics() -> str:
    """Steps of a student with random weights, on both devices from the same state."""
    positions = {}
    for name in ("cpu", "gpu"):
        with jax.default_device(jax.devices(name)[0]):
            positions[name] = ten_steps(small_student())
    error = float(np.abs(positions["gpu"] - positions["cpu"]).max())
    if not error < 1e-3:
        raise Problem(f"after ten steps positions differ from the CPU's by {error:.1e} Å")
    return f"{ATOMS} atoms, ten steps, positions within {error:.1e} Å of the CPU's"


def small_student() -> Student:
    """`moment-s` with random weights, its energies scaled so that atoms feel each other."""
    student = load_student("moment-s", "moment-s").student
    statistics = {**student.variables["statistics"], "energy_scale": np.float32(0.05)}
    return replace(student, variables={**student.variables, "statistics": statistics})


def ten_steps(student: Student) -> np.ndarray:
    """Positions `[n, 3]` in Å after ten steps of 0.5 fs from a packed box of water."""
    atoms = WaterBoxes(None, None, 0, 300.0).box(ATOMS)
    potential = student.potential(atoms)
    config = MDConfig(steps=10, record_every=10, block_steps=10)
    start, block = make_block(potential, config)
    where = jnp.asarray(atoms.positions, potential.dtype)
    lists = potential.allocate(where)
    rng = np.random.default_rng(0)
    velocities = 0.01 * rng.standard_normal(atoms.positions.shape)
    state = start(jax.random.PRNGKey(0), where, lists, velocities)
    state, _, _, overflow = block(state, lists, 1)
    if bool(overflow):
        raise Problem("the neighbour list overflowed")
    return np.asarray(state.position)


if __name__ == "__main__":
    raise SystemExit(main())
