"""GFN2-xTB training data for the demonstration teacher: what is sampled, how, and its labels.

Every trajectory is a Langevin run driven by GFN2-xTB, and some of its frames are labelled a
second time after a random distortion, so that the potential also sees stretched and squeezed
bonds. A trajectory belongs as a whole to one split (train, val or test): neighbouring frames of
one run are too alike for a frame-wise split to measure anything.

Units: energies eV, forces eV/Å, positions Å, temperatures K, times fs.
"""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator

from distill.errors import MissingDependencyError
from distill.progress import progress_bar

# Name -> names of its parts in ase.build.molecule (one part: a molecule; more: a cluster).
SYSTEMS: dict[str, tuple[str, ...]] = {
    "ethanol": ("CH3CH2OH",),
    "methanol": ("CH3OH",),
    "water": ("H2O",),
    "acetone": ("CH3COCH3",),
    "acetaldehyde": ("CH3CHO",),
    "acetic acid": ("CH3COOH",),
    "acetonitrile": ("CH3CN",),
    "acetamide": ("CH3CONH2",),
    "dimethyl ether": ("CH3OCH3",),
    "ammonia": ("NH3",),
    "methylamine": ("H3CNH2",),
    "water dimer": ("H2O",) * 2,
    "water trimer": ("H2O",) * 3,
    "water tetramer": ("H2O",) * 4,
    "water hexamer": ("H2O",) * 6,
    "ethanol + water": ("CH3CH2OH", "H2O"),
    "ethanol dimer": ("CH3CH2OH",) * 2,
}
MOLECULE_TEMPERATURES = {
    "train": (300.0, 400.0, 500.0, 600.0, 800.0, 1000.0),
    "val": (500.0,),
    "test": (300.0, 500.0, 800.0),
}
# Hot clusters evaporate within a picosecond, which would leave only isolated molecules.
CLUSTER_TEMPERATURES = {
    "train": (200.0, 300.0, 300.0, 400.0, 500.0, 700.0),
    "val": (300.0,),
    "test": (250.0, 350.0, 500.0),
}
SPLITS = ("train", "val", "test")
SMOKE_SYSTEMS = ("methanol", "water dimer")
FRAMES, SMOKE_FRAMES = 60, 6  # undistorted frames per trajectory
TIMESTEP, STRIDE, EQUILIBRATION = 0.5, 12, 120  # fs, steps, steps
FORCE_LIMIT = 25.0  # eV/Å; harder distortions are dropped: they would dominate the loss


@dataclass(frozen=True)
class Run:
    """One trajectory to be sampled: what, how hot (K), which random numbers, which split."""

    system: str
    temperature: float
    replica: int
    split: str
    frames: int
    seed: int

    @property
    def key(self) -> str:
        """A file-name-safe identifier of this trajectory."""
        slug = self.system.replace(" ", "").replace("+", "_")
        return f"{slug}-{self.split}-{self.temperature:.0f}K-{self.replica}-n{self.frames}"


@dataclass(frozen=True)
class Frame:
    """One labelled configuration."""

    system: str
    trajectory: str
    split: str
    distorted: bool
    numbers: np.ndarray
    positions: np.ndarray
    energy: float
    forces: np.ndarray


def plan(seed: int, smoke: bool) -> list[Run]:
    """List the trajectories of the data set (a tiny one if `smoke`)."""
    runs = []
    for system, parts in SYSTEMS.items():
        if smoke and system not in SMOKE_SYSTEMS:
            continue
        table = MOLECULE_TEMPERATURES if len(parts) == 1 else CLUSTER_TEMPERATURES
        for split, temperatures in table.items():
            chosen = temperatures[:1] if smoke else temperatures
            replicas = 3 if system == "ethanol" and split == "train" and not smoke else 1
            frames = SMOKE_FRAMES if smoke else FRAMES
            for i, temperature in enumerate(chosen):
                for r in range(replicas):
                    runs.append(Run(system, temperature, i * replicas + r, split, frames, seed))
    return runs


def gfn2() -> Calculator:
    """An ASE calculator for GFN2-xTB.

    Raises:
        MissingDependencyError: tblite is not installed.
    """
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise MissingDependencyError(
            "the labels of the demonstration teacher need tblite (GFN2-xTB), which is not "
            'installed: pip install "distill-mlip[xtb]"'
        ) from error
    return TBLite(method="GFN2-xTB", verbosity=0)


