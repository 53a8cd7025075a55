"""What the machine can do, and what a compiled function needs: the two sides of a roofline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GEMM_SIZE = 512
"""Rows and columns of the multiplied matrices: 1 MB each in float32, about the size of a cache."""

STREAM_BYTES = 256 * 2**20
"""Size of the array that is read and written, far beyond any cache."""


@dataclass(frozen=True)
class Machine:
    """Measured rates, the best of several runs.

    Attributes:
        flops: floating-point operations per second of a float32 matrix product.
        bandwidth: bytes per second read and written by a copy of a large array.
    """

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Work:
    """What a computation asks for.

    Attributes:
        flops: floating-point operations.
        bytes: that must be read and written at least: inputs and outputs, each once.
    """

    flops: float
    bytes: float

    def attainable_seconds(self, machine: Machine) -> float:
        """The time below which it cannot be done at the rates of `machine`."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)

    def limit(self, machine: Machine) -> str:
        """What bounds it: `compute` or `memory`."""
        by_flops = self.flops / machine.flops >= self.bytes / machine.bandwidth
        return "compute" if by_flops else "memory"


def measure_machine(repeats: int = 5, stream_bytes: int = STREAM_BYTES) -> Machine:
    """Measure both rates on the default device."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((GEMM_SIZE, GEMM_SIZE)), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    large = jnp.zeros(stream_bytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    calls = 10
    gemm = timed_seconds(lambda x: [product(x) for _ in range(calls)], (a,), repeats).min() / calls
    stream = timed_seconds(copy, (large,), repeats).min()
    return Machine(float(2 * GEMM_SIZE**3 / gemm), float(2 * large.nbytes / stream))


def timed_seconds(call: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> np.ndarray:
    """Seconds `[repeats]` of calls after one that warms up; the results are waited for."""
    jax.block_until_ready(call(*arguments))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        times.append(time.perf_counter() - begun)
    return np.array(times)


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of `function` as compiled by XLA, sines and the like one each.

    XLA counts the body of a loop once: give it a function without loops (one block of rows, say)
    and multiply.

    Raises:
        ValueError: the compiled function holds a loop, or XLA counts nothing on this platform.
    """
    compiled = jax.jit(function).lower(*arguments).compile()
    if " while(" in str(compiled.as_text()):
        raise ValueError("the compiled function holds a loop, of which XLA counts one pass only")
    costs = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    if not costs or "flops" not in costs:
        raise ValueError("XLA gives no count of operations on this platform")
    return float(costs["flops"]) + float(costs.get("transcendentals", 0.0))


def size_in_bytes(*trees: Any) -> int:
    """Bytes of all arrays of some pytrees (or of their shapes)."""
    leaves = [leaf for tree in trees for leaf in jax.tree.leaves(tree)]
    return sum(int(np.prod(np.shape(x))) * np.dtype(x.dtype).itemsize for x in leaves)
