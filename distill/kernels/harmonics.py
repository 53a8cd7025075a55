"""Real spherical harmonics up to l = 3 and the couplings that make invariants of three of them."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

MAX_L = 3
"""Largest degree available."""


def spherical_harmonics(unit_vectors: jax.Array, max_l: int) -> jax.Array:
    """Real spherical harmonics of l = 0 to `max_l`, one after the other: `[..., (max_l + 1)²]`.

    Normalised so that the sum of squares over m is 2l + 1; m runs from -l to l. Components are
    polynomials of the unit vector, so their gradient is smooth everywhere. They are evaluated as
    one product of a constant matrix with the tensor powers of the vector, which keeps the number
    of operations, and so the overhead for small systems, low.

    Args:
        unit_vectors: `[..., 3]`.
        max_l: at most `MAX_L`.

    Raises:
        ValueError: `max_l` is out of range.
    """
    if not 0 <= max_l <= MAX_L:
        raise ValueError(f"max_l must lie between 0 and {MAX_L}, got {max_l}")
    leading = unit_vectors.shape[:-1]
    powers = [jnp.ones((*leading, 1), unit_vectors.dtype)]
    for _ in range(max_l):
        product = powers[-1][..., :, None] * unit_vectors[..., None, :]
        powers.append(product.reshape(*leading, -1))
    matrix = jnp.asarray(_polynomial_matrix(max_l), unit_vectors.dtype)
    return jnp.concatenate(powers, axis=-1) @ matrix


def harmonic_components(x: jax.Array, y: jax.Array, z: jax.Array, max_l: int) -> list[jax.Array]:
    """The same harmonics of unit vectors given by components `[...]`, a list of `(max_l + 1)²`.

    Written out, they cost a few operations each, which fuse with what reads them.
    """
    harmonics = [jnp.ones_like(x)]
    if max_l >= 1:
        harmonics += [3.0**0.5 * y, 3.0**0.5 * z, 3.0**0.5 * x]
    xx, yy, zz = x * x, y * y, z * z
    if max_l >= 2:
        harmonics += [
            15.0**0.5 * x * y,
            15.0**0.5 * y * z,
            5.0**0.5 / 2 * (2 * zz - xx - yy),
            15.0**0.5 * x * z,
            15.0**0.5 / 2 * (xx - yy),
        ]
    if max_l >= 3:
        harmonics += [
            (35.0 / 8) ** 0.5 * y * (3 * xx - yy),
            105.0**0.5 * x * y * z,
            (21.0 / 8) ** 0.5 * y * (4 * zz - xx - yy),
            7.0**0.5 / 2 * z * (2 * zz - 3 * xx - 3 * yy),
            (21.0 / 8) ** 0.5 * x * (4 * zz - xx - yy),
            105.0**0.5 / 2 * z * (xx - yy),
            (35.0 / 8) ** 0.5 * x * (xx - 3 * yy),
        ]
    return harmonics


def harmonics_slope(
    x: jax.Array, y: jax.Array, z: jax.Array, weights: list[jax.Array], max_l: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Derivatives of `sum_m weights[m] Y_m` by x, y and z taken as independent, of their shape.

    `weights` are `(max_l + 1)²` arrays of that shape.
    """

    def weighted(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
        components = harmonic_components(x, y, z, max_l)
        return sum(a * b for a, b in zip(weights, components, strict=True))  # type: ignore[return-value]

    total, back = jax.vjp(weighted, x, y, z)
    return back(jnp.ones_like(total))


@lru_cache
def _polynomial_matrix(max_l: int) -> np.ndarray:
    """Coefficients of the harmonics in the tensor powers of (x, y, z), float64."""
    rows = [("",), tuple("xyz")]
    for _ in range(max_l - 1):
        rows.append(tuple(a + b for a in rows[-1] for b in "xyz"))
    index = {name: i for i, name in enumerate(sum(rows[: max_l + 1], ()))}
    columns = [entry for degree in _POLYNOMIALS[: max_l + 1] for entry in degree]
    matrix = np.zeros((len(index), len(columns)))
    for column, (factor, terms) in enumerate(columns):
        for name, coefficient in terms.items():
            matrix[index[name], column] = factor * coefficient
    return matrix


_POLYNOMIALS: list[list[tuple[float, dict[str, float]]]] = [
    [(1.0, {"": 1})],
    [(3.0**0.5, {"y": 1}), (3.0**0.5, {"z": 1}), (3.0**0.5, {"x": 1})],
    [
        (15.0**0.5, {"xy": 1}),
        (15.0**0.5, {"yz": 1}),
        (5.0**0.5 / 2, {"zz": 2, "xx": -1, "yy": -1}),
        (15.0**0.5, {"xz": 1}),
        (15.0**0.5 / 2, {"xx": 1, "yy": -1}),
    ],
    [
        ((35.0 / 8) ** 0.5, {"xxy": 3, "yyy": -1}),
        (105.0**0.5, {"xyz": 1}),
        ((21.0 / 8) ** 0.5, {"yzz": 4, "xxy": -1, "yyy": -1}),
        (7.0**0.5 / 2, {"zzz": 2, "xxz": -3, "yyz": -3}),
        ((21.0 / 8) ** 0.5, {"xzz": 4, "xxx": -1, "xyy": -1}),
        (105.0**0.5 / 2, {"xxz": 1, "yyz": -1}),
        ((35.0 / 8) ** 0.5, {"xxx": 1, "xyy": -3}),
    ],
]
"""For each l and m: a factor and the polynomial in components of the unit vector."""


def coupling_paths(max_l: int) -> list[tuple[int, int, int]]:
    """Triples `1 <= l1 <= l2 <= l3 <= max_l` whose product holds an even invariant."""
    return [
        (a, b, c)
        for a in range(1, max_l + 1)
        for b in range(a, max_l + 1)
        for c in range(b, max_l + 1)
        if a + b >= c and (a + b + c) % 2 == 0
    ]


@lru_cache
def coupling(path: tuple[int, int, int]) -> np.ndarray:
    """Mean over the sphere of Y_l1 Y_l2 Y_l3, `[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]` float64.

    Proportional to the Clebsch-Gordan coefficients of the invariant (the Gaunt integrals), and by
    construction in the convention of `spherical_harmonics`. The quadrature (Gauss-Legendre times
    equidistant angles) is exact for these polynomials.
    """
    cos_theta, weights = np.polynomial.legendre.leggauss(2 * MAX_L)
    phi = 2 * np.pi * np.arange(4 * MAX_L) / (4 * MAX_L)
    sin_theta = np.sqrt(1 - cos_theta**2)
    points = np.stack(
        [
            sin_theta[:, None] * np.cos(phi),
            sin_theta[:, None] * np.sin(phi),
            np.broadcast_to(cos_theta[:, None], (len(cos_theta), len(phi))),
        ],
        axis=-1,
    ).reshape(-1, 3)
    weights = np.repeat(weights / 2, len(phi)) / len(phi)
    powers = [np.ones((len(points), 1))]
    for _ in range(max(path)):
        powers.append((powers[-1][:, :, None] * points[:, None, :]).reshape(len(points), -1))
    harmonics = np.concatenate(powers, axis=-1) @ _polynomial_matrix(max(path))
    first, second, third = (harmonics[:, degree**2 : (degree + 1) ** 2] for degree in path)
    values = np.einsum("p,pa,pb,pc->abc", weights, first, second, third)
    return np.where(np.abs(values) < 1e-12, 0.0, values)
