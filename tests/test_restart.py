"""Restart: an interrupted run ends as if it had not been, bit for bit; no other is resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.io
import jax
import numpy as np
import pytest
from ase import Atoms
from builders import small_student, water_box

from distill.errors import CheckpointError, SimulationError
from distill.potential import Potential, local_potential
from distill.simulation import ENSEMBLES, MDCheckpoints, MDConfig, TrajectoryWriter, run_md
from distill.simulation.packing import pack, unpack

pytestmark = pytest.mark.usefixtures("quick_compilation")

CUTOFF = 3.0
CONFIG = MDConfig(
    timestep=2.0,
    temperature=200.0,
    steps=160,
    record_every=10,
    block_steps=40,
    # Slow baths, which let the atoms crowd first.
    friction=0.001,
    thermostat_time=1000.0,
)


def repulsion(displacements, neighbor_species, mask, species):
    """Soft spheres, smooth at the cutoff."""
    import jax.numpy as jnp

    distances = jnp.sqrt((displacements**2).sum(-1) + 1e-12)
    return jnp.where(mask, 0.1 * jnp.maximum(1 - distances / CUTOFF, 0) ** 3, 0).sum(1)


def spheres() -> Atoms:
    """27 atoms, soon crowded: the neighbour lists grow on the way."""
    grid = 3.8 * np.array(list(np.ndindex(3, 3, 3)), float)
    moved = grid + 0.01 * np.random.default_rng(0).standard_normal(grid.shape)
    return Atoms("Ar27", moved, cell=np.eye(3) * 20.0, pbc=True)


def potential_of(atoms: Atoms) -> Potential:
    return local_potential(repulsion, atoms, np.zeros(len(atoms), int), CUTOFF, skin=0.5)


def inwards(atoms: Atoms) -> np.ndarray:
    return -0.01 * (atoms.positions - atoms.positions.mean(0)) / 3.8


def run(folder: Path, config: MDConfig = CONFIG, extra=None, **options):
    """Frames go to a file in `folder`, checkpoints beside it."""
    atoms = spheres()
    followers = [TrajectoryWriter(folder / "run.extxyz", atoms, append=True)]
    options = {"velocities": inwards(atoms), **options}
    return run_md(
        potential_of(atoms),
        atoms.positions,
        config,
        on_frames=[*([extra] if extra else []), *followers],
        checkpoints=MDCheckpoints(folder, {"model": "soft spheres"}),
        progress=False,
        **options,
    )


def assert_same(one, other, first: Path, second: Path) -> None:
    for a, b in zip(jax.tree.leaves(one.state), jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.n_reallocations == other.n_reallocations
    assert (first / "run.extxyz").read_bytes() == (second / "run.extxyz").read_bytes()
    with np.load(first / "checkpoint.npz") as a, np.load(second / "checkpoint.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_two_halves_are_the_whole(ensemble, tmp_path):
    config = replace(CONFIG, ensemble=ensemble)
    whole = run(tmp_path / "whole", config)
    run(tmp_path / "parts", replace(config, steps=80))
    parts = run(tmp_path / "parts", config)
    assert whole.n_reallocations > 0
    assert parts.frames.time[0] == 180.0 and len(parts.frames.time) == 8
    np.testing.assert_array_equal(parts.frames.positions, whole.frames.positions[8:])
    assert_same(parts, whole, tmp_path / "parts", tmp_path / "whole")
    images = ase.io.read(tmp_path / "parts/run.extxyz", index=":")
    assert [image.info["time_fs"] for image in images] == [20.0 * i for i in range(1, 17)]


def test_an_error_between_blocks_costs_nothing(tmp_path):
    """The state before the block that failed is saved, whatever the interval of checkpoints."""
    seen = []

    def fail_once(frames):
        seen.append(frames.time[-1])
        if len(seen) == 3:
            raise SimulationError("stopped by the test")

    config = replace(CONFIG, ensemble="nvt_csvr")
    with pytest.raises(SimulationError, match="by the test"):
        run(tmp_path / "parts", config, fail_once)
    parts = run(tmp_path / "parts", config, fail_once)
    assert seen == [80.0, 160.0, 240.0, 240.0, 320.0]
    assert_same(parts, run(tmp_path / "whole", config), tmp_path / "parts", tmp_path / "whole")


def test_replicas_restart(tmp_path):
    atoms = spheres()
    starts = np.stack([atoms.positions, atoms.positions + 0.1])
    config = replace(CONFIG, ensemble="nvt_langevin")

    def half(folder, steps):
        return run_md(
            potential_of(atoms),
            starts,
            replace(config, steps=steps),
            checkpoints=MDCheckpoints(folder),
            progress=False,
        )

    half(tmp_path / "parts", 80)
    parts, whole = half(tmp_path / "parts", 160), half(tmp_path / "whole", 160)
    np.testing.assert_array_equal(parts.frames.positions, whole.frames.positions[8:])
    assert np.abs(parts.frames.positions[:, 0] - parts.frames.positions[:, 1]).max() > 0.2


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import jax
import numpy as np
import test_restart as own

jax.config.update("jax_disable_most_optimizations", True)

folder, when, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = 0
def die():
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)

savez, fsync = np.savez, os.fsync
def half_a_file(file, **arrays):
    savez(file, **arrays)
    file.flush()
    os.ftruncate(file.fileno(), file.tell() // 2)
    die()
    file.seek(0)
    savez(file, **arrays)
def dying_fsync(handle):
    die()
    fsync(handle)
if when == "archive":
    np.savez = half_a_file
elif when == "fsync":
    os.fsync = dying_fsync
own.run(folder, replace(own.CONFIG, ensemble="nvt_langevin"))
"""


