"""The loss and the error sums it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distill.data import Batch
from distill.potential import Evaluation
from distill.training.config import TERMS, LossConfig


def error_sums(
    result: Evaluation, batch: Batch, loss: LossConfig | None = None, hvp: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Sums over the real entries of a batch, so that means over many batches are exact.

    Args:
        result: of the student.
        batch: with labels.
        loss: how forces are weighed and counted; mean squares by default.
        hvp: `[N, 3]`, the student's Hessian times `batch.direction`, eV/Å².

    Returns:
        For each of `energy` (per atom, eV), `forces` (components, eV/Å), `stress` (components,
        eV/Å³), `per_atom_energy` (eV) and `hessian` (components, eV/Å²): `*_absolute`,
        `*_squared` sums of errors and the `*_count` of entries; and `forces_penalty` over
        `forces_weight`, the weighted sum that the loss uses.
    """
    loss = loss or LossConfig()
    graph = batch.graph
    stress_cell = jnp.where(batch.stress_mask[:, None, None], graph.cell, jnp.eye(3))
    atom_mask = graph.atom_mask & batch.energy_mask[graph.system]
    errors = {
        "energy": ((result.energy - batch.energy) / batch.n_atoms, batch.energy_mask),
        "forces": (result.forces - batch.forces, atom_mask[:, None]),
        "stress": (result.stress(stress_cell) - batch.stress, batch.stress_mask[:, None, None]),
        "per_atom_energy": (
            result.per_atom_energy - batch.per_atom_energy,
            atom_mask & jnp.isfinite(batch.per_atom_energy),
        ),
    }
    if hvp is not None:
        mask = (atom_mask & batch.hessian_mask[graph.system])[:, None]
        errors["hessian"] = (hvp - batch.product, mask)
    sums = {}
    for name, (error, mask) in errors.items():
        error = jnp.where(mask, error, 0)
        sums[f"{name}_absolute"] = jnp.abs(error).sum()
        sums[f"{name}_squared"] = (error**2).sum()
        sums[f"{name}_count"] = jnp.broadcast_to(mask, error.shape).sum()
    weight = _certainty(batch.uncertainty, loss.uncertainty_scale)
    weight = jnp.where(atom_mask, weight, 0)[:, None]
    error = jnp.where(atom_mask[:, None], errors["forces"][0], 0)
    sums["forces_penalty"] = (weight * _penalty(error, loss)).sum()
    sums["forces_weight"] = 3 * weight.sum()
    return sums


def _penalty(error: jax.Array, loss: LossConfig) -> jax.Array:
    if loss.force_kind == "mae":
        return jnp.abs(error)
    if loss.force_kind == "mse":
        return error**2
    size, delta = jnp.abs(error), loss.huber_delta
    return jnp.where(size <= delta, error**2, delta * (2 * size - delta))


def _certainty(uncertainty: jax.Array, scale: float) -> jax.Array:
    """Weight of each atom's forces; 1 where the teacher's uncertainty is unknown."""
    if scale == 0:
        return jnp.ones_like(uncertainty)
    return 1 / (1 + (jnp.nan_to_num(uncertainty, nan=0.0) / scale) ** 2)


def weighted_loss(
    sums: Mapping[str, Any], weights: LossConfig, factors: Mapping[str, Any] | None = None
) -> jax.Array:
    """Sum of mean errors times their weights; a term without entries is zero.

    Args:
        sums: see `error_sums`.
        weights: of the terms.
        factors: by which the weights are multiplied now; 1 by default.
    """
    total: Any = 0.0
    for name in TERMS:
        weight = getattr(weights, name) * (1.0 if factors is None else factors[name])
        summed, count = ("penalty", "weight") if name == "forces" else ("squared", "count")
        if name == "hessian" and weights.hessian_kind == "mae":
            summed = "absolute"
        if f"{name}_{count}" not in sums or getattr(weights, name) == 0:
            continue
        mean = sums[f"{name}_{summed}"] / jnp.maximum(sums[f"{name}_{count}"], 1e-9)
        total = total + weight * mean
    return total
