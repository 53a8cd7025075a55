"""What is published with the demonstration teacher: its card (YAML) and its plot."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from fennol import FENNIX
from matplotlib.figure import Figure

from demo_teacher_checks import Prediction, joined_forces
from demo_teacher_data import SPLITS, Frame
from demo_teacher_model import BATCH, CUTOFF, ELEMENTS
from demo_teacher_training import EMA_DECAY, ENERGY_WEIGHT, PEAK_RATE
from distill.evaluation.plots import BLUE, ORANGE, plot_nve_energy
from distill.simulation import Frames


def plot(
    path: Path,
    curve: list[tuple[float, float, float]],
    rows: list[Prediction],
    table: dict[str, dict[str, float]],
    nve: Frames,
    dynamics: dict[str, Any],
) -> None:
    """Draw the learning curve, the parity of energies and forces on test runs, and NVE energy."""
    figure = Figure(figsize=(10, 8.4), layout="constrained")
    axes = figure.subplots(2, 2)
    minutes, force, energy = np.array(curve).T
    axes[0, 0].semilogy(minutes, force, label="force MAE (meV/Å)")
    axes[0, 0].semilogy(minutes, energy, label="energy MAE (meV/atom)")
    axes[0, 0].set(title="Validation trajectories, averaged weights", xlabel="training time (min)")
    axes[0, 0].legend(frameon=False)
    for distorted, key, colour in ((True, "distorted", ORANGE), (False, "all", BLUE)):
        members = [row for row in rows if row.frame.distorted == distorted]
        natoms = np.array([len(row.frame.numbers) for row in members])
        label = "distorted frames" if distorted else "MD frames"
        predicted, true = np.array([row.energy for row in members]).T / natoms
        text = f"{label}: MAE {table[key]['energy_mae_meV_per_atom']:.1f} meV/atom"
        axes[0, 1].plot(true, predicted, ".", ms=3, alpha=0.5, color=colour, label=text)
        predicted, true = joined_forces(members)
        text = f"{label}: MAE {table[key]['force_mae_meV_per_A']:.0f} meV/Å"
        axes[1, 0].plot(
            true.ravel(), predicted.ravel(), ".", ms=2, alpha=0.3, color=colour, label=text
        )
    axes[0, 1].set(title="Energy minus self energies, held-out (eV/atom)")
    axes[1, 0].set(title="Force components, held-out (eV/Å)")
    for axis in (axes[0, 1], axes[1, 0]):
        axis.axline((0, 0), slope=1, color="black", lw=0.8)
        axis.set(xlabel="GFN2-xTB", ylabel="potential")
        axis.legend(frameon=False, markerscale=4)
    drift = dynamics["nve_drift_meV_per_atom_per_ps"]
    plot_nve_energy(nve, nve.positions.shape[1], drift, axes[1, 1])
    axes[1, 1].set(title="Ethanol, NVE at about 300 K: total energy")
    figure.savefig(path, dpi=110)


def write_card(path: Path, model: FENNIX, frames: list[Frame], facts: dict[str, Any]) -> None:
    """Write the model card; `facts` holds what only this run knows."""
    splits = {}
    for split in SPLITS:
        members = [f for f in frames if f.split == split]
        splits[split] = {
            "trajectories": len({f.trajectory for f in members}),
            "frames": len(members),
            "of_which_distorted": sum(f.distorted for f in members),
        }
    modules = model.to_dict()["modules"]
    embedding = modules["embedding"]
    card = {
        "name": "demo_chno",
        "licence": "MIT",
        "intended_use": "Demonstration and tests of this project (teacher of the quickstart). "
        "Not for research: few molecules, a semi-empirical reference, no bulk phase.",
        "elements": list(ELEMENTS),
        "energy_unit": "Ha",
        "cutoff_A": CUTOFF,
        "architecture": {
            "framework": "FeNNol",
            "embedding": {k: v for k, v in embedding.items() if k != "embedding_key"},
            "energy_network": list(modules["energy_network"]["neurons"]),
            "energy_terms": list(model.energy_terms),
            "switch": "polynomial, p = 5",
        },
        "parameters": int(sum(x.size for x in jax.tree.leaves(model.variables))),
        "reference": {
            "method": "GFN2-xTB",
            "program": f"tblite {version('tblite')}",
            "doi": "10.1021/acs.jctc.8b01176",
        },
        "training_data": {
            "systems": sorted({f.system for f in frames}),
            "sampling": "Langevin dynamics on GFN2-xTB, 0.5 fs, one frame per 6 fs, each second "
            "frame also with a strained bond or random displacements; split by whole trajectory",
            "temperatures_K": facts.pop("temperatures_K"),
            "splits": splits,
        },
        "errors_on_held_out_trajectories": facts.pop("errors"),
        "molecular_dynamics": facts.pop("molecular_dynamics"),
        "training": {
            **facts,
            "batch": BATCH,
            "peak_learning_rate": PEAK_RATE,
            "ema_decay": EMA_DECAY,
            "energy_weight": ENERGY_WEIGHT,
        },
        "versions": {
            "python": sys.version.split()[0],
            **{p: version(p) for p in ("fennol", "jax", "flax", "optax", "ase", "tblite", "numpy")},
        },
    }
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100)
    path.write_text(text, encoding="utf-8")
