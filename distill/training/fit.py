"""The training loop: resumable, validated, stopped by NaN with the batch named."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill.data import Dataset, GraphLoader
from distill.errors import TrainingError
from distill.progress import progress_bar
from distill.students import Student
from distill.training.checkpoints import Checkpoints
from distill.training.config import TrainingConfig
from distill.training.losses import weighted_loss
from distill.training.records import MetricsRecorder
from distill.training.step import (
    GOOD,
    TrainState,
    initial_state,
    make_evaluation_step,
    make_optimizer,
    make_schedule,
    make_train_step,
)

CHECK_EVERY = 20
"""Steps between looks at the device for NaN and for the progress bar."""


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
        student: with the averaged parameters of the best validation.
        best_step: where they were found.
        best_loss: validation loss there.
        steps: steps done in all.
        seconds: training time of all sessions of the run.
        stopped_early: whether patience ran out.
    """

    student: Student
    best_step: int
    best_loss: float
    steps: int
    seconds: float
    stopped_early: bool


def fit(
    student: Student,
    dataset: Dataset,
    train: np.ndarray,
    validation: np.ndarray,
    config: TrainingConfig,
    folder: str | Path,
    *,
    resume: bool = True,
    progress: bool = True,
    on_validation: Callable[[int], None] | None = None,
) -> FitResult:
    """Train a student; a run that was interrupted in `folder` is continued.

    Args:
        student: start, see `initialise_student`; its spec and references are kept.
        dataset: labelled, eV and Å.
        train: indices of the training structures.
        validation: indices of the validation structures (other trajectories).
        config: settings.
        folder: of the run: `metrics.csv`, TensorBoard events and checkpoints.
        resume: False refuses a folder with checkpoints.
        progress: show a bar.
        on_validation: called with the step after each validation and checkpoint.

    Raises:
        TrainingError: the loss or its gradient became NaN or infinite (names the structures of
            the batch), or the checkpoints in `folder` belong to another run.
    """
    folder = Path(folder)
    loaders = [
        GraphLoader(
            dataset,
            indices,
            student.cutoff,
            student.elements,
            size,
            seed=config.seed,
            atomic_energies=student.reference_energies,
            shuffle=shuffle,
        )
        for indices, size, shuffle in (
            (train, config.batch_size, True),
            (validation, max(config.batch_size, 32), False),
        )
    ]
    statistics = student.variables["statistics"]
    optimizer = make_optimizer(config)
    state = initial_state(student.variables["params"], optimizer)
    best: dict[str, Any] = {"params": state.params}
    record: dict[str, Any] = {
        "identity": _identity(config, dataset, train, validation, student),
        "seconds": 0.0,
        "best_step": 0,
        "best_loss": math.inf,
        "since_best": 0,
    }
    checkpoints = Checkpoints(folder)
    if checkpoints.latest is not None:
        if not resume:
            raise TrainingError(f"{folder} holds a run already: choose another folder or resume")
        restored, old = checkpoints.restore({"state": state, "best": best})
        if old["identity"] != record["identity"]:
            changed = [k for k, v in record["identity"].items() if old["identity"].get(k) != v]
            raise TrainingError(
                f"the run in {folder} was made with other {', '.join(changed)}: use another "
                "folder, or the same configuration and data to continue it"
            )
        state, best, record = restored["state"], restored["best"], old
        record["best_loss"] = record["best_loss"] if record["best_step"] else math.inf

    step_function = make_train_step(
        student.module, statistics, optimizer, config.loss, config.ema_decay
    )
    evaluation = make_evaluation_step(student.module, statistics)
    schedule = make_schedule(config)
    first = int(state.step)
    recorder = MetricsRecorder(folder, first if first else None)
    begun, earlier = time.monotonic(), record["seconds"]
    stopped_early = _out_of_patience(record, config)
    last_metrics: dict[str, Any] = {}

    bar = progress_bar(config.max_steps, "training", initial=first, disable=not progress)
    try:
        for step in range(first, config.max_steps if not stopped_early else first):
            state, last_metrics = step_function(state, loaders[0].batch(step))
            done = step + 1
            if done % CHECK_EVERY == 0 or done == config.max_steps:
                _require_finite(state, loaders[0], dataset)
                bar.update(done - bar.n)
            if done % config.validation_every and done != config.max_steps:
                continue
            _require_finite(state, loaders[0], dataset)
            errors = validate(evaluation, state.ema_params, loaders[1])
            loss = float(weighted_loss(errors, config.loss))
            record["seconds"] = earlier + time.monotonic() - begun
            if loss < record["best_loss"]:
                best = {"params": state.ema_params}
                record.update(best_step=done, best_loss=loss, since_best=0)
            else:
                record["since_best"] += 1
            recorder.write(
                {
                    "step": done,
                    "seconds": round(record["seconds"], 3),
                    "learning_rate": float(schedule(done)),
                    "train_loss": float(last_metrics["loss"]),
                    "train_force_rmse": _root(last_metrics, "forces"),
                    "validation_loss": loss,
                    "validation_energy_mae": errors["energy_absolute"] / errors["energy_count"],
                    "validation_force_mae": errors["forces_absolute"] / errors["forces_count"],
                    "validation_force_rmse": _root(errors, "forces"),
                }
            )
            checkpoints.save(done, {"state": state, "best": best}, record)
            bar.set_postfix(
                force_mae=f"{1e3 * errors['forces_absolute'] / errors['forces_count']:.1f} meV/Å"
            )
            if on_validation is not None:
                on_validation(done)
            if _out_of_patience(record, config):
                stopped_early = True
                break
    finally:
        bar.close()
        recorder.close()
        checkpoints.close()
    params = jax.device_get(best["params"])
    return FitResult(
        student=replace(student, variables={"params": params, "statistics": statistics}),
        best_step=record["best_step"],
        best_loss=record["best_loss"],
        steps=int(state.step),
        seconds=record["seconds"],
        stopped_early=stopped_early,
    )


