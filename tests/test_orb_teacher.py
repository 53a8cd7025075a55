"""Orb teachers: orb-models' own numbers, DLPack, use inside compiled functions, bad input."""

from __future__ import annotations

import hashlib
import http.server
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from builders import ethanol, numerical_stress, random_rotation, triclinic_cell, water_box

from distill.errors import ConfigError, UnknownElementError, UnsupportedStructureError
from distill.simulation import MDConfig, run_md
from distill.teachers import WeightsError, load
from distill.teachers import _orb_model as orb_model
from distill.teachers.dlpack import to_jax, to_torch
from distill.teachers.hessian import numerical_hvp
from distill.teachers.orb import OrbTeacher

torch = pytest.importorskip("torch")
pytest.importorskip("orb_models")

ROOT = Path(__file__).resolve().parent.parent
COMPACT = ROOT / "experiments" / "models" / "compact_orb.ckpt"
SMALL = {
    "latent_dim": 32,
    "base_mlp_hidden_dim": 64,
    "head_mlp_hidden_dim": 32,
    "num_message_passing_steps": 2,
}
V2 = {"num_message_passing_steps": 2}
KINDS = {
    "v3 conservative": ("orb_v3_conservative_architecture", SMALL),
    "v3 direct": ("orb_v3_direct_architecture", SMALL),
    "v2": ("orb_v2_architecture", V2),
}


def teacher_of(kind: str, dtype=np.float32, **options) -> OrbTeacher:
    architecture, arguments = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = orb_model.load_network(
            architecture, None, arguments=arguments, dtype=dtype, **options
        )
    return OrbTeacher(model, name=f"orb:{kind}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [ethanol, partial(water_box, 2), triclinic_cell])
def test_equal_to_the_calculator_of_orb_models(kind, make):
    """To 1e-5; the teacher is given unwrapped positions, the calculator wrapped ones."""
    teacher, atoms = teacher_of(kind), make()
    unwrapped = atoms.copy()
    if atoms.pbc.all():
        unwrapped.positions[1::2] += atoms.cell.array[0] - 2 * atoms.cell.array[2]
    labels = teacher.label([unwrapped])
    calculator = orb_model.library_calculator(teacher.model)
    calculator.calculate(atoms)
    expected = calculator.results
    assert labels.energy[0] == pytest.approx(float(expected["energy"]), rel=1e-5)
    scale = np.abs(expected["forces"]).max()
    np.testing.assert_allclose(labels.forces[0], expected["forces"], rtol=0, atol=1e-5 * scale)
    if atoms.pbc.all():
        voigt = labels.stress[0][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        scale = np.abs(expected["stress"]).max()
        np.testing.assert_allclose(voigt, np.ravel(expected["stress"]), rtol=0, atol=1e-5 * scale)


def test_a_batch_of_anything_is_the_same_one_by_one():
    teacher = teacher_of("v3 conservative", np.float64)
    batch = [ethanol(), water_box(2), Atoms("O"), triclinic_cell(), molecule("H2O")]
    labels = teacher.label(batch)
    for i, atoms in enumerate(batch):
        alone = teacher.label([atoms])
        assert labels.energy[i] == pytest.approx(alone.energy[0], rel=1e-12)
        np.testing.assert_allclose(labels.forces[i], alone.forces[0], atol=1e-12)
    assert np.isfinite(labels.stress[[1, 3]]).all() and np.isnan(labels.stress[[0, 2, 4]]).all()
    assert teacher.label([]).energy.shape == (0,)


def test_a_cell_around_a_molecule_is_not_periodic():
    teacher, atoms = teacher_of("v3 direct"), ethanol()
    boxed = atoms.copy()
    boxed.set_cell(np.eye(3) * 20)
    np.testing.assert_array_equal(
        teacher.label([boxed]).forces[0], teacher.label([atoms]).forces[0]
    )


def test_stress_is_the_derivative_of_the_energy():
    teacher, atoms = teacher_of("v3 conservative", np.float64), triclinic_cell()
    numerical = numerical_stress(teacher.label, atoms)
    stress = teacher.label([atoms]).stress[0]
    np.testing.assert_allclose(stress, numerical, rtol=0, atol=1e-5 * np.abs(stress).max())


def test_nothing_global_is_left_behind():
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    state = torch.random.get_rng_state()
    teacher = load("orb:orb-d3-xs-v2?weights=random&seed=3", dtype=np.float64)
    teacher.label([molecule("H2O")])
    assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert teacher.info.weights_sha256 == "random"


def test_jax_arrays_reach_torch_without_a_copy():
    array = jnp.arange(12.0).reshape(4, 3)
    tensor = to_torch(array)
    assert tensor.data_ptr() == array.unsafe_buffer_pointer()
    assert to_torch(jnp.array([True, False])).tolist() == [True, False]
    back = to_jax(tensor)
    assert back.unsafe_buffer_pointer() != array.unsafe_buffer_pointer()
    tensor[0, 0] = 99.0
    assert back[0, 0] == 0.0, "a result must not change with a buffer of torch"
    strided = torch.arange(12.0).reshape(4, 3).T
    np.testing.assert_array_equal(to_jax(strided), strided.numpy())
    misaligned = torch.arange(9.0)[1:]
    np.testing.assert_array_equal(to_jax(misaligned), misaligned.numpy())
    learning = torch.ones(3, requires_grad=True)
    np.testing.assert_array_equal(to_jax(learning), np.ones(3))
    with pytest.raises(ValueError, match="x64"):
        to_jax(torch.ones(3, dtype=torch.float64))


def test_labels_straight_from_jax_arrays(monkeypatch):
    teacher = teacher_of("v3 conservative")
    batch = [ethanol(), triclinic_cell()]
    positions = jnp.asarray(np.concatenate([a.positions for a in batch]), jnp.float32)
    seen = {}

    def spy(array, device=None):
        tensor = to_torch(array, device)
        seen[id(array)] = (tensor.data_ptr(), array.unsafe_buffer_pointer())
        return tensor

    monkeypatch.setattr("distill.teachers.orb.to_torch", spy)
    before = np.array(positions)
    arrays = teacher.label_arrays(
        positions,
        jnp.asarray(np.concatenate([a.numbers for a in batch])),
        jnp.asarray([len(a) for a in batch]),
        jnp.asarray(np.stack([a.cell.array for a in batch]), jnp.float32),
    )
    assert len(seen) == 4 and all(there == here for there, here in seen.values())
    labels = teacher.label(batch)
    np.testing.assert_allclose(arrays.energy, labels.energy, rtol=1e-5)
    np.testing.assert_allclose(arrays.forces, np.concatenate(labels.forces), atol=1e-5)
    np.testing.assert_allclose(arrays.stress[1], labels.stress[1], atol=1e-6)
    assert np.isnan(np.asarray(arrays.stress[0])).all()
    np.testing.assert_array_equal(positions, before)


def test_energy_inside_jit_grad_and_vmap():
    teacher, atoms = teacher_of("v3 conservative"), ethanol()
    energy = teacher.energy_function(atoms)
    positions = jnp.asarray(atoms.positions, jnp.float32)
    moved = jnp.stack([positions, positions + 0.05 * jnp.asarray(random_rotation(0)[0])])
    moved = moved.at[1, 0, 0].add(0.1)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(energy)))(moved)
    for i in range(2):
        structure = Atoms(atoms.numbers, np.asarray(moved[i], np.float64))
        labels = teacher.label([structure])
        assert values[i] + energy.energy_offset == pytest.approx(labels.energy[0], abs=1e-5)
        np.testing.assert_allclose(-gradients[i], labels.forces[0], atol=1e-5)


