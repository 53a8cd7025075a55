"""Every kernel against a formula and against the plain reference, forwards and backwards."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import small_student

from distill.kernels import KERNELS, reference

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

SLOTS = 5
ROWS = [1, 63, 64, 65, 130]
DTYPES = [np.float64, np.float32]
SETTING = {"max_l": 1, "n_channels": 2, "n_triples": 0, "hidden": (4,)}


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


def random_rows(count: int, dtype: Any = np.float64, seed: int = 0) -> tuple[jax.Array, ...]:
    """Rows with neighbours within and beyond 4 Å; some slots are padding, one row has only that."""
    rng = np.random.default_rng(seed)
    vectors = rng.uniform(-2.5, 2.5, (count, SLOTS, 3))
    mask = rng.random((count, SLOTS)) < 0.8
    mask[count // 2] = False
    mask[0] = True
    vectors = np.where(mask[..., None], vectors, [1000.0, 0.0, 0.0])
    neighbor_species = np.where(mask, rng.integers(0, 3, mask.shape), 0)
    return (
        jnp.asarray(vectors, dtype),
        jnp.asarray(neighbor_species, jnp.int32),
        jnp.asarray(mask),
        jnp.asarray(rng.integers(0, 3, count), jnp.int32),
    )


def toy(parameters: Any, vectors: Any, others: Any, mask: Any, species: Any) -> Any:
    """`w_i tanh(sum_k v_k exp(-r² / 4))`, whose derivatives are written down below."""
    weights, strengths = parameters
    density = (mask * strengths[others] * jnp.exp(-(vectors**2).sum(-1) / 4)).sum(-1)
    return weights[species] * jnp.tanh(density)


def toy_by_hand(parameters: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    weights, strengths = (np.asarray(p, np.float64) for p in parameters)
    vectors, others, mask, species = map(np.asarray, rows)
    terms = mask * strengths[others] * np.exp(-(vectors.astype(np.float64) ** 2).sum(-1) / 4)
    bent = np.tanh(terms.sum(-1))
    outer = weights[species] * (1 - bent**2)
    return weights[species] * bent, outer[:, None, None] * terms[..., None] * vectors / -2


def toy_parameters(dtype: Any) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray([0.7, -1.1, 0.4], dtype), jnp.asarray([1.0, 0.5, -0.8], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", ROWS)
def test_energies_and_gradient_equal_the_formula(kernel, count, dtype):
    rows, parameters = random_rows(count, dtype), toy_parameters(dtype)
    energies, gradients = jax.jit(lambda p, *r: kernel(lambda *s: toy(p, *s), *r))(
        parameters, *rows
    )
    expected = toy_by_hand(parameters, rows)
    tolerance = 1e-14 if dtype == np.float64 else 1e-6
    assert energies.dtype == gradients.dtype == dtype
    np.testing.assert_allclose(energies, expected[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(gradients, expected[1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 65])
def test_student_equals_the_reference(kernel, count, dtype):
    rows, student = random_rows(count, dtype), small_student(**SETTING)
    found = jax.jit(lambda *r: kernel(student.atomic_energy, *r))(*rows)
    expected = jax.jit(lambda *r: reference(student.atomic_energy, *r))(*rows)
    tolerance = 1e-13 if dtype == np.float64 else 1e-5
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


def test_gradient_of_a_student_equals_finite_differences(kernel):
    count, step = 65, 1e-5
    student = small_student(**SETTING)
    vectors, *rest = random_rows(count)
    direction = np.random.default_rng(1).standard_normal(vectors.shape)
    direction = np.where(np.asarray(rest[1])[..., None], direction, 0)
    run = jax.jit(lambda v: kernel(student.atomic_energy, v, *rest))
    gradient = np.asarray(run(vectors)[1])
    ahead, behind = (np.asarray(run(vectors + s * step * direction)[0]) for s in (1, -1))
    # Row by row: the energy of a row depends on no other row.
    np.testing.assert_allclose(
        (gradient * direction).sum((1, 2)),
        (ahead - behind) / (2 * step),
        rtol=0,
        atol=1e-7 * np.abs(gradient).max(),
    )


def force_loss(kernel: Any, parameters: Any, rows: Any) -> jax.Array:
    energies, gradients = kernel(lambda *r: toy(parameters, *r), *rows)
    return (gradients**2).sum() + 0.1 * (energies**3).sum()


@pytest.mark.parametrize("count", [64, 130])
def test_force_loss_can_be_differentiated_again(kernel, count):
    rows, parameters = random_rows(count), toy_parameters(np.float64)
    vectors, *rest = rows

    def both(chosen: Any) -> Any:
        def loss(p: Any, v: Any) -> jax.Array:
            return force_loss(chosen, p, (v, *rest))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(parameters, vectors)

    for a, b in zip(*map(jax.tree.leaves, (both(kernel), both(reference))), strict=True):
        assert np.isfinite(np.asarray(a)).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1, float(jnp.abs(b).max())))

    step = 1e-5
    (of_weights, _), _ = both(kernel)
    value = jax.jit(lambda p: force_loss(kernel, p, rows))
    for index in range(3):
        shift = step * jnp.eye(3)[index]
        ahead, behind = (value((parameters[0] + s * shift, parameters[1])) for s in (1, -1))
        assert float(of_weights[index]) == pytest.approx(
            float(ahead - behind) / (2 * step), rel=1e-6, abs=1e-8
        )


def test_student_trains_through_the_kernel(kernel):
    student, rows = small_student(**SETTING), random_rows(65)

    def gradient(chosen: Any) -> Any:
        def loss(variables: Any) -> jax.Array:
            def model(*r: Any) -> Any:
                return student.module.apply(variables, *r)

            energies, forces = chosen(model, *rows)
            return (forces**2).sum() + energies.sum()

        return jax.jit(jax.grad(loss))(student.variables)

    # Parameters are float32, hence the tolerance.
    for a, b in zip(*map(jax.tree.leaves, (gradient(kernel), gradient(reference))), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1e-3, float(jnp.abs(b).max())))


def test_hessian_vector_product_equals_differences_of_the_gradient(kernel):
    parameters, step = toy_parameters(np.float64), 1e-5
    vectors, *rest = random_rows(130)
    direction = jnp.asarray(np.random.default_rng(2).standard_normal(vectors.shape))
    direction = jnp.where(rest[1][..., None], direction, 0)

    @jax.jit
    def gradient(v: jax.Array) -> jax.Array:
        return kernel(lambda *r: toy(parameters, *r), v, *rest)[1]

    product = jax.jvp(gradient, (vectors,), (direction,))[1]
    difference = (gradient(vectors + step * direction) - gradient(vectors - step * direction)) / (
        2 * step
    )
    np.testing.assert_allclose(product, difference, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_rows_and_slots_give_zero_gradient_and_change_nothing(kernel, dtype):
    rows, parameters = random_rows(70, dtype), toy_parameters(dtype)
    padded = (
        jnp.pad(rows[0], ((0, 30), (0, 3), (0, 0)), constant_values=1000.0),
        *(jnp.pad(array, ((0, 30), (0, 3))) for array in rows[1:3]),
        jnp.pad(rows[3], (0, 30)),
    )
    run = jax.jit(lambda *r: kernel(lambda *s: toy(parameters, *s), *r))
    energies, gradients = run(*rows)
    more_energies, more_gradients = run(*padded)
    tolerance = 1e-14 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(more_energies[:70], energies, rtol=0, atol=tolerance)
    np.testing.assert_allclose(more_gradients[:70, :SLOTS], gradients, rtol=0, atol=tolerance)
    assert np.isfinite(np.asarray(more_energies)).all()
    assert not np.asarray(more_gradients[70:]).any()
    assert not np.asarray(more_gradients[:, SLOTS:]).any()
    assert not np.asarray(gradients)[~np.asarray(rows[2])].any()


@pytest.mark.parametrize("count", [64, 65])
def test_static_species_and_one_compilation(kernel, count):
    parameters = toy_parameters(np.float64)
    vectors, others, mask, species = random_rows(count)
    static = np.asarray(species)
    traces = 0

    @jax.jit
    def run(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        nonlocal traces
        traces += 1
        return kernel(lambda *r: toy(parameters, *r), v, others, mask, static)

    for scale in (1.0, 0.9, 0.8):
        energies, gradients = run(scale * vectors)
        rows = (scale * vectors, others, mask, species)
        for found, expected in zip(
            (energies, gradients), toy_by_hand(parameters, rows), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert traces == 1
