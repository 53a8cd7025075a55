"""One process on a stated number of cores, so that a time means something.

XLA, BLAS and OpenMP read their settings when they start. `restart_pinned` therefore sets them and
starts the script anew, before anything that computes is imported.
"""

from __future__ import annotations

import os
import sys

MARK = "DISTILL_PINNED_THREADS"
SERIAL = "--xla_cpu_multi_thread_eigen=false"
DEVICES = "--xla_force_host_platform_device_count"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def restart_pinned() -> None:
    """Restart this script on `threads=N` cores of those allowed (1 by default), once.

    Each core is a device of JAX; what XLA compiles for one of them does not spread to the others.
    """
    if os.environ.get(MARK):
        return
    given = [word.partition("=")[2] for word in sys.argv[1:] if word.startswith("threads=")]
    count = int(given[-1]) if given and given[-1].isdigit() else 1
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(allowed[:count]))
    environment = {**os.environ, MARK: str(count), **dict.fromkeys(THREADS, str(count))}
    environment["NPROC"] = "1"
    ours = SERIAL.partition("=")[0], DEVICES
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(ours)]
    devices = [f"{DEVICES}={count}"] if count > 1 else []
    environment["XLA_FLAGS"] = " ".join([*flags, SERIAL, *devices])
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def pinning() -> tuple[bool, str]:
    """Whether the process is pinned, and how, in words."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    count = os.environ.get(MARK)
    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    where = f"cores {cores}" if cores is not None else "cores unknown (no affinity here)"
    settings = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
    flags = f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '') or 'unset'}"
    pinned = count is not None and (cores is None or len(cores) == int(count))
    head = f"{count} threads" if pinned else "NOT PINNED"
    return pinned, ", ".join(part for part in (head, where, settings, flags, load) if part)
