"""Sampling: where the structures to be labelled come from."""

from distill.sampling.diversity import farthest_points, remove_duplicates, select_diverse
from distill.sampling.guard import Guard, GuardConfig
from distill.sampling.molecular_dynamics import MDSamplingConfig, sample_by_md
from distill.sampling.ordering import spread_order
from distill.sampling.packing import make_crystal, pack_liquid, read_structure
from distill.sampling.rattle import rattle
from distill.sampling.squeezed import SqueezeConfig, sample_squeezed
from distill.sampling.strained import RattleConfig, sample_rattled
from distill.sampling.systems import (
    CrystalConfig,
    LiquidConfig,
    SystemConfig,
    last_frames,
    make_systems,
)
from distill.sampling.tree import TreeConfig, sample_tree

__all__ = [
    "CrystalConfig",
    "Guard",
    "GuardConfig",
    "LiquidConfig",
    "MDSamplingConfig",
    "RattleConfig",
    "SqueezeConfig",
    "SystemConfig",
    "TreeConfig",
    "farthest_points",
    "last_frames",
    "make_crystal",
    "make_systems",
    "pack_liquid",
    "rattle",
    "read_structure",
    "remove_duplicates",
    "sample_by_md",
    "sample_rattled",
    "sample_squeezed",
    "sample_tree",
    "select_diverse",
    "spread_order",
]
