"""Bundles: read back equal, replaced as a whole, and every kind of damage is refused by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from builders import CUTOFF, ELEMENTS, REFERENCE_ENERGIES, ethanol, small_student, triclinic_cell
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from distill.errors import BundleError, ConfigError
from distill.students import StudentSpec, load_bundle, save_bundle

MODEL, PARAMETERS, CARD = "model.yaml", "parameters.safetensors", "card.yaml"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return save_bundle(small_student(), tmp_path / "bundle", {"teacher": "fennol:test"})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record_checksums(bundle: Path) -> None:
    """Make the checksums those of the files as they are now, as a careful forger would."""
    card = yaml.safe_load((bundle / CARD).read_text())
    card["sha256"] = {name: sha256(bundle / name) for name in (MODEL, PARAMETERS)}
    (bundle / CARD).write_text(yaml.safe_dump(card))


def edit_model(bundle: Path, change: Callable[[dict], None]) -> None:
    model = yaml.safe_load((bundle / MODEL).read_text())
    change(model)
    (bundle / MODEL).write_text(yaml.safe_dump(model))


def edit_arrays(bundle: Path, change: Callable[[dict], None]) -> None:
    arrays = load_tensors((bundle / PARAMETERS).read_bytes())
    change(arrays)
    (bundle / PARAMETERS).write_bytes(save_tensors(arrays))


# Writing and reading back


def test_read_back_bit_for_bit(bundle):
    saved, loaded = small_student(), load_bundle(bundle).student
    assert loaded.spec.to_dict() == saved.spec.to_dict()
    np.testing.assert_array_equal(loaded.reference_energies, saved.reference_energies)
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(saved.variables)
    for a, b in zip(
        jax.tree.leaves(loaded.variables), jax.tree.leaves(saved.variables), strict=True
    ):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    structures = [ethanol(), triclinic_cell()]
    first, second = saved.label(structures), loaded.label(structures)
    np.testing.assert_array_equal(first.energy, second.energy)
    np.testing.assert_array_equal(first.stress[1], second.stress[1])
    for a, b in zip(first.forces, second.forces, strict=True):
        np.testing.assert_array_equal(a, b)


def test_reference_energies_keep_all_digits(tmp_path):
    precise = REFERENCE_ENERGIES + np.array([1, 1 / 3, 1e-13])
    student = replace(small_student(), reference_energies=precise)
    loaded = load_bundle(save_bundle(student, tmp_path / "bundle", {})).student
    np.testing.assert_array_equal(loaded.reference_energies, precise)


def test_the_card_says_what_a_user_must_know(bundle):
    card = load_bundle(bundle).card
    assert card["units"] == {"energy": "eV", "length": "Angstrom", "stress": "eV/Angstrom^3"}
    assert card["elements"] == ["H", "C", "O"]
    assert card["cutoff"] == CUTOFF
    assert card["parameters"] == small_student().n_parameters
    assert card["teacher"] == "fennol:test"
    assert {"jax", "jaxlib", "flax", "ase"} <= set(card["versions"])
    assert card["sha256"] == {name: sha256(bundle / name) for name in (MODEL, PARAMETERS)}


def test_a_card_may_hold_numpy_values(tmp_path):
    card = {"errors": {"mae": np.float64(0.5), "bins": np.arange(3)}, "split": (1, np.int64(2))}
    loaded = load_bundle(save_bundle(small_student(), tmp_path / "bundle", card)).card
    assert loaded["errors"] == {"mae": 0.5, "bins": [0, 1, 2]}
    assert loaded["split"] == [1, 2]


def test_three_files_and_no_pickle(bundle):
    assert sorted(p.name for p in bundle.iterdir()) == sorted([MODEL, PARAMETERS, CARD])
    for path in bundle.iterdir():
        content = path.read_bytes()
        assert not content.startswith(b"\x80")  # pickle's first byte
        assert not content.startswith(b"PK")  # a zip archive, as torch and numpy write
    for name in (MODEL, CARD):
        assert "!!python" not in (bundle / name).read_text()


# Saving over something


def test_an_older_bundle_is_replaced(bundle):
    save_bundle(small_student(n_channels=2), bundle, {"note": "second"})
    loaded = load_bundle(bundle)
    assert loaded.card["note"] == "second"
    assert loaded.student.spec.options["n_channels"] == 2
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def test_a_save_that_fails_leaves_the_older_bundle(bundle):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(yaml.YAMLError):
        save_bundle(small_student(), bundle, {"not YAML": object()})
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_nothing_foreign_is_overwritten(tmp_path, kind):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("data")
    else:
        path.mkdir()
        if kind == "folder":
            (path / "thesis.tex").write_text("data")
    with pytest.raises(BundleError, match=r"precious exists and is not a bundle: choose another"):
        save_bundle(small_student(), path, {})
    assert path.exists()
    assert kind != "folder" or (path / "thesis.tex").read_text() == "data"


# Damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).unlink()


def truncate(bundle: Path) -> None:
    content = (bundle / PARAMETERS).read_bytes()
    (bundle / PARAMETERS).write_bytes(content[:-100])


def change_one_bit(bundle: Path) -> None:
    content = bytearray((bundle / PARAMETERS).read_bytes())
    content[-5] ^= 1
    (bundle / PARAMETERS).write_bytes(bytes(content))


def change_cutoff(bundle: Path) -> None:
    edit_model(bundle, lambda model: model.update(cutoff=CUTOFF + 0.5))


def empty_card(bundle: Path) -> None:
    (bundle / CARD).write_text("")


def garble_card(bundle: Path) -> None:
    (bundle / CARD).write_text("units: [eV\nelements: }")


def drop_checksums(bundle: Path) -> None:
    card = yaml.safe_load((bundle / CARD).read_text())
    del card["sha256"]
    (bundle / CARD).write_text(yaml.safe_dump(card))


def other_format(bundle: Path) -> None:
    edit_model(bundle, lambda model: model.update(format="something else"))


def other_version(bundle: Path) -> None:
    edit_model(bundle, lambda model: model.update(format_version=99))


DAMAGE = {
    "no model": (remove(MODEL), r"model\.yaml is missing"),
    "no parameters": (remove(PARAMETERS), r"parameters\.safetensors is missing"),
    "no card": (remove(CARD), r"card\.yaml is missing"),
    "truncated": (truncate, r"parameters\.safetensors does not have the SHA-256.*copy the bundle"),
    "one bit": (change_one_bit, r"parameters\.safetensors does not have the SHA-256"),
    "other cutoff": (change_cutoff, r"model\.yaml does not have the SHA-256"),
    "empty card": (empty_card, r"card\.yaml is empty"),
    "garbled card": (garble_card, r"card\.yaml is not readable YAML"),
    "no checksums": (drop_checksums, r"model\.yaml does not have the SHA-256"),
    "other format": (other_format, r"model\.yaml is not a model of distill"),
    "other version": (other_version, r"model\.yaml has format version 99.*install the version"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused_by_name(bundle, damage, message):
    damage(bundle)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["absent", "foreign"])
def test_a_folder_that_is_no_bundle(tmp_path, name):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model.pt").write_text("weights")
    with pytest.raises(
        BundleError, match=rf"{name} is not a complete bundle.*A bundle is a folder"
    ):
        load_bundle(tmp_path / name)


# Damage with checksums that fit it


def grow_network(bundle: Path) -> None:
    edit_model(bundle, lambda model: model["options"].update(hidden=[12, 9]))


def drop_array(bundle: Path) -> None:
    edit_arrays(bundle, lambda arrays: arrays.pop("params/layer_0/radial_1"))


def add_array(bundle: Path) -> None:
    edit_arrays(bundle, lambda arrays: arrays.update({"params/extra": np.zeros(2, np.float32)}))


def not_tensors(bundle: Path) -> None:
    (bundle / PARAMETERS).write_bytes(b"these are not tensors")


def unknown_element(bundle: Path) -> None:
    edit_model(bundle, lambda model: model.update(elements=["H", "C", "Qq"]))


def no_reference_energy(bundle: Path) -> None:
    edit_model(bundle, lambda model: model["reference_energies"].pop("C"))


def unknown_architecture(bundle: Path) -> None:
    edit_model(bundle, lambda model: model.update(architecture="momemt"))


def unknown_option(bundle: Path) -> None:
    edit_model(bundle, lambda model: model["options"].update(n_chanels=4))


FORGERIES = {
    "larger network": (grow_network, "arrays do not fit the architecture: .*kernel"),
    "array missing": (drop_array, "arrays do not fit the architecture: params/layer_0/radial_1"),
    "array too many": (add_array, "arrays do not fit the architecture: params/extra"),
    "no tensors": (not_tensors, "cannot be read as a bundle"),
    "unknown element": (unknown_element, "unknown elements: Qq"),
    "no reference energy": (no_reference_energy, "cannot be read as a bundle: .*C"),
    "unknown architecture": (unknown_architecture, "'momemt'.*did you mean 'moment'"),
    "unknown option": (unknown_option, "'n_chanels'.*did you mean 'n_channels'"),
}


@pytest.mark.parametrize(("damage", "message"), FORGERIES.values(), ids=FORGERIES)
def test_contents_that_do_not_fit_are_refused(bundle, damage, message):
    damage(bundle)
    record_checksums(bundle)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


@pytest.mark.parametrize("name", [MODEL, CARD])
def test_python_objects_in_yaml_are_not_executed(bundle, tmp_path, name):
    mark = tmp_path / "executed"
    touch = "!!python/object/apply:pathlib.Path.touch"
    attack = f"x: {touch} [!!python/object/apply:pathlib.PosixPath ['{mark}']]\n"
    (bundle / name).write_text(attack + (bundle / name).read_text())
    with pytest.raises(BundleError, match=f"{name} is not readable YAML"):
        load_bundle(bundle)
    assert not mark.exists()


def test_unknown_names_in_a_spec_give_the_nearest():
    with pytest.raises(ConfigError, match=r"'momnet' \(did you mean 'moment'\?\); known: moment"):
        StudentSpec("momnet", ELEMENTS, CUTOFF, {}).build()
    with pytest.raises(ConfigError, match=r"'maxl' of student 'moment' \(did you mean 'max_l'\?\)"):
        StudentSpec("moment", ELEMENTS, CUTOFF, {"maxl": 2}).build()
    with pytest.raises(ConfigError, match="lacks cutoff, options"):
        StudentSpec.from_dict({"architecture": "moment", "elements": ["H"]})


def test_a_spec_survives_plain_data():
    spec = StudentSpec("moment", ELEMENTS, CUTOFF, {"hidden": (12, 8), "max_l": 2})
    again = StudentSpec.from_dict(yaml.safe_load(yaml.safe_dump(spec.to_dict())))
    assert again.to_dict() == spec.to_dict()
    assert again.build() == spec.build()
