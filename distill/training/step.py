"""One jitted training step, and the state that it carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from distill.data import Batch
from distill.potential import evaluate
from distill.training.config import LossConfig, TrainingConfig
from distill.training.losses import error_sums, weighted_loss

GOOD = -1
"""Value of `TrainState.bad_step` while every step was finite."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: number of steps done.
        params: current parameters.
        ema_params: their exponential average.
        opt_state: of Optax.
        bad_step: first step whose loss or gradient was not finite, `GOOD` if none. From then on
            nothing is updated, so that the damage does not spread until the host looks.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    bad_step: jax.Array


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Adam with gradient clipping under a warm-up and cosine schedule."""
    schedule = make_schedule(config)
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )


def make_schedule(config: TrainingConfig) -> optax.Schedule:
    """Learning rate against step."""
    warmup = min(config.warmup_steps, max(config.max_steps // 2, 1))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.1 * config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(config.max_steps, warmup + 1),
        end_value=config.learning_rate * config.final_learning_rate,
    )


def initial_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first step."""
    params = jax.tree.map(jnp.asarray, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=params,
        opt_state=optimizer.init(params),
        bad_step=jnp.full((), GOOD, jnp.int32),
    )


def make_train_step(
    module: nn.Module,
    statistics: Any,
    optimizer: optax.GradientTransformation,
    loss: LossConfig,
    ema_decay: float,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Jitted `(state, batch) -> (state, metrics)`; compiles once per batch shape."""

    def loss_of(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        sums = _sums(module, params, statistics, batch)
        return weighted_loss(sums, loss), sums

    @jax.jit
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        (value, sums), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params, batch)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
        finite = jnp.isfinite(value) & jnp.isfinite(norm) & (state.bad_step == GOOD)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short average at first, or the random start would weigh on it for long.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema_params, 1.0 - decay)
        new = TrainState(state.step + 1, params, ema, opt_state, state.bad_step)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        bad = jnp.where((state.bad_step == GOOD) & ~finite, state.step, state.bad_step)
        kept = TrainState(kept.step, kept.params, kept.ema_params, kept.opt_state, bad)
        return kept, {"loss": value, "gradient_norm": norm, **sums}

    return step


def make_evaluation_step(
    module: nn.Module, statistics: Any
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Jitted `(params, batch) -> error sums`."""
    return jax.jit(lambda params, batch: _sums(module, params, statistics, batch))


def _sums(module: nn.Module, params: Any, statistics: Any, batch: Batch) -> dict[str, jax.Array]:
    def atomic_energy(*rows: Any) -> Any:
        return module.apply({"params": params, "statistics": statistics}, *rows)

    return error_sums(evaluate(atomic_energy, batch.graph), batch)
