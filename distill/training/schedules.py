"""What changes during a run, computed on the host and handed to the compiled step as numbers.

A change of rate or weight is then no recompilation, and a resumed run computes the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from distill.training.config import TERMS, LossConfig, TrainingConfig

DIVERGED = 10.0
"""A validation loss this many times the best one counts as diverged."""

ROLLBACK_FACTOR = 0.3
"""By which the rate is lowered after a rollback."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Controls:
    """Numbers that the host chooses for each step.

    Attributes:
        learning_rate: of the step.
        factors: of the loss terms' weights.
        averaging: 1.0 while the plain average of the parameters is taken, else 0.0.
    """

    learning_rate: Any
    factors: dict[str, Any]
    averaging: Any


def controls_at(
    config: TrainingConfig, step: int, rate_factor: float = 1.0, hessian_factor: float = 1.0
) -> Controls:
    """Controls of a step; the factors are what the run made of them so far."""
    share = step / config.max_steps
    factors = term_factors(config.loss, share, hessian_factor)
    return Controls(
        np.float32(learning_rate(config, step, rate_factor)),
        {name: np.float32(factor) for name, factor in factors.items()},
        np.float32(share >= 1 - config.average_last),
    )


def learning_rate(config: TrainingConfig, step: int, factor: float = 1.0) -> float:
    """Rate of a step; `factor` is what plateaus and rollbacks made of it."""
    warmup = min(config.warmup_steps, max(config.max_steps // 2, 1))
    peak, floor = config.learning_rate, config.final_learning_rate
    if step < warmup:
        return factor * peak * (0.1 + 0.9 * step / warmup)
    if config.schedule == "plateau":
        return factor * peak
    share = min((step - warmup) / max(config.max_steps - warmup, 1), 1.0)
    return factor * peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))


def term_factors(loss: LossConfig, share: float, hessian: float = 1.0) -> dict[str, float]:
    """Factor of each term's weight at a share of the run."""
    factors = dict.fromkeys(TERMS, 1.0)
    for name, points in loss.schedule.items():
        shares, values = zip(*points, strict=True)
        factors[name] = float(np.interp(share, shares, values))
    factors["hessian"] *= hessian
    return factors


def new_record(identity: dict[str, Any]) -> dict[str, Any]:
    """What the host remembers of a run, beside the arrays; stored with each checkpoint."""
    return {
        "identity": identity,
        "seconds": 0.0,
        "best_step": 0,
        "best_loss": math.inf,
        "since_best": 0,
        "since_drop": 0,
        "rate_factor": 1.0,
        "hessian_factor": 1.0,
        "rollbacks": [],
    }


def after_validation(record: dict[str, Any], config: TrainingConfig, improved: bool) -> None:
    """Count validations without improvement and lower the rate on a plateau."""
    record["since_best"] = 0 if improved else record["since_best"] + 1
    record["since_drop"] = 0 if improved else record["since_drop"] + 1
    late = not improved and record["since_drop"] >= config.plateau_patience
    if config.schedule == "plateau" and late:
        # A rollback may have gone below the floor: then the rate stays there.
        floor = min(config.final_learning_rate, record["rate_factor"])
        record["rate_factor"] = max(record["rate_factor"] * config.plateau_factor, floor)
        record["since_drop"] = 0


def lower_hessian_weight(
    record: dict[str, Any], loss: LossConfig, force_rmse: float, spread: float
) -> None:
    """Halve the Hessian's weight once the force error is close to the teacher's own spread."""
    close = np.isfinite(spread) and force_rmse <= 1.05 * spread
    if loss.hessian and loss.halve_hessian and close and record["hessian_factor"] == 1.0:
        record["hessian_factor"] = 0.5


def never_halved(loss: LossConfig, spread: float) -> bool:
    """Whether the Hessian's weight should be halved, but the teacher's spread is unknown (NaN)."""
    return bool(loss.hessian and loss.halve_hessian and not np.isfinite(spread))
