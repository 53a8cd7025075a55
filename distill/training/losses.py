"""The loss and the error sums it is made of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from distill.data import Batch
from distill.potential import Evaluation
from distill.training.config import LossConfig


def error_sums(result: Evaluation, batch: Batch) -> dict[str, jax.Array]:
    """Sums over the real entries of a batch, so that means over many batches are exact.

    Returns:
        For each of `energy` (per atom, eV), `forces` (components, eV/Å) and `stress` (components,
        eV/Å³): `*_absolute`, `*_squared` sums of errors and the `*_count` of entries.
    """
    graph = batch.graph
    stress_cell = jnp.where(batch.stress_mask[:, None, None], graph.cell, jnp.eye(3))
    atom_mask = graph.atom_mask & batch.energy_mask[graph.system]
    errors = {
        "energy": ((result.energy - batch.energy) / batch.n_atoms, batch.energy_mask),
        "forces": (result.forces - batch.forces, atom_mask[:, None]),
        "stress": (result.stress(stress_cell) - batch.stress, batch.stress_mask[:, None, None]),
    }
    sums = {}
    for name, (error, mask) in errors.items():
        error = jnp.where(mask, error, 0)
        sums[f"{name}_absolute"] = jnp.abs(error).sum()
        sums[f"{name}_squared"] = (error**2).sum()
        sums[f"{name}_count"] = jnp.broadcast_to(mask, error.shape).sum()
    return sums


def weighted_loss(sums: dict[str, Any], weights: LossConfig) -> jax.Array:
    """Sum of mean squared errors times their weights; a term without entries is zero."""
    total: Any = 0.0
    for name, weight in (
        ("energy", weights.energy),
        ("forces", weights.forces),
        ("stress", weights.stress),
    ):
        total = total + weight * sums[f"{name}_squared"] / jnp.maximum(sums[f"{name}_count"], 1)
    return total
