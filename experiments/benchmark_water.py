"""Liquid water to measure on, and the students that are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

from distill.data import load
from distill.errors import CapacityError, ConfigError, SimulationError
from distill.potential import Potential
from distill.sampling import last_frames, pack_liquid, read_structure
from distill.simulation import MDConfig, relax, run_md
from distill.students import SIZES, Student, StudentSpec, load_bundle

DENSITY = 0.997
"""g/cm³."""

COLLAPSED = 0.7
"""Å; no atoms of liquid water come so close."""

NO_LIQUID = (
    "the first trained student does not hold packed water together, which may have contacts that "
    "it was not trained on: give a frame of its training data with structure=FILE"
)

SMALLEST_BASE = 32
"""Molecules of the smallest box that is packed and repeated."""

PACKED_DENSITY_NEIGHBORS = 52.0
"""Neighbours within 5 Å in water at `DENSITY`: scale of the densities of an untrained student."""


@dataclass(frozen=True)
class Subject:
    """A student with what must be said beside its speed.

    Attributes:
        name: as in the configuration.
        student: to be measured.
        force_mae: meV/Å, from the card of its bundle; None for random weights.
        trained: whether it comes from a bundle.
    """

    name: str
    student: Student
    force_mae: float | None
    trained: bool

    @property
    def label(self) -> str:
        """Name in records."""
        return self.name if self.trained else f"{self.name} (random weights)"


def load_student(name: str, source: str, cutoff: float = 5.0) -> Subject:
    """A bundle, or a size of `distill.students.SIZES` with random weights for H and O.

    Forces of random weights are scaled to next to nothing: the atoms fly freely, so that the
    run stays finite; the time of a step does not depend on the values.

    Raises:
        ConfigError: `source` is neither.
    """
    if (Path(source) / "card.yaml").is_file():
        bundle = load_bundle(source)
        errors = bundle.card.get("errors") or {}
        error = errors.get("force_mae_mev_per_ang") if isinstance(errors, dict) else None
        return Subject(name, bundle.student, None if error is None else float(error), True)
    if source not in SIZES:
        raise ConfigError(
            f"students.{name}: {source!r} is neither the folder of a bundle nor one of the sizes "
            f"{', '.join(SIZES)}"
        )
    spec = StudentSpec.of_size(source, (1, 8), cutoff, {"n_neighbors": PACKED_DENSITY_NEIGHBORS})
    rows: tuple[Any, ...] = (
        np.full((1, 1, 3), 1.0, np.float32),
        np.zeros((1, 1), np.int32),
        np.ones((1, 1), bool),
        np.zeros(1, np.int32),
    )
    if SIZES[source][0] == "message":
        rows = (*rows, np.zeros((1, 1), np.int32))
    variables = dict(spec.build().init(jax.random.PRNGKey(0), *rows))
    variables.pop("intermediates", None)
    statistics = {**variables["statistics"], "energy_scale": np.float32(1e-6)}
    student = Student(spec, {**variables, "statistics": statistics}, np.zeros(2))
    return Subject(name, student, None, False)


class WaterBoxes:
    """Boxes of liquid water of any size, repeated from small equilibrated ones.

    Attributes:
        origin: how they are made, in words.
    """

    def __init__(
        self,
        structure: Path | None,
        potential_of: Callable[[Atoms], Potential] | None,
        equilibration_steps: int,
        temperature: float,
    ):
        """Choose the source.

        Args:
            structure: dataset (.h5) or file of ASE whose last frame is repeated; None packs boxes.
            potential_of: equilibrates packed boxes; None leaves them as packed.
            equilibration_steps: of 0.5 fs, after a relaxation.
            temperature: K.
        """
        self._frame = None if structure is None else read_periodic(structure)
        self._potential_of, self._steps = potential_of, equilibration_steps
        self._temperature = temperature
        self._packed: dict[int, Atoms] = {}
        if structure is not None:
            self.origin = f"the last frame of {structure.name}, repeated"
        elif potential_of is None:
            self.origin = "packed molecules, not equilibrated (no trained student)"
        else:
            self.origin = (
                f"packed molecules at {DENSITY} g/cm³, relaxed, {equilibration_steps} steps of "
                f"0.5 fs at {temperature:.0f} K with the first trained student, repeated"
            )

    def box(self, n_atoms: int) -> Atoms:
        """Periodic box of `n_atoms`.

        Raises:
            ConfigError: no repetition of the source has so many.
        """
        if self._frame is not None:
            repeats, rest = divmod(n_atoms, len(self._frame))
            if rest or not repeats:
                raise ConfigError(
                    f"{n_atoms} atoms are no multiple of the {len(self._frame)} of the structure: "
                    "choose other sizes"
                )
            return self._frame.repeat(_factors(repeats))
        if n_atoms % 3:
            raise ConfigError(f"{n_atoms} atoms are no whole number of water molecules")
        molecules = n_atoms // 3
        per_side = (
            max(
                k
                for k in range(1, 65)
                if molecules % k**3 == 0 and molecules >= SMALLEST_BASE * k**3
            )
            if molecules >= SMALLEST_BASE
            else 1
        )
        return self._base(molecules // per_side**3).repeat(per_side)

    def _base(self, n_molecules: int) -> Atoms:
        if n_molecules not in self._packed:
            atoms = pack_liquid({"H2O": n_molecules}, DENSITY)
            if self._potential_of is not None:
                atoms = self._equilibrated(atoms, self._potential_of(atoms))
            self._packed[n_molecules] = atoms
        return self._packed[n_molecules]

    def _equilibrated(self, atoms: Atoms, potential: Potential) -> Atoms:
        block = min(100, self._steps)
        config = MDConfig(
            ensemble="nvt_langevin",
            temperature=self._temperature,
            friction=0.05,
            steps=self._steps // block * block,
            block_steps=block,
            record_every=block,
        )
        moved = atoms.copy()
        try:
            relaxed = relax(potential, atoms.positions[None], 100).positions[0]
            moved.positions = run_md(potential, relaxed, config, progress=False).frames.positions[
                -1
            ]
        except (SimulationError, CapacityError) as error:
            raise ConfigError(f"{NO_LIQUID} ({error})") from error
        if len(neighbor_list("d", moved, COLLAPSED)):
            raise ConfigError(f"{NO_LIQUID} (atoms came closer than {COLLAPSED} Å)")
        return moved


def read_periodic(path: Path) -> Atoms:
    """The last frame of a dataset (.h5) or of a file of ASE.

    Raises:
        ConfigError: it is not periodic.
    """
    atoms = list(last_frames(load(path)).values())[-1] if path.suffix == ".h5" else None
    atoms = read_structure(str(path)) if atoms is None else atoms
    if not atoms.pbc.all():
        raise ConfigError(f"{path} is not periodic in all directions: it is no box of a liquid")
    return atoms


def _factors(number: int) -> tuple[int, int, int]:
    """Three factors of a number, as equal as they can be."""
    options = [
        (a, b, number // (a * b))
        for a in range(1, number + 1)
        if number % a == 0
        for b in range(a, number // a + 1)
        if number // a % b == 0 and number // (a * b) >= b
    ]
    return min(options, key=sum)
