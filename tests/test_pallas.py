"""The fused kernel: shapes it must take, how it is chosen, and that it lowers for CUDA.

Its results are held against the reference in test_moment_kernel.py, with those of `blocked`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import ethanol, small_student
from test_moment_kernel import assert_close, grouped_rows, model_of

from distill.kernels import blocked, choose_kernel, pallas, reference
from distill.students import Student
from distill.students.spec import SIZES

CUSTOM_CALL = "__gpu$xla.gpu.triton"
SMALLEST: dict[str, Any] = {"max_l": 1, "n_triples": 0, "hidden": (4,)}

on_cpu = pytest.mark.skipif(jax.default_backend() == "gpu", reason="a GPU needs no warning")


def as_on_a_gpu() -> Any:
    """Newer releases of jax lower for a GPU that is described where none is present."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def exported(student: Student, slots: list[int], dtype: Any) -> str:
    """StableHLO for CUDA of 70 rows, in runs of two elements."""
    vectors, *rest = grouped_rows(slots, 70, static=True, dtype=dtype)

    def run(variables: Any, at: jax.Array) -> Any:
        return pallas(model_of(student, variables), at, *rest)

    # The custom call of Triton promises no compatibility between releases of jax.
    allowed = jax.export.DisabledSafetyCheck.custom_call(CUSTOM_CALL)
    with as_on_a_gpu():
        export = jax.export.export(jax.jit(run), platforms=["cuda"], disabled_checks=[allowed])
        return str(export(student.variables, vectors).mlir_module())


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options", [SIZES["moment-s"][1], {"max_l": 3, "n_triples": 3, "n_embeddings": 4}], ids=str
)
def test_lowers_for_cuda_without_a_gpu(options, dtype):
    with jax.enable_x64(True):
        module = exported(small_student(**options), [24, 5, 40], dtype)
    assert CUSTOM_CALL in module
    # Neither a loop that interprets the kernel nor a call back to the host.
    assert "stablehlo.while" not in module and "callback" not in module


@pytest.mark.usefixtures("x64", "quick_compilation")
def test_slots_without_groups_and_atoms_in_any_order():
    student = small_student(**SMALLEST)
    model = model_of(student, student.variables)
    vectors, others, mask, species = grouped_rows([3, 2, 4], 37, static=True)
    rng = np.random.default_rng(3)
    species = rng.permutation(species)
    traced = jnp.asarray(rng.integers(0, 3, mask.shape))
    for neighbors in (others, traced):
        found = jax.jit(lambda v, n=neighbors: pallas(model, v, n, mask, species))(vectors)
        expected = jax.jit(lambda v, n=neighbors: reference(model, v, n, mask, species))(vectors)
        assert_close(found, expected, 1e-12)


@pytest.mark.usefixtures("x64", "quick_compilation")
def test_maps_over_systems_and_over_parameters():
    student = small_student(**SMALLEST)
    vectors, *rest = grouped_rows([3, 2, 4], 20, static=True)
    several = jnp.stack([vectors, 0.9 * vectors])
    variables = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.8 * leaf]), student.variables)

    def both(kernel: Any) -> Any:
        run = jax.vmap(lambda own, at: kernel(model_of(student, own), at, *rest))
        return jax.jit(run)(variables, several)

    assert_close(both(pallas), both(reference), 1e-12)


@pytest.mark.usefixtures("x64", "quick_compilation")
def test_a_network_without_hidden_layers_is_left_to_the_blocked_kernel():
    student = small_student(**{**SMALLEST, "hidden": ()})
    vectors, *rest = grouped_rows([3, 2, 4], 5, static=True)
    model = model_of(student, student.variables)
    found, expected = (
        jax.jit(lambda v, k=kernel: k(model, v, *rest))(vectors) for kernel in (pallas, blocked)
    )
    assert_close(found, expected, 1e-13)


def test_the_default_is_the_kernel_that_was_measured():
    assert choose_kernel() is blocked
    assert choose_kernel("reference") is reference
    with pytest.raises(ValueError, match=r"unknown kernel 'palas'.*'pallas'"):
        choose_kernel("palas")


@on_cpu
@pytest.mark.parametrize("grouped_from", [1, 100], ids=["grouped lists", "plain lists"])
def test_forced_by_name_it_warns_without_a_gpu_and_gives_the_same_forces(grouped_from, monkeypatch):
    monkeypatch.setattr("distill.potential.GROUPED_FROM", grouped_from)
    student, atoms = small_student(**SMALLEST), ethanol()
    with pytest.warns(UserWarning, match="'pallas' is interpreted"):
        forced = student.potential(atoms, kernel="pallas")
    assert forced.kernel == "pallas"
    default = student.potential(atoms)
    assert default.kernel == "blocked"
    positions = jnp.asarray(atoms.positions, jnp.float32)
    found, expected = (
        jax.jit(own.energy_and_forces)(positions, own.allocate(positions))
        for own in (forced, default)
    )
    assert_close(found, expected, 2e-5)
