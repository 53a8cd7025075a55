"""Molecular dynamics with a student (or a teacher): restart, checks, trajectories, a summary.

    python experiments/simulate.py model=runs/water/student structure=water.xyz \\
        md.ensemble=nvt_csvr md.steps=100000 output=runs/water/nvt
    python experiments/simulate.py ... md.ensemble=nvt_csvr md.exchange_every=100 \\
        "md.temperatures=[300, 350, 410]"
    python experiments/simulate.py --smoke

The same command goes on where a run was interrupted; with more `md.steps` it makes a finished run
longer. The folder holds the trajectory (`run.extxyz`, one for each replica or temperature),
`checkpoint.npz`, `config.yaml`, `summary.json`, also of a run that broke down, and what was
observed (`observables.json`, `.npz` and `.png`). With `record=docs/results/simulation.json
case=...` the figures become records.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ase.units
import jax
import numpy as np
from ase import Atoms

from distill.errors import CapacityError, ConfigError, DatasetError, SimulationError
from distill.evaluation.domain import closest_seen
from distill.evaluation.results import record_figures, replace_text
from distill.neighbors import DEFAULT_SKIN
from distill.observables import Observables, ObservablesConfig
from distill.simulation import (
    FORMATS,
    BackgroundWriter,
    ExchangeState,
    MDCheckpoints,
    MDConfig,
    SafetyConfig,
    Watch,
    bath_of,
    exchange_summary,
    open_trajectory,
    run_md,
)
from distill.units import BOLTZMANN
from observe import report_observed, save_results
from script import claim_folder, command_of, keep_compilations, run_script, use_devices
from simulation_model import find_model, outside_training, with_skin
from simulation_records import simulation_figures
from simulation_start import read_start
from simulation_summary import Totals, baths_of, broken_down, report

SMOKE = (
    "model=fennol:models/demo_chno.fnx",
    "structure=CH3CH2OH",
    "md={ensemble: nvt_csvr, steps: 40, record_every: 5, block_steps: 20}",
    "observables={rdf: true, gyration: true, rdf_interval: 5.0}",
    "output=runs/smoke/simulation",
)


@dataclass(frozen=True)
class SimulateConfig:
    """Settings.

    Attributes:
        model: folder of a bundle, or a teacher (`fennol:ani1ccx`).
        structure: file that ASE reads or dataset (`.h5`), of which the last frame is taken, or the
            name of a molecule that ASE knows.
        repeat: the structure is repeated so many times along its cell vectors.
        replicas: runs side by side, each with its own velocities and noise; by default as many as
            `md.temperatures`, or one.
        velocities: `draw` them at the temperature, or take them from the `file`.
        md: see `distill.simulation.MDConfig`.
        safety: see `distill.simulation.SafetyConfig`.
        observables: see `distill.observables.ObservablesConfig`.
        format: of the trajectory.
        domain: what to do where the start holds an element, a distance or a density outside the
            training data of the bundle: `refuse`, `warn` or `ignore`.
        dtype: precision.
        skin: of the neighbour lists of students, Å. `auto` measures which is the fastest before
            the first step; the one found is written to `config.yaml`, and a run that goes on keeps
            it.
        devices: cores or GPUs. Each runs an equal part of the replicas where they divide evenly;
            otherwise they share each system, which only strictly local students can.
        checkpoint_every: blocks.
        compilation_cache: folder in which compiled programs are kept for the next run; None for
            none.
        output: folder.
        record: JSON file to which the figures are added, see `simulation_records`.
        case: name of what was run in the records.
        subject: name of the model there; `model` by default.
    """

    model: str
    structure: str
    repeat: tuple[int, int, int] = (1, 1, 1)
    replicas: int | None = None
    velocities: Literal["draw", "file"] = "draw"
    md: MDConfig = field(default_factory=MDConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    observables: ObservablesConfig = field(default_factory=ObservablesConfig)
    format: Literal["extxyz", "h5md", "traj"] = "extxyz"
    domain: Literal["refuse", "warn", "ignore"] = "warn"
    dtype: Literal["float32", "float64"] = "float32"
    skin: float | Literal["auto"] = DEFAULT_SKIN
    devices: int = 1
    checkpoint_every: int = 10
    compilation_cache: Path | None = None
    output: Path = Path("runs/simulation")
    record: Path | None = None
    case: str = ""
    subject: str = ""

    def __post_init__(self) -> None:
        if self.record is not None and not self.case:
            raise ValueError("records need a name of what is run: give case=NAME")
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {self.checkpoint_every}")
        if self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices}")
        if self.replicas is not None and self.replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {self.replicas}")
        if self.devices > 1 and self.skin == "auto" and not self.divided:
            raise ValueError(
                "skin=auto measures one device: give a number where several share a system"
            )
        bath_of(self.md, self.n_replicas)
        if self.md.exchange_every and (self.observables.msd or self.observables.vdos):
            raise ValueError(
                "observables msd and vdos follow atoms in time, but with exchange_every each file "
                "is a temperature whose replicas change: switch them off, or exchange_every=0"
            )
        if min(self.repeat) < 1:
            raise ValueError(f"repeat must hold numbers of at least 1, got {self.repeat}")

    @property
    def n_replicas(self) -> int:
        """Runs side by side."""
        return self.replicas or len(self.md.temperatures) or len(self.md.pressures) or 1

    @property
    def divided(self) -> bool:
        """Whether devices divide the replicas among them; otherwise they share each system."""
        return self.devices > 1 and self.n_replicas % self.devices == 0


def main(argv: list[str] | None = None) -> int:
    """Simulate; returns the exit status."""
    return run_script(SimulateConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: SimulateConfig) -> dict[str, Any]:
    """The summary, which is also in `summary.json`."""
    keep_compilations(config.compilation_cache)
    if Path(config.model).is_dir() or config.devices > 1:
        use_devices(config.devices)  # before JAX starts
    with jax.enable_x64(config.dtype == "float64"):
        return _run(config)


def _run(config: SimulateConfig) -> dict[str, Any]:
    atoms = read_start(config.structure).repeat(config.repeat)
    config = with_skin(config, atoms)
    observables = Observables(
        atoms,
        config.observables,
        config.md.record_every * config.md.timestep,
        config.n_replicas,
        pooled=not (config.md.temperatures or config.md.pressures),
    )
    potential, reference, model, domain = find_model(config, atoms)
    outside = [] if config.domain == "ignore" else outside_training(atoms, domain, config)
    claim(config)
    positions, velocities = atoms.positions, None
    if config.velocities == "file":
        velocities = atoms.get_velocities() * ase.units.fs
        if not velocities.any():
            raise DatasetError(f"{config.structure} holds no velocities: use velocities=draw")
    many = config.n_replicas
    if many > 1:
        positions = np.tile(positions, (many, 1, 1))
        velocities = None if velocities is None else np.tile(velocities, (many, 1, 1))
    stopped = config.output / "stopped.extxyz"
    watch = Watch(
        atoms,
        positions,
        bath_of(config.md, many).thermal_energy / BOLTZMANN,
        config.safety,
        save_to=stopped,
        closest=closest_seen(domain) if domain else None,
    )
    totals = Totals(many, atoms.numbers)
    begun = time.perf_counter()

    def summarise(steps: int) -> dict[str, Any]:
        return {
            "steps": steps,
            "time_ps": steps * config.md.timestep / 1000,
            "seconds": time.perf_counter() - begun,
            **totals.summary(baths_of(config.md)),
            "findings": [*outside, *watch.findings],
            "faults": [{"kind": kind, "replica": replica} for kind, replica in watch.found],
        }

    try:
        result = run_md(
            potential,
            positions,
            config.md,
            velocities=velocities,
            on_frames=[watch, totals, observables, *writers(config, atoms, reference)],
            checkpoints=MDCheckpoints(
                config.output,
                {
                    "model": model,
                    "cell": atoms.cell.array.tolist(),
                    "pbc": atoms.pbc.tolist(),
                    "skin": config.skin,
                },
                config.checkpoint_every,
            ),
            devices=use_devices(config.devices) if config.divided else (),
            keep_frames=False,
            description=config.md.ensemble,
        )
    except (SimulationError, CapacityError) as error:
        # A full disk is no failure of the model.
        if not isinstance(error.__cause__, OSError):
            publish(config, broken_down(summarise(totals.frames * config.md.record_every), error))
        raise
    summary = summarise(config.md.steps) | {"reallocations": result.n_reallocations}
    if isinstance(result.state, ExchangeState):
        summary["exchange"] = exchange_summary(result.state, summary["time_ps"])
    publish(config, summary)
    observed = observables.results()
    save_results(config.output, observed, config.observables)
    report(summary, config.output, config.md)
    report_observed(observed)
    return summary


def publish(config: SimulateConfig, summary: dict[str, Any]) -> None:
    """Write the summary, and its figures into the records where that is asked for."""
    replace_text(config.output / "summary.json", json.dumps(summary, indent=2) + "\n")
    if config.record is not None:
        figures = simulation_figures(summary, config.case, config.subject or config.model)
        record_figures(figures, config.record, command_of("simulate", config))


def claim(config: SimulateConfig) -> None:
    """Write the configuration into the folder; refuse one that holds another run."""
    others = (path for name in FORMATS for path in config.output.glob(f"*.{name}"))
    if not (config.output / "config.yaml").exists() and any(others):
        raise ConfigError(f"{config.output} holds trajectories of something else")

    def with_what_may_change(then: SimulateConfig) -> SimulateConfig:
        return replace(
            then,
            md=replace(then.md, steps=config.md.steps),
            safety=config.safety,
            domain=config.domain,
            checkpoint_every=config.checkpoint_every,
            devices=config.devices,
            compilation_cache=config.compilation_cache,
            record=config.record,
            case=config.case,
            subject=config.subject,
        )

    claim_folder(config, with_what_may_change)


def trajectories(config: SimulateConfig) -> list[Path]:
    """The file of each replica."""
    many = config.n_replicas
    names = ["run"] if many == 1 else [f"run_{replica:03d}" for replica in range(many)]
    return [config.output / f"{name}.{config.format}" for name in names]


def writers(config: SimulateConfig, atoms: Atoms, reference: float) -> list[BackgroundWriter]:
    """One for each replica."""
    paths = trajectories(config)
    return [
        BackgroundWriter(
            open_trajectory(
                path,
                atoms,
                config.format,
                timestep=config.md.timestep,
                reference_energy=reference,
                append=True,
                replica=None if len(paths) == 1 else replica,
            )
        )
        for replica, path in enumerate(paths)
    ]


if __name__ == "__main__":
    sys.exit(main())
