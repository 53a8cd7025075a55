"""Structure, diffusion and vibrations from trajectories, with error bars.

    python experiments/observe.py trajectory=runs/water/nvt/run.extxyz observables.rdf=true \\
        observables.msd=true observables.start=10 output=runs/water/observed
    python experiments/observe.py --smoke

Several trajectories are replicas of the same conditions, and their averages are one. Reads H5MD as
`simulate.py` writes it and what ASE reads. The folder holds `observables.json` (means, errors,
units), `observables.npz` (the curves block by block, for `distill.observables.read_curves` and
`overlap`) and `observables.png`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import molecule

from distill.config import config_to_dict
from distill.errors import ConfigError, DatasetError
from distill.observables import (
    Observables,
    ObservablesConfig,
    Observed,
    save_observed,
    save_plot,
)
from distill.simulation import Frames, TrajectoryReader
from script import run_script

SMOKE_TRAJECTORY = Path("runs/smoke/observe/vibrating_water.extxyz")
SMOKE = (
    f"trajectory={SMOKE_TRAJECTORY}",
    "observables={rdf: true, vdos: true, gyration: true, rdf_interval: 2.0, vdos_window: 0.1}",
    "output=runs/smoke/observe",
)


@dataclass(frozen=True)
class ObserveConfig:
    """Settings.

    Attributes:
        trajectory: files, one for each replica.
        interval: fs between frames, for files that do not hold times.
        wrapped: the positions were put back into the cell in each frame.
        observables: see `distill.observables.ObservablesConfig`.
        output: folder.
    """

    trajectory: Path | tuple[Path, ...]
    interval: float | None = None
    wrapped: bool = False
    observables: ObservablesConfig = field(default_factory=ObservablesConfig)
    output: Path = Path("runs/observed")


def main(argv: list[str] | None = None) -> int:
    """Observe; returns the exit status."""
    if "--smoke" in (sys.argv[1:] if argv is None else argv) and not SMOKE_TRAJECTORY.exists():
        make_smoke_trajectory()
    return run_script(ObserveConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: ObserveConfig) -> list[Observed]:
    """The results, which are also in the folder."""
    paths = config.trajectory if isinstance(config.trajectory, tuple) else (config.trajectory,)
    readers = [TrajectoryReader(path, config.interval) for path in paths]
    first = readers[0]
    for reader in readers[1:]:
        if not np.isclose(reader.interval, first.interval, rtol=1e-6):
            raise ConfigError(
                f"{reader.path} has frames every {reader.interval:g} fs, {first.path} every "
                f"{first.interval:g} fs: observe them one by one"
            )
        if reader.atoms.get_chemical_symbols() != first.atoms.get_chemical_symbols():
            raise ConfigError(f"{reader.path} and {first.path} hold other atoms")
    observables = Observables(
        first.atoms, config.observables, first.interval, len(readers), wrapped=config.wrapped
    )
    for parts in zip_longest(*(reader.frames() for reader in readers)):
        if any(part is None or len(part.time) != len(parts[0].time) for part in parts):
            raise ConfigError("the trajectories are not equally long: observe them one by one")
        if config.observables.vdos and not np.isfinite(parts[0].velocities).all():
            raise DatasetError(f"{first.path} holds no velocities, which vdos needs")
        observables(side_by_side(parts))
    results = observables.results()
    config.output.mkdir(parents=True, exist_ok=True)
    save_results(config.output, results, config.observables)
    report_observed(results)
    return results


def side_by_side(parts: tuple[Frames, ...]) -> Frames:
    """Frames of several runs as those of replicas."""
    joined = {
        name: np.stack([getattr(part, name) for part in parts], axis=1)
        for name in Frames.__dataclass_fields__
        if name != "time"
    }
    return Frames(time=parts[0].time, **joined)


def save_results(folder: Path, results: list[Observed], config: ObservablesConfig) -> None:
    """`observables.json`, `.npz` and, where there are curves, `.png`."""
    save_observed(folder, results, config_to_dict(config))
    save_plot(folder / "observables.png", results)


def report_observed(results: list[Observed]) -> None:
    """The means in a few lines."""
    for one in results:
        for name, estimate in one.scalars.items():
            print(f"{name} {estimate.value:.6g} ± {estimate.error:.2g}")
        for element, diffusion in one.diffusion.items():
            print(f"diffusion of {element} {diffusion.value:.3g} ± {diffusion.error:.2g} cm²/s")
        for note in one.notes:
            print(f"note: {note}")


def make_smoke_trajectory() -> None:
    """Water whose bonds vibrate at 3700 cm⁻¹."""
    water = molecule("H2O")
    away = water.positions - water.positions[0]
    images = []
    for time in 2.0 * np.arange(1, 201):
        angle = 2 * np.pi * 2.99792458e-5 * 3700 * time
        image = Atoms(water.numbers, water.positions + 0.02 * np.sin(angle) * away)
        image.set_velocities(0.02 * np.cos(angle) * away)
        image.info["time_fs"] = float(time)
        images.append(image)
    SMOKE_TRAJECTORY.parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(SMOKE_TRAJECTORY, images, format="extxyz")


if __name__ == "__main__":
    sys.exit(main())
