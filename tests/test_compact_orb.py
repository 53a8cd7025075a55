"""The compact Orb that comes with the project, and the script that made it."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from distill.teachers import load
from distill.teachers.weights import file_sha256

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "experiments" / "models" / "compact_orb.ckpt"

pytest.importorskip("orb_models")


def test_checkpoint_and_card_agree():
    card = yaml.safe_load(CHECKPOINT.with_suffix(".card.yaml").read_text())
    assert CHECKPOINT.stat().st_size < 2e6
    assert file_sha256(CHECKPOINT) == card["sha256"]
    teacher = load(f"orb:{CHECKPOINT}")
    assert teacher.info.n_parameters == card["parameters"]
    assert teacher.info.conservative and teacher.info.licence == card["licence"]
    assert card["errors"]["force_mae_mev_per_ang"] < 60
    assert abs(card["nve"]["drift_mev_per_atom_per_ps"]) < 0.05
    trained, tested = card["data"]["structures"]["train"], card["data"]["structures"]["test"]
    assert trained > 1000 and tested > 200


@pytest.mark.slow
def test_the_script_in_its_shortest_form(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    script = importlib.import_module("make_compact_orb")
    arguments = ["--smoke", f"output={tmp_path}", f"work={tmp_path / 'work'}"]
    assert script.main(arguments) == 0
    made = load(f"orb:{tmp_path / 'compact_orb.ckpt'}")
    card = yaml.safe_load((tmp_path / "compact_orb.card.yaml").read_text())
    assert made.info.weights_sha256 == card["sha256"]
    assert np.isfinite(card["errors"]["force_mae_mev_per_ang"])
    assert (tmp_path / "compact_orb.png").stat().st_size > 5000
