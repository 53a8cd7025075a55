"""Trajectory files: what ASE reads is what was simulated."""

from __future__ import annotations

from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from builders import triclinic_cell

from distill.simulation import Frames, MDConfig, TrajectoryWriter, run_md
from distill.simulation.trajectory import read_trajectory


@pytest.fixture
def atoms() -> Atoms:
    return triclinic_cell()


@pytest.fixture
def frames(atoms, toy_potential) -> Frames:
    start = atoms.positions.astype(np.float32)
    potential = toy_potential(
        lambda x: ((x - start) ** 2).sum(), atoms.numbers, cell=atoms.cell.array
    )
    config = MDConfig(steps=30, record_every=10, block_steps=30)
    return run_md(potential, atoms.positions, config, progress=False).frames


def test_ase_reads_the_frames_back(tmp_path, atoms, frames):
    path = tmp_path / "deep" / "run.extxyz"
    with TrajectoryWriter(path, atoms, reference_energy=-1234.5) as writer:
        writer.write(frames)
        writer.write(frames)
    images = ase.io.read(path, index=":")
    assert len(images) == 6
    for i, image in enumerate(images):
        i %= 3
        assert image.info["time_fs"] == frames.time[i]
        np.testing.assert_array_equal(image.numbers, atoms.numbers)
        np.testing.assert_array_equal(image.pbc, atoms.pbc)
        np.testing.assert_allclose(image.cell.array, atoms.cell.array, rtol=0, atol=1e-7)
        # The file keeps eight decimals.
        np.testing.assert_allclose(image.positions, frames.positions[i], rtol=0, atol=1e-7)
        np.testing.assert_allclose(
            image.get_velocities() * units.fs, frames.velocities[i], rtol=0, atol=1e-7
        )
        energy = image.get_potential_energy()
        assert abs(energy - (float(frames.potential_energy[i]) - 1234.5)) < 1e-6
        assert abs(image.get_kinetic_energy() - frames.kinetic_energy[i]) < 1e-5
    assert len(read_trajectory(path)) == 6


def test_each_frame_has_its_own_cell(tmp_path, atoms, frames):
    cells = frames.cell * np.array([1.0, 0.9, 1.2])[:, None, None]
    two = replace(frames, cell=np.stack([frames.cell, cells], axis=1))
    two = replace(
        two,
        **{
            name: np.stack([getattr(frames, name)] * 2, axis=1)
            for name in ("positions", "velocities", "potential_energy")
        },
    )
    TrajectoryWriter(tmp_path / "run.extxyz", atoms, replica=1).write(two)
    for image, cell in zip(read_trajectory(tmp_path / "run.extxyz"), cells, strict=True):
        np.testing.assert_allclose(image.cell.array, cell, rtol=0, atol=1e-7)


def test_an_existing_file_is_kept(tmp_path, atoms, frames):
    path = tmp_path / "run.extxyz"
    TrajectoryWriter(path, atoms).write(frames)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"run\.extxyz exists: choose another file or append"):
        TrajectoryWriter(path, atoms)
    assert path.read_bytes() == before
    TrajectoryWriter(path, atoms, append=True).write(frames)
    assert len(ase.io.read(path, index=":")) == 6


def test_frames_can_be_written_as_they_come(tmp_path, atoms, toy_potential):
    """The writer as the callback of a run: the file grows with every block."""
    path = tmp_path / "run.extxyz"
    potential = toy_potential(lambda x: 0.0 * x.sum(), atoms.numbers)
    writer, sizes = TrajectoryWriter(path, atoms), []

    def write(frames: Frames) -> None:
        writer.write(frames)
        sizes.append(path.stat().st_size)

    config = MDConfig(steps=6, record_every=1, block_steps=2)
    run_md(potential, atoms.positions, config, on_frames=write, progress=False)
    assert len(sizes) == 3 and sizes[0] < sizes[1] < sizes[2]
    assert [image.info["time_fs"] for image in ase.io.read(path, index=":")] == [
        0.5 * step for step in range(1, 7)
    ]
