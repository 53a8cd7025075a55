"""The model of a simulation: its potential, the skin of its lists, and what it was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from distill import teachers
from distill.config import load_config
from distill.errors import ConfigError, UnsupportedStructureError
from distill.evaluation.domain import outside_domain
from distill.potential import Potential
from distill.simulation import runs_in_turn, tune_skin
from distill.students import load_bundle
from quickstart import resolve_teacher
from script import use_devices

if TYPE_CHECKING:
    from simulate import SimulateConfig


def outside_training(
    atoms: Atoms, domain: dict[str, Any] | None, config: SimulateConfig
) -> list[str]:
    """What of the start lies outside the training data; warned of, or refused if so chosen.

    Raises:
        UnsupportedStructureError: something does, and `domain=refuse`.
    """
    if domain is None:
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
        if config.devices > 1 and not config.divided:
            raise ConfigError(
                f"devices={config.devices} can share the system of a student only: for a teacher "
                "give as many replicas, or a multiple"
            )
        teacher = teachers.load(resolve_teacher(config.model))
        if config.devices > 1 and teacher.info.kind != "fennol":
            raise ConfigError(
                f"{config.model} runs on the host, one call after the other: set devices=1"
            )
        potential = teacher.potential(atoms)
        if np.dtype(potential.dtype) != dtype:
            raise ConfigError(
                f"{config.model} runs in {np.dtype(potential.dtype)}: set dtype to that"
            )
        return potential, 0.0, str(teacher.info.weights_sha256), None
    bundle = load_bundle(folder)
    student = bundle.student
    devices = () if config.divided else use_devices(config.devices)
    potential = student.potential(atoms, skin=skin_of(config), dtype=dtype, devices=devices)
    recorded = json.dumps(bundle.card["sha256"], sort_keys=True)
    energy = student.reference_energy(atoms.numbers)
    return potential, energy, _sha256(recorded), bundle.card.get("domain")


def with_skin(config: SimulateConfig, atoms: Atoms) -> SimulateConfig:
    """The skin as a number: as given, that of the run in the folder, or measured now."""
    if config.skin != "auto":
        return config
    path = config.output / "config.yaml"
    if path.exists():
        return replace(config, skin=load_config(type(config), path).skin)
    if not Path(config.model).is_dir():
        return replace(config, skin=type(config).skin)  # the lists of a teacher are its own
    student = load_bundle(config.model).student
    found = tune_skin(
        lambda skin: student.potential(atoms, skin=skin, dtype=np.dtype(config.dtype)),
        atoms.positions,
        config.md,
        student.cutoff,
        rebuilt_always=config.n_replicas > 1 and not runs_in_turn(len(atoms)),
    )
    print(found)
    return replace(config, skin=found.skin)


def skin_of(config: SimulateConfig) -> float:
    """The skin of a configuration that `with_skin` has seen."""
    assert config.skin != "auto"
    return config.skin


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
