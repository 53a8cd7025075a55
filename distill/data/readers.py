"""Structure files of others: anything `ase.io` reads, with labels only when units are known."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read
from ase.io.formats import filetype
from ase.stress import voigt_6_to_full_3x3_stress

from distill.data.dataset import Dataset, make_units
from distill.data.flags import INCOMPLETE, MAX_FORCE, compute_flags
from distill.data.labels import Labels
from distill.errors import DatasetError
from distill.units import UnitError, energy_factor, length_factor

CONVERTED_FORMATS = frozenset(
    "abinit-gsr abinit-out aims-output castep-castep castep-geom castep-md db espresso-out "
    "gamess-us-out gaussian-out gpaw-out gpw json nwchem-out onetep-out orca-output qbox traj "
    "turbomole-gradient vasp-out vasp-xml".split()
)
"""Formats whose energies and forces ASE itself converts to eV and eV/Å."""

REFUSED_FORMATS = frozenset({"bundletrajectory", "mysql", "postgresql"})
"""Formats that may unpickle or connect to a server."""


def read_structures(
    path: str | os.PathLike[str],
    index: str | int | slice = ":",
    units: Mapping[str, str] | str | None = None,
    trajectory: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    max_force: float = MAX_FORCE,
) -> Dataset:
    """Read all frames of a file as one trajectory, converted to eV and Å.

    Labels of a frame are taken, in this order, from: `REF_energy`, `REF_forces`, `REF_stress`
    (once one of them is there the others are looked for nowhere else); the calculator results
    (`free_energy` before `energy`, because the forces belong to it); `energy`, `forces`, `stress`
    in `info` and `arrays`. Stress must have ASE's sign and the units energy/length³. When frames
    lack energy or forces while others have them, those frames are flagged `INCOMPLETE`; the other
    flags of `distill.data.flags` are set as in labelling.

    Units must be known for labels: from the argument, from `energy_unit` and `length_unit` in the
    `info` of each frame, or from a format in which ASE converts to eV and Å (see
    `CONVERTED_FORMATS`; extended XYZ is none of them).

    Args:
        path: the file.
        index: frames to read, as in `ase.io.read`.
        units: `{"energy": "eV", "length": "Angstrom"}`, or `"ase"` for exactly that.
        trajectory: trajectory id; the file name by default.
        provenance: who made the labels; by default `teacher` names the file, so that labels of
            different files are not joined by accident.
        max_force: eV/Å, frames with longer forces are flagged.

    Raises:
        DatasetError: a missing, empty or unreadable file, or labels of different kinds mixed.
        UnitError: labels without units, or units that are unknown, mixed or contradictory.
    """
    path = Path(path)
    frames, file_format = _read_frames(path, index)
    found = [_frame_labels(atoms) for atoms in frames]
    labelled = [i for i, labels in enumerate(found) if labels is not None]
    sources = {labels.source: i for i, labels in enumerate(found) if labels is not None}
    if len(sources) > 1:
        kinds = "; ".join(f"{source}, e.g. frame {i}" for source, i in sources.items())
        raise DatasetError(
            f"{path}: labels of different kinds in one file ({kinds}): split the file, or remove "
            "the labels that are not meant"
        )
    energy, length = _units(path, frames, labelled, file_format, units)
    dataset = Dataset.from_structures(frames, trajectory or path.name, f"file:{path.name}")
    if labelled:
        record = {"teacher": f"file:{path.name}", "label_source": next(iter(sources))}
        record.update(provenance or {})
        dataset = _attach(dataset, found, record)
    else:
        dataset = replace(dataset, provenance=dict(provenance or {}))
    dataset = replace(dataset, units=make_units(energy, length)).in_standard_units()
    if labelled:
        flags = compute_flags(dataset, max_force=max_force)
        incomplete = dataset.flag & INCOMPLETE != 0
        dataset = replace(dataset, flag=np.where(incomplete, INCOMPLETE, flags))
    return dataset


@dataclass(frozen=True)
class _Found:
    """Labels of one frame in the units of the file: None where absent."""

    source: str
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None


def _read_frames(path: Path, index: str | int | slice) -> tuple[list[Atoms], str]:
    if not path.exists():
        raise DatasetError(f"{path}: there is no such file: check the path")
    try:
        file_format = filetype(str(path))
        if file_format in REFUSED_FORMATS:
            raise DatasetError(
                f"{path}: format {file_format} is not read, because it may run code or connect to "
                "a server: convert it with `ase convert` to extxyz first"
            )
        frames = read(str(path), index=index, format=file_format, do_not_split_by_at_sign=True)
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{path}: cannot be read by ase.io ({type(error).__name__}: {error}): check that the "
            "file is complete and of a format that ASE knows"
        ) from error
    frames = [frames] if isinstance(frames, Atoms) else list(frames)
    if not frames:
        raise DatasetError(f"{path}: holds no structures for index {index!r}")
    return frames, file_format


def _frame_labels(atoms: Atoms) -> _Found | None:
    everything = {**atoms.arrays, **atoms.info}
    names = ("energy", "forces", "stress")
    reference = {name: everything.get(f"REF_{name}") for name in names}
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    calculator = {name: results.get(name) for name in names}
    source = "calculator energy"
    if results.get("free_energy") is not None:
        calculator["energy"], source = results["free_energy"], "calculator free_energy"
    plain = {name: everything.get(name) for name in names}
    for kind, labels in (("REF_", reference), (source, calculator), ("info", plain)):
        if labels["energy"] is not None or labels["forces"] is not None:
            energy, forces, stress = (labels[name] for name in names)
            return _Found(
                kind,
                None if energy is None else float(np.asarray(energy).reshape(-1)[0]),
                None if forces is None else np.asarray(forces, float),
                None if stress is None else _full_stress(stress),
            )
    return None


def _full_stress(stress: Any) -> np.ndarray:
    values = np.asarray(stress, float)
    if values.size == 6:
        return np.asarray(voigt_6_to_full_3x3_stress(values.reshape(6)))
    return values.reshape(3, 3)


def _attach(dataset: Dataset, found: Sequence[_Found | None], record: dict[str, Any]) -> Dataset:
    energy = np.full(len(dataset), np.nan)
    stress = np.full((len(dataset), 3, 3), np.nan)
    forces = [np.full((int(n), 3), np.nan) for n in dataset.n_atoms]
    flag = np.zeros(len(dataset), np.uint8)
    for i, labels in enumerate(found):
        if labels is None or labels.energy is None or labels.forces is None:
            flag[i] = INCOMPLETE
        if labels is None:
            continue
        energy[i] = np.nan if labels.energy is None else labels.energy
        if labels.forces is not None:
            forces[i] = labels.forces
        if labels.stress is not None and dataset.pbc[i].any():
            stress[i] = labels.stress
    return dataset.labelled(Labels(energy, forces, stress), flag=flag, provenance=record)


def _units(
    path: Path,
    frames: Sequence[Atoms],
    labelled: Sequence[int],
    file_format: str,
    units: Mapping[str, str] | str | None,
) -> tuple[str, str]:
    """Names of the energy and length unit of the file; see `read_structures` for the rules."""
    given = _argument(path, units)
    if file_format in CONVERTED_FORMATS:
        if given is not None and _factors(path, given) != (1.0, 1.0):
            raise UnitError(
                f"{path}: ASE converts {file_format} files to eV and Angstrom, but the argument "
                f"units says {given[0]} and {given[1]}: leave the argument out"
            )
        return "eV", "Angstrom"
    declared: dict[tuple[str, str], list[int]] = {}
    silent = []
    with_labels = set(labelled)
    for i, atoms in enumerate(frames):
        pair = (atoms.info.get("energy_unit"), atoms.info.get("length_unit"))
        if None not in pair:
            declared.setdefault((str(pair[0]), str(pair[1])), []).append(i)
        elif pair != (None, None):
            raise UnitError(
                f"{path}: frame {i} declares only one of energy_unit and length_unit: give both"
            )
        elif i in with_labels:
            silent.append(i)
    different = {_factors(path, pair): pair for pair in declared}
    if given is not None:
        different.setdefault(_factors(path, given), given)
    if len(different) > 1:
        parts = [f"{e}, {x} in frames {_some(i)}" for (e, x), i in declared.items()]
        parts += [] if given is None else [f"{given[0]}, {given[1]} in the argument units"]
        raise UnitError(
            f"{path}: mixed units ({'; '.join(parts)}): split the file, or correct what is wrong"
        )
    if silent and given is None:
        raise UnitError(
            f"{path}: frames {_some(silent)} have labels without units: pass "
            'units={"energy": "eV", "length": "Angstrom"} (or whatever they are), or write '
            "energy_unit and length_unit into the info of each frame"
        )
    return next(iter(different.values()), ("eV", "Angstrom"))


def _argument(path: Path, units: Mapping[str, str] | str | None) -> tuple[str, str] | None:
    if units is None:
        return None
    if units == "ase":
        return "eV", "Angstrom"
    if isinstance(units, str) or set(units) != {"energy", "length"}:
        raise UnitError(
            f'{path}: units is {units!r}: pass {{"energy": "eV", "length": "Angstrom"}} or "ase"; '
            "forces are taken as energy/length"
        )
    return units["energy"], units["length"]


def _factors(path: Path, pair: tuple[str, str]) -> tuple[float, float]:
    try:
        return energy_factor(pair[0]), length_factor(pair[1])
    except UnitError as error:
        raise UnitError(f"{path}: {error}") from error


def _some(frames: Sequence[int]) -> str:
    shown = ", ".join(str(i) for i in frames[:5])
    return shown if len(frames) <= 5 else f"{shown}, ... ({len(frames)} in all)"
