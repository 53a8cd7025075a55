"""Energies of densities and their gradient: rows along the first axis or the last, one result."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import small_student

from distill.kernels.density_energies import energies_by_columns, energies_by_rows
from distill.kernels.harmonics import coupling, coupling_paths
from distill.kernels.invariants import triple_products, triple_terms, triples_gradient

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

ROWS = 11


def random_densities(rng: np.random.Generator, max_l: int, width: int) -> list[jax.Array]:
    return [jnp.asarray(rng.normal(size=(ROWS, 2 * l + 1, width))) for l in range(max_l + 1)]  # noqa: E741


@pytest.mark.parametrize("species", ["one", "static", "traced"])
@pytest.mark.parametrize(
    "options",
    [
        {"max_l": 3, "n_triples": 3},
        {"max_l": 2, "n_triples": 0, "hidden": (6,)},
        {"max_l": 0, "n_triples": 2},
        {"max_l": 1, "hidden": ()},
        {"max_l": 1, "n_embeddings": 4},
    ],
    ids=["l=3", "no triples", "l=0", "no hidden layers", "embeddings"],
)
def test_both_ways_give_the_same(options: dict[str, Any], species: str) -> None:
    student = small_student(**options)
    weights = student.module.weights(student.variables).astype(np.float64)
    rng = np.random.default_rng(0)
    width = weights.radial[0].kernel.shape[-1]
    densities = random_densities(rng, weights.max_l, width)
    kinds = np.full(ROWS, 2) if species == "one" else np.arange(ROWS) % 3
    own = jnp.asarray(kinds) if species == "traced" else kinds
    like = jnp.asarray(rng.normal(size=3))
    expected = jax.jit(lambda d: energies_by_rows(weights, d, own))(densities)
    found = jax.jit(lambda d: energies_by_columns(weights, d, own, like))(densities)
    assert np.abs(expected[0]).max() > 1e-3
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    by_densities = jax.grad(lambda d: energies_by_rows(weights, d, own)[0].sum())(densities)
    for one, other in zip(found[2], by_densities, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("max_l", [2, 3])
def test_products_of_three_are_those_of_all_components(max_l: int) -> None:
    rng = np.random.default_rng(1)
    densities = random_densities(rng, max_l, 4)
    components = [own[:, m] for own in densities for m in range(own.shape[1])]
    paths = coupling_paths(max_l)
    expected = [
        jnp.einsum("bit,bjt,bkt,ijk->bt", *(densities[degree] for degree in path), coupling(path))
        for path in paths
    ]
    found = triple_products(components, max_l)
    assert len(found) == len(expected) == len(triple_terms(max_l))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    terms = sum(len(own) for own in triple_terms(max_l))
    assert terms < sum(np.count_nonzero(coupling(path)) for path in paths)
    weights = [jnp.asarray(rng.normal(size=one.shape)) for one in found]

    def total(components: list[jax.Array]) -> jax.Array:
        every = triple_products(components, max_l)
        return sum((w * p).sum() for w, p in zip(weights, every, strict=True))

    by_hand = triples_gradient(components, weights, max_l)
    for one, other in zip(by_hand, jax.grad(total)(components), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
