"""Where a result was obtained: device, precision, versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import jax

from distill.students.bundle import versions

_CPU_INFO = Path("/proc/cpuinfo")


def describe_environment() -> dict[str, Any]:
    """`device` and `versions` of this process, for certificates."""
    device = jax.devices()[0]
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return {
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "processor": _processor(),
            "cores": cores,
        },
        "versions": {"python": platform.python_version(), **versions()},
    }


def _processor() -> str:
    """Name of the processor, with the family and model that tell generations of one name apart."""
    try:
        first = _CPU_INFO.read_text().split("\n\n")[0]
    except OSError:
        first = ""
    told = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in first.splitlines())
    }
    if "model name" not in told:
        return platform.processor() or platform.machine()
    if "cpu family" not in told or "model" not in told:
        return told["model name"]
    return f"{told['model name']} (family {told['cpu family']} model {told['model']})"
