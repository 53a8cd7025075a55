"""Train the demonstration teacher: a small FeNNol potential for H, C, N, O on GFN2-xTB labels.

Steps: sample and label molecules and water clusters (`demo_teacher_data`), fit a CRATE potential
(`demo_teacher_model`, `demo_teacher_training`), test it on trajectories it never saw and in short
molecular dynamics of ethanol (`demo_teacher_checks`), and write the model (.fnx), its card
(.card.yaml) and a plot (.png; `demo_teacher_report`).

    python experiments/make_demo_teacher.py --minutes 17 --work-dir labels_cache
    python experiments/make_demo_teacher.py --smoke
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from pathlib import Path

import yaml

from demo_teacher_data import SPLITS, make_frames, plan
from distill.errors import DistillError

HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    """Make the model, its card and its plot; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder for the three files")
    parser.add_argument("--work-dir", type=Path, help="folder that keeps the labels for a rerun")
    parser.add_argument("--minutes", type=float, help="training time; default: use --epochs")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the data (default 60)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2, help="processes that label")
    parser.add_argument("--smoke", action="store_true", help="tiny data, under a minute")
    try:
        run(parser.parse_args(argv))
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    """All steps, from labels to the card."""
    begin = time.monotonic()
    runs = plan(args.seed, args.smoke)
    with tempfile.TemporaryDirectory(prefix="demo_teacher_") as scratch:
        folder = args.work_dir or Path(scratch)
        frames = make_frames(runs, folder / "labels", args.workers)

    # Only now: the labelling processes import this file too and need nothing of this.
    import jax

    from demo_teacher_checks import predict_frames, run_ethanol, summarise
    from demo_teacher_model import Batches, build_model, fit_self_energies
    from demo_teacher_report import plot, write_card
    from demo_teacher_training import train
    from distill import teachers

    if args.smoke:  # nothing runs long enough to pay for optimised code
        jax.config.update("jax_disable_most_optimizations", True)
    parts = {split: [f for f in frames if f.split == split] for split in SPLITS}
    self_energies = fit_self_energies(parts["train"])
    data = Batches(parts["train"], self_energies)
    validation = Batches(parts["val"], self_energies, like=data)
    model = build_model(self_energies, args.seed, small=args.smoke)
    epochs = 2 if args.smoke else args.epochs
    training = train(model, data, validation, args.minutes, epochs, args.seed)
    model.variables = training.variables

    output = output_folder(args)
    path = output / "demo_chno.fnx"
    model.save(path)
    # What is checked is the file, as a user of the library gets it.
    teacher = teachers.load(f"fennol:{path}")
    rows = predict_frames(teacher, parts["test"], self_energies)
    table = summarise(rows)
    dynamics, nve = run_ethanol(teacher, 0.1 if args.smoke else 5.0, args.seed)
    plot(output / "demo_chno.png", training.curve, rows, table, nve, dynamics)
    budget = f"--minutes {args.minutes:g}" if args.minutes else f"--epochs {epochs}"
    if args.smoke:
        budget = "--smoke"
    facts = {
        "errors": {"md_frames_unless_named_distorted": table},
        "molecular_dynamics": dynamics,
        "temperatures_K": sorted({run.temperature for run in runs}),
        **training.facts,
        "self_energies_Ha": self_energies,
        "seed": args.seed,
        "command": f"python experiments/make_demo_teacher.py {budget} --seed {args.seed}",
        "total_minutes": round((time.monotonic() - begin) / 60, 1),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    write_card(output / "demo_chno.card.yaml", model, frames, facts)
    print(yaml.safe_dump({"files": str(output), "test": table, "md": dynamics}, sort_keys=False))


def output_folder(args: argparse.Namespace) -> Path:
    """Where the files go; a smoke run never replaces the committed model unless told to."""
    if args.output is None and args.smoke:
        return Path(tempfile.mkdtemp(prefix="demo_teacher_"))
    folder = args.output or HERE / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
