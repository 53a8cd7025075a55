"""The hand-written kernels of a moment model against automatic differentiation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import small_student

from distill.kernels import RowModel, blocked, pallas, reference
from distill.kernels.pair_terms import doubled, half_angle
from distill.kernels.radial import bessel_basis

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

ALL_ELEMENTS, ONE_IS_MISSING = (3, 2, 4), (3, 0, 4)
# Every model, and both kinds of groups with and without embeddings.
MODELS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"max_l": 3, "n_triples": 3}, ALL_ELEMENTS),
    ({"max_l": 2, "n_triples": 0}, ONE_IS_MISSING),
    ({"max_l": 1}, ONE_IS_MISSING),
    ({"max_l": 1, "n_embeddings": 4}, ALL_ELEMENTS),
    ({"n_embeddings": 4}, ONE_IS_MISSING),
    ({"max_l": 2, "n_triples": 2, "angular_cutoff": 2.0}, ONE_IS_MISSING),
]

BY_HAND = pytest.mark.parametrize(
    ("kernel", "static"),
    # `pallas` evaluates traced species as `blocked` does.
    [(blocked, True), (blocked, False), (pallas, True)],
    ids=["blocked-static", "blocked-traced", "pallas"],
)


def grouped_rows(
    slots: Sequence[int], count: int, *, static: bool, dtype: Any = np.float64
) -> tuple[Any, ...]:
    """Rows of the first and the last of three elements, half of each, sorted."""
    rng = np.random.default_rng(0)
    others = np.repeat([0, 1, 2], slots)
    mask = rng.random((count, len(others))) < 0.8
    mask[count // 2] = False
    vectors = rng.uniform(-2.5, 2.5, (*mask.shape, 3))
    vectors = np.where(mask[..., None], vectors, [1000.0, 0.0, 0.0])
    species = np.repeat([0, 2], [count // 2, count - count // 2]).astype(np.int32)
    chosen = species if static else jnp.asarray(species)
    return jnp.asarray(vectors, dtype), others, jnp.asarray(mask), chosen


def model_of(student: Any, variables: Any) -> RowModel:
    def energy(*rows: Any) -> Any:
        energies, sown = student.module.apply(variables, *rows, mutable=["intermediates"])
        return energies, sown["intermediates"]["last_features"][0]

    return RowModel(energy, student.module.weights(variables))


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        size = max(float(jnp.abs(b).max()), 1e-6)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size)


@lru_cache
def by_the_reference(slots: tuple[int, ...], **options: Any) -> Any:
    """Of 130 rows, in float64."""
    student = small_student(**options)
    vectors, *rest = grouped_rows(slots, 130, static=True)
    return jax.jit(lambda v: reference(model_of(student, student.variables), v, *rest))(vectors)


@pytest.mark.parametrize(("options", "slots"), MODELS, ids=str)
@BY_HAND
def test_equals_the_reference(kernel, static, options, slots):
    student = small_student(**options)
    model = model_of(student, student.variables)
    rows = grouped_rows(slots, 130, static=static)
    found = jax.jit(lambda v: kernel(model, v, *rows[1:]))(rows[0])
    assert_close(found, by_the_reference(slots, **options), 1e-12)


@pytest.mark.parametrize("kernel", [blocked, pallas])
def test_float32_is_accurate_to_its_rounding(kernel):
    options = {"max_l": 3, "n_triples": 3}
    student = small_student(**options)
    model = model_of(student, student.variables)
    vectors, *rest = grouped_rows(ALL_ELEMENTS, 130, static=True, dtype=np.float32)
    rounded = jax.jit(lambda v: kernel(model, v, *rest))(vectors)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(rounded))
    assert_close(rounded, by_the_reference(ALL_ELEMENTS, **options), 2e-5)


@pytest.mark.parametrize("options", [{"max_l": 1}, {"max_l": 1, "n_embeddings": 4}], ids=str)
@BY_HAND
def test_trains_on_forces_as_the_reference_does(kernel, static, options):
    student = small_student(**options)
    vectors, *rest = grouped_rows(ONE_IS_MISSING, 20, static=static)

    def gradient(chosen: Any) -> Any:
        def loss(params: Any, at: jax.Array) -> jax.Array:
            model = model_of(student, {**student.variables, "params": params})
            (energies, features), gradients = chosen(model, at, *rest)
            return (gradients**2).sum() + (energies**2).sum() + features[:, 0].sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(student.variables["params"], vectors)

    # Parameters are float32, hence the tolerance.
    assert_close(gradient(kernel), gradient(reference), 2e-6)


@BY_HAND
def test_hessian_products_equal_those_of_the_reference(kernel, static):
    student = small_student(max_l=2)
    model = model_of(student, student.variables)
    vectors, *rest = grouped_rows(ONE_IS_MISSING, 20, static=static)
    direction = jnp.asarray(np.random.default_rng(2).standard_normal(vectors.shape))
    direction = jnp.where(rest[1][..., None], direction, 0)

    def product(chosen: Any) -> jax.Array:
        @jax.jit
        def along(v: jax.Array) -> jax.Array:
            return jax.jvp(lambda at: chosen(model, at, *rest)[1], (v,), (direction,))[1]

        return along(vectors)

    assert_close(product(kernel), product(reference), 1e-10)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sine_and_cosine_are_exact_to_rounding(dtype):
    share = np.linspace(0, 1, 1001).astype(dtype)
    sine, cosine = doubled(*half_angle(jnp.asarray(share)))
    tolerance = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(sine, np.sin(np.pi * share.astype(float)), rtol=0, atol=tolerance)
    np.testing.assert_allclose(cosine, np.cos(np.pi * share.astype(float)), rtol=0, atol=tolerance)


def test_radial_functions_end_smoothly_at_the_cutoff():
    from distill.kernels.pair_terms import pair_terms, radial_functions

    distances = jnp.linspace(0.5, 4.5, 200)
    vectors = distances[:, None] * jnp.asarray([0.0, 0.6, 0.8])
    terms = pair_terms(vectors, 4.0)
    functions = jnp.stack(radial_functions(terms, 6), axis=-1)
    np.testing.assert_allclose(functions, bessel_basis(distances, 4.0, 6), rtol=0, atol=1e-10)
    beyond = np.asarray(distances) > 4.0
    assert not np.asarray(functions)[beyond].any()
    assert not np.asarray(terms.first_slope)[beyond].any()
