"""Molecular dynamics of students, teachers and other programs, side by side in one process.

    python experiments/benchmark.py
    python experiments/benchmark.py 'students={water-s: runs/water/s/student}' structure=box.extxyz
    python experiments/benchmark.py --smoke

Started as a script it restarts itself on `threads` cores (one by default), with XLA and BLAS set to
as many threads. Runs of all subjects are taken in turn; ratios are those of neighbouring runs.
"""

from __future__ import annotations

if __name__ == "__main__":
    from pinned import restart_pinned

    restart_pinned()

import os
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from ase import Atoms, units

from benchmark_ase import Case, Run
from benchmark_calculator import calculator_figures
from benchmark_config import SMOKE, BenchmarkConfig
from benchmark_cores import shared_and_alone
from benchmark_memory import memory_figures
from benchmark_peers import Peer, peers
from benchmark_teachers import figure
from benchmark_water import Subject, WaterBoxes, load_student, read_periodic
from distill import teachers
from distill.errors import ConfigError, DistillError
from distill.evaluation.results import Figure, record_figures
from distill.evaluation.timing import TimedMD
from distill.potential import Potential
from distill.simulation import MDConfig, runs_in_turn, tune_skin
from pinned import pinning
from quickstart import resolve_teacher
from script import command_of, keep_compilations, run_script

PACKAGES = ("calorine", "mlip", "orb-models", "torch")
"""Whose versions are recorded besides ours."""


def main(argv: list[str] | None = None) -> int:
    """Measure and record; returns the exit status."""
    return run_script(BenchmarkConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: BenchmarkConfig) -> None:
    """All measurements; those of a case are recorded when it is done."""
    keep_compilations(config.compilation_cache)
    pinned, words = pinning()
    print(f"threads: {words}")
    if not pinned:
        print("WARNING: not pinned; start this as a script, and not inside another program")
    sources = config.students or {"moment-s": "moment-s", "moment-m": "moment-m"}
    students = [load_student(name, source) for name, source in sources.items()]
    trained = next((subject for subject in students if subject.trained), None)
    boxes = WaterBoxes(
        config.structure,
        None if trained is None else partial(potential, trained, replace(config, skin=None)),
        config.equilibration_steps,
        config.temperature,
    )
    print(f"water: {boxes.origin}")
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        record(config, [figure("the machine", "other work", "load average at start", [load], "1")])
    for subject in students:
        error = "unknown" if subject.force_mae is None else f"{subject.force_mae:.1f} meV/Å"
        print(f"student {subject.label}: force MAE {error}")
    if config.threads > 1:
        for size in config.sizes:
            record(config, core_figures(config, boxes.box(size), students))
        if config.replicas:
            small = boxes.box(config.replica_atoms)
            record(config, core_figures(config, small, students, config.replicas))
        return
    others = chosen_peers(config, students[0].student.cutoff)
    others += [teacher_peer(name) for name in config.teachers]
    for size in config.sizes:
        usual = [peer for peer in others if not peer.few and size <= config.peer_atoms]
        box = boxes.box(size)
        potentials = [potential(subject, config, box) for subject in students]
        for ensemble in config.ensembles:
            own = list(zip(students, potentials, strict=True))
            measure(config, box, ensemble, own, usual if ensemble == "nve" else [])
    if config.few_atoms and any(peer.few for peer in others):
        few = [peer for peer in others if peer.few]
        box = boxes.box(config.few_atoms)
        own = [(subject, potential(subject, config, box)) for subject in students]
        measure(config, box, "nve", own, few)
    if config.replicas:
        record(config, replica_figures(config, boxes, students))
    for subject in students:
        sizes = config.calculator_sizes
        record(config, calculator_figures(subject, boxes, sizes, config.calculator_calls))
    if config.memory_sizes:
        source, label = next(iter(sources.values())), students[0].label
        sizes, steps = config.memory_sizes, config.memory_steps
        record(config, memory_figures(label, source, config.structure, sizes, steps))


def chosen_peers(config: BenchmarkConfig, cutoff: float) -> list[Peer]:
    """The peers that the configuration names.

    Raises:
        ConfigError: a name that fits none.
    """
    known = peers(cutoff, config.nep)
    for part in config.peers:
        if part != "all" and not any(part.lower() in peer.name.lower() for peer in known):
            names = ", ".join(peer.name for peer in known)
            raise ConfigError(f"no peer is called {part!r}; known: {names}")
    wanted = [part.lower() for part in config.peers]
    return [p for p in known if "all" in wanted or any(w in p.name.lower() for w in wanted)]


