"""Writes files in a thread, so that the device does not wait for the disk."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from distill.simulation.checkpoints import Follower
from distill.simulation.frames import Frames


class BackgroundWriter:
    """A writer of trajectories in a thread of its own; a `Follower` for `run_md`.

    A call returns at once unless `most` blocks wait for the disk already. What the writer raises
    is raised by a later call or mark, and nothing is written after it, so that no gap arises. A
    checkpoint waits for all frames that it counts: `mark` is the mark of the writer to come.

    Args:
        writer: its `mark` says how much is on disk, as those of all trajectory writers do.
        most: blocks that may wait.
    """

    def __init__(self, writer: Follower, most: int = 4) -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        self._writer, self._most = writer, most
        self._thread = ThreadPoolExecutor(1, "trajectory")
        self._waiting: deque[Future[Any]] = deque()
        self._failure: BaseException | None = None
        self._mark = self._thread.submit(writer.mark)

    def __call__(self, frames: Frames) -> None:
        """Hand over the next frames; raises what went wrong with earlier ones."""
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= self._most):
            self._waiting.popleft().result()
        self._mark = self._thread.submit(self._write, frames)
        self._waiting.append(self._mark)

    def mark(self) -> Future[Any]:
        """See `Follower`; known when the last frames are on disk."""
        return self._mark

    def rewind(self, mark: Any) -> None:
        """See `Follower`; forgets an earlier failure."""
        for future in self._waiting:
            future.exception()
        self._waiting.clear()
        self._failure = None
        self._writer.rewind(mark)
        self._mark = self._thread.submit(self._writer.mark)

    def close(self) -> None:
        """Wait until all is on disk; raises what went wrong. Safe to call again."""
        self._thread.shutdown()
        while self._waiting:
            self._waiting.popleft().result()

    def _write(self, frames: Frames) -> Any:
        if self._failure is not None:
            raise self._failure
        try:
            self._writer(frames)
            return self._writer.mark()
        except BaseException as error:
            self._failure = error
            raise

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:  # the error on its way out matters more
            self._thread.shutdown()
