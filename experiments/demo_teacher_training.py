"""The loss and the training loop of the demonstration teacher."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fennol import FENNIX

from demo_teacher_checks import Prediction, summarise
from demo_teacher_model import BATCH, Arrays, Batches, Predictor, predictor
from distill.progress import progress_bar

PEAK_RATE, FINAL_RATE, WARMUP = 3e-3, 1e-5, 0.01  # learning rates; warm-up as a share of the run
EMA_DECAY = 0.998
ENERGY_WEIGHT = 10.0  # per-atom energy error (eV) against force error (eV/Å)
FORCE_SOFTENING = 0.02  # eV/Å; below it the force loss turns from a distance into a square


@dataclass(frozen=True)
class Training:
    """Result of `train`.

    Attributes:
        variables: running average of the model's variables.
        curve: per epoch (minute, validation force MAE in meV/Å, energy MAE in meV/atom).
        facts: steps, epochs and minutes, for the card.
    """

    variables: Arrays
    curve: list[tuple[float, float, float]]
    facts: dict[str, Any]


def loss_of(predict: Predictor, variables: Arrays, inputs: Arrays, target: Arrays) -> jax.Array:
    """Mean length of the force errors (eV/Å) and weighted mean energy error (eV/atom)."""
    energies, forces = predict(variables, inputs)
    natoms = jnp.maximum(inputs["natoms"], 1)
    systems = jnp.maximum(inputs["true_sys"].sum(), 1)
    # A softened distance rather than a square: a few hard frames must not rule the fit.
    error = jnp.sqrt(((forces - target["forces"]) ** 2).sum(-1) + FORCE_SOFTENING**2)
    force_term = jnp.where(inputs["true_atoms"], error, 0.0).sum() / inputs["natoms"].sum()
    energy_error = jnp.abs(energies - target["energy"]) / natoms
    energy_term = jnp.where(inputs["true_sys"], energy_error, 0.0).sum() / systems
    return force_term + ENERGY_WEIGHT * energy_term


def learning_rate(done: float) -> float:
    """Warm-up, then a cosine; `done` is the share of the run that is over."""
    cosine = FINAL_RATE + 0.5 * (PEAK_RATE - FINAL_RATE) * (1 + np.cos(np.pi * done))
    return cosine * min(1.0, done / WARMUP + 1e-2)


def train(
    model: FENNIX, data: Batches, val: Batches, minutes: float | None, epochs: int, seed: int
) -> Training:
    """Fit the model.

    The learning rate follows the share of the run that is done: of the wall time if `minutes` is
    given, of the `epochs` otherwise (only the latter repeats exactly).
    """
    predict = predictor(model)
    optimiser = optax.chain(optax.clip_by_global_norm(5.0), optax.scale_by_adam(b2=0.99))

    @jax.jit
    def step(
        variables: Arrays, average: Arrays, state: Any, inputs: Arrays, target: Arrays, rate: float
    ) -> tuple[Arrays, Arrays, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of, argnums=1)(predict, variables, inputs, target)
        update, state = optimiser.update(gradient, state)
        variables = jax.tree.map(lambda v, u: v - rate * u, variables, update)
        # Written as a correction, so that what is not trained (the self energies) stays exact.
        average = jax.tree.map(lambda a, v: a + (1 - EMA_DECAY) * (v - a), average, variables)
        return variables, average, state, loss

    jitted = jax.jit(predict)
    variables = average = model.variables
    state = optimiser.init(variables)
    rng = np.random.default_rng(seed)
    curve: list[tuple[float, float, float]] = []
    losses: list[jax.Array] = []
    steps, done = 0, 0.0
    per_epoch = len(data.frames) / BATCH
    begin = time.monotonic()
    # How many steps fit into a given time is not known beforehand.
    total = None if minutes else math.ceil(per_epoch * epochs)
    with progress_bar(total, "training") as bar:
        while done < 1.0:
            for _, inputs, target in data.epoch(rng.permutation(len(data.frames))):
                elapsed = time.monotonic() - begin
                done = elapsed / (60 * minutes) if minutes else steps / (per_epoch * epochs)
                if done >= 1.0:
                    break
                rate = learning_rate(done)
                variables, average, state, loss = step(
                    variables, average, state, inputs, target, rate
                )
                losses.append(loss)
                steps += 1
                bar.update()
            table = summarise(validate(jitted, average, val))["all"]
            force, energy = table["force_mae_meV_per_A"], table["energy_mae_meV_per_atom"]
            curve.append(((time.monotonic() - begin) / 60, force, energy))
            bar.set_postfix(
                done=f"{100 * min(done, 1.0):.0f} %",
                loss=f"{np.mean(losses[-200:]):.4f}",
                validation=f"{force} meV/Å, {energy} meV/atom",
            )
    facts = {
        "steps": steps,
        "epochs": round(steps / per_epoch, 2),
        "training_minutes": round((time.monotonic() - begin) / 60, 1),
    }
    return Training(average, curve, facts)


def validate(predict: Predictor, variables: Arrays, data: Batches) -> list[Prediction]:
    """What the model being trained predicts for each frame, beside its labels."""
    rows = []
    for chosen, inputs, target in data.epoch(range(len(data.frames))):
        energies, forces = map(np.asarray, predict(variables, inputs))
        for system, index in enumerate(chosen):
            own = inputs["batch_index"] == system
            rows.append(
                Prediction(
                    data.frames[index],
                    energy=(float(energies[system]), float(target["energy"][system])),
                    forces=(forces[own], target["forces"][own]),
                )
            )
    return rows