def test_orb_drives_a_compiled_md_loop():
    teacher, atoms = teacher_of("v3 conservative", np.float32), ethanol(amplitude=0.0)
    config = MDConfig(timestep=0.5, steps=20, record_every=5, block_steps=10, temperature=100.0)
    run = run_md(teacher.potential(atoms), np.stack([atoms.positions] * 2), config, progress=False)
    frame = Atoms(atoms.numbers, run.frames.positions[-1, 0].astype(float))
    relative = teacher.label([frame, atoms]).energy
    assert run.frames.potential_energy[-1, 0] == pytest.approx(relative[0] - relative[1], abs=1e-4)
    assert np.ptp(run.frames.total_energy[:, 0]) < 5e-3


def test_hessian_products_agree_with_differences():
    teacher, atoms = teacher_of("v3 conservative", np.float64), ethanol()
    directions = np.random.default_rng(0).standard_normal((2, 9, 3))
    exact = teacher.hvp(atoms, directions)
    assert exact.exact and exact.values.shape == (2, 9, 3)
    assert exact.error.tolist() == [0.0, 0.0]
    numerical = numerical_hvp(teacher.label, atoms, directions, step=0.01)
    np.testing.assert_allclose(exact.values, numerical.values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        (directions[0] * exact.values[1]).sum(), (directions[1] * exact.values[0]).sum(), rtol=1e-9
    )
    single = teacher.hvp(triclinic_cell(), np.ones((7, 3)))
    assert np.abs(single.values).max() < 1e-9, "a shift of all atoms changes no force"
    assert not teacher_of("v3 direct").hvp(atoms, directions[0]).exact


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("orb:orb-v3-conservative-inf-omatt", ConfigError, "Did you mean orb:orb-v3-"),
        ("orb:orb-v2?wieghts=random", ConfigError, "unknown options wieghts"),
        ("orb:orb-v2?weights=mine", ConfigError, "only be 'random'"),
    ],
)
def test_names_that_are_wrong(name, error, message):
    with pytest.raises(error, match=message):
        load(name)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "small.ckpt"
    torch.save(teacher_of("v3 direct").model.network.state_dict(), path)
    return path


