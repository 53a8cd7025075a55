"""Evaluation: errors, physical checks, and the certificate that records them."""

from distill.evaluation.accuracy import Accuracy, measure_accuracy
from distill.evaluation.certificate import Targets, make_certificate, save_certificate
from distill.evaluation.plots import save_learning_curve, save_plots
from distill.evaluation.speed import compare_md_speed
from distill.evaluation.stability import energy_drift, run_nve, summarise_nve

__all__ = [
    "Accuracy",
    "Targets",
    "compare_md_speed",
    "energy_drift",
    "make_certificate",
    "measure_accuracy",
    "run_nve",
    "save_certificate",
    "save_learning_curve",
    "save_plots",
    "summarise_nve",
]
