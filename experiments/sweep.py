"""Search hyperparameters with Optuna; trials that fall behind are pruned.

    python experiments/sweep.py --config experiments/configs/ethanol/sweep.yaml
    python experiments/sweep.py --smoke

Trials are kept in `study.db` of the output folder; started again, the search goes on.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import train
from distill.errors import ConfigError, MissingDependencyError, TrainingError
from script import claim_folder, run_script
from training_job import TrainConfig, load_data, with_values
from training_job import train as train_student

SMOKE = (
    *(f"train.{override}" for override in train.SMOKE if not override.startswith("output")),
    "space={training.learning_rate: [1e-3, 1e-2]}",
    "trials=2",
    "output=runs/smoke/sweep",
)


@dataclass(frozen=True)
class SweepConfig:
    """Settings.

    Attributes:
        train: the training that is varied; its `output` is not used.
        space: by key of `train` (`training.learning_rate`), a range `[low, high]` of numbers,
            which floats cross on a logarithmic scale, or a list of more than two choices or of
            texts.
        trials: of the whole study, those of earlier runs included.
        warmup_validations: of a trial before it may be pruned.
        output: folder of the study.
        seed: of the search.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    space: dict[str, list[Any]] = field(default_factory=dict)
    trials: int = 20
    warmup_validations: int = 3
    output: Path = Path("runs/sweep")
    seed: int = 0


def main(argv: list[str] | None = None) -> int:
    """Search; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--smoke" in arguments and not train.SMOKE_DATA.is_file():
        train.make_smoke_data(train.SMOKE_DATA)
    return run_script(SweepConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: SweepConfig) -> dict[str, Any]:
    """The best values found, which are also in `best.json` of the output folder."""
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError(
            "the search needs Optuna: pip install 'distill-mlip[sweep]'"
        ) from error
    if not config.space:
        raise ConfigError("space is empty: name at least one key of the training and its range")
    # More trials may be asked for later; anything else would be another search.
    claim_folder(replace(config, trials=0))
    data = load_data(config.train)

    def objective(trial: optuna.Trial) -> float:
        values = {key: suggest(trial, key, choices) for key, choices in config.space.items()}
        output = config.output / f"trial_{trial.number}"
        own = with_values(config.train, values, output)
        losses: list[float] = []

        def report(step: int, metrics: dict[str, float]) -> None:
            losses.append(metrics["validation_force_mae"])
            trial.report(metrics["validation_force_mae"], step)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            train_student(own, data, progress=False, on_validation=report)
        except TrainingError as error:
            print(f"trial {trial.number}: {error}")
            raise optuna.TrialPruned from error
        return min(losses)

    study = optuna.create_study(
        study_name="distill",
        storage=f"sqlite:///{config.output / 'study.db'}",
        load_if_exists=True,
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=config.seed),
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=3,
            n_warmup_steps=config.warmup_validations * config.train.training.validation_every,
        ),
    )
    finished = [t for t in study.trials if t.state.is_finished()]
    study.optimize(objective, n_trials=max(config.trials - len(finished), 0))
    states = [t.state.name.lower() for t in study.trials]
    if "complete" not in states:
        raise TrainingError("no trial finished: widen the space or lower the rates")
    best = {"force_mae_ev_per_ang": study.best_value, **study.best_params}
    (config.output / "best.json").write_text(json.dumps(best, indent=1) + "\n")
    print(
        f"{states.count('complete')} trials finished, {states.count('pruned')} pruned; best "
        f"validation force MAE {1e3 * study.best_value:.2f} meV/Å with {study.best_params}"
    )
    return best


def suggest(trial: Any, key: str, choices: list[Any]) -> Any:
    """A value for one key; see `SweepConfig.space`."""
    if len(choices) == 2 and all(isinstance(c, (int, float)) for c in choices):
        low, high = choices
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(key, low, high)
        return trial.suggest_float(key, low, high, log=low > 0)
    return trial.suggest_categorical(key, choices)


if __name__ == "__main__":
    sys.exit(main())
