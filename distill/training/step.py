"""One jitted training step, and the state that it carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill.data import Batch
from distill.errors import ConfigError
from distill.kernels import RowModel, blocked, reference
from distill.potential import Evaluation, evaluate
from distill.students.spec import passes_messages
from distill.training.config import LossConfig, TrainingConfig
from distill.training.losses import error_sums, weighted_loss
from distill.training.schedules import Controls

GOOD = -1
"""Value of `TrainState.bad_step` while every step was finite."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: number of steps done.
        params: current parameters; of an ensemble, with the members along a leading axis.
        ema_params: their exponential average.
        mean_params: their plain average over the last part of the run.
        mean_count: steps in that average.
        opt_state: of Optax.
        bad_step: first step whose loss or gradient was not finite, `GOOD` if none. From then on
            nothing is updated, so that the damage does not spread until the host looks.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    mean_params: Any
    mean_count: jax.Array
    opt_state: Any
    bad_step: jax.Array


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Optimizer with clipping for a learning rate of 1; the step multiplies by the rate."""
    if config.optimizer == "muon":
        from optax.contrib import muon

        core = muon(
            1.0,
            weight_decay=config.weight_decay,
            adam_weight_decay=config.weight_decay,
            adam_learning_rate=1.0,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        core = optax.adamw(1.0, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip), core)


def initial_state(
    params: Any, optimizer: optax.GradientTransformation, members: int = 1
) -> TrainState:
    """State before the first step; `params` of an ensemble have a leading axis of `members`."""
    params = jax.tree.map(jnp.asarray, params)
    init = jax.vmap(optimizer.init) if members > 1 else optimizer.init
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=params,
        mean_params=params,
        mean_count=jnp.zeros((), jnp.int32),
        opt_state=init(params),
        bad_step=jnp.full((), GOOD, jnp.int32),
    )


def make_train_step(
    module: nn.Module,
    statistics: Any,
    optimizer: optax.GradientTransformation,
    config: TrainingConfig,
) -> Callable[[TrainState, Batch, Controls], tuple[TrainState, dict[str, jax.Array]]]:
    """Jitted `(state, batch, controls) -> (state, metrics)`; compiles once per batch shape.

    Members of an ensemble share the batch. A batch with a leading axis of shards is divided over
    `config.devices` devices; the loss is that of all shards together.
    """
    loss = config.loss

    def loss_of(params: Any, batch: Batch, factors: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        sums = _sums(module, params, statistics, batch, loss)
        return weighted_loss(sums, loss, factors), sums

    def update(
        params: Any, opt_state: Any, batch: Batch, controls: Controls
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, jax.Array]]:
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (value, sums), gradient = gradient_of(params, batch, controls.factors)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        rates = _rates(params, config.rates)
        moved = jax.tree.map(
            lambda p, u, rate: p + rate * controls.learning_rate * u, params, updates, rates
        )
        return moved, opt_state, value, norm, sums

    members = config.ensemble > 1
    update = jax.vmap(update, in_axes=(0, 0, None, None)) if members else update

    @jax.jit
    def step(
        state: TrainState, batch: Batch, controls: Controls
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        params, opt_state, value, norm, sums = update(
            state.params, state.opt_state, batch, controls
        )
        finite = jnp.all(jnp.isfinite(value) & jnp.isfinite(norm)) & (state.bad_step == GOOD)
        # A short average at first, or the random start would weigh on it for long.
        decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema_params, 1.0 - decay)
        count = state.mean_count + (controls.averaging > 0)
        weight = controls.averaging / jnp.maximum(count, 1)
        mean = jax.tree.map(lambda m, p: m + weight * (p - m), state.mean_params, params)
        new = TrainState(state.step + 1, params, ema, mean, count, opt_state, state.bad_step)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        bad = jnp.where((state.bad_step == GOOD) & ~finite, state.step, state.bad_step)
        return replace(kept, bad_step=bad), {"loss": value, "gradient_norm": norm, **sums}

    return step


def make_evaluation_step(
    module: nn.Module, statistics: Any, loss: LossConfig | None = None, members: int = 1
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Jitted `(params, batch) -> error sums`, `[members]` each for an ensemble."""

    def one(params: Any, batch: Batch) -> dict[str, jax.Array]:
        return _sums(module, params, statistics, batch, loss)

    return jax.jit(jax.vmap(one, in_axes=(0, None)) if members > 1 else one)


def shard_batch(batch: Batch, devices: int) -> Batch:
    """A batch with a leading axis of shards, one on each device.

    Raises:
        ConfigError: there are fewer local devices.
    """
    if devices == 1:
        return batch
    return jax.device_put(batch, NamedSharding(_mesh(devices), PartitionSpec("shard")))


def place_state(state: TrainState, devices: int) -> TrainState:
    """The state on each of the devices that share the batches, and committed to them.

    A restored state is committed too: steps after a restart then need no other compilation, and
    all of it lies where the batches do.

    Raises:
        ConfigError: there are fewer local devices.
    """
    if devices == 1:
        return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding), state)
    return jax.device_put(state, NamedSharding(_mesh(devices), PartitionSpec()))


def _mesh(devices: int) -> Mesh:
    local = jax.local_devices()
    if len(local) < devices:
        raise ConfigError(
            f"training.devices is {devices}, but there are {len(local)} local devices"
        )
    return Mesh(local[:devices], ("shard",))


def _matrices(params: Any) -> Any:
    """Which parameters are matrices to Muon, and along which axes; None for Adam's.

    Most have the elements along a leading axis, each with a matrix of its own; biases, factors
    and embeddings then look like matrices and are none. A single column has no directions to
    balance: Muon would only forget the size of its gradient.
    """
    from optax.contrib import MuonDimensionNumbers

    def of(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        matrix = (name == "kernel" or name.startswith("radial_")) and min(leaf.shape[-2:]) > 1
        return MuonDimensionNumbers(-2, -1) if matrix else None

    return jax.tree_util.tree_map_with_path(of, params)


def _rates(params: Any, rates: Mapping[str, float]) -> Any:
    def of(path: Any, _: Any) -> float:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return next((rate for part, rate in rates.items() if part in name), 1.0)

    return jax.tree_util.tree_map_with_path(of, params)


def _sums(
    module: nn.Module, params: Any, statistics: Any, batch: Batch, loss: LossConfig | None
) -> dict[str, jax.Array]:
    if jnp.ndim(batch.energy) > 1:
        shards = jax.vmap(lambda own: _sums(module, params, statistics, own, loss))(batch)
        return jax.tree.map(lambda summed: summed.sum(0), shards)

    variables = {"params": params, "statistics": statistics}

    def atomic_energy(*rows: Any) -> Any:
        return module.apply(variables, *rows)

    weights = module.weights(variables) if hasattr(module, "weights") else None
    model = RowModel(atomic_energy, weights)
    # Rows of a batch at once: blocks would keep their intermediate arrays for the way back.
    kernel = blocked if weights is not None and batch.graph.groups else reference

    def at(positions: jax.Array) -> Evaluation:
        graph = replace(batch.graph, positions=positions)
        return evaluate(model, graph, kernel, message_passing=passes_messages(module))

    if loss is None or loss.hessian == 0:
        return error_sums(at(batch.graph.positions), batch, loss)
    result, change = jax.jvp(at, (batch.graph.positions,), (batch.direction,))
    return error_sums(result, batch, loss, -change.forces)
