"""The training loop: resumable, validated; a run that diverges goes back and slows down."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.data import Dataset, GraphLoader
from distill.errors import TrainingError
from distill.progress import progress_bar
from distill.students import Student
from distill.students.initialise import initialise_student
from distill.training.checkpoints import Checkpoints
from distill.training.config import TrainingConfig
from distill.training.losses import weighted_loss
from distill.training.records import MetricsRecorder
from distill.training.schedules import (
    DIVERGED,
    ROLLBACK_FACTOR,
    after_validation,
    controls_at,
    learning_rate,
    lower_hessian_weight,
    never_halved,
    new_record,
)
from distill.training.step import (
    GOOD,
    initial_state,
    make_evaluation_step,
    make_optimizer,
    make_train_step,
    place_state,
    shard_batch,
)

CHECK_EVERY = 20
"""Steps between looks at the device for NaN and for the progress bar."""


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
        student: with the averaged parameters of the best validation; the first of an ensemble.
        members: all students of the ensemble; one without.
        best_step: where they were found.
        best_loss: validation loss there.
        steps: steps done in all.
        seconds: training time of all sessions of the run.
        stopped_early: whether patience ran out.
        rollbacks: steps at which the run diverged and was taken back.
    """

    student: Student
    members: tuple[Student, ...]
    best_step: int
    best_loss: float
    steps: int
    seconds: float
    stopped_early: bool
    rollbacks: tuple[int, ...]


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
    on_validation: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Train a student; a run that was interrupted in `folder` is continued.

    Args:
        student: start, see `initialise_student`; its spec and references are kept. Further
            members of an ensemble start from the seeds after `config.seed`.
        dataset: labelled, eV and Å.
        train: indices of the training structures.
        validation: indices of the validation structures (other trajectories).
        config: settings.
        folder: of the run: `metrics.csv`, TensorBoard events and checkpoints.
        resume: False refuses a folder with checkpoints.
        progress: show a bar.
        on_validation: called with the step and the metrics after each validation and checkpoint,
            for example to prune a trial.

    Raises:
        TrainingError: the loss became NaN or exploded more often than `config.max_rollbacks`
            (names the structures of the batch), no validation loss was finite, a term of the loss
            or its `uncertainty_scale` has no labels, or the checkpoints in `folder` belong to
            another run or other data.
    """
    run = _Run(student, dataset, train, validation, config, Path(folder), resume)
    bar = progress_bar(config.max_steps, "training", initial=run.step, disable=not progress)
    try:
        while run.step < config.max_steps and not run.out_of_patience:
            metrics = run.advance(bar)
            if metrics is not None and on_validation is not None:
                on_validation(run.step, metrics)
    finally:
        bar.close()
        run.close()
    return run.result()


def validate(
    evaluation: Callable[..., Any], params: Any, loader: GraphLoader
) -> dict[str, np.ndarray]:
    """Error sums over all batches of `loader`, added in float64; see `error_sums`."""
    total: dict[str, Any] = {}
    for batch in loader.epoch(0):
        for name, value in evaluation(params, batch).items():
            total[name] = total.get(name, 0.0) + np.asarray(value, np.float64)
    return total


class _Run:
    """State of a run on the host, and the arrays it moves along."""

    def __init__(
        self,
        student: Student,
        dataset: Dataset,
        train: np.ndarray,
        validation: np.ndarray,
        config: TrainingConfig,
        folder: Path,
        resume: bool,
    ):
        self.student, self.dataset, self.config, self.folder = student, dataset, config, folder
        _require_labels(dataset, train, config)
        self.loader, self.validation = (
            GraphLoader(
                dataset,
                indices,
                student.cutoff,
                student.elements,
                size,
                seed=config.seed,
                atomic_energies=student.reference_energies,
                shuffle=shuffle,
                shards=shards,
            )
            for indices, size, shuffle, shards in (
                (train, config.batch_size, True, config.devices),
                (validation, max(config.batch_size, 32), False, 1),
            )
        )
        self.spread = teacher_spread(dataset, validation)
        start = [student] + [
            initialise_student(student.spec, dataset, train, config.seed + k)
            for k in range(1, config.ensemble)
        ]
        # One set of statistics serves all members: they scale, and hardly depend on the seed.
        self.statistics = student.variables["statistics"]
        params = [member.variables["params"] for member in start]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        optimizer = make_optimizer(config)
        start_state = initial_state(
            stacked if config.ensemble > 1 else params[0], optimizer, config.ensemble
        )
        self.state = place_state(start_state, config.devices)
        self.best: Any = {"params": self.state.params}
        self.record = new_record(_identity(config, dataset, train, validation, student))
        self.checkpoints = Checkpoints(folder)
        self.first_state = self.state
        if self.checkpoints.latest is not None:
            self._resume(resume)
        module = student.module
        self.advance_step = make_train_step(module, self.statistics, optimizer, config)
        self.evaluation = make_evaluation_step(
            module, self.statistics, config.loss, config.ensemble
        )
        self.batches = self.loader.iterator(self.step, config.max_steps)
        self.recorder = MetricsRecorder(
            folder, self.step or None, config.wandb_project, asdict(config)
        )
        if not self.step and never_halved(config.loss, self.spread):
            self.recorder.note(
                "the weight of the Hessian stays as it is: not all validation structures have the "
                "teacher's uncertainty, at which it would be halved"
            )
        self.begun, self.earlier = time.monotonic(), self.record["seconds"]
        self.last: dict[str, Any] = {}

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.step)

    @property
    def out_of_patience(self) -> bool:
        """Whether training should stop early."""
        return bool(self.config.patience) and self.record["since_best"] >= self.config.patience

    def close(self) -> None:
        """Release files."""
        self.recorder.close()
        self.checkpoints.close()

    def advance(self, bar: Any) -> dict[str, float] | None:
        """Steps up to the next validation, which is made; its metrics, None after a rollback."""
        config, done = self.config, self.step
        stop = min(
            (done // config.validation_every + 1) * config.validation_every, config.max_steps
        )
        for step in range(done, stop):
            controls = controls_at(
                config, step, self.record["rate_factor"], self.record["hessian_factor"]
            )
            batch = shard_batch(next(self.batches), config.devices)
            self.state, self.last = self.advance_step(self.state, batch, controls)
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == stop:
                if int(self.state.bad_step) != GOOD:
                    self._roll_back(int(self.state.bad_step), "loss or gradient is NaN or infinite")
                    bar.n = self.step
                    return None
                bar.update(step + 1 - bar.n)
        metrics = self._validate()
        if metrics is None:
            self._roll_back(stop - 1, "the validation loss exploded")
            bar.n = self.step
            return None
        bar.set_postfix(force_mae=f"{1e3 * metrics['validation_force_mae']:.1f} meV/Å")
        return metrics

    def _validate(self) -> dict[str, float] | None:
        """Metrics of the averaged parameters, kept if they are the best; None if diverged."""
        config, done = self.config, self.step
        choices = [self.state.ema_params]
        if int(self.state.mean_count):
            choices.append(self.state.mean_params)
        errors = [validate(self.evaluation, params, self.validation) for params in choices]
        losses = [float(np.mean(weighted_loss(sums, config.loss))) for sums in errors]
        chosen = int(np.argmin([x if math.isfinite(x) else math.inf for x in losses]))
        loss, sums = losses[chosen], errors[chosen]
        best = self.record["best_loss"]
        if not math.isfinite(loss) or loss > DIVERGED * best:
            return None
        self.record["seconds"] = self.earlier + time.monotonic() - self.begun
        if improved := loss < best:
            self.best = {"params": choices[chosen]}
            self.record.update(best_step=done, best_loss=loss)
        rmse = _root(sums, "forces")
        after_validation(self.record, config, improved)
        lower_hessian_weight(self.record, config.loss, rmse, self.spread)
        metrics = {
            "step": done,
            "seconds": round(self.record["seconds"], 3),
            "learning_rate": learning_rate(config, done, self.record["rate_factor"]),
            "train_loss": float(np.mean(self.last["loss"])),
            "train_force_rmse": _root(self.last, "forces"),
            "validation_loss": loss,
            "validation_energy_mae": _mean(sums, "energy"),
            "validation_force_mae": _mean(sums, "forces"),
            "validation_force_rmse": rmse,
        }
        self.recorder.write(metrics)
        self.checkpoints.save(done, {"state": self.state, "best": self.best}, self.record)
        return metrics

    def _roll_back(self, step: int, what: str) -> None:
        """Return to the last good checkpoint with a lower rate, or give up."""
        structures = [int(i) for i in np.ravel(self.loader.batch(step).indices) if i >= 0]
        names = sorted({str(self.dataset.trajectory[i]) for i in structures})
        happened = (
            f"{what} at step {step}, batch of structures {structures} (trajectories "
            f"{', '.join(names)})"
        )
        if len(self.record["rollbacks"]) >= self.config.max_rollbacks:
            raise TrainingError(
                f"{happened}, after {len(self.record['rollbacks'])} returns to a checkpoint with a "
                "lower rate. Look at these structures, lower the learning rate or clip the "
                "gradient more; the last checkpoint is intact"
            )
        kept = {
            "rollbacks": [*self.record["rollbacks"], step],
            "rate_factor": self.record["rate_factor"] * ROLLBACK_FACTOR,
        }
        if self.checkpoints.latest is None:
            self.state = self.first_state
        else:
            arrays, self.record = self._restored()
            self.state, self.best = arrays["state"], arrays["best"]
        self.record.update(kept)
        self.batches = self.loader.iterator(self.step, self.config.max_steps)
        self.recorder.note(
            f"{happened}: back to step {self.step} at {kept['rate_factor']:g} times the rate"
        )

    def _restored(self) -> tuple[Any, dict[str, Any]]:
        arrays, record = self.checkpoints.restore({"state": self.first_state, "best": self.best})
        record["best_loss"] = record["best_loss"] if record["best_step"] else math.inf
        return arrays, record

    def _resume(self, allowed: bool) -> None:
        if not allowed:
            raise TrainingError(
                f"{self.folder} holds a run already: choose another folder or resume"
            )
        arrays, old = self._restored()
        identity = self.record["identity"]
        if old["identity"] != identity:
            changed = [k for k, v in identity.items() if old["identity"].get(k) != v]
            raise TrainingError(
                f"the run in {self.folder} was made with other {', '.join(changed)}: use another "
                "folder, or the same configuration and data to continue it"
            )
        self.state, self.best, self.record = arrays["state"], arrays["best"], old

    def result(self) -> FitResult:
        """Students with the best parameters."""
        if not self.record["best_step"]:
            raise TrainingError("the run ended before its first validation: nothing was learnt")
        params = jax.device_get(self.best["params"])
        count = self.config.ensemble
        members = [
            jax.tree.map(lambda leaf, k=k: leaf[k], params) if count > 1 else params
            for k in range(count)
        ]
        students = tuple(
            replace(self.student, variables={"params": own, "statistics": self.statistics})
            for own in members
        )
        return FitResult(
            student=students[0],
            members=students,
            best_step=self.record["best_step"],
            best_loss=self.record["best_loss"],
            steps=self.step,
            seconds=self.record["seconds"],
            stopped_early=self.out_of_patience,
            rollbacks=tuple(self.record["rollbacks"]),
        )


def teacher_spread(dataset: Dataset, indices: np.ndarray) -> float:
    """RMS difference of a force component of the teacher's members from their mean, eV/Å.

    NaN where the dataset holds no uncertainties.
    """
    rows = np.concatenate([np.arange(len(dataset.numbers))[dataset.rows(int(i))] for i in indices])
    return float(np.sqrt(np.mean(dataset.uncertainty[rows] ** 2) / 3))


def _require_labels(dataset: Dataset, train: np.ndarray, config: TrainingConfig) -> None:
    chosen = np.arange(len(dataset))[train]
    atoms = np.isin(np.repeat(np.arange(len(dataset)), dataset.n_atoms), chosen)
    with_products = () if dataset.hessian is None else dataset.hessian.structure
    wanted = {
        "stress": np.isfinite(dataset.stress[chosen]).all((1, 2)).any(),
        "per_atom_energy": np.isfinite(dataset.per_atom_energy[atoms]).any(),
        "hessian": np.isin(with_products, chosen).any(),
    }
    for name, there in wanted.items():
        if getattr(config.loss, name) and not there:
            raise TrainingError(
                f"loss.{name} is {getattr(config.loss, name)}, but the training structures have no "
                f"such labels: set it to 0, or label with them"
            )
    scale = config.loss.uncertainty_scale
    if scale > 0 and config.loss.forces and not np.isfinite(dataset.uncertainty[atoms]).any():
        raise TrainingError(
            f"loss.uncertainty_scale is {scale}, but no training structure has uncertainties: "
            "label them by a committee with uncertainty=true, or set it to 0"
        )


def _mean(sums: dict[str, Any], name: str) -> float:
    return float(
        np.mean(np.asarray(sums[f"{name}_absolute"]) / np.maximum(sums[f"{name}_count"], 1))
    )


def _root(sums: dict[str, Any], name: str) -> float:
    squared = np.asarray(sums[f"{name}_squared"], np.float64)
    return float(np.sqrt(np.mean(squared / np.maximum(sums[f"{name}_count"], 1))))


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
