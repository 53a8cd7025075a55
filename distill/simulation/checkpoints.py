"""Checkpoints of a simulation: one file, whole or absent, from which a run goes on bit for bit.

The file is an npz archive (numpy's, with a checksum of every array, no pickle) with the arrays of
state and neighbour lists, and a record in JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from zipfile import BadZipFile

import numpy as np

from distill.errors import CheckpointError
from distill.potential import Potential
from distill.simulation.config import MDConfig
from distill.simulation.frames import Frames
from distill.simulation.packing import pack, unpack

FORMAT = "distill simulation 4"
FILE = "checkpoint.npz"


@runtime_checkable
class Follower(Protocol):
    """Takes the frames of a run and can go back to where it was at a checkpoint."""

    def __call__(self, frames: Frames) -> None: ...

    def mark(self) -> Any:
        """What `rewind` needs, ready for JSON but for numpy arrays, which are saved exactly.

        Nothing in it changes later. What is only known once a thread has done its work may be a
        `concurrent.futures.Future`, for which the checkpoint waits.
        """
        ...

    def rewind(self, mark: Any) -> None:
        """Forget all frames since `mark`."""
        ...


@dataclass(frozen=True)
class Moment:
    """A run between two blocks.

    Attributes:
        steps: made so far.
        state: of the integrator.
        lists: neighbour lists.
        reallocations: of the lists.
        marks: of the followers, in their order.
    """

    steps: int
    state: Any
    lists: Any
    reallocations: int
    marks: list[Any]


class MDCheckpoints:
    """The checkpoint of a run in a folder, see `run_md`.

    Args:
        folder: made if missing; the file in it is `checkpoint.npz`.
        identity: what decides the run and `run_md` does not know, ready for JSON: the SHA-256 of
            the model, the cell. A checkpoint with another one is refused.
        every: blocks between checkpoints.
    """

    def __init__(
        self, folder: str | Path, identity: Mapping[str, Any] | None = None, every: int = 1
    ):
        if every < 1:
            raise ValueError(f"every must be at least one block, got {every}")
        self.path = Path(folder) / FILE
        self.every = every
        self._identity = dict(identity or {})
        self.path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def exists(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.path.is_file()

    def save(self, moment: Moment, identity: Mapping[str, Any]) -> None:
        """Replace the checkpoint; the old one stays where this fails (`OSError`)."""
        arrays: list[np.ndarray] = []
        record = {
            "format": FORMAT,
            "identity": {**identity, **self._identity},
            "steps": moment.steps,
            "reallocations": moment.reallocations,
            "marks": moment.marks,
            "state": pack(moment.state, arrays),
            "lists": pack(moment.lists, arrays),
        }
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{FILE}.")
        try:
            with open(handle, "wb") as file:
                text = np.frombuffer(_dumps(record, arrays).encode(), np.uint8)
                named: dict[str, Any] = {f"array_{i}": array for i, array in enumerate(arrays)}
                np.savez(file, record=text, **named)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that only the owner can read
            os.replace(temporary, self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._sync_folder()

    def load(self, identity: Mapping[str, Any], state: Any, lists: Any) -> Moment:
        """The checkpoint, in the classes of `state` and `lists`.

        Raises:
            CheckpointError: it is damaged, or belongs to another run (says what differs).
        """
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                arrays = [archive[f"array_{i}"] for i in range(len(archive.files) - 1)]
                record = _loads(archive["record"].tobytes(), arrays)
            if record["format"] != FORMAT:
                raise ValueError(f"its format is {record['format']!r}, not {FORMAT!r}")
        except (OSError, EOFError, LookupError, TypeError, ValueError, BadZipFile) as error:
            raise CheckpointError(
                f"{self.path} cannot be read as a checkpoint of a simulation ({error}): delete it "
                "to start anew, or restore it from a copy"
            ) from error
        self._refuse_another_run(record["identity"], json.loads(json.dumps(dict(identity))))
        return Moment(
            steps=record["steps"],
            state=unpack(record["state"], state, arrays),
            lists=unpack(record["lists"], lists, arrays),
            reallocations=record["reallocations"],
            marks=record["marks"],
        )

    def _refuse_another_run(self, then: dict[str, Any], identity: dict[str, Any]) -> None:
        now = {**identity, **json.loads(json.dumps(self._identity))}
        differing = [key for key in now if then.get(key) != now[key]]
        differing += [key for key in then if key not in now]
        if differing:
            details = "; ".join(
                f"{key} is {_short(then.get(key))} there and {_short(now.get(key))} here"
                for key in differing
            )
            raise CheckpointError(
                f"{self.path} belongs to another run: {details}. Use the settings of that run "
                "(only the number of steps may change), or another folder"
            )

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def identity_of(
    potential: Potential, config: MDConfig, positions: np.ndarray, velocities: np.ndarray | None
) -> dict[str, Any]:
    """What `run_md` knows of a run, by name; the number of steps is not part of it."""
    settings = {key: value for key, value in asdict(config).items() if key != "steps"}
    return {
        **settings,
        "elements": np.asarray(potential.numbers).tolist(),
        "dtype": str(np.dtype(potential.dtype)),
        "kernel": potential.kernel,
        "initial cell": np.asarray(potential.cell).tolist(),
        "initial positions": _sha256(positions),
        "initial velocities": None if velocities is None else _sha256(velocities),
    }


def wait_for(marks: list[Any]) -> None:
    """Until what threads of followers are doing is done; raises what went wrong there."""
    for mark in marks:
        if isinstance(mark, Future):
            mark.result()


ARRAY = "numpy array"
"""Key under which a mark refers to an array."""


def _dumps(record: dict[str, Any], arrays: list[np.ndarray]) -> str:
    """JSON; the arrays in marks are appended to `arrays`, results of threads are waited for."""

    def encode(value: Any) -> Any:
        if isinstance(value, Future):
            return value.result()
        if isinstance(value, np.ndarray):
            arrays.append(value)
            return {ARRAY: len(arrays) - 1}
        raise TypeError(f"a mark of a follower holds a {type(value).__name__}")

    return json.dumps(record, default=encode)


def _loads(text: bytes, arrays: list[np.ndarray]) -> Any:
    return json.loads(
        text, object_hook=lambda found: arrays[found[ARRAY]] if set(found) == {ARRAY} else found
    )


def _sha256(array: np.ndarray) -> str:
    own = np.ascontiguousarray(array, np.float64)
    return hashlib.sha256(repr(own.shape).encode() + own.tobytes()).hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
