"""Records of measurements, and the tables that are made from them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.evaluation.results import FIELDS, Figure, read_records, record_figures

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("report_results")


def test_a_second_measurement_replaces_the_first(tmp_path):
    path = tmp_path / "results" / "a.json"
    first = [
        Figure("9 atoms", "a", "time", 1.0, "ms", (0.5, 2.0)),
        Figure("model", "a", "n", 3, "1"),
    ]
    record_figures(first, path, "python run.py")
    record_figures([Figure("9 atoms", "a", "time", 4.0, "ms")], path, "python run.py")
    records = read_records(path)
    assert [(r["metric"], r["value"], r["spread"]) for r in records] == [
        ("n", 3, None),
        ("time", 4.0, None),
    ]
    assert set(records[0]) == set(FIELDS)
    assert "jax" in records[0]["versions"] and records[0]["machine"]


@pytest.mark.parametrize("content", ["", "{}", '[{"case": 1}]', "[1]"])
def test_a_file_of_something_else_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DistillError, match="list of records"):
        record_figures([Figure("a", "b", "c", 1.0, "ms")], path, "run")
    assert path.read_text() == content


def test_the_page_shows_what_was_recorded(report):
    """The committed tables are those of the committed records."""
    records = read_records(ROOT / "docs" / "results" / "teachers.json")
    page = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
    tables = {
        "sizes": report.size_table(records),
        "comparisons": report.comparison_table(records),
    }
    assert report.fill(page, tables) == page
    assert json.dumps(records).count("random") > 0, "untrained networks are labelled so"
    with pytest.raises(DistillError, match="no place for the table other"):
        report.fill(page, {"other": ""})


def test_plot(report, tmp_path):
    records = read_records(ROOT / "docs" / "results" / "teachers.json")
    report.plot_sizes(records, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
