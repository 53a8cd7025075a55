"""The quickstart script, end to end in its shortest form, and its answers to bad input."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from distill.config import load_config
from distill.data import load
from distill.students import load_bundle

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "experiments" / "quickstart.py"
CONFIGS = ROOT / "experiments" / "configs"


def _run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module: a process of its own takes seconds to import."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("quickstart")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and printed output of a smoke run."""
    folder = tmp_path_factory.mktemp("quickstart")
    done = _run("--smoke", "output=run", folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", done.stdout


def test_everything_that_was_promised_is_there(finished):
    run, printed = finished
    certificate = json.loads((run / "certificate.json").read_text())
    assert certificate["teacher"]["teacher"] == "fennol:demo_chno.fnx"
    assert certificate["speed"]["md_speedup"] > 0
    assert certificate["speed"]["kernel"] == "blocked"
    assert "kernel `blocked`" in (run / "certificate.md").read_text()
    assert np.isfinite(certificate["accuracy"]["force_mae_mev_per_ang"])
    for name in ("force_parity", "learning_curve", "nve_energy", "speed", "summary"):
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "# Certificate" in (run / "certificate.md").read_text()
    assert list((run / "training" / "tensorboard").iterdir())
    for check in certificate["checks"]:
        assert check["name"] in printed


def test_the_student_can_be_used(finished):
    run, _ = finished
    student = load_bundle(run / "student").student
    frames = ase.io.read(run / "nve.extxyz", index=":")
    labels = student.label(frames[-1:])
    assert labels.energy[0] == pytest.approx(frames[-1].get_potential_energy(), abs=1e-3)
    assert frames[-1].get_velocities().any()


def test_held_out_trajectories_are_not_in_training(finished):
    run, _ = finished
    certificate = json.loads((run / "certificate.json").read_text())
    parts = [set(names) for names in certificate["data"]["trajectories"].values()]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert set(load(run / "dataset.h5").trajectory) == set.union(*parts)


def test_a_finished_run_is_not_done_again(finished):
    run, _ = finished
    before = {p: p.stat().st_mtime_ns for p in (run / "structures.h5", run / "dataset.h5")}
    metrics = (run / "training" / "metrics.csv").read_text()
    again = _run("--smoke", "output=run", folder=run.parent)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "continuing the run" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (run / "training" / "metrics.csv").read_text() == metrics


def test_other_settings_need_another_folder(finished, quickstart, monkeypatch, capsys):
    run, _ = finished
    monkeypatch.chdir(run.parent)
    assert quickstart.main(["--smoke", "output=run", "sampling.seed=5"]) == 1
    printed = capsys.readouterr().err
    assert "other settings" in printed and "output=" in printed


def test_a_misspelt_key_is_refused_with_the_nearest_name(tmp_path):
    done = _run("--smoke", "training.learning_rat=1e-3", folder=tmp_path)
    assert done.returncode == 2
    assert "learning_rate" in done.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("structure=unobtainium", ("unobtainium", "neither a file nor a molecule")),
        ("teacher=fennol:ani1cx", ("ani1cx", "Did you mean fennol:ani1ccx")),
        ("teacher=fennol:ani1ccx", ("DISTILL_MODELS", "network")),
    ],
)
def test_errors_name_the_input_and_what_to_do(
    quickstart, tmp_path, monkeypatch, capsys, override, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_MODELS", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # A proxy at a closed port: any download fails at once.
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    assert quickstart.main(["--smoke", "output=run", override]) == 1
    printed = capsys.readouterr().err
    for word in words:
        assert word in printed


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_valid(path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from quickstart_config import QuickstartConfig

    config = load_config(QuickstartConfig, path)
    assert config.output.parent.name == "runs"
