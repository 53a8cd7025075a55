"""Which kernel evaluates a model: by name, or the one measured to be fastest."""

from __future__ import annotations

import warnings
from difflib import get_close_matches

import jax

from distill.kernels.blocked import blocked
from distill.kernels.contract import Kernel
from distill.kernels.pallas import pallas
from distill.kernels.reference import reference

KERNELS: dict[str, Kernel] = {"reference": reference, "blocked": blocked, "pallas": pallas}
"""Kernels by name."""


def choose_kernel(wanted: Kernel | str | None = None) -> Kernel:
    """The kernel that is `wanted`, or the default one.

    The default is `blocked` everywhere: `pallas` is to become that of GPUs on which it was measured
    to be faster, and it has been measured on none yet.

    Warns:
        UserWarning: `pallas` is wanted on a machine without a GPU, where it is interpreted.

    Raises:
        ValueError: no kernel has this name.
    """
    if wanted is None:
        return blocked
    if isinstance(wanted, str):
        if wanted not in KERNELS:
            close = get_close_matches(wanted, list(KERNELS), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"unknown kernel {wanted!r}{hint}; known: {', '.join(KERNELS)}")
        wanted = KERNELS[wanted]
    if wanted is pallas and jax.default_backend() != "gpu":
        warnings.warn(
            "the kernel 'pallas' is interpreted on a machine without a GPU: its results are right "
            "but it is slow; leave `kernel` out, or install jax for CUDA (see docs/benchmarks.md)",
            stacklevel=2,
        )
    return wanted


def kernel_name(kernel: Kernel) -> str:
    """Name for records of what was run."""
    return str(getattr(kernel, "__name__", type(kernel).__name__))
