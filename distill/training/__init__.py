"""Training: losses, the jitted step, and a resumable loop around it."""

from distill.training.config import LossConfig, TrainingConfig
from distill.training.fit import FitResult, fit
from distill.training.records import read_metrics

__all__ = ["FitResult", "LossConfig", "TrainingConfig", "fit", "read_metrics"]
