"""Checkpoints of a training run, written by Orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from distill.errors import TrainingError


class Checkpoints:
    """Latest states of a run and the best parameters found so far.

    A checkpoint is complete or absent: Orbax writes to a temporary folder and renames it.

    Args:
        folder: of the run; checkpoints go below it.
        keep: number of states kept.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(folder).resolve() / "checkpoints"
        # Synchronous: states are small, and a kill right after `save` must find it complete.
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False, create=True
            ),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Write `state` (a pytree of arrays) and `record` (JSON)."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            ),
        )
        self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The newest state, with shapes and types of `like`, and its record.

        Raises:
            TrainingError: there is none, or it belongs to another model.
        """
        step = self.latest
        if step is None:
            raise TrainingError(f"there is no checkpoint in {self.folder}")
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(template), record=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise TrainingError(
                f"the checkpoint at step {step} in {self.folder} does not fit this model "
                f"({error}): use another run folder or the configuration it was made with"
            ) from error
        return restored.state, restored.record

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()
