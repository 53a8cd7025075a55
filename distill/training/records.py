"""Metrics of a run: a CSV file that a resumed run continues, and TensorBoard events."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

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
    """Appends rows to `metrics.csv` and to TensorBoard.

    Args:
        folder: of the run.
        resume_step: rows after this step are dropped, since the resumed run writes them again;
            None starts a new file.
    """

    def __init__(self, folder: Path, resume_step: int | None):
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.csv"
        rows = read_metrics(self.path) if resume_step is not None else []
        kept = [row for row in rows if row["step"] <= (resume_step or 0)]
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

    def close(self) -> None:
        """Close the event file."""
        self._events.close()


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Rows of a `metrics.csv`; an unfinished last line (a killed run) is left out."""
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({k: float(v) for k, v in row.items() if v not in ("", None)})
            except ValueError:
                break
    return [row for row in rows if "step" in row]