def teacher_peer(name: str) -> Peer:
    """A teacher in the same loop as the students, its forces called for at every step."""

    def start(case: Case) -> Run:
        settings = MDConfig(
            timestep=case.timestep,
            temperature=case.temperature,
            steps=case.steps,
            record_every=case.steps,
            block_steps=case.steps,
        )
        return TimedMD(
            teachers.load(resolve_teacher(name)).potential(case.atoms),
            case.atoms.positions,
            settings,
            velocities=case.atoms.get_velocities() * units.fs,
            min_seconds=0.0,
        )

    return Peer(name, "a teacher of distill in the same loop as the students", start)


def potential(
    subject: Subject, config: BenchmarkConfig, atoms: Atoms, replicas: int = 1
) -> Potential:
    """The potential of a student with the settings of the benchmark."""

    def with_skin(skin: float) -> Potential:
        return subject.student.potential(atoms, kernel=config.kernel, skin=skin)

    if config.skin is None:
        return subject.student.potential(atoms, kernel=config.kernel)
    if config.skin != "auto":
        return with_skin(config.skin)
    found = tune_skin(
        with_skin,
        atoms.positions,
        md_config(config, "nve"),
        subject.student.cutoff,
        repeats=config.repeats,
        rebuilt_always=replicas > 1 and not runs_in_turn(len(atoms)),
    )
    print(f"{subject.label}: {found}")
    many = f"{replicas} replicas of " if replicas > 1 else ""
    case = f"{many}{len(atoms)} atoms of water{threads(config)}"
    record(config, [figure(case, subject.label, "skin chosen", [found.skin], "Å")])
    return with_skin(found.skin)


def md_config(config: BenchmarkConfig, ensemble: str) -> MDConfig:
    """The run of a student: one recorded frame per block."""
    return MDConfig(
        ensemble=ensemble,
        timestep=config.timestep,
        temperature=config.temperature,
        steps=config.steps,
        record_every=config.steps,
        block_steps=config.steps,
    )


def measure(
    config: BenchmarkConfig,
    atoms: Atoms,
    ensemble: str,
    students: list[tuple[Subject, Potential]],
    others: list[Peer],
) -> None:
    """One size in one ensemble: all subjects in turn, costs and ratios."""
    case = f"{len(atoms)} atoms of water, {ensemble}, float32{threads(config)}"
    print(f"\n{case}")
    thermalise(atoms, config.temperature)
    velocities = atoms.get_velocities() * units.fs  # Å/fs
    own = {
        subject.label: TimedMD(
            own_potential,
            atoms.positions,
            md_config(config, ensemble),
            velocities=velocities,
            min_seconds=config.min_seconds,
        )
        for subject, own_potential in students
    }
    runs: dict[str, Run] = dict(own)
    rounds = dict.fromkeys(runs, config.repeats)
    for peer in others:
        steps = config.few_steps if peer.few else config.peer_steps
        try:
            runs[peer.name] = peer.start(
                Case(atoms.copy(), config.timestep, config.temperature, steps)
            )
        except (DistillError, RuntimeError, ValueError) as error:
            print(f"{peer.name} is left out: {error}")
            continue
        rounds[peer.name] = config.few_repeats if peer.few else config.repeats
        print(f"{peer.name}: {peer.detail}")
    costs = in_turn(runs, rounds, len(atoms))
    figures = [
        figure(case, name, "MD cost", values, "us/atom/step") for name, values in costs.items()
    ]
    cached = jax.config.jax_compilation_cache_dir is not None  # type: ignore[attr-defined]
    for name, timed in () if cached else runs.items():
        figures.append(figure(case, name, "compilation and warm-up", [timed.compile_seconds], "s"))
    for subject, _ in students:
        steps_per_rebuild = own[subject.label].steps_per_rebuild()
        if np.isfinite(steps_per_rebuild):
            figures.append(
                figure(case, subject.label, "steps per list rebuild", [steps_per_rebuild], "1")
            )
        if subject.force_mae is not None:
            figures.append(figure(case, subject.label, "force MAE", [subject.force_mae], "meV/Å"))
        figures += [
            ratio(case, subject.label, name, costs[name], costs[subject.label])
            for name in costs
            if name not in own
        ]
    record(config, figures)


def threads(config: BenchmarkConfig) -> str:
    """What is added to the name of a case with several threads."""
    return "" if config.threads == 1 else f", {config.threads} threads"


