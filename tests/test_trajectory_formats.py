"""Trajectory formats: round trips, rewinding, killed writers, slow and failing disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms, units
from builders import frames_of, triclinic_cell

from distill.errors import CheckpointError, ConfigError, SimulationError
from distill.simulation import (
    BackgroundWriter,
    Frames,
    MDCheckpoints,
    MDConfig,
    open_trajectory,
    run_md,
)
from distill.simulation.formats import FORMATS

BINARY = ["h5md", "traj"]

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def atoms() -> Atoms:
    return triclinic_cell()


def some_frames(atoms: Atoms, n: int = 5, seed: int = 0) -> Frames:
    """Of a breathing cell; velocities, energies and temperatures at random."""
    rng = np.random.default_rng(seed)
    shape = (n, len(atoms), 3)
    frames = frames_of(
        (atoms.positions + rng.standard_normal(shape)).astype(np.float32),
        cell=atoms.cell.array * rng.uniform(0.9, 1.1, n)[:, None, None],
        temperature=rng.uniform(200, 400, n),
        pressure=rng.standard_normal(n),
    )
    return replace(
        frames,
        velocities=0.01 * rng.standard_normal(shape).astype(np.float32),
        potential_energy=rng.standard_normal(n).astype(np.float32),
        time=frames.time + 1000 * seed,
    )


def content(path: Path) -> list[np.ndarray]:
    """Times, positions, velocities in Å/fs, cells and energies of any format."""
    if path.suffix == ".h5md":
        with h5py.File(path) as file:
            own = file["particles/trajectory"]
            return [
                own["position/time"][:],
                own["position/value"][:],
                own["velocity/value"][:],
                own["box/edges/value"][:],
                file["observables/potential_energy/value"][:],
            ]
    images = ase.io.read(path, index=":")
    return [
        np.array([image.info["time_fs"] for image in images]),
        np.array([image.positions for image in images]),
        np.array([image.get_velocities() * units.fs for image in images]),
        np.array([image.cell.array for image in images]),
        np.array([image.get_potential_energy() for image in images]),
    ]


def assert_holds(path: Path, *parts: Frames) -> None:
    wanted = [
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("time", "positions", "velocities", "cell", "potential_energy")
    ]
    wanted[-1] = wanted[-1].astype(np.float64) - 100.0
    for found, expected in zip(content(path), wanted, strict=True):
        assert len(found) == len(expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def writer_of(path: Path, atoms: Atoms, **options):
    return open_trajectory(
        path, atoms, path.suffix[1:], timestep=2.0, reference_energy=-100.0, **options
    )


@pytest.mark.parametrize("name", FORMATS)
def test_frames_come_back(name, atoms, tmp_path):
    path = tmp_path / "deep" / f"run.{name}"
    first, second = some_frames(atoms, 5, 1), some_frames(atoms, 70, 2)
    writer = writer_of(path, atoms)
    writer.write(first)
    writer_of(path, atoms, append=True).write(second)
    assert_holds(path, first, second)
    with pytest.raises(FileExistsError, match="exists: choose another file or append"):
        writer_of(path, atoms)


@pytest.mark.parametrize("name", FORMATS)
def test_replicas_go_to_their_own_files(name, atoms, tmp_path):
    parts = [some_frames(atoms, 4, seed) for seed in (0, 1)]
    both = Frames(
        parts[0].time,
        *(
            np.stack([getattr(part, field) for part in parts], axis=1)
            for field in list(Frames.__dataclass_fields__)[1:]
        ),
    )
    path = tmp_path / f"run.{name}"
    writer_of(path, atoms, replica=1).write(both)
    assert_holds(path, replace(parts[1], time=parts[0].time))


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_written_since_a_mark_is_cut_off(name, atoms, tmp_path):
    """Also where ASE's table of frames has moved, and back to nothing."""
    path, whole = tmp_path / f"run.{name}", tmp_path / f"whole.{name}"
    parts = [some_frames(atoms, n, seed) for seed, n in enumerate((3, 70, 5))]
    writer = writer_of(path, atoms)
    nothing = writer.mark()
    writer(parts[0])
    mark = writer.mark()
    writer(parts[1])
    writer_of(path, atoms, append=True).rewind(mark)
    assert_holds(path, parts[0])
    writer.rewind(mark)  # once more changes nothing
    writer(parts[2])
    assert_holds(path, parts[0], parts[2])
    writer.rewind(nothing)
    writer(parts[0])
    writer(parts[2])
    same = writer_of(whole, atoms)
    same(parts[0])
    same(parts[2])
    for a, b in zip(content(path), content(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", BINARY)
def test_a_file_that_lost_frames_is_refused(name, atoms, tmp_path):
    path = tmp_path / f"run.{name}"
    writer = writer_of(path, atoms)
    writer(some_frames(atoms, 5))
    early = path.read_bytes()
    writer(some_frames(atoms, 100, 1))
    mark = writer.mark()
    path.write_bytes(early)
    with pytest.raises(CheckpointError, match=r"holds .*, but \d+ at the checkpoint"):
        writer.rewind(mark)
    path.write_bytes(early[:100])
    with pytest.raises(CheckpointError, match=r"holds .*, but \d+ at the checkpoint"):
        writer.rewind(mark)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds .*, but \d+ at the checkpoint"):
        writer.rewind(mark)


def test_other_formats_are_refused(atoms, tmp_path):
    with pytest.raises(ConfigError, match="format must be one of extxyz, h5md, traj, not 'dcd'"):
        open_trajectory(tmp_path / "run.dcd", atoms, "dcd")


def test_h5md_says_what_it_holds(atoms, tmp_path):
    """The parts that H5MD 1.1 demands, with units."""
    path = tmp_path / "run.h5md"
    frames = some_frames(atoms)
    writer_of(path, atoms).write(frames)
    with h5py.File(path) as file:
        assert file["h5md"].attrs["version"].tolist() == [1, 1]
        assert {"name", "version"} <= set(file["h5md/creator"].attrs)
        assert "name" in file["h5md/author"].attrs
        assert file["h5md/modules/units"].attrs["version"].tolist() == [1, 0]
        own = file["particles/trajectory"]
        assert own["box"].attrs["dimension"] == 3
        assert own["box"].attrs["boundary"].tolist() == ["periodic"] * 3
        assert own["species"][:].tolist() == atoms.numbers.tolist()
        assert own["position/step"][:].tolist() == [5, 10, 15, 20, 25]  # 2 fs each
        unit = {
            name: file[name].attrs["unit"]
            for name in (
                "particles/trajectory/position/value",
                "particles/trajectory/position/time",
                "particles/trajectory/velocity/value",
                "particles/trajectory/box/edges/value",
                "observables/potential_energy/value",
                "observables/temperature/value",
                "observables/pressure/value",
            )
        }
        assert list(unit.values()) == [
            "Angstrom",
            "fs",
            "Angstrom fs-1",
            "Angstrom",
            "eV",
            "K",
            "GPa",
        ]
        for group in (own["velocity"], own["box/edges"], file["observables/temperature"]):
            np.testing.assert_array_equal(group["step"], own["position/step"])
            np.testing.assert_array_equal(group["time"], frames.time)
        np.testing.assert_array_equal(file["observables/temperature/value"], frames.temperature)
        np.testing.assert_array_equal(file["observables/pressure/value"], frames.pressure)


def test_mdanalysis_reads_h5md(atoms, tmp_path):
    mda = pytest.importorskip("MDAnalysis")
    path = tmp_path / "run.h5md"
    frames = some_frames(atoms)
    writer_of(path, atoms).write(frames)
    universe = mda.Universe(str(path), to_guess=())
    assert len(universe.atoms) == len(atoms) and len(universe.trajectory) == 5
    for i, step in enumerate(universe.trajectory):
        assert step.time == pytest.approx(frames.time[i] / 1000)  # ps
        np.testing.assert_allclose(step.positions, frames.positions[i], atol=1e-5)
        np.testing.assert_allclose(step.velocities, 1000 * frames.velocities[i], atol=1e-4)
        cell = Atoms(cell=frames.cell[i]).cell
        np.testing.assert_allclose(step.dimensions, cell.cellpar(), rtol=1e-5)
    free = Atoms("H2O", np.eye(3))
    writer_of(tmp_path / "free.h5md", free).write(frames_of(np.ones((2, 3, 3))))
    assert mda.Universe(str(tmp_path / "free.h5md"), to_guess=()).dimensions is None


def test_mdanalysis_reads_extxyz(atoms, tmp_path):
    mda = pytest.importorskip("MDAnalysis")
    frames = some_frames(atoms)
    writer_of(tmp_path / "run.extxyz", atoms).write(frames)
    universe = mda.Universe(str(tmp_path / "run.extxyz"), format="XYZ", topology_format="XYZ")
    assert universe.atoms.names.tolist() == atoms.get_chemical_symbols()
    for i, step in enumerate(universe.trajectory):
        np.testing.assert_allclose(step.positions, frames.positions[i], atol=1e-5)


KILLED = """
import sys
from pathlib import Path
from test_trajectory_formats import some_frames, triclinic_cell, writer_of
atoms = triclinic_cell()
writer = writer_of(Path(sys.argv[1]), atoms, append=True)
frames = some_frames(atoms, 40)
while True:
    writer(frames)
    print(writer.mark() if isinstance(writer.mark(), int) else 0, flush=True)
"""


@pytest.mark.parametrize("delay", [0.003, 0.011])
def test_a_killed_writer_leaves_a_file_that_goes_on(delay, atoms, tmp_path):
    """SIGKILL at any moment, in HDF5, which has much in memory."""
    path = tmp_path / "run.h5md"
    first = some_frames(atoms, 5, 7)
    writer = writer_of(path, atoms)
    writer(first)
    mark = writer.mark()
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        env=environment,
        stdout=subprocess.PIPE,
    )
    for _ in range(3):
        process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    writer = writer_of(path, atoms, append=True)
    assert writer.mark() > 100
    writer.rewind(mark)
    assert_holds(path, first)
    second = some_frames(atoms, 4, 3)
    writer(second)
    assert_holds(path, first, second)


class Disk:
    """A writer that waits for `go`, and fails when told to."""

    def __init__(self) -> None:
        self.go, self.written, self.fails = threading.Semaphore(0), [], False

    def __call__(self, frames: Frames) -> None:
        self.go.acquire()
        if self.fails:
            raise OSError(28, "No space left on device")
        self.written.append(float(frames.time[0]))

    def mark(self) -> int:
        return len(self.written)

    def rewind(self, mark: int) -> None:
        del self.written[mark:]


def block(k: int) -> Frames:
    return replace(frames_of(np.zeros((1, 2, 3))), time=np.array([float(k)]))


def test_a_slow_disk_is_not_waited_for_until_the_queue_is_full():
    disk = Disk()
    writer = BackgroundWriter(disk, most=3)
    for k in range(3):
        writer(block(k))
    mark = writer.mark()
    assert disk.written == [] and not mark.done()
    waiting = threading.Thread(target=writer, args=(block(3),))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()  # three wait already
    disk.go.release()
    waiting.join(10)
    assert not waiting.is_alive()
    disk.go.release(3)
    assert mark.result() == 3  # what was on disk with the third, not later
    writer.close()
    assert disk.written == [0, 1, 2, 3]


def test_a_failing_disk_stops_the_run_and_leaves_no_gap():
    disk = Disk()
    writer = BackgroundWriter(disk)
    writer(block(0))
    disk.go.release()
    assert writer.mark().result() == 1
    disk.fails = True
    writer(block(1))
    mark = writer.mark()
    disk.go.release()
    with pytest.raises(OSError, match="No space left"):
        mark.result()
    disk.fails = False  # room again, but the frames of block 1 are missing
    disk.go.release(5)
    with pytest.raises(OSError, match="No space left"):
        writer(block(2))
    writer(block(2))
    with pytest.raises(OSError, match="No space left"):
        writer.mark().result()
    assert disk.written == [0]
    writer.rewind(1)
    writer(block(1))
    with pytest.raises(ValueError, match="at least 1"):
        BackgroundWriter(disk, most=0)
    writer.close()
    assert disk.written == [0, 1]


CONFIG = MDConfig(steps=80, record_every=5, block_steps=10, timestep=0.5)


@pytest.fixture
def springs(atoms, toy_potential):
    start = atoms.positions.astype(np.float32)
    return toy_potential(
        lambda x: ((x - start) ** 2).sum(), atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc
    )


def test_restart_is_exact_with_background_writers(atoms, springs, tmp_path):
    """The disk fails between two checkpoints; the run goes on from the older one."""

    def run(folder: Path, fails: bool = False) -> None:
        writers = [writer_of(folder / f"run.{name}", atoms, append=True) for name in FORMATS]
        for writer in writers:
            calls: list[int] = []

            def half_a_block(frames: Frames, write=writer.write, calls=calls) -> None:
                calls.append(1)
                if fails and len(calls) == 5:
                    write(replace(frames, **{k: v[:1] for k, v in vars(frames).items()}))
                    raise OSError(28, "No space left on device")
                write(frames)

            writer.write = half_a_block
        run_md(
            springs,
            atoms.positions,
            CONFIG,
            on_frames=[BackgroundWriter(writer) for writer in writers],
            checkpoints=MDCheckpoints(folder, every=3),
            progress=False,
        )

    with pytest.raises(SimulationError, match=r"No space left.* of step 30 is intact"):
        run(tmp_path / "parts", fails=True)
    run(tmp_path / "parts")
    run(tmp_path / "whole")
    for name in FORMATS:
        parts, whole = (content(tmp_path / p / f"run.{name}") for p in ("parts", "whole"))
        for a, b in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(a, b)
            assert len(a) == 16


def test_all_is_on_disk_when_a_run_without_checkpoints_ends(atoms, springs, tmp_path):
    disk = Disk()
    threading.Timer(0.5, disk.go.release, [100]).start()
    with BackgroundWriter(disk, most=20) as writer:
        run_md(springs, atoms.positions, CONFIG, on_frames=writer, progress=False)
        assert len(disk.written) == 8
    disk.fails = True
    with pytest.raises(OSError, match="No space left"):
        run_md(springs, atoms.positions, CONFIG, on_frames=BackgroundWriter(disk), progress=False)
