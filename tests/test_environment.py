"""What is said of the machine beside every result."""

from __future__ import annotations

import platform

import pytest

from distill.evaluation import environment


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (
            ["model name\t: Some CPU", "cpu family\t: 25", "model\t\t: 17"],
            "Some CPU (family 25 model 17)",
        ),
        (["model name\t: Some CPU"], "Some CPU"),
        (["Hardware\t: a board"], platform.processor() or platform.machine()),
    ],
    ids=["family", "name alone", "no name"],
)
def test_generations_of_one_name_are_told_apart(monkeypatch, tmp_path, lines, name):
    path = tmp_path / "cpuinfo"
    other = "processor\t: 1\nmodel name\t: Another"
    path.write_text("\n".join(["processor\t: 0", *lines, "", other, ""]))
    monkeypatch.setattr(environment, "_CPU_INFO", path)
    assert environment.describe_environment()["device"]["processor"] == name


def test_without_that_file_the_platform_names_it(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_CPU_INFO", tmp_path / "missing")
    assert environment.describe_environment()["device"]["processor"]
