"""GFN2-xTB training data for the demonstration teacher, and its batches.

Every trajectory is a Langevin run driven by GFN2-xTB, and some of its frames are labelled a
second time after a random distortion, so that the potential also sees stretched and squeezed
bonds.  A trajectory belongs as a whole to one split (train, val or test): neighbouring frames of
one run are too alike for a frame-wise split to measure anything.

Units: energies eV, forces eV/A, positions A, temperatures K, times fs.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from ase.units import Hartree
from tqdm import tqdm

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
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8}
CUTOFF = 5.0  # A; of the potential's neighbour graph
BATCH = 16  # frames per training step
TIMESTEP, STRIDE, EQUILIBRATION = 0.5, 12, 120  # fs, steps, steps
FORCE_LIMIT = 25.0  # eV/A; harder distortions are dropped: they would dominate the loss


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
        """Return a file-name-safe identifier of this trajectory."""
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
    """List the trajectories of the data set (a tiny one if ``smoke``)."""
    runs = []
    for system, parts in SYSTEMS.items():
        if smoke and system not in ("ethanol", "water dimer"):
            continue
        table = MOLECULE_TEMPERATURES if len(parts) == 1 else CLUSTER_TEMPERATURES
        for split, temperatures in table.items():
            chosen = temperatures[:1] if smoke else temperatures
            replicas = 3 if system == "ethanol" and split == "train" and not smoke else 1
            frames = 12 if smoke else 60
            for i, temperature in enumerate(chosen):
                for r in range(replicas):
                    runs.append(Run(system, temperature, i * replicas + r, split, frames, seed))
    return runs


def gfn2() -> object:
    """Return an ASE calculator for GFN2-xTB."""
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise SystemExit(
            "tblite is needed to label the training data: pip install distill[xtb]"
        ) from error
    return TBLite(method="GFN2-xTB", verbosity=0)


def start_geometry(parts: tuple[str, ...], rng: np.random.Generator) -> object:
    """Build a molecule, or a compact cluster of randomly turned molecules, and relax it a bit."""
    from ase import Atoms
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


def distort(atoms: object, rng: np.random.Generator) -> np.ndarray:
    """Return positions (A) with either one strained close pair or a random displacement of all."""
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
    """Run one trajectory, label it and write it to ``folder``; an existing file is kept."""
    path = Path(folder) / f"{run.key}-s{run.seed}.npz"
    if path.exists():
        return str(path)
    from ase import units
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
    """Sample and label all ``runs`` (or read them from ``folder``) and return the frames."""
    gfn2()  # fail before any process is started if tblite is missing
    folder.mkdir(parents=True, exist_ok=True)
    # Molecules this small only lose time to OpenMP; the workers inherit this setting.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    frames = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        paths = pool.map(sample, runs, [str(folder)] * len(runs))
        for run, path in zip(
            runs, tqdm(paths, total=len(runs), desc="labels", unit="traj"), strict=True
        ):
            with np.load(path) as data:
                for row in range(len(data["energies"])):
                    frames.append(
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
                    )
    return frames


def fit_self_energies(frames: list[Frame]) -> dict[str, float]:
    """Return per-element energies (Hartree): least squares of the energies on the composition."""
    counts = np.array([[np.sum(f.numbers == z) for z in ELEMENTS.values()] for f in frames], float)
    energies = np.array([f.energy for f in frames]) / Hartree
    solution, *_ = np.linalg.lstsq(counts, energies, rcond=None)
    return dict(zip(ELEMENTS, map(float, solution), strict=True))


class Batches:
    """Turns frames into FeNNol inputs of one fixed shape, so that JAX compiles only once."""

    def __init__(
        self, frames: list[Frame], self_energies: dict[str, float], like: Batches | None = None
    ) -> None:
        """Find the neighbours of every frame once (positions never change in training).

        ``like`` gives the shape of the batches, so that two data sets share one compilation.
        """
        self.frames = frames
        self.edges = []
        for frame in frames:
            gap = np.linalg.norm(frame.positions[:, None] - frame.positions[None], axis=-1)
            np.fill_diagonal(gap, np.inf)
            self.edges.append(np.argwhere(gap < CUTOFF).astype(np.int32))
        by_number = {z: self_energies[e] * Hartree for e, z in ELEMENTS.items()}
        # Subtracting the large self energies in float64 leaves targets that float32 resolves.
        self.targets = [f.energy - sum(by_number[int(z)] for z in f.numbers) for f in frames]
        atoms = [len(f.numbers) for f in frames]
        pairs = [len(e) for e in self.edges]
        self.atoms = like.atoms if like else max(int(1.1 * BATCH * np.mean(atoms)), max(atoms))
        self.pairs = like.pairs if like else max(int(1.1 * BATCH * np.mean(pairs)), max(pairs))

    def epoch(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, dict, dict]]:
        """Yield (frame indices, model inputs, targets), taking the frames in ``order``."""
        chosen, atoms, pairs = [], 0, 0
        for index in order:
            n, m = len(self.frames[index].numbers), len(self.edges[index])
            if len(chosen) == BATCH or atoms + n > self.atoms or pairs + m > self.pairs:
                yield self.collate(chosen)
                chosen, atoms, pairs = [], 0, 0
            chosen.append(index)
            atoms, pairs = atoms + n, pairs + m
        if chosen:
            yield self.collate(chosen)

    def collate(self, chosen: list[int]) -> tuple[np.ndarray, dict, dict]:
        """Join frames into one batch; spare atoms belong to an extra, empty system."""
        species = np.full(self.atoms, -1, np.int32)
        coordinates = np.zeros((self.atoms, 3), np.float32)
        batch_index = np.full(self.atoms, BATCH, np.int32)
        natoms = np.zeros(BATCH + 1, np.int32)
        edges = np.full((self.pairs, 2), self.atoms, np.int32)  # out of range: FeNNol masks it
        forces = np.zeros((self.atoms, 3), np.float32)
        energies = np.zeros(BATCH + 1, np.float32)
        start = first = 0
        for system, index in enumerate(chosen):
            frame, pairs = self.frames[index], self.edges[index]
            rows = slice(start, start + len(frame.numbers))
            species[rows], coordinates[rows] = frame.numbers, frame.positions
            batch_index[rows], natoms[system] = system, len(frame.numbers)
            forces[rows], energies[system] = frame.forces, self.targets[index]
            edges[first : first + len(pairs)] = pairs + start
            start, first = rows.stop, first + len(pairs)
        inputs = {
            "species": species,
            "coordinates": coordinates,
            "batch_index": batch_index,
            "natoms": natoms,
            "true_atoms": species > 0,
            "true_sys": natoms > 0,
            "graph": {"edge_src": edges[:, 0], "edge_dst": edges[:, 1]},
        }
        return np.array(chosen), inputs, {"energy": energies, "forces": forces}