def test_checkpoints_of_the_wrong_architecture(checkpoint):
    with pytest.raises(ConfigError, match=r"say which architecture.*small\.card\.yaml"):
        load(f"orb:{checkpoint}")
    for arch in (
        "orb_v3_conservative_architecture",
        "orb_v2_architecture",
        "orb-v3-direct-20-omat",
    ):
        with pytest.raises(WeightsError, match=rf"does not hold the weights of {arch}"):
            load(f"orb:{checkpoint}?arch={arch}")
    with pytest.raises(ConfigError, match="unknown Orb architecture"):
        load(f"orb:{checkpoint}?arch=orb_v9")


def test_checkpoints_that_are_damaged(checkpoint):
    arch = "arch=orb_v3_direct_architecture"
    with pytest.raises(WeightsError, match="SHA-256"):
        load(f"orb:{checkpoint}?{arch}&sha256={'0' * 64}")
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"small\.ckpt cannot be read.*truncated"):
        load(f"orb:{checkpoint}?{arch}")
    checkpoint.write_text("no checkpoint")
    with pytest.raises(WeightsError, match="cannot be read"):
        load(f"orb:{checkpoint}?{arch}")


def test_structures_that_do_not_fit():
    teacher = teacher_of("v3 direct")
    atoms = triclinic_cell()
    atoms.pbc = (True, True, False)
    with pytest.raises(UnsupportedStructureError, match="2 of 3 directions"):
        teacher.label([atoms])
    with pytest.raises(ValueError, match="no spread"):
        teacher.label([ethanol()], uncertainty=True)
    narrow = OrbTeacher(teacher.model, name="orb:narrow", elements=(1, 8))
    with pytest.raises(UnknownElementError, match="C"):
        narrow.label([ethanol()])
    with pytest.raises(ValueError, match="shape"):
        teacher.hvp(ethanol(), np.ones((3, 3)))
    charged = load("orb:orb-v3-direct-omol?weights=random")
    with pytest.raises(UnsupportedStructureError, match=r"info\['charge'\]"):
        charged.label([molecule("H2O")])


class _Weights(http.server.BaseHTTPRequestHandler):
    """Serves `content`; the first `broken` answers break off in the middle."""

    content = b""
    broken = 0

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        cut = type(self).broken > 0
        type(self).broken -= 1
        self.wfile.write(self.content[: len(self.content) // 2] if cut else self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def published(tmp_path, monkeypatch):
    """`orb-d3-xs-v2` at a local address, with a cache of its own."""
    torch.save(load("orb:orb-d3-xs-v2?weights=random").model.network.state_dict(), tmp_path / "w")
    _Weights.content, _Weights.broken = (tmp_path / "w").read_bytes(), 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Weights)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    monkeypatch.delenv("DISTILL_MODELS", raising=False)
    url = f"http://127.0.0.1:{server.server_port}/xs.ckpt"
    monkeypatch.setattr("distill.teachers.orb_loading.pretrained_url", lambda name: url)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    yield server, tmp_path / "cache" / "orb" / "xs.ckpt"
    server.shutdown()
    server.server_close()


def test_pretrained_weights_are_downloaded_once_and_watched(published):
    server, path = published
    _Weights.broken = 1  # the first answer is cut: it is tried again
    teacher = load("orb:orb-d3-xs-v2")
    assert teacher.info.weights_sha256 == hashlib.sha256(_Weights.content).hexdigest()
    assert path.read_bytes() == _Weights.content
    path.write_bytes(_Weights.content[:1000])  # damaged in the cache: removed, fetched again
    load("orb:orb-d3-xs-v2")
    assert path.read_bytes() == _Weights.content
    server.shutdown()
    server.server_close()
    load("orb:orb-d3-xs-v2")  # no network needed any more
    path.unlink()
    with pytest.raises(WeightsError, match=r"could not be downloaded.*DISTILL_MODELS.*network"):
        load("orb:orb-d3-xs-v2")
    assert not path.exists()


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "orb_models.forcefield", None)
    with pytest.raises(ImportError, match=r"distill-mlip\[orb\]"):
        load("orb:orb-v2")
