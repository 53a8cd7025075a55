"""Time and memory of teachers against system size, and what the wrappers cost.

    python experiments/benchmark_teachers.py
    python experiments/benchmark_teachers.py --smoke

Comparisons are made in turn in one process; time against size is measured in a process for each
teacher, so that its peak memory is its own. Full-size Orb architectures have random weights here:
that changes neither time nor memory. The figures go to `docs/results/teachers.json`.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule

from distill.evaluation.results import Figure, record_figures
from quickstart import resolve_teacher
from script import run_script

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DEMO = "fennol:models/demo_chno.fnx"
COMPACT = "orb:models/compact_orb.ckpt"
SMOKE = ("output=runs/smoke/teachers.json", "repeats=2", "seconds=1.0", "only=demo")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings.

    Attributes:
        output: JSON file of the records.
        repeats: of each comparison.
        seconds: that one call may take; larger systems are then left out.
        only: `all`, or `demo` for the models that come with the project.
        sizes: measure cost against size too, not the comparisons alone.
    """

    output: Path = ROOT / "docs" / "results" / "teachers.json"
    repeats: int = 25
    seconds: float = 12.0
    only: str = "all"
    sizes: bool = True


def main(argv: list[str] | None = None) -> int:
    """Measure and record; returns the exit status."""
    return run_script(BenchmarkConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: BenchmarkConfig) -> None:
    """All measurements; each is recorded when it is there."""
    parts: list[Callable[[], list[Figure]]] = [partial(fennol_figures, config)]
    if has_orb():
        parts.append(partial(orb_figures, config))
    if config.sizes:
        parts += [partial(size_figures, name, config) for name in subjects(config)]
    command = "python experiments/benchmark_teachers.py"
    for part in parts:
        figures = part()
        record_figures(figures, config.output, command)
        for figure in figures:
            print(
                f"{figure.subject}: {figure.case}: {figure.metric} {figure.value:.4g} {figure.unit}"
            )


def subjects(config: BenchmarkConfig) -> list[str]:
    """Teachers whose cost against size is measured."""
    names = [DEMO]
    if has_orb():
        names.append(COMPACT)
    if config.only == "all":
        if os.environ.get("DISTILL_MODELS"):
            names += ["fennol:ani1ccx?member=0", "fennol:ani1ccx"]
        names.append("ase:tblite.ase:TBLite?method=GFN2-xTB&verbosity=0")
        if has_orb():
            kinds = "orb-v3-conservative-inf-omat", "orb-v3-direct-inf-omat", "orb-v2"
            names += [f"orb:{kind}?weights=random" for kind in kinds]
    return names


def has_orb() -> bool:
    """Whether the extra `orb` is installed."""
    from distill.errors import MissingDependencyError
    from distill.teachers._orb_model import require_orb

    try:
        require_orb()
    except MissingDependencyError:
        return False
    return True


def water(per_side: int) -> Atoms:
    """Periodic box of waters on a jittered grid at 1 g/cm³."""
    rng = np.random.default_rng(0)
    spacing = 3.105
    box = Atoms(cell=np.eye(3) * spacing * per_side, pbc=True)
    for corner in np.ndindex(per_side, per_side, per_side):
        one = molecule("H2O")
        one.euler_rotate(*rng.uniform(0, 360, 3))
        one.positions += (np.array(corner) + 0.5) * spacing + rng.uniform(-0.15, 0.15, 3)
        box += one
    return box


def alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each call, taken in turn after two calls that warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 2):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if repeat >= 2:
                times[name].append(time.perf_counter() - begun)
    return {name: np.array(each) for name, each in times.items()}


def figure(
    case: str, subject: str, metric: str, values: np.ndarray | Sequence[float], unit: str
) -> Figure:
    """Median and range."""
    return Figure(
        case,
        subject,
        metric,
        float(f"{np.median(values):.5g}"),
        unit,
        (float(f"{np.min(values):.5g}"), float(f"{np.max(values):.5g}")),
    )


def compare(
    case: str, subject: str, calls: dict[str, Callable[[], Any]], repeats: int
) -> list[Figure]:
    """Times of `ours` and `theirs`, and by how much ours is slower."""
    times = alternate(calls, repeats)
    overhead = 100 * (times["ours"] / times["theirs"] - 1)
    return [
        figure(case, subject, "time of the teacher", 1e3 * times["ours"], "ms"),
        figure(case, subject, "time of the library's calculator", 1e3 * times["theirs"], "ms"),
        figure(case, subject, "overhead of the wrapper", overhead, "%"),
    ]


def moving(calculator: Any, atoms: Atoms) -> Callable[[], Any]:
    """Stress, forces and energy at a new position, so that nothing is taken from a cache."""
    own, rng = atoms.copy(), np.random.default_rng(1)
    own.calc = calculator

    def call() -> Any:
        own.positions[0, 0] += 1e-3 * rng.standard_normal()
        return own.get_stress(), own.get_forces(), own.get_potential_energy()

    return call


