"""Benchmark, profile, report and check of the GPU run, and leave what they promise."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distill.errors import ConfigError, MissingDependencyError
from distill.evaluation.results import read_records
from distill.students.spec import SIZES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script as a module, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module


def test_benchmark_profile_and_report(script, tmp_path, monkeypatch, capsys, quick_compilation):
    monkeypatch.chdir(tmp_path)
    # Every step is compiled a dozen times: by a student that is smaller than its name says.
    options = {"n_radial": 8, "n_channels": 8, "max_l": 1, "n_triples": 0, "hidden": (32, 32)}
    monkeypatch.setitem(SIZES, "moment-s", ("moment", options))
    output = f"output={tmp_path / 'performance.json'}"
    smoke = ["--smoke", output, "ensembles=[nve, npt_scr]"]
    assert script("benchmark").main(smoke) == 0
    shown = capsys.readouterr().out
    assert "NOT PINNED" in shown and "not equilibrated" in shown
    assert script("profile_md").main(["--smoke", output]) == 0
    shown = capsys.readouterr().out
    loop = script("benchmark_loop")
    assert loop.main(["--smoke", output]) == 0
    records = read_records(tmp_path / "performance.json")
    found = {(r["case"], r["metric"]): r for r in records}
    cost = found["48 atoms of water, nve, float32", "MD cost"]
    assert cost["subject"] == "moment-s (random weights)" and cost["value"] > 0
    assert cost["spread"][0] <= cost["value"] <= cost["spread"][1]
    assert "'sizes=[48]'" in cost["command"]
    assert found["48 atoms of water, npt_scr, float32", "MD cost"]["value"] > 0
    aggregate = found["2 replicas of 24 atoms", script("report_performance").AGGREGATE]
    assert aggregate["unit"] == "x" and aggregate["value"] > 0
    whole, bare, ratio = (
        found["48 atoms of water, nve, float32", metric]["value"]
        for metric in (loop.LOOP, loop.BARE, loop.RATIO)
    )
    # Medians of one timed block are its values.
    assert whole > 0 and ratio == pytest.approx(whole / bare, rel=1e-3)
    parts = "48 atoms of water, parts of a step"
    for part in ("displacement gather", "kernel", "force assembly", "list rebuild", "whole step"):
        assert found[parts, part]["value"] > 0 and part in shown
    assert found[parts, "kernel, operations"]["value"] > 1e4
    assert found[parts, "memory, temporary"]["value"] > 0
    # The overhead is a small difference of times: on a busy machine it may be negative.
    calls = "9 atoms of water, ASE calculator"
    assert found[calls, "call"]["value"] > 0 and found[calls, "compiled step"]["value"] > 0
    assert found[calls, script("report_performance").OVERHEAD]["unit"] == "ms/call"
    tables = script("report_performance").tables(records)
    assert "| 9 atoms of water, ASE calculator |" in tables["calculator"]
    assert "| moment-s (random weights) |" in tables["cost"]
    assert "| kernel |" in tables["parts"] and "limit |" in tables["parts"]
    assert tables["ratios"] == script("report_performance").NOTHING
    script("report_performance").plot(records, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_a_box_is_that_of_its_own_process(script, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    figures = script("benchmark_memory").memory_figures("small", "moment-s", None, (96,), 2)
    found = {figure.metric: figure.value for figure in figures}
    # Two int32 per slot, and some hundred slots at most.
    assert 0.3 < found["list"] < 5 and found["compiled block, temporary"] > 0
    assert found["peak of the process, beyond the list"] > found["compiled block, temporary"]
    table = script("report_performance").memory_table(
        [
            {**vars(figure), "command": "", "machine": "", "date": "", "commit": ""}
            for figure in figures
        ]
    )
    assert "| list |" in table


def test_the_page_shows_what_was_recorded(script):
    report = script("report_performance")
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    path = ROOT / "docs" / "results" / "performance.json"
    records = read_records(path) if path.is_file() else []
    if not records:
        assert page.count(report.NOTHING) == len(report.tables([]))
    assert script("report_results").fill(page, report.tables(records)) == page


def test_ratios_are_those_of_neighbouring_runs(script):
    benchmark = script("benchmark")
    slow, fast = np.array([10.0, 40.0]), np.array([1.0, 2.0, 7.0])
    figure = benchmark.ratio("case", "student", "peer", slow, fast)
    assert figure.value == 15.0 and figure.spread == (10.0, 20.0)


def test_runs_are_taken_in_turn(script):
    calls = []

    class Fake:
        compile_seconds = 0.0

        def __init__(self, name: str):
            self.name = name

        def seconds_per_step(self) -> float:
            calls.append(self.name)
            return 1e-6

    runs = {"a": Fake("a"), "b": Fake("b")}
    costs = script("benchmark").in_turn(runs, {"a": 3, "b": 1}, 10)
    assert calls == ["a", "b", "a", "a"]
    np.testing.assert_allclose(costs["a"], [0.1] * 3)


def test_a_peer_that_is_missing_names_its_command(script, monkeypatch):
    for module, match in (("calorine", "pip install calorine"), ("mlip", "pip install mlip")):
        monkeypatch.setitem(sys.modules, module, None)
        peers = script("benchmark_peers").peers(5.0)
        peer = next(p for p in peers if module in p.name)
        with pytest.raises(MissingDependencyError, match=match):
            peer.start(None)
    monkeypatch.delenv("DISTILL_MODELS", raising=False)
    with pytest.raises(MissingDependencyError, match="DISTILL_MODELS"):
        script("benchmark_peers").FennolRun(None, 0.0)


def test_the_written_nep_has_the_numbers_that_its_header_promises(script):
    lines = script("benchmark_ase").random_nep(5.0, 4.0).splitlines()
    # 30 descriptors: networks of both elements, expansion of 4 pairs of elements, scales.
    assert len(lines) == 6 + (2 * 32 * 30 + 1) + 4 * 2 * 5 * 9 + 30
    assert lines[1].startswith("cutoff 5 4 ")


def test_a_trained_nep_is_given_as_a_file(script, tmp_path):
    path = tmp_path / "nep.txt"
    path.write_text(script("benchmark_ase").random_nep(6.0, 4.5))
    (own,) = (p for p in script("benchmark_peers").peers(5.0, path) if "calorine" in p.name)
    assert own.name == "NEP4 (calorine), 6 and 4.5 Å, trained" and "nep.txt" in own.detail
    path.write_text(script("benchmark_ase").random_nep(6.0, 4.5, ("C", "O")))
    for text, match in ((None, "does not know H"), ("no potential", "is no potential file")):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            script("benchmark_peers").peers(5.0, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        script("benchmark_peers").peers(5.0, tmp_path / "missing")


def test_wrong_settings_are_named(script, tmp_path, capsys):
    benchmark = script("benchmark")
    assert benchmark.main(["students={a: nowhere}", f"output={tmp_path / 'a.json'}"]) == 1
    assert "neither the folder of a bundle nor one of the sizes" in capsys.readouterr().err
    water = script("benchmark_water")
    boxes = water.WaterBoxes(None, None, 0, 300.0)
    with pytest.raises(ConfigError, match="whole number of water"):
        boxes.box(100)
    with pytest.raises(ConfigError, match="no peer is called 'nix'"):
        benchmark.chosen_peers(benchmark.BenchmarkConfig(peers=("nix",)), 5.0)
    for word, match in (("kernel=nix", "kernel: 'nix' not in"), ("skin=-1", "skin must be")):
        with pytest.raises(SystemExit):
            benchmark.main([word])
        assert match in capsys.readouterr().err


def test_boxes_are_repeated_from_small_ones(script, tmp_path):
    water = script("benchmark_water")
    boxes = water.WaterBoxes(None, None, 0, 300.0)
    small, large = boxes.box(96), boxes.box(768)
    np.testing.assert_allclose(large.cell.lengths(), 2 * small.cell.lengths())
    assert len(large) == 768
    small.write(tmp_path / "frame.extxyz")
    read = water.WaterBoxes(tmp_path / "frame.extxyz", None, 0, 300.0)
    np.testing.assert_allclose(read.box(192).cell.lengths() / small.cell.lengths(), [1, 1, 2])
    with pytest.raises(ConfigError, match="no multiple"):
        read.box(100)


def test_a_student_that_lets_water_collapse_is_refused(script, toy_potential):
    water = script("benchmark_water")

    def attraction(positions: jax.Array) -> jax.Array:
        return 50.0 * (positions**2).sum()

    boxes = water.WaterBoxes(
        None, lambda atoms: toy_potential(attraction, atoms.numbers), 10, 300.0
    )
    with pytest.raises(ConfigError, match="structure=FILE"):
        boxes.box(96)


def test_a_script_restarts_on_one_core(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text(
        "from pinned import restart_pinned, pinning\nrestart_pinned()\nprint(pinning())\n"
    )
    found = subprocess.run(
        [sys.executable, str(probe), "threads=1"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "experiments")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "(True, '1 threads" in found.stdout
    assert "xla_cpu_multi_thread_eigen=false" in found.stdout
    assert "host_platform_device_count" not in found.stdout


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="a machine without a GPU is meant")
def test_without_a_gpu_the_check_says_so(script, capsys, monkeypatch):
    check = script("check_cuda")
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    assert check.main() == 1
    shown = capsys.readouterr().out
    assert "[FAIL] driver: nvidia-smi is not found" in shown
    assert "[skip] molecular dynamics" in shown and "Not ready" in shown


def test_the_dynamics_of_the_check_move(script):
    check = script("check_cuda")
    moved = check.ten_steps(check.small_student())
    start = script("benchmark_water").WaterBoxes(None, None, 0, 300.0).box(check.ATOMS)
    distance = np.abs(moved - start.positions).max()
    assert 0.01 < distance < 2.0


@pytest.mark.gpu
def test_a_machine_with_a_gpu_is_ready(script):
    assert script("check_cuda").main() == 0
