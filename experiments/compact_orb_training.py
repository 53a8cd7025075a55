"""Fitting an Orb network with orb-models' own loss: resumable, with averaged weights."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data import Dataset
from distill.errors import TrainingError
from distill.progress import progress_bar
from distill.teachers._orb_model import OrbModel, make_graphs


@dataclass(frozen=True)
class OrbTrainingConfig:
    """How the network is fitted.

    Attributes:
        max_steps: optimiser steps.
        batch_size: structures per step.
        learning_rate: of Adam after `warmup_steps`; falls to 1 % along a cosine.
        warmup_steps: of linear growth.
        force_weight: of the force loss against the energy loss.
        rotation_weight: of orb-models' penalty on the rotational gradient of the energy.
        clip: largest norm of the gradient.
        ema_decay: of the average of the weights, which is what is kept.
        energy_std: eV/atom, scale of the energy normaliser. A network that has to produce
            forces does not learn with the scale of the energies themselves.
        save_every: steps between states that an interrupted run continues from.
        seed: of weights, order and rotations.
    """

    max_steps: int = 12000
    batch_size: int = 8
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    force_weight: float = 10.0
    rotation_weight: float = 0.0
    clip: float = 1.0
    ema_decay: float = 0.999
    energy_std: float = 0.3
    save_every: int = 500
    seed: int = 0


def set_scales(network: Any, dataset: Dataset, train: np.ndarray, energy_std: float) -> None:
    """Reference energies by least squares and fixed normalisers, from the training part."""
    counts = np.stack(
        [np.bincount(dataset.numbers[dataset.rows(int(i))], minlength=118) for i in train]
    ).astype(float)
    elements = np.flatnonzero(counts.sum(0))
    weights = np.zeros(118)
    # The smallest solution: one composition alone does not fix the energy of each element.
    weights[elements] = np.linalg.lstsq(counts[:, elements], dataset.energy[train], rcond=None)[0]
    forces = np.concatenate([dataset.forces[dataset.rows(int(i))] for i in train])
    with torch.no_grad():
        head = network.heads["energy"]
        head.reference.linear.weight[:] = torch.as_tensor(weights[None], dtype=torch.float32)
        for normalizer, scale in (
            (head.normalizer, energy_std),
            (network.grad_forces_normalizer, float(forces.std())),
        ):
            normalizer.online = False
            normalizer.bn.running_mean[:] = 0.0
            normalizer.bn.running_var[:] = scale**2


def train(
    model: OrbModel,
    dataset: Dataset,
    train_part: np.ndarray,
    config: OrbTrainingConfig,
    folder: Path,
) -> list[tuple[int, float]]:
    """Fit `model.network` in place; returns the curve of (step, force MAE of the batch, meV/Å).

    Raises:
        TrainingError: the loss became NaN or infinite.
    """
    network = model.network
    rng = np.random.default_rng(config.seed)
    for parameter in network.parameters():
        parameter.requires_grad = True
    network.heads["energy"].reference.linear.weight.requires_grad = False
    network.loss_weights = {"energy": 1.0, "grad_forces": config.force_weight, "confidence": 0.01}
    if config.rotation_weight:
        network.loss_weights["rotational_grad"] = config.rotation_weight
    has_stress = network.has_stress
    # Isolated structures have no volume: a stress of theirs would be a division by zero.
    network.has_stress = False
    optimizer = torch.optim.Adam(
        [p for p in network.parameters() if p.requires_grad], config.learning_rate
    )
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema_decay)
    )
    state_path = folder / "state.pt"
    first, curve = _resume(state_path, network, average, optimizer)
    network.train()
    # Skipped, so that a resumed run sees the batches that an uninterrupted one would have seen.
    for _ in range(first):
        _draw(rng, train_part, config.batch_size)
    recent: list[float] = []
    with progress_bar(config.max_steps, "training", initial=first) as bar:
        for step in range(first, config.max_steps):
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(step, config)
            graphs = _batch(model, dataset, *_draw(rng, train_part, config.batch_size))
            out = network.loss(graphs)
            if not torch.isfinite(out.loss):
                raise TrainingError(f"the loss became NaN or infinite at step {step}")
            optimizer.zero_grad(set_to_none=True)
            out.loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
            optimizer.step()
            average.update_parameters(network)
            recent.append(1e3 * float(out.log["grad-forces_mae_raw"]))
            bar.update(1)
            if (step + 1) % config.save_every == 0 or step + 1 == config.max_steps:
                curve.append((step + 1, float(np.mean(recent))))
                bar.set_postfix(force_mae=f"{curve[-1][1]:.1f} meV/Å")
                recent.clear()
                _save(state_path, step + 1, network, average, optimizer, curve)
    network.load_state_dict(average.module.state_dict())
    network.has_stress = has_stress
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad = False
    return curve


def _learning_rate(step: int, config: OrbTrainingConfig) -> float:
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.max_steps))
    return config.learning_rate * warm * (0.01 + 0.99 * cosine)


def _draw(rng: np.random.Generator, part: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Structures of a batch, and one rotation `[3, 3]` for each: Orb is not equivariant."""
    chosen = rng.choice(part, size, replace=False)
    q, r = np.linalg.qr(rng.standard_normal((size, 3, 3)))
    q *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    return chosen, q * np.linalg.det(q)[:, None, None]


def _batch(model: OrbModel, dataset: Dataset, chosen: np.ndarray, rotations: np.ndarray) -> Any:
    rows = [dataset.rows(int(i)) for i in chosen]
    pairs = list(zip(rows, rotations, strict=True))

    def turned(column: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.concatenate([column[r] @ q for r, q in pairs]))

    arrays = {
        "positions": turned(dataset.positions),
        "numbers": torch.as_tensor(np.concatenate([dataset.numbers[r] for r in rows])),
        "n_atoms": torch.as_tensor(dataset.n_atoms[chosen]),
        "cell": torch.zeros((len(chosen), 3, 3), dtype=torch.float64),
        "pbc": torch.zeros((len(chosen), 3), dtype=torch.bool),
    }
    graphs = make_graphs(model, arrays)
    graphs.node_targets["forces"] = turned(dataset.forces).float()
    graphs.system_targets["energy"] = torch.as_tensor(dataset.energy[chosen]).float()
    return graphs


def _save(path: Path, step: int, network: Any, average: Any, optimizer: Any, curve: Any) -> None:
    draft = path.with_suffix(".tmp")
    state = {
        "step": step,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "curve": curve,
    }
    torch.save(state, draft)
    os.replace(draft, path)


def _resume(path: Path, network: Any, average: Any, optimizer: Any) -> tuple[int, list[Any]]:
    if not path.is_file():
        return 0, []
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["curve"]