def fennol_figures(config: BenchmarkConfig) -> list[Figure]:
    """FeNNol: batched labels and the wrapper's cost against FeNNol's own calculator."""
    from fennol.ase import FENNIXCalculator

    from distill import teachers
    from distill.calculators import TeacherCalculator
    from distill.teachers.weights import find_weights
    from distill.teachers.zoo import FENNOL_MODELS

    chosen = [(DEMO, HERE / "models" / "demo_chno.fnx")]
    if config.only == "all" and os.environ.get("DISTILL_MODELS"):
        file = find_weights(FENNOL_MODELS["ani1ccx"], "ani1ccx_model0.fnx")
        chosen.append(("fennol:ani1ccx?member=0", file))
    figures = []
    rng = np.random.default_rng(0)
    ethanols = [molecule("CH3CH2OH") for _ in range(32)]
    for atoms in ethanols:
        atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
    for name, path in chosen:
        teacher = teachers.load(resolve_teacher(name))
        calculator = FENNIXCalculator(str(path))

        def one_by_one(calculator: Any = calculator) -> None:
            for atoms in ethanols:
                own = atoms.copy()
                own.calc = calculator
                own.get_forces()

        times = alternate(
            {"batch": partial(teacher.label, ethanols), "single": one_by_one}, config.repeats
        )
        case = "32 ethanols"
        figures += [
            figure(case, name, "time of one batch", 1e3 * times["batch"], "ms"),
            figure(case, name, "time of FeNNol's calculator", 1e3 * times["single"], "ms"),
            figure(case, name, "speedup by batching", times["single"] / times["batch"], "x"),
        ]
        box = water(4)
        figures += compare(
            "192 atoms of water",
            name,
            {
                "ours": moving(TeacherCalculator(teacher), box),
                "theirs": moving(FENNIXCalculator(str(path)), box),
            },
            config.repeats,
        )
    return figures


def orb_figures(config: BenchmarkConfig) -> list[Figure]:
    """Orb: the wrapper's cost against orb-models' calculator, and the bridge's share of a call."""
    import jax.numpy as jnp
    import torch

    from distill import teachers
    from distill.calculators import TeacherCalculator
    from distill.teachers._orb_model import library_calculator, make_graphs, predict
    from distill.teachers.dlpack import to_torch

    teacher: Any = teachers.load(resolve_teacher(COMPACT))
    box = water(4)
    figures = compare(
        "192 atoms of water",
        COMPACT,
        {
            "ours": moving(TeacherCalculator(teacher), box),
            "theirs": moving(library_calculator(teacher.model), box),
        },
        config.repeats,
    )

    def network(model: Any, tensors: dict[str, Any]) -> Any:
        return predict(model, make_graphs(model, tensors))

    names = [COMPACT]
    if config.only == "all":
        names.append("orb:orb-v3-conservative-inf-omat?weights=random")
    for name in names:
        teacher = teachers.load(resolve_teacher(name))
        batch = [molecule("CH3CH2OH") for _ in range(8)]
        arrays = (
            jnp.asarray(np.concatenate([a.positions for a in batch]), jnp.float32),
            jnp.asarray(np.concatenate([a.numbers for a in batch])),
            jnp.asarray([len(a) for a in batch]),
        )
        tensors = {
            "positions": to_torch(arrays[0]),
            "numbers": to_torch(arrays[1]),
            "n_atoms": to_torch(arrays[2]).long(),
            "cell": torch.zeros((8, 3, 3)),
            "pbc": torch.zeros((8, 3), dtype=torch.bool),
        }
        times = alternate(
            {
                "all": partial(teacher.label_arrays, *arrays),
                "network": partial(network, teacher.model, tensors),
            },
            max(config.repeats, 15),
        )
        share = 100 * (times["all"] - times["network"]) / times["all"]
        case = "8 ethanols from JAX arrays"
        figures += [
            figure(case, name, "time of the call", 1e3 * times["all"], "ms"),
            figure(case, name, "time of network and graphs", 1e3 * times["network"], "ms"),
            figure(case, name, "share of the bridge", share, "%"),
        ]
    return figures


def size_figures(name: str, config: BenchmarkConfig) -> list[Figure]:
    """Cost against size, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure_sizes, (name, config.seconds, config.only == "demo"))


def peak_memory() -> float:
    """MiB that this process held at most."""
    status = Path("/proc/self/status")
    if status.is_file():
        # The resource module counts what the parent held before this process was started.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_sizes(name: str, seconds: float, few: bool) -> list[Figure]:
    """Median time of a call and peak memory, growing until a call takes too long."""
    from distill import teachers

    teacher = teachers.load(resolve_teacher(name))
    systems = [("9 atoms, ethanol", molecule("CH3CH2OH"))]
    systems += [(f"{3 * n**3} atoms of water", water(n)) for n in ((2,) if few else (2, 3, 4, 6))]
    figures = []
    for case, atoms in systems:
        rng = np.random.default_rng(2)

        def call(atoms: Atoms = atoms, rng: Any = rng) -> float:
            moved = atoms.copy()
            moved.positions[0, 0] += 1e-3 * rng.standard_normal()
            begun = time.perf_counter()
            teacher.label([moved])
            return time.perf_counter() - begun

        call()
        first = call()
        times = [first] + [call() for _ in range(int(np.clip(seconds / first, 0, 9)))]
        peak = peak_memory()
        figures += [
            figure(case, name, "time per call", 1e3 * np.array(times), "ms"),
            Figure(case, name, "peak memory of the process", float(f"{peak:.4g}"), "MiB"),
        ]
        if float(np.median(times)) * 3 > seconds:
            break
    info = teacher.info
    figures += [
        Figure("model", name, "parameters", info.n_parameters, "1"),
        Figure("model", name, "cutoff", info.cutoff or float("nan"), "Å"),
    ]
    return [f for f in figures if np.isfinite(f.value)]


if __name__ == "__main__":
    raise SystemExit(main())
