"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from distill.errors import ConfigError

TERMS = ("energy", "forces", "stress", "per_atom_energy", "hessian")
"""Terms of the loss, in the order in which they are added."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; see `distill.training.losses`. A weight of 0 leaves a term out.

    Attributes:
        energy: weight of the squared error of the energy per atom, 1/(eV/atom)².
        forces: weight of the error of a force component, squared 1/(eV/Å)², absolute 1/(eV/Å).
        stress: weight of the squared error of a stress component, 1/(eV/Å³)².
        per_atom_energy: weight of the squared error of each atom's energy, 1/eV²; needs a teacher
            that has them.
        hessian: weight of the error of a component of a Hessian-vector product, squared
            1/(eV/Å²)², absolute 1/(eV/Å²); one stored product of each structure is drawn per step.
        hessian_kind: `mse`, or `mae`, to which stiff bonds matter less.
        force_kind: `mse`, `mae`, or `huber`, which is quadratic up to `huber_delta`.
        huber_delta: eV/Å.
        uncertainty_scale: eV/Å; forces on an atom whose teacher's members differ by s count
            1 / (1 + (s / uncertainty_scale)²). 0 weighs all alike; above 0 it needs labels with
            uncertainties.
        halve_hessian: halve the Hessian's weight once, when the validation force error comes
            within 5 % of the teacher's committee spread (arXiv:2501.09009). Without uncertainties
            of the validation structures it never is; `notes.txt` says so.
        schedule: per term, points `[share of the run, factor]` between which the weight's factor
            is interpolated, e.g. `{energy: [[0, 1], [0.8, 1], [1, 100]]}`.
    """

    energy: float = 10.0
    forces: float = 1.0
    stress: float = 0.0
    per_atom_energy: float = 0.0
    hessian: float = 0.0
    hessian_kind: Literal["mse", "mae"] = "mse"
    force_kind: Literal["mse", "mae", "huber"] = "mse"
    huber_delta: float = 0.1
    uncertainty_scale: float = 0.0
    halve_hessian: bool = True
    schedule: dict[str, list[list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, points in self.schedule.items():
            pairs = bool(points) and all(np.shape(point) == (2,) for point in points)
            shares = [point[0] for point in points] if pairs else []
            if name not in TERMS or not pairs or sorted(shares) != shares:
                raise ConfigError(
                    f"loss.schedule of {name!r} must be rising pairs [share, factor] of one of "
                    f"{', '.join(TERMS)}"
                )
        if self.force_kind == "huber" and not self.huber_delta > 0:
            raise ConfigError(f"loss.huber_delta is {self.huber_delta}: give one above 0")
        if all(getattr(self, name) <= 0 for name in TERMS):
            raise ConfigError("all weights of the loss are 0: there is nothing to learn")


@dataclass(frozen=True)
class TrainingConfig:
    """A training run.

    Attributes:
        max_steps: gradient steps of the whole schedule.
        batch_size: structures per step, of all devices together.
        learning_rate: peak of the schedule.
        final_learning_rate: at the end of the cosine, or the floor of the plateau schedule,
            relative to the peak.
        schedule: `cosine`; or `plateau`, which multiplies the rate by `plateau_factor` after
            `plateau_patience` validations without improvement.
        plateau_factor: see `schedule`.
        plateau_patience: see `schedule`.
        warmup_steps: steps of the linear rise.
        rates: factors of the learning rate by a part of the parameter's path, e.g.
            `{radial_: 0.3}`; the first that fits counts.
        optimizer: `adam`, or `muon` for matrices with Adam for the rest.
        gradient_clip: largest global norm of the gradient.
        weight_decay: decoupled decay of all parameters (AdamW), relative to the learning rate.
        ema_decay: of the averaged parameters, which are validated and kept.
        average_last: share of the run, at its end, over which a plain average of the parameters
            is taken too (stochastic weight averaging); it is validated beside the exponential one
            and the better is kept. 0 leaves it out.
        validation_every: steps between validations; a checkpoint is written after each.
        patience: validations without improvement after which training stops; 0 never stops.
        ensemble: students trained side by side from different seeds on the same batches.
        devices: local devices over which each batch is divided.
        max_rollbacks: times that a run which diverged goes back to its last good checkpoint with
            a lower rate before it gives up.
        wandb_project: also log to Weights & Biases; empty leaves it out.
        seed: of parameters and order of the batches.
        loss: weights.
    """

    max_steps: int = 20_000
    batch_size: int = 8
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-3
    schedule: Literal["cosine", "plateau"] = "cosine"
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    warmup_steps: int = 200
    rates: dict[str, float] = field(default_factory=dict)
    optimizer: Literal["adam", "muon"] = "adam"
    gradient_clip: float = 10.0
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    average_last: float = 0.0
    validation_every: int = 1000
    patience: int = 0
    ensemble: int = 1
    devices: int = 1
    max_rollbacks: int = 3
    wandb_project: str = ""
    seed: int = 0
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        if self.ensemble < 1 or self.devices < 1:
            raise ConfigError("ensemble and devices must be at least 1")
        if self.batch_size % self.devices:
            raise ConfigError(
                f"batch_size {self.batch_size} cannot be divided over {self.devices} devices: "
                "choose a multiple"
            )