def validate(evaluation: Callable[..., Any], params: Any, loader: GraphLoader) -> dict[str, float]:
    """Error sums over all batches of `loader`, added in float64; see `error_sums`."""
    total: dict[str, float] = {}
    for batch in loader.epoch(0):
        for name, value in evaluation(params, batch).items():
            total[name] = total.get(name, 0.0) + float(value)
    return total


def _require_finite(state: TrainState, loader: GraphLoader, dataset: Dataset) -> None:
    bad = int(state.bad_step)
    if bad == GOOD:
        return
    structures = [int(i) for i in loader.batch(bad).indices if i >= 0]
    names = sorted({str(dataset.trajectory[i]) for i in structures})
    raise TrainingError(
        f"loss or gradient is NaN or infinite at step {bad}, batch of structures {structures} "
        f"(trajectories {', '.join(names)}). Look at these structures, lower the learning rate "
        "or clip the gradient more; the last checkpoint is intact"
    )


def _out_of_patience(record: dict[str, Any], config: TrainingConfig) -> bool:
    return bool(config.patience) and record["since_best"] >= config.patience


def _root(sums: dict[str, Any], name: str) -> float:
    return math.sqrt(float(sums[f"{name}_squared"]) / max(float(sums[f"{name}_count"]), 1.0))


def _identity(
    config: TrainingConfig,
    dataset: Dataset,
    train: np.ndarray,
    validation: np.ndarray,
    student: Student,
) -> dict[str, Any]:
    """What must be the same for a run to be continued."""
    record = {
        "configuration": asdict(config),
        "data": dataset.sha256,
        "split": [np.asarray(train).tolist(), np.asarray(validation).tolist()],
        "student": student.spec.to_dict(),
    }
    return json.loads(json.dumps(record))
