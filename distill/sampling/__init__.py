"""Sampling: where the structures to be labelled come from."""

from distill.sampling.molecular_dynamics import MDSamplingConfig, sample_by_md
from distill.sampling.rattle import rattle

__all__ = ["MDSamplingConfig", "rattle", "sample_by_md"]
