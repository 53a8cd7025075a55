"""Distil on policy: the student runs, the teacher labels where it went wrong, the student learns.

    python experiments/on_policy.py --config experiments/configs/on_policy/ethanol.yaml
    python experiments/on_policy.py --smoke

Each round trains a student and lets it run; if all runs last and the error on fixed held-out
trajectories is small enough, the gate is passed and the loop ends. If not, uncertain frames and
those before an unphysical event are labelled and join the data. The same command goes on after
an interruption at any stage. `report.md` tells of every round; the last student is in `student`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import train
from distill import teachers
from distill.data import Dataset, concatenate, flag_summary, label_structures, load, save
from distill.errors import ConfigError, DistillError
from distill.evaluation.domain import closest_seen
from distill.evaluation.results import replace_text
from distill.evaluation.stability_time import Outcome, run_until_event, summarise_outcomes
from distill.sampling import make_systems
from distill.sampling.on_policy import candidates_of_run, choose_frames
from distill.sampling.rattle import rattle
from distill.simulation import MDConfig
from distill.students import Bundle, load_bundle
from on_policy_config import OnPolicyConfig, RunsConfig
from on_policy_report import write_report
from quickstart import resolve_teacher
from script import claim_folder, run_script
from training_job import TrainConfig, load_data

SMOKE = (
    *(f"train.{override}" for override in train.SMOKE if not override.startswith("output")),
    "train.training.max_steps=40",
    "train.training.validation_every=20",
    "system={structure: CH3CH2OH}",
    "runs={temperatures: [600.0], replicas: 2, duration: 0.05, record_every: 5}",
    "choice.labels=6",
    "rounds=2",
    "output=runs/smoke/on_policy",
)


def main(argv: list[str] | None = None) -> int:
    """Run the loop; returns the exit status, 0 also where the budget ends before the gate."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--smoke" in arguments and not train.SMOKE_DATA.is_file():
        train.make_smoke_data(train.SMOKE_DATA)
    return run_script(OnPolicyConfig, run, arguments, description=__doc__, smoke_overrides=SMOKE)


def run(config: OnPolicyConfig) -> dict[str, Any]:
    """All rounds that the budget allows; returns the report."""
    claim_folder(config, lambda then: _with_budget(then, config))
    prepare(config)
    reports: list[dict[str, Any]] = []
    for number in range(config.rounds):
        folder = config.output / f"round_{number:02d}"
        train_round(config, number)
        report = run_student(config, number)
        reports.append(report)
        labelled = sum(r.get("labelled", 0) for r in reports)
        left = config.labels - labelled
        ended = verdict(config, report, number, left)
        if not ended:
            choose(config, number, min(left, config.choice.labels))
            report |= label(config, folder)
        write_report(config.output, reports, ended or "going on", vars(config.choice))
        if ended:
            print(f"{ended}; student in {keep_last(config.output, folder)}")
            return {"rounds": reports, "ended": ended}
    raise AssertionError("the last round always ends the loop")


def keep_last(output: Path, folder: Path) -> Path:
    """Copy the bundle of the last round and its split to where they are found by a fixed name."""
    kept, fresh = output / "student", output / "student.new"
    if fresh.exists():
        shutil.rmtree(fresh)
    shutil.copytree(folder / "train" / "student", fresh)
    replace_text(output / "split.json", (folder / "train" / "split.json").read_text())
    if kept.exists():
        shutil.rmtree(kept)
    fresh.rename(kept)
    return kept


def prepare(config: OnPolicyConfig) -> None:
    """Part the first labels for good: `seed.h5` to train on, `held_out.h5` to be tested on."""
    seed, held_out = config.output / "seed.h5", config.output / "held_out.h5"
    if seed.is_file():  # written last
        return
    data = load_data(config.train)
    test = data.parts["test"]
    if not len(test):
        raise ConfigError("nothing is held out: give train.test, or a test share in train.split")
    save(data.dataset.subset(test), held_out)
    own = np.sort(np.concatenate([data.parts["train"], data.parts["validation"]]))
    save(data.dataset.subset(own), seed)