def start_geometry(parts: tuple[str, ...], rng: np.random.Generator) -> Atoms:
    """Build a molecule, or a compact cluster of randomly turned molecules, and relax it a bit."""
    from ase.build import molecule
    from ase.optimize import FIRE

    atoms = Atoms()
    size = max(len(molecule(part)) for part in parts)
    for part in parts:
        for attempt in range(1000):
            new = molecule(part)
            new.rotate(float(rng.uniform(0, 360)), rng.normal(size=3), center="COM")
            # Growing the sphere only on failure keeps the cluster as compact as it can be.
            radius = (0.0 if not len(atoms) else 1.8) + 0.004 * attempt * size**0.5
            new.translate(radius * rng.normal(size=3) - new.get_center_of_mass())
            if not len(atoms):
                break
            gap = np.linalg.norm(new.positions[:, None] - atoms.positions[None], axis=-1)
            if 1.8 < gap.min() < 2.6:
                break
        atoms += new
    atoms.calc = gfn2()
    FIRE(atoms, logfile=None).run(fmax=0.1, steps=60)
    return atoms


def distort(atoms: Atoms, rng: np.random.Generator) -> np.ndarray:
    """Positions (Å) with either one strained close pair or a random displacement of all."""
    positions = atoms.get_positions()
    if rng.random() < 0.5:
        return positions + rng.normal(scale=rng.uniform(0.03, 0.12), size=positions.shape)
    distances = atoms.get_all_distances() + 99.0 * np.eye(len(atoms))
    pairs = np.argwhere(np.triu(distances < 2.2))
    i, j = pairs[rng.integers(len(pairs))]
    bond = positions[j] - positions[i]
    shift = bond * (rng.uniform(0.75, 1.35) - 1.0)
    # The lighter atom moves more, as it does in a vibration.
    share = atoms.get_masses()[i] / (atoms.get_masses()[i] + atoms.get_masses()[j])
    positions[j] += share * shift
    positions[i] -= (1.0 - share) * shift
    return positions + rng.normal(scale=0.02, size=positions.shape)


def sample(run: Run, folder: str) -> str:
    """Run one trajectory, label it and write it to `folder`; an existing file is kept."""
    path = Path(folder) / f"{run.key}-s{run.seed}.npz"
    if path.exists():
        return str(path)
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

    rng = np.random.default_rng([run.seed, zlib.crc32(run.key.encode())])
    atoms = start_geometry(SYSTEMS[run.system], rng)
    MaxwellBoltzmannDistribution(atoms, temperature_K=run.temperature, rng=rng)
    dynamics = Langevin(
        atoms, TIMESTEP * units.fs, temperature_K=run.temperature, friction=0.02 / units.fs, rng=rng
    )
    dynamics.run(EQUILIBRATION)
    positions, energies, forces, distorted = [], [], [], []
    probe = atoms.copy()
    probe.calc = gfn2()
    for index in range(run.frames):
        dynamics.run(STRIDE)
        candidates = [(atoms, False)]
        if index % 2 == 0:
            probe.set_positions(distort(atoms, rng))
            candidates.append((probe, True))
        for configuration, is_distorted in candidates:
            try:
                energy, force = configuration.get_potential_energy(), configuration.get_forces()
            except Exception:  # tblite's "SCF not converged" has no type of its own
                if not is_distorted:
                    raise
                continue
            if np.abs(force).max() > FORCE_LIMIT:
                continue
            positions.append(configuration.get_positions())
            energies.append(energy)
            forces.append(force.copy())
            distorted.append(is_distorted)
    partial = path.with_suffix(".part.npz")
    np.savez(
        partial,
        numbers=atoms.numbers,
        positions=np.array(positions),
        energies=np.array(energies),
        forces=np.array(forces),
        distorted=np.array(distorted),
    )
    partial.replace(path)  # so that an interrupted run never leaves half a file
    return str(path)


def make_frames(runs: list[Run], folder: Path, workers: int) -> list[Frame]:
    """Sample and label all `runs` (or read them from `folder`).

    Raises:
        MissingDependencyError: tblite is not installed.
    """
    gfn2()  # fail before any process is started if tblite is missing
    folder.mkdir(parents=True, exist_ok=True)
    # Molecules this small only lose time to OpenMP; the workers inherit this setting.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    frames: list[Frame] = []
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        progress_bar(len(runs), "labelling", unit="run") as bar,
    ):
        for run, path in zip(runs, pool.map(sample, runs, [str(folder)] * len(runs)), strict=True):
            frames.extend(read_frames(run, path))
            bar.update()
    return frames


def read_frames(run: Run, path: str) -> list[Frame]:
    """The frames that `sample` wrote."""
    with np.load(path) as data:
        return [
            Frame(
                run.system,
                run.key,
                run.split,
                bool(data["distorted"][row]),
                data["numbers"],
                data["positions"][row],
                float(data["energies"][row]),
                data["forces"][row],
            )
            for row in range(len(data["energies"]))
        ]
