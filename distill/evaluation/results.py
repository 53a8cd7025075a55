"""Measured figures as records in a JSON file, from which the tables of the docs are made."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.evaluation.environment import describe_environment

FIELDS = (
    "case",
    "subject",
    "metric",
    "value",
    "unit",
    "spread",
    "command",
    "machine",
    "versions",
    "commit",
    "date",
)


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        case: what was run, e.g. `192 atoms of water`.
        subject: what it was run on, e.g. a teacher's name.
        metric: what was measured.
        value: median.
        unit: of the value.
        spread: smallest and largest value of the repeats.
    """

    case: str
    subject: str
    metric: str
    value: float
    unit: str
    spread: tuple[float, float] | None = None


def record_figures(
    figures: Iterable[Figure], path: Path, command: str, packages: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Write figures to `path`; those of the same case, subject and metric are replaced.

    Args:
        figures: what was measured in this process.
        path: JSON file, a list of records with the keys `FIELDS`.
        command: that measures them again.
        packages: others whose versions are recorded, where they are installed.

    Raises:
        DistillError: the file holds something else.
    """
    environment = describe_environment()
    device = environment["device"]
    common = {
        "command": command,
        "machine": f"{device['processor']}, {device['cores']} cores, {device['kind']}",
        "versions": environment["versions"] | _versions(packages),
        "commit": _commit(path.parent),
        "date": datetime.now(UTC).date().isoformat(),
    }
    new = [{**asdict(figure), **common} for figure in figures]
    taken = {_key(record) for record in new}
    old = read_records(path) if path.is_file() else []
    records = [record for record in old if _key(record) not in taken] + new
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    return records


def replace_text(path: Path, text: str) -> None:
    """Write a file that is complete or as before, whatever happens meanwhile."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file.

    Raises:
        DistillError: not a list of records.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        good = all(set(FIELDS) <= set(record) for record in records)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise DistillError(f"{path} is not a list of records: {error}") from error
    if not isinstance(records, list) or not good:
        raise DistillError(f"{path} must hold a list of records with {', '.join(FIELDS)}")
    return records


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _key(record: dict[str, Any]) -> tuple[str, str, str]:
    return record["case"], record["subject"], record["metric"]


def _commit(folder: Path) -> str:
    """Commit of the working tree, marked if files differ from it, but for records in `folder`."""

    def git(*arguments: str) -> str:
        where = folder if folder.is_dir() else None
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        others = [":(top)", f":(exclude,glob){folder.resolve()}/*.json"]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *others)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit
