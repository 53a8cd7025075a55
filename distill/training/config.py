"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; see `distill.training.losses.weighted_loss`.

    Attributes:
        energy: weight of the squared error of the energy per atom, 1/(eV/atom)².
        forces: weight of the squared error of a force component, 1/(eV/Å)².
        stress: weight of the squared error of a stress component, 1/(eV/Å³)².
    """

    energy: float = 10.0
    forces: float = 1.0
    stress: float = 0.0


@dataclass(frozen=True)
class TrainingConfig:
    """A training run.

    Attributes:
        max_steps: gradient steps of the whole schedule.
        batch_size: structures per step.
        learning_rate: peak of the cosine schedule.
        final_learning_rate: at its end, relative to the peak.
        warmup_steps: steps of the linear rise.
        gradient_clip: largest global norm of the gradient.
        weight_decay: decoupled decay of all parameters (AdamW), relative to the learning rate.
        ema_decay: of the averaged parameters, which are the ones that are validated and kept.
        validation_every: steps between validations; a checkpoint is written after each.
        patience: validations without improvement after which training stops; 0 never stops.
        seed: of parameters and order of the batches.
        loss: weights.
    """

    max_steps: int = 20_000
    batch_size: int = 8
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-3
    warmup_steps: int = 200
    gradient_clip: float = 10.0
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    validation_every: int = 1000
    patience: int = 0
    seed: int = 0
    loss: LossConfig = field(default_factory=LossConfig)