def training_of(config: OnPolicyConfig, number: int) -> TrainConfig:
    """The training of a round, on the first labels and those of the rounds before."""
    folders = [config.output / f"round_{k:02d}" for k in range(number)]
    return replace(
        config.train,
        datasets=[config.output / "seed.h5", *(folder / "labels.h5" for folder in folders)],
        test=config.output / "held_out.h5",
        trajectories="*",
        n_train=0,
        start=folders[-1] / "train" / "student" if folders and config.warm else config.train.start,
        output=config.output / f"round_{number:02d}" / "train",
    )


def train_round(config: OnPolicyConfig, number: int) -> None:
    """Train, unless the bundle is there; an interrupted training goes on."""
    training = training_of(config, number)
    if not (training.output / "student").is_dir():
        print(f"== round {number}: training")
        train.run(training)


def run_student(config: OnPolicyConfig, number: int) -> dict[str, Any]:
    """Let the student run; `candidates.h5`, and the report of the round in `round.json`."""
    folder = config.output / f"round_{number:02d}"
    path = folder / "round.json"
    if path.is_file():  # written last
        return dict(json.loads(path.read_text()))
    print(f"== round {number}: the student's runs")
    begun = time.monotonic()
    bundle = load_bundle(folder / "train" / "student")
    threshold = uncertain_above(config, bundle, number)
    parts: list[Dataset] = []
    reasons: list[str] = []
    rows: list[dict[str, Any]] = []
    for place, (system, atoms) in enumerate(make_systems(config.system).items()):
        for step, temperature in enumerate(config.runs.temperatures):
            seed = config.seed + 1_000_000 * number + 10_000 * place + 100 * step
            outcomes = run_at(config, bundle, atoms, temperature, seed)
            rows += [{"system": system, **row} for row in summarise_outcomes(outcomes)]
            for replica, outcome in enumerate(outcomes):
                if outcome.frames is None:
                    continue
                found, why = candidates_of_run(
                    atoms,
                    outcome.frames,
                    outcome.event is not None,
                    f"on-policy-{number:02d}-{system}-{temperature:g}K-r{replica}",
                    f"on_policy:round_{number}:{temperature:g}K",
                    threshold,
                    config.choice,
                )
                if len(found):
                    parts.append(found)
                    reasons += why
    folder.mkdir(parents=True, exist_ok=True)
    if parts:
        save(concatenate(parts), folder / "candidates.h5")
    card = bundle.card
    report = {
        "round": number,
        "training_structures": card["dataset"]["train"],
        "force_mae_mev_per_ang": card["errors"]["force_mae_mev_per_ang"],
        "force_rmse_mev_per_ang": card["errors"]["force_rmse_mev_per_ang"],
        "training_steps": card["training"]["steps"],
        "uncertain_above_ev_per_ang": threshold,
        "runs": rows,
        "events": sum(row["event"] is not None for row in rows),
        "duration_ps": _steps(config.runs) * config.runs.timestep / 1e3,
        "candidates": {kind: reasons.count(kind) for kind in ("event", "uncertain", "ordinary")},
        "seconds_of_runs": time.monotonic() - begun,
    }
    replace_text(folder / "reasons.json", json.dumps(reasons) + "\n")
    replace_text(path, json.dumps(report, indent=1) + "\n")
    return report


def run_at(
    config: OnPolicyConfig, bundle: Bundle, atoms: Any, temperature: float, seed: int
) -> list[Outcome]:
    """The runs from one start at one temperature."""
    runs = config.runs
    md = MDConfig(
        ensemble="nvt_langevin",
        timestep=runs.timestep,
        temperature=temperature,
        friction=runs.friction,
        steps=_steps(runs),
        record_every=runs.record_every,
        block_steps=runs.record_every * 20,
        seed=seed,
    )
    starts = rattle([atoms] * runs.replicas, runs.rattle, seed)
    domain = bundle.card.get("domain")
    return run_until_event(
        bundle.student.potential(atoms),
        atoms,
        np.stack([start.positions for start in starts]),
        md,
        runs.safety,
        closest=closest_seen(domain) if domain else None,
        keep_frames=True,
    )


