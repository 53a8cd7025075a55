"""Molecular dynamics on the device with jax-md: knows a potential, no teacher and no student."""

from distill.simulation.config import ENSEMBLES, MDConfig
from distill.simulation.ensembles import kinetic_energy, make_integrator, mass_of
from distill.simulation.relax import Relaxed, make_relaxer, relax
from distill.simulation.run import Frames, MDResult, make_block, run_md
from distill.simulation.trajectory import TrajectoryWriter

__all__ = [
    "ENSEMBLES",
    "Frames",
    "MDConfig",
    "MDResult",
    "Relaxed",
    "TrajectoryWriter",
    "kinetic_energy",
    "make_block",
    "make_integrator",
    "make_relaxer",
    "mass_of",
    "relax",
    "run_md",
]
