"""Metrics of a run: a CSV file that a resumed run continues, and TensorBoard events."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from distill.errors import MissingDependencyError

logger = logging.getLogger(__name__)

FIELDS = (
    "step",
    "seconds",
    "learning_rate",
    "train_loss",
    "train_force_rmse",
    "validation_loss",
    "validation_energy_mae",
    "validation_force_mae",
    "validation_force_rmse",
)
"""Columns of `metrics.csv`; energies in eV/atom, forces in eV/Å."""


class MetricsRecorder:
    """Appends rows to `metrics.csv`, to TensorBoard and, if asked for, to Weights & Biases.

    Args:
        folder: of the run.
        resume_step: rows after this step are dropped, since the resumed run writes them again;
            None starts a new file.
        wandb_project: project of Weights & Biases; empty leaves it out.
        config: recorded there.

    Raises:
        MissingDependencyError: a project is given, but `wandb` is not installed.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int | None,
        wandb_project: str = "",
        config: dict[str, Any] | None = None,
    ):
        from tensorboardX import SummaryWriter

        self._wandb = _start_wandb(wandb_project, folder, config) if wandb_project else None

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.csv"
        rows = _text_rows(self.path) if resume_step is not None else []
        kept = [row for row in rows if float(row["step"]) <= (resume_step or 0)]
        draft = self.path.with_suffix(".csv.tmp")
        with draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(draft, self.path)
        self._events = SummaryWriter(
            str(folder / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1
        )

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; missing columns stay empty."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerow(row)
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, row["step"])
        self._events.flush()
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def note(self, text: str) -> None:
        """Report an event that is not a number: to the log, and to `notes.txt` of the run."""
        logger.warning("%s", text)
        with (self.path.parent / "notes.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def close(self) -> None:
        """Close what is open."""
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(project: str, folder: Path, config: dict[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError(
            f"training.wandb_project is {project!r}, but wandb is not installed: "
            "pip install 'distill-mlip[wandb]', or leave the project empty"
        ) from error
    # The same id for a resumed run, so that its curve goes on.
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return wandb.init(
        project=project,
        id=identity,
        resume="allow",
        dir=str(folder),
        config=config,
        name=folder.name,
    )


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Rows of a `metrics.csv`; an unfinished last line (a killed run) is left out."""
    return [
        {name: float(value) for name, value in row.items() if value}
        for row in _text_rows(Path(path))
    ]


def _text_rows(path: Path) -> list[dict[str, str]]:
    """Complete rows as they stand in the file."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    complete = [line for line in lines if line.endswith("\n")]
    rows = list(csv.DictReader(complete))
    return [row for row in rows if row.get("step") and None not in row.values()]