def uncertain_above(config: OnPolicyConfig, bundle: Bundle, number: int) -> float:
    """eV/Å: the threshold, or the quantile of the largest expected error in held-out structures."""
    if config.choice.threshold:
        return config.choice.threshold
    data = load_data(training_of(config, number))
    structures = [data.dataset.structure(int(i)) for i in data.parts["validation"]]
    expected = bundle.student.label(structures).uncertainty
    if expected is None:
        raise ConfigError("the student has no uncertainty: give choice.threshold")
    return float(np.quantile([own.max() for own in expected], config.choice.quantile))


def verdict(config: OnPolicyConfig, report: dict[str, Any], number: int, left: int) -> str:
    """Why the loop ends after this round, empty if it goes on."""
    accurate = report["force_mae_mev_per_ang"] <= config.force_mae_mev_per_ang
    if report["events"] == 0 and accurate:
        return "the gate is passed"
    why = []
    if report["events"]:
        why.append(f"{report['events']} of {len(report['runs'])} runs met an event")
    if not accurate:
        why.append(
            f"force MAE {report['force_mae_mev_per_ang']:.1f} meV/Å above "
            f"{config.force_mae_mev_per_ang:g}"
        )
    print(f"round {number}: {', '.join(why)}")
    if number + 1 == config.rounds:
        return f"the rounds are used up: {', '.join(why)}"
    return "" if left > 0 else f"the labels are used up: {', '.join(why)}"


def choose(config: OnPolicyConfig, number: int, n: int) -> None:
    """Write `chosen.h5`, and what was chosen for which reason into `chosen.json` before."""
    folder = config.output / f"round_{number:02d}"
    if (folder / "chosen.h5").is_file():
        return
    reasons = json.loads((folder / "reasons.json").read_text())
    if not reasons:
        raise DistillError(
            f"no frame of round {number} can be labelled: all runs broke down at once, or have "
            "atoms closer than choice.min_distance. Begin with more labels, or lower "
            "runs.temperatures"
        )
    chosen, why = choose_frames(load(folder / "candidates.h5"), reasons, n)
    counts = {kind: why.count(kind) for kind in ("event", "uncertain", "ordinary")}
    replace_text(folder / "chosen.json", json.dumps(counts) + "\n")
    save(chosen, folder / "chosen.h5")


def label(config: OnPolicyConfig, folder: Path) -> dict[str, Any]:
    """Label what was chosen; labelling goes on where it was interrupted."""
    path, chosen = folder / "labels.h5", load(folder / "chosen.h5")
    done = path.is_file() and not path.with_name(path.name + ".parts").exists()
    if not (done and len(load(path)) == len(chosen)):
        teacher = teachers.load(resolve_teacher(config.teacher))
        label_structures(teacher, chosen, path, batch_size=config.batch_size)
    labels = load(path)
    return {
        "labelled": len(labels),
        "chosen": json.loads((folder / "chosen.json").read_text()),
        "flags": flag_summary(labels),
    }


def _steps(runs: RunsConfig) -> int:
    return (
        max(round(1e3 * runs.duration / runs.timestep / runs.record_every), 1) * runs.record_every
    )


def _with_budget(then: OnPolicyConfig, now: OnPolicyConfig) -> OnPolicyConfig:
    """The budget and the error of the gate may change between runs."""
    return replace(
        then,
        rounds=now.rounds,
        labels=now.labels,
        force_mae_mev_per_ang=now.force_mae_mev_per_ang,
    )


if __name__ == "__main__":
    sys.exit(main())
