"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: each gets one thread instead of one per core. JAX reads these
    # when it starts its CPU client, so they must be set before it is imported.
    for _variable in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(_variable, "1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.potential import Potential

ROOT = Path(__file__).resolve().parent.parent

# What was compiled once is found again by the tests that follow in this process, and by the scripts
# that they start. Workers share no folder: entries are not written atomically.
COMPILED = tempfile.mkdtemp(prefix="distill-tests-")
for _name, _value in (
    ("jax_compilation_cache_dir", COMPILED),
    ("jax_persistent_cache_min_compile_time_secs", 0.2),
):
    jax.config.update(_name, _value)
    os.environ[_name.upper()] = str(_value)


def pytest_unconfigure() -> None:
    """Remove what was compiled."""
    shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision in JAX for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Weights of published teachers, from the folder that DISTILL_MODELS names."""
    name = os.environ.get("DISTILL_MODELS")
    if not name:
        pytest.skip("needs the weights of published teachers: set DISTILL_MODELS to their folder")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"DISTILL_MODELS names {folder}, which is not a folder")
    return folder


@pytest.fixture(scope="session")
def demo_teacher_path() -> Path:
    """The small FeNNol teacher that comes with the repository (H, C, N, O)."""
    path = ROOT / "experiments" / "models" / "demo_chno.fnx"
    if not path.is_file():
        pytest.fail(
            f"{path.relative_to(ROOT)} is missing; experiments/make_demo_teacher.py makes it"
        )
    return path


@pytest.fixture(scope="session")
def toy_potential() -> Callable[..., Potential]:
    """`toy_potential(energy, numbers, dtype, **fields)`, of `energy(positions [n, 3]) -> [] eV`.

    It needs no neighbour list, so that a test of the dynamics tests nothing else.
    """

    def make(
        energy: Callable[[jax.Array], jax.Array],
        numbers: Any,
        dtype: Any = np.float32,
        **fields: Any,
    ) -> Potential:
        return Potential.from_energy(
            lambda positions, lists: energy(positions),
            numbers=np.asarray(numbers),
            dtype=dtype,
            allocate=lambda positions, previous=None: jnp.zeros(()),
            update=lambda lists, positions: lists,
            overflow=lambda lists, positions: jnp.zeros((), bool),
            **fields,
        )

    return make


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """XLA without most of its optimisations, for tests that compile much and compute little."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
