"""Bundles: the folder in which a student is shared. One loader serves everything.

`model.yaml` holds the architecture spec and the reference energies, `parameters.safetensors` the
arrays (no pickle), `card.yaml` what a user must know (units, teacher, data, errors, licence) and
the SHA-256 of the other two.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from ase.data import chemical_symbols
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from distill.errors import BundleError, ConfigError
from distill.students.spec import StudentSpec, passes_messages
from distill.students.student import Student
from distill.students.uncertainty import Uncertainty

FORMAT = "distill bundle"
FORMAT_VERSION = 1
MODEL, PARAMETERS, CARD = "model.yaml", "parameters.safetensors", "card.yaml"
SEPARATOR = "/"
UNCERTAINTY = "uncertainty"


@dataclass(frozen=True)
class Bundle:
    """A student with its card.

    Attributes:
        student: ready to use.
        card: contents of `card.yaml`.
        path: where it was loaded from.
    """

    student: Student
    card: dict[str, Any]
    path: Path

    def potential(self, atoms: Any, **options: Any) -> Any:
        """Potential for jax-md; see `Student.potential`."""
        return self.student.potential(atoms, **options)


def save_bundle(student: Student, path: str | Path, card: Mapping[str, Any]) -> Path:
    """Write a bundle; an older one at `path` is replaced only once the new one is complete.

    Args:
        student: to save.
        path: folder.
        card: what is known about data, teacher and errors; units, elements, cutoff, versions and
            checksums are added.

    Raises:
        BundleError: `path` exists and is not a bundle.
    """
    path = Path(path)
    if path.exists() and not (path / MODEL).is_file():
        raise BundleError(f"{path} exists and is not a bundle: choose another folder")
    model = yaml.safe_dump(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **student.spec.to_dict(),
            "reference_energies": {
                chemical_symbols[z]: float(e)
                for z, e in zip(student.elements, student.reference_energies, strict=True)
            },
        },
        sort_keys=False,
    ).encode()
    arrays = {
        SEPARATOR.join(key): np.asarray(value, order="C")
        for key, value in flatten_dict(jax.device_get(student.variables)).items()
    }
    if student.uncertainty is not None:
        for key, value in vars(student.uncertainty).items():
            arrays[SEPARATOR.join((UNCERTAINTY, key))] = np.asarray(value, order="C")
    parameters = save_tensors(arrays)
    full_card = {
        "units": {"energy": "eV", "length": "Angstrom", "stress": "eV/Angstrom^3"},
        "elements": [chemical_symbols[z] for z in student.elements],
        "cutoff": student.cutoff,
        "parameters": student.n_parameters,
        **card,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "sha256": {MODEL: _sha256(model), PARAMETERS: _sha256(parameters)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        (draft / MODEL).write_bytes(model)
        (draft / PARAMETERS).write_bytes(parameters)
        (draft / CARD).write_text(yaml.safe_dump(_plain(full_card), sort_keys=False))
        draft.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
            os.replace(path, old / path.name)
            os.replace(draft, path)
            shutil.rmtree(old)
        else:
            os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def load_bundle(path: str | Path) -> Bundle:
    """Load a bundle.

    Raises:
        BundleError: the folder is missing, foreign, truncated or changed; the message says which
            file and what to do.
    """
    path = Path(path)
    for name in (MODEL, PARAMETERS, CARD):
        if not (path / name).is_file():
            raise BundleError(
                f"{path} is not a complete bundle: {name} is missing. A bundle is a folder with "
                f"{MODEL}, {PARAMETERS} and {CARD}, as written by distill.students.save_bundle"
            )
    model_bytes, parameter_bytes = (path / MODEL).read_bytes(), (path / PARAMETERS).read_bytes()
    model, card = _read_yaml(path / MODEL), _read_yaml(path / CARD)
    if model.get("format") != FORMAT:
        raise BundleError(f"{path / MODEL} is not a model of distill (format: {FORMAT!r} expected)")
    if model.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{path / MODEL} has format version {model.get('format_version')}, this distill reads "
            f"{FORMAT_VERSION}: install the version of distill named in {CARD}"
        )
    recorded = card.get("sha256")
    for name, content in ((MODEL, model_bytes), (PARAMETERS, parameter_bytes)):
        if not isinstance(recorded, dict) or recorded.get(name) != _sha256(content):
            raise BundleError(
                f"{path / name} does not have the SHA-256 recorded in {CARD}: the file was "
                "changed or truncated after the bundle was saved; copy the bundle again"
            )
    try:
        arrays = load_tensors(parameter_bytes)
        spec = StudentSpec.from_dict(model)
        energies = model["reference_energies"]
        reference = np.array([energies[chemical_symbols[z]] for z in spec.elements], np.float64)
        variables = unflatten_dict({tuple(k.split(SEPARATOR)): v for k, v in arrays.items()})
        uncertainty = variables.pop(UNCERTAINTY, None)
        _check_shapes(spec, variables)
        expected = None if uncertainty is None else Uncertainty(**uncertainty)
    except (SafetensorError, ConfigError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as a bundle: {error}") from error
    return Bundle(Student(spec, variables, reference, expected), card, path)


def versions() -> dict[str, str]:
    """Versions of the packages that decide results."""
    names = ("distill-mlip", "distill", "jax", "jaxlib", "flax", "optax", "jax-md", "ase", "fennol")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _check_shapes(spec: StudentSpec, variables: Any) -> None:
    rows: tuple[jax.ShapeDtypeStruct, ...] = (
        jax.ShapeDtypeStruct((1, 1, 3), np.float32),
        jax.ShapeDtypeStruct((1, 1), np.int32),
        jax.ShapeDtypeStruct((1, 1), bool),
        jax.ShapeDtypeStruct((1,), np.int32),
    )
    if passes_messages(spec.build()):
        rows = (*rows, jax.ShapeDtypeStruct((1, 1), np.int32))
    expected = jax.eval_shape(lambda *r: spec.build().init(jax.random.PRNGKey(0), *r), *rows)
    found = {k: np.shape(v) for k, v in flatten_dict(variables).items()}
    wanted = {k: v.shape for k, v in flatten_dict(expected).items() if k[0] != "intermediates"}
    if found != wanted:
        differing = sorted("/".join(k) for k in found.keys() ^ wanted.keys()) or sorted(
            "/".join(k) for k in found if found[k] != wanted[k]
        )
        raise ValueError(f"arrays do not fit the architecture: {', '.join(differing[:5])}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is empty or not a mapping: the file may be truncated")
    return content


def _plain(value: Any) -> Any:
    """Plain Python data for YAML."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
