"""Importing the package changes nothing: no JAX setting, no environment, no heavy teacher."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import distill

PACKAGE = Path(distill.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

IMPORT_EVERYTHING = """
import importlib, json, os, pkgutil, sys

import jax

settings, environment = dict(jax.config.values), dict(os.environ)
import distill

names = [module.name for module in pkgutil.walk_packages(distill.__path__, "distill.")]
for name in names:
    importlib.import_module(name)
# Registering a setting that was not known before changes none.
changed = [name for name in settings if jax.config.values[name] != settings[name]]
print(json.dumps({
    "names": names,
    "settings": changed,
    "environment": sorted(set(os.environ.items()) ^ set(environment.items())),
    "heavy": sorted({"torch", "fennol", "orb_models", "tblite"} & set(sys.modules)),
    "x64": jax.config.read("jax_enable_x64"),
}))
"""

TIME_THE_IMPORT = """
import time
start = time.perf_counter()
import distill
print(time.perf_counter() - start)
"""


def run(code: str, folder: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What importing every module did, in a fresh process outside the repository."""
    output = run(IMPORT_EVERYTHING, tmp_path_factory.mktemp("elsewhere"))
    return json.loads(output.splitlines()[-1])


def test_every_module_is_found(everything: dict[str, Any]) -> None:
    """A folder without `__init__.py` would escape the walk, and the wheel."""
    expected = set()
    for source in SOURCES:
        parts = source.relative_to(PACKAGE.parent).with_suffix("").parts
        expected.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert {"distill", *everything["names"]} == expected


def test_import_changes_no_jax_setting(everything: dict[str, Any]) -> None:
    assert everything["settings"] == []
    assert everything["x64"] is False


def test_import_leaves_the_environment_alone(everything: dict[str, Any]) -> None:
    assert everything["environment"] == []


def test_import_loads_no_teacher(everything: dict[str, Any]) -> None:
    assert everything["heavy"] == []


def test_import_is_quick(tmp_path: Path) -> None:
    times = []
    for _ in range(3):  # another process may have had the core
        times.append(float(run(TIME_THE_IMPORT, tmp_path)))
        if times[-1] < 3:
            return
    pytest.fail(f"import distill took {times} s")


OWN_PROCESS = {"_ase_worker.py": ["os.environ[variable] = '1'"]}
"""What a worker process, started for nothing else, may set for itself."""


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_source_has_no_global_side_effects(source: Path) -> None:
    """No settings, no environment, no pickle; what a user shares cannot hold code that runs."""
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(attr="update", value=receiver)) if ast.unparse(
                receiver
            ).split(".")[-1] == "config" and ast.unparse(receiver).split(".")[0] in (
                "jax",
                "config",
            ):
                found.append(ast.unparse(node))
            case ast.Assign(targets=targets) | ast.Delete(targets=targets):
                found += [ast.unparse(node) for target in targets if sets_environment(target)]
            case ast.AugAssign(target=target) if sets_environment(target):
                found.append(ast.unparse(node))
            case ast.Call(func=function) if ast.unparse(function) in (
                "os.putenv",
                "os.unsetenv",
                "os.environ.update",
                "os.environ.setdefault",
                "os.environ.pop",
                "os.environ.clear",
            ):
                found.append(ast.unparse(node))
            case ast.Import(names=names):
                found += [ast.unparse(node) for name in names if is_pickle(name.name)]
            case ast.ImportFrom(module=str(module)) if is_pickle(module):
                found.append(ast.unparse(node))
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                found.append(ast.unparse(node))
    assert found == OWN_PROCESS.get(source.name, [])


def sets_environment(target: ast.expr) -> bool:
    return isinstance(target, ast.Subscript) and ast.unparse(target.value) == "os.environ"


def is_pickle(module: str) -> bool:
    return module.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "shelve")
