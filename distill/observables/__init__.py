"""What a simulation is run for: structure, diffusion, vibrations, with error bars."""

from distill.observables.blocks import Blocks, Estimate, block_average
from distill.observables.config import ObservablesConfig
from distill.observables.curves import Curve, Overlap, overlap
from distill.observables.diffusion import (
    Diffusion,
    finite_size_correction,
    mean_squared_displacement,
    self_diffusion,
)
from distill.observables.follower import Observables
from distill.observables.molecules import Molecules
from distill.observables.plots import save_plot
from distill.observables.radial import RadialDistribution
from distill.observables.results import Observed, read_curves, save_observed
from distill.observables.unwrapping import unwrap, without_drift
from distill.observables.vibrations import power_spectrum, require_resolved, wavenumbers

__all__ = [
    "Blocks",
    "Curve",
    "Diffusion",
    "Estimate",
    "Molecules",
    "Observables",
    "ObservablesConfig",
    "Observed",
    "Overlap",
    "RadialDistribution",
    "block_average",
    "finite_size_correction",
    "mean_squared_displacement",
    "overlap",
    "power_spectrum",
    "read_curves",
    "require_resolved",
    "save_observed",
    "save_plot",
    "self_diffusion",
    "unwrap",
    "wavenumbers",
    "without_drift",
]
