"""Errors shared by several rooms; each message names the input, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable


class DistillError(Exception):
    """Base class of the errors that `distill` raises for bad input or a failed run."""


class UnknownElementError(DistillError, ValueError):
    """A structure holds an element that the model or teacher does not know."""


class UnsupportedStructureError(DistillError, ValueError):
    """A structure cannot be treated by this model or teacher (periodicity, size, geometry)."""


class DatasetError(DistillError, ValueError):
    """A dataset or structure file is empty, truncated, foreign or inconsistent."""


class BundleError(DistillError, ValueError):
    """A model bundle is missing, changed, truncated or foreign."""


class _OfReplicas(DistillError, RuntimeError):
    def __init__(self, message: str, *, kind: str = "", replicas: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.replicas = tuple(int(replica) for replica in replicas)


class CapacityError(_OfReplicas):
    """A fixed-size buffer would overflow; the message says how to enlarge it.

    Attributes:
        kind: empty.
        replicas: of a simulation, whose buffers did, as far as known.
    """


class MissingDependencyError(DistillError, ImportError):
    """An optional package is not installed; the message names the extra to install."""


class TeacherError(DistillError, RuntimeError):
    """A teacher failed for every structure that it was given."""


class TrainingError(DistillError, RuntimeError):
    """Training cannot go on, for example because of a NaN loss."""


class SimulationError(_OfReplicas):
    """A simulation produced NaN or left the range in which its potential is defined.

    Attributes:
        kind: the check of `SafetyConfig` that stopped it; empty for anything else.
        replicas: in which it happened, as far as known.
    """


class ConfigError(DistillError, ValueError):
    """A configuration holds an unknown key or a value of the wrong type."""


class CheckpointError(DistillError, ValueError):
    """A checkpoint of a simulation is damaged or belongs to another run."""
