"""Whether forces are the gradient of the energy: central differences in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from distill.data import Labels

STEP = 5e-4
"""Å, of the differences, whose error is of fourth order in it: some 1e-8 eV/Å."""

WEIGHTS = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
"""Of the energies at so many steps: the first derivative to fourth order."""


def energy_force_consistency(
    label: Callable[[Sequence[Atoms]], Labels],
    structures: Sequence[Atoms],
    *,
    components: int = 30,
    seed: int = 0,
) -> dict[str, Any]:
    """Differences of the forces from fourth-order central differences of the energy.

    Args:
        label: energies and forces of a batch in float64 (`Student.label` with that `dtype`).
        structures: at which.
        components: force components of each structure, drawn at random; all where it has fewer.
        seed: of the draw.

    Returns:
        `worst_ev_per_ang`, `rms_ev_per_ang`, `worst_relative` (over the RMS of the forces looked
        at), `structures`, `components`, and `by_structure`, worst and RMS of each.
    """
    rng = np.random.default_rng(seed)
    rows, forces = [], []
    for atoms in structures:
        count = min(components, 3 * len(atoms))
        chosen = np.sort(rng.choice(3 * len(atoms), count, replace=False))
        moved = []
        for component in chosen:
            for steps in WEIGHTS:
                copy = atoms.copy()
                copy.positions[component // 3, component % 3] += steps * STEP
                moved.append(copy)
        labels = label([atoms, *moved])
        own = np.asarray(labels.forces[0], np.float64).ravel()[chosen]
        energies = np.asarray(labels.energy[1:], np.float64).reshape(count, len(WEIGHTS))
        numerical = -(energies - labels.energy[0]) @ np.array(list(WEIGHTS.values())) / STEP
        rows.append(own - numerical)
        forces.append(own)
    errors = np.concatenate(rows)
    worst = float(np.abs(errors).max())
    return {
        "worst_ev_per_ang": worst,
        "rms_ev_per_ang": float(np.sqrt((errors**2).mean())),
        "worst_relative": worst / float(np.sqrt((np.concatenate(forces) ** 2).mean())),
        "structures": len(structures),
        "components": len(errors),
        "step_ang": STEP,
        "by_structure": [
            {"worst": float(np.abs(e).max()), "rms": float(np.sqrt((e**2).mean()))} for e in rows
        ],
    }
