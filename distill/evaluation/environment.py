"""Where a result was obtained: device, precision, versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import jax

from distill.students.bundle import versions


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
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
