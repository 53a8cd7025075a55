"""Molecular dynamics with a student (or a teacher): restart, checks, trajectories, a summary.

    python experiments/simulate.py model=runs/water/student structure=water.xyz \\
        md.ensemble=nvt_csvr md.steps=100000 output=runs/water/nvt
    python experiments/simulate.py --smoke

The same command goes on where a run was interrupted; with more `md.steps` it makes a finished run
longer. The folder holds the trajectory (`run.extxyz`, one for each replica), `checkpoint.npz`,
`config.yaml` and `summary.json`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ase.io
import ase.units
import jax
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from distill import teachers
from distill.errors import ConfigError, DatasetError, UnsupportedStructureError
from distill.evaluation.domain import closest_seen, outside_domain
from distill.evaluation.results import replace_text
from distill.potential import Potential
from distill.simulation import (
    MDCheckpoints,
    MDConfig,
    SafetyConfig,
    TrajectoryWriter,
    Watch,
    run_md,
)
from distill.students import load_bundle
from quickstart import resolve_teacher
from script import claim_folder, run_script
from simulation_summary import Totals

SMOKE = (
    "model=fennol:models/demo_chno.fnx",
    "structure=CH3CH2OH",
    "md={ensemble: nvt_csvr, steps: 40, record_every: 5, block_steps: 20}",
    "output=runs/smoke/simulation",
)


@dataclass(frozen=True)
class SimulateConfig:
    """Settings.

    Attributes:
        model: folder of a bundle, or a teacher (`fennol:ani1ccx`).
        structure: file that ASE reads (its last frame), or the name of a molecule that ASE knows.
        repeat: the structure is repeated so many times along its cell vectors.
        replicas: runs side by side, each with its own velocities and noise.
        velocities: `draw` them at the temperature, or take them from the `file`.
        md: see `distill.simulation.MDConfig`.
        safety: see `distill.simulation.SafetyConfig`.
        domain: what to do where the start holds an element, a distance or a density outside the
            training data of the bundle: `refuse`, `warn` or `ignore`.
        dtype: precision.
        skin: of the neighbour lists of students, Å.
        checkpoint_every: blocks.
        output: folder.
    """

    model: str
    structure: str
    repeat: tuple[int, int, int] = (1, 1, 1)
    replicas: int = 1
    velocities: Literal["draw", "file"] = "draw"
    md: MDConfig = field(default_factory=MDConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    domain: Literal["refuse", "warn", "ignore"] = "warn"
    dtype: Literal["float32", "float64"] = "float32"
    skin: float = 0.5
    checkpoint_every: int = 10
    output: Path = Path("runs/simulation")

    def __post_init__(self) -> None:
        for name in ("replicas", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.repeat) < 1:
            raise ValueError(f"repeat must hold numbers of at least 1, got {self.repeat}")


def main(argv: list[str] | None = None) -> int:
    """Simulate; returns the exit status."""
    return run_script(SimulateConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: SimulateConfig) -> dict[str, Any]:
    """The summary, which is also in `summary.json`."""
    with jax.enable_x64(config.dtype == "float64"):
        return _run(config)


def _run(config: SimulateConfig) -> dict[str, Any]:
    atoms = read_structure(config)
    potential, reference, model, domain = find_model(config, atoms)
    outside = check_start(atoms, domain, config)
    claim(config)
    positions, velocities = atoms.positions, None
    if config.velocities == "file":
        velocities = atoms.get_velocities() * ase.units.fs
        if not velocities.any():
            raise DatasetError(f"{config.structure} holds no velocities: use velocities=draw")
    if config.replicas > 1:
        positions = np.tile(positions, (config.replicas, 1, 1))
        velocities = None if velocities is None else np.tile(velocities, (config.replicas, 1, 1))
    stopped = config.output / "stopped.extxyz"
    watch = Watch(
        atoms,
        positions,
        config.md.temperature,
        config.safety,
        save_to=stopped,
        closest=closest_seen(domain) if domain else None,
    )
    totals = Totals(config.replicas, len(atoms))
    begun = time.perf_counter()
    result = run_md(
        potential,
        positions,
        config.md,
        velocities=velocities,
        on_frames=[watch, totals, *writers(config, atoms, reference)],
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
        keep_frames=False,
        description=config.md.ensemble,
    )
    summary = {
        "steps": config.md.steps,
        "time_ps": config.md.steps * config.md.timestep / 1000,
        "seconds": time.perf_counter() - begun,
        **totals.summary(),
        "findings": [*outside, *watch.findings],
        "reallocations": result.n_reallocations,
    }
    replace_text(config.output / "summary.json", json.dumps(summary, indent=2) + "\n")
    report(summary, config)
    return summary


def read_structure(config: SimulateConfig) -> Atoms:
    """The start; raises DatasetError where it is no structure."""
    if Path(config.structure).is_file():
        try:
            atoms = ase.io.read(config.structure, index=-1)
        except Exception as error:  # every reader of ASE has its own errors
            raise DatasetError(f"{config.structure} cannot be read by ASE: {error}") from error
    elif config.structure in g2.names:
        atoms = molecule(config.structure)
    else:
        raise DatasetError(f"{config.structure} is neither a file nor a molecule that ASE knows")
    if not len(atoms):
        raise DatasetError(f"{config.structure} holds no atoms")
    return atoms.repeat(config.repeat)


def check_start(atoms: Atoms, domain: dict[str, Any] | None, config: SimulateConfig) -> list[str]:
    """What of the start lies outside the training data; warned of, or refused if so chosen.

    Raises:
        UnsupportedStructureError: something does, and `domain=refuse`.
    """
    if domain is None or config.domain == "ignore":
        return []
    factor = config.safety.contact_factor
    outside = [f"the start: {told}" for told in outside_domain(atoms, domain, factor)]
    if outside and config.domain == "refuse":
        raise UnsupportedStructureError(
            f"{config.structure} lies outside the training data of {config.model}: "
            f"{'; '.join(outside)}. Label such structures and train again, or set domain=warn"
        )
    for told in outside:
        print(f"warning: {told}")
    return outside


def find_model(
    config: SimulateConfig, atoms: Atoms
) -> tuple[Potential, float, str, dict[str, Any] | None]:
    """Potential, reference energy in eV, SHA-256 of the model, training domain if known."""
    folder = Path(config.model)
    dtype = np.dtype(config.dtype)
    if ":" in config.model and not folder.is_dir():
        teacher = teachers.load(resolve_teacher(config.model))
        potential = teacher.potential(atoms)
        if np.dtype(potential.dtype) != dtype:
            raise ConfigError(
                f"{config.model} runs in {np.dtype(potential.dtype)}: set dtype to that"
            )
        return potential, 0.0, str(teacher.info.weights_sha256), None
    bundle = load_bundle(folder)
    student = bundle.student
    potential = student.potential(atoms, skin=config.skin, dtype=dtype)
    recorded = json.dumps(bundle.card["sha256"], sort_keys=True)
    energy = student.reference_energy(atoms.numbers)
    return potential, energy, _sha256(recorded), bundle.card.get("domain")


def claim(config: SimulateConfig) -> None:
    """Write the configuration into the folder; refuse one that holds another run."""
    if not (config.output / "config.yaml").exists() and any(config.output.glob("*.extxyz")):
        raise ConfigError(f"{config.output} holds trajectories of something else")

    def with_what_may_change(then: SimulateConfig) -> SimulateConfig:
        return replace(
            then,
            md=replace(then.md, steps=config.md.steps),
            safety=config.safety,
            domain=config.domain,
            checkpoint_every=config.checkpoint_every,
        )

    claim_folder(config, with_what_may_change)


def writers(config: SimulateConfig, atoms: Atoms, reference: float) -> list[Callable[[Any], None]]:
    """One for each replica."""
    if config.replicas == 1:
        return [TrajectoryWriter(config.output / "run.extxyz", atoms, reference, append=True)]
    return [
        TrajectoryWriter(
            config.output / f"run_{r:03d}.extxyz", atoms, reference, append=True, replica=r
        )
        for r in range(config.replicas)
    ]


def report(summary: dict[str, Any], config: SimulateConfig) -> None:
    """The summary in a few lines."""
    print(f"{config.output}: {summary['time_ps']:g} ps of {config.md.ensemble}")
    print(f"temperature {summary['temperature_K']:.1f} ± {summary['temperature_std_K']:.1f} K")
    if summary["drift_mev_per_atom_ps"] is not None:
        print(f"drift of the conserved energy {summary['drift_mev_per_atom_ps']:.2g} meV/atom/ps")
    if summary["largest_uncertainty_ev_per_ang"] is not None:
        print(f"largest expected force error {summary['largest_uncertainty_ev_per_ang']:.2f} eV/Å")
    for finding in summary["findings"]:
        print(f"warning: {finding}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
