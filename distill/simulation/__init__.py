"""Molecular dynamics on the device with jax-md: knows a potential, no teacher and no student."""

from distill.simulation.background import BackgroundWriter
from distill.simulation.bath import Bath, bath_of
from distill.simulation.blocks import make_block, runs_in_turn
from distill.simulation.checkpoints import Follower, MDCheckpoints
from distill.simulation.config import BAROSTATS, ENSEMBLES, MDConfig
from distill.simulation.ensembles import kinetic_energy, make_integrator, mass_of
from distill.simulation.exchange import ExchangeState, exchange_summary
from distill.simulation.formats import FORMATS, open_trajectory
from distill.simulation.frames import Frames
from distill.simulation.ladder import expected_acceptance, propose_ladder
from distill.simulation.reading import TrajectoryReader
from distill.simulation.relax import Relaxed, make_relaxer, relax
from distill.simulation.run import MDResult, run_md
from distill.simulation.safety import SafetyConfig, Watch
from distill.simulation.skin_choice import SkinChoice, tune_skin
from distill.simulation.trajectory import TrajectoryWriter

__all__ = [
    "BAROSTATS",
    "ENSEMBLES",
    "FORMATS",
    "BackgroundWriter",
    "Bath",
    "ExchangeState",
    "Follower",
    "Frames",
    "MDCheckpoints",
    "MDConfig",
    "MDResult",
    "Relaxed",
    "SafetyConfig",
    "SkinChoice",
    "TrajectoryReader",
    "TrajectoryWriter",
    "Watch",
    "bath_of",
    "exchange_summary",
    "expected_acceptance",
    "kinetic_energy",
    "make_block",
    "make_integrator",
    "make_relaxer",
    "mass_of",
    "open_trajectory",
    "propose_ladder",
    "relax",
    "run_md",
    "runs_in_turn",
    "tune_skin",
]
