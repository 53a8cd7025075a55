"""Sample structures to be labelled, from a handful of starts.

    python experiments/sample.py --config experiments/configs/water/sample_seed.yaml
    python experiments/sample.py --smoke

A potential is a teacher (`fennol:ani1ccx`) or a student (`bundle:runs/x/student`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from ase import Atoms

from distill import teachers
from distill.data import Dataset, concatenate, save
from distill.errors import CapacityError, ConfigError, SimulationError
from distill.potential import Potential
from distill.sampling import (
    MDSamplingConfig,
    RattleConfig,
    SqueezeConfig,
    SystemConfig,
    TreeConfig,
    make_systems,
    remove_duplicates,
    sample_by_md,
    sample_rattled,
    sample_squeezed,
    sample_tree,
    select_diverse,
    spread_order,
)
from distill.students import load_bundle
from quickstart import resolve_teacher
from script import run_script

SMOKE = (
    "system={structure: CH3CH2OH}",
    "md={temperatures: [300.0], replicas: 2, frames: 4, spacing: 5.0, equilibration: 10.0}",
    "output=runs/smoke/structures.h5",
)


@dataclass(frozen=True)
class SampleConfig:
    """Settings.

    Attributes:
        system: starts.
        potential: teacher or `bundle:FOLDER` that drives the sampling.
        md: molecular dynamics, every start at every temperature.
        tree: a family tree of displaced and partly relaxed structures from every start.
        rattle: displaced and strained copies of every start; needs no potential.
        squeeze: copies of every start with atoms pushed together; needs no potential.
        select: so many of the most diverse structures are kept; 0 keeps all but duplicates. All
            stay in a file beside `output`, whose name ends in `_all`.
        spread: order the structures so that every beginning of the file is spread evenly over the
            trajectories: for data curves, and for labelling that may be cut short.
        output: dataset file.
    """

    system: SystemConfig = field(default_factory=SystemConfig)
    potential: str = "fennol:models/demo_chno.fnx"
    md: MDSamplingConfig | None = None
    tree: TreeConfig | None = None
    rattle: RattleConfig | None = None
    squeeze: SqueezeConfig | None = None
    select: int = 0
    spread: bool = False
    output: Path = Path("structures.h5")


def main(argv: list[str] | None = None) -> int:
    """Sample; returns the exit status."""
    return run_script(SampleConfig, run, argv, description=__doc__, smoke_overrides=SMOKE)


def run(config: SampleConfig) -> Dataset:
    """The structures, which are also in `config.output`."""
    if config.md is config.tree is config.rattle is config.squeeze is None:
        raise ConfigError(
            "give at least one of md, tree, rattle and squeeze: there is nothing to sample"
        )
    parts = []
    for number, (system, atoms) in enumerate(make_systems(config.system).items()):
        shift = 100_000 * number
        if config.rattle is not None:
            rattled = replace(config.rattle, seed=config.rattle.seed + shift)
            parts.append(sample_rattled(atoms, rattled, system=system))
        if config.squeeze is not None:
            squeezed = replace(config.squeeze, seed=config.squeeze.seed + shift)
            parts.append(sample_squeezed(atoms, squeezed, system=system))
        if config.md is None and config.tree is None:
            continue
        make_potential, name = find_potential(config.potential)
        if config.md is not None:
            md = replace(config.md, seed=config.md.seed + shift)
            parts.extend(run_md_at_each_temperature(make_potential, atoms, md, name, system))
        if config.tree is not None:
            tree = replace(config.tree, seed=config.tree.seed + shift)
            parts.append(sample_tree(make_potential, atoms, tree, name=name, system=system))
    if not parts:
        raise SimulationError(
            f"{config.potential} let every run explode: relax the starts (relaxation_steps), lower "
            "the temperatures, or drive with another potential"
        )
    dataset = concatenate(parts)
    kept = dataset.subset(remove_duplicates(dataset))
    duplicates = len(dataset) - len(kept)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    if config.select:
        # The choice may fail or be regretted, and what was sampled took long.
        save(kept, config.output.with_stem(f"{config.output.stem}_all"))
        kept = select_diverse(kept, config.select)
    if config.spread:
        kept = kept.subset(spread_order(kept.trajectory))
    save(kept, config.output)
    print(f"{config.output}: {len(kept)} structures, {duplicates} duplicates left out")
    return kept


def run_md_at_each_temperature(
    make_potential: Callable[[Atoms], Potential],
    atoms: Atoms,
    config: MDSamplingConfig,
    name: str,
    system: str,
) -> list[Dataset]:
    """One dataset per temperature; a run that explodes is reported and left out.

    A first student is rarely stable everywhere, and the other runs must not be lost with one.
    """
    parts = []
    for number, temperature in enumerate(config.temperatures):
        own = replace(config, temperatures=(temperature,), seed=config.seed + 1000 * number)
        try:
            parts.append(sample_by_md(make_potential, atoms, own, name=f"md:{name}", system=system))
        except (SimulationError, CapacityError) as error:
            print(f"warning: {system} at {temperature:g} K is left out: {error}")
    return parts


@lru_cache
def find_potential(name: str) -> tuple[Callable[[Atoms], Potential], str]:
    """What makes the MD potential of a structure, and its name for the records."""
    kind, _, path = name.partition(":")
    if kind == "bundle":
        student = load_bundle(path).student
        return student.potential, f"student-{Path(path).parent.name}"
    teacher = teachers.load(resolve_teacher(name))
    return teacher.potential, teacher.info.name


if __name__ == "__main__":
    sys.exit(main())
