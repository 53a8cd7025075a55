"""Datasets: files, labelling, readers, splits and batches."""

from distill.data.batching import BatchPlan, Bucket, batches, make_buckets
from distill.data.dataset import Dataset, make_units
from distill.data.flags import (
    ATOMS_TOO_CLOSE,
    FAILED,
    FORCE_TOO_LARGE,
    INCOMPLETE,
    NON_FINITE,
    compute_flags,
    flag_summary,
)
from distill.data.hessian import HessianConfig, HessianProducts
from distill.data.joining import concatenate, structure_hashes
from distill.data.labelling import label_structures
from distill.data.labels import Labels
from distill.data.loading import Batch, GraphLoader
from distill.data.readers import read_structures
from distill.data.splits import assert_disjoint, split_by_trajectory
from distill.data.storage import DatasetWriter, load, save

__all__ = [
    "ATOMS_TOO_CLOSE",
    "FAILED",
    "FORCE_TOO_LARGE",
    "INCOMPLETE",
    "NON_FINITE",
    "Batch",
    "BatchPlan",
    "Bucket",
    "Dataset",
    "DatasetWriter",
    "GraphLoader",
    "HessianConfig",
    "HessianProducts",
    "Labels",
    "assert_disjoint",
    "batches",
    "compute_flags",
    "concatenate",
    "flag_summary",
    "label_structures",
    "load",
    "make_buckets",
    "make_units",
    "read_structures",
    "save",
    "split_by_trajectory",
    "structure_hashes",
]