@pytest.mark.parametrize(("when", "counts"), [("archive", (3, 2)), ("fsync", (5, 3))])
def test_killed_in_the_middle_of_a_write(when, counts, tmp_path):
    """SIGKILL with half an archive, or a trajectory that is ahead of the checkpoint; twice."""
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    folder = tmp_path / "killed"
    for count in counts:
        command = [sys.executable, "-c", KILLED, str(folder), when, str(count)]
        status = subprocess.run(command, env=environment, timeout=300, capture_output=True)
        assert status.returncode == -signal.SIGKILL, status.stderr.decode()
    config = replace(CONFIG, ensemble="nvt_langevin")
    parts = run(folder, config)
    assert 0 < len(parts.frames.time) < 16
    assert_same(parts, run(tmp_path / "whole", config), folder, tmp_path / "whole")


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    config = replace(CONFIG, ensemble="nvt_nose_hoover")
    savez, calls = np.savez, []

    def full(file, **arrays):
        calls.append(1)
        if len(calls) == 4:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        savez(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(SimulationError, match=r"No space left.* of step 80 is intact in .*run"):
            run(tmp_path / "parts", config)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "checkpoint.npz",
        "run.extxyz",
    ]

    def full_trajectory(frames):
        raise OSError(28, "No space left on device")

    with pytest.raises(SimulationError, match=r"No space left.* of step 80 is intact"):
        run(tmp_path / "parts", config, full_trajectory)
    parts = run(tmp_path / "parts", config)
    assert_same(parts, run(tmp_path / "whole", config), tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 300.0}, r"temperature is 200.0 there and 300.0 here"),
        ({"ensemble": "nvt_csvr"}, r"ensemble is 'nve' there and 'nvt_csvr' here"),
        ({"block_steps": 80}, r"block_steps is 40 there and 80 here"),
    ],
)
def test_other_settings_are_refused(change, message, finished):
    with pytest.raises(CheckpointError, match=message):
        run(finished, replace(CONFIG, steps=40, **change))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("restart") / "run"
    run(folder, replace(CONFIG, steps=40))
    return folder


def test_other_models_starts_and_files_are_refused(finished):
    config = replace(CONFIG, steps=40)
    before = (finished / "run.extxyz").read_bytes()
    with pytest.raises(CheckpointError, match=r"initial velocities is '.* there and None here"):
        run(finished, config, velocities=None)
    atoms = spheres()
    common = (potential_of(atoms), atoms.positions, config)
    options = {"velocities": inwards(atoms), "progress": False}
    other = MDCheckpoints(finished, {"model": "hard spheres"})
    with pytest.raises(CheckpointError, match="model is 'soft spheres' there and 'hard spheres'"):
        run_md(*common, checkpoints=other, **options)
    same = MDCheckpoints(finished, {"model": "soft spheres"})
    with pytest.raises(CheckpointError, match=r"with 1 files and checks.* now there are 0"):
        run_md(*common, checkpoints=same, **options)
    with pytest.raises(CheckpointError, match=r"elements is .* there and .* here"):
        run_md(
            replace(common[0], numbers=np.full(27, 10)), *common[1:], checkpoints=same, **options
        )
    assert (finished / "run.extxyz").read_bytes() == before


def test_damaged_files_are_refused(tmp_path):
    folder, config = tmp_path / "run", replace(CONFIG, steps=40)
    run(folder, config)
    path = folder / "checkpoint.npz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint\.npz cannot be read as"):
            run(folder, config)
    path.write_bytes(whole)
    os.truncate(folder / "run.extxyz", 100)
    with pytest.raises(CheckpointError, match=r"run\.extxyz holds 100 bytes, but \d+ at"):
        run(folder, config)


def test_grouped_lists_come_back_with_their_sizes():
    """Static sizes as well: a list of other capacities serves as the pattern."""
    student = small_student()
    large, small = water_box(3), water_box(3)
    small.set_cell(small.cell * 1.6, scale_atoms=True)
    lists, pattern = (student.potential(large).allocate(a.positions) for a in (large, small))
    arrays: list[np.ndarray] = []
    back = unpack(pack(lists, arrays), pattern, arrays)
    assert jax.tree.structure(back) == jax.tree.structure(lists)
    assert jax.tree.structure(back) != jax.tree.structure(pattern)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(lists), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_keys_of_static_sizes_may_be_numpy_integers():
    """FeNNol's capacities for several periodic images are of this kind."""
    sizes = {np.int32(8): np.int64(32)}
    arrays: list[np.ndarray] = []
    packed = json.loads(json.dumps(pack(sizes, arrays)))
    assert unpack(packed, sizes, arrays) == {8: 32}


def test_what_cannot_be_saved_is_named():
    with pytest.raises(CheckpointError, match="a function in the state"):
        pack((repulsion,), [])