def thermalise(atoms: Atoms, temperature: float) -> None:
    """Give velocities of a Maxwell-Boltzmann distribution, in K."""
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature)
    rng = np.random.default_rng(0)
    atoms.set_momenta(spread[:, None] * rng.standard_normal((len(atoms), 3)))


def in_turn(runs: dict[str, Run], rounds: dict[str, int], n_atoms: int) -> dict[str, np.ndarray]:
    """us/atom/step of each run, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(max(rounds.values())):
        for name, timed in runs.items():
            if number < rounds[name]:
                times[name].append(1e6 * timed.seconds_per_step() / n_atoms)
    return {name: np.array(values) for name, values in times.items()}


def ratio(case: str, subject: str, other: str, slow: np.ndarray, fast: np.ndarray) -> Figure:
    """How many times faster `subject` is, from neighbouring runs."""
    shared = min(len(slow), len(fast))
    return figure(case, subject, f"speed against {other}", slow[:shared] / fast[:shared], "x")


def core_figures(
    config: BenchmarkConfig, atoms: Atoms, students: list[Subject], replicas: int = 1
) -> list[Figure]:
    """Cost of a step where several cores share one system or divide replicas, and of one alone."""
    many = f"{replicas} replicas of " if replicas > 1 else ""
    case = f"{many}{len(atoms)} atoms of water, nve, float32{threads(config)}"
    print(f"\n{case}")
    thermalise(atoms, config.temperature)
    if jax.device_count() != config.threads or config.skin == "auto":
        raise ConfigError(
            f"threads={config.threads}: start benchmark.py as a script, so that each core is a "
            "device, and give skin as a number or not at all"
        )
    settings = md_config(config, "nve")
    options = {"kernel": config.kernel} | ({} if config.skin is None else {"skin": config.skin})
    figures = []
    for subject in students:
        source = config.students.get(subject.name, subject.name)
        given = source, atoms, settings, config.min_seconds, options, replicas
        times = shared_and_alone(config.repeats, *given)
        shared, alone = (1e6 / (replicas * len(atoms)) * own for own in times)
        one = f"{subject.label}, one core"
        figures += [
            figure(case, subject.label, "MD cost", shared, "us/atom/step"),
            figure(case, one, "MD cost", alone, "us/atom/step"),
            ratio(case, subject.label, "one core", alone, shared),
        ]
    return figures


def replica_figures(
    config: BenchmarkConfig, boxes: WaterBoxes, students: list[Subject]
) -> list[Figure]:
    """Aggregate cost of replicas of a small box, and of one box of as many atoms, in turn.

    Raises:
        ConfigError: `one_box` has not as many atoms.
    """
    small = boxes.box(config.replica_atoms)
    total = config.replicas * config.replica_atoms
    large = boxes.box(total) if config.one_box is None else read_periodic(config.one_box)
    if len(large) != total:
        raise ConfigError(
            f"one_box has {len(large)} atoms, {config.replicas} replicas of "
            f"{config.replica_atoms} have {total}: choose other replicas or another box"
        )
    positions = np.repeat(small.positions[None], config.replicas, axis=0)
    settings = md_config(config, "nve")
    figures = []
    one = f"one {'repeated ' if config.one_box is None else ''}box of {total} atoms"
    many = f"{config.replicas} replicas of {config.replica_atoms} atoms"
    for subject in students:
        runs: dict[str, Run] = {
            case: TimedMD(
                potential(subject, config, atoms, replicas),
                start,
                settings,
                min_seconds=config.min_seconds,
            )
            for case, atoms, start, replicas in (
                (many, small, positions, config.replicas),
                (one, large, large.positions, 1),
            )
        }
        costs = in_turn(runs, dict.fromkeys(runs, config.repeats), total)
        figures += [
            figure(case + threads(config), subject.label, "MD cost", values, "us/atom/step")
            for case, values in costs.items()
        ]
        figures.append(
            figure(
                many + threads(config),
                subject.label,
                "aggregate throughput against one box of as many atoms",
                costs[one] / costs[many],
                "x",
            )
        )
    return figures


def record(config: BenchmarkConfig, figures: list[Figure]) -> None:
    """Write figures, and print them."""
    record_figures(figures, config.output, command_of("benchmark", config), PACKAGES)
    for each in figures:
        spread = f" ({each.spread[0]:.4g} to {each.spread[1]:.4g})" if each.spread else ""
        print(f"{each.subject}: {each.case}: {each.metric} {each.value:.4g}{spread} {each.unit}")


if __name__ == "__main__":
    raise SystemExit(main())
