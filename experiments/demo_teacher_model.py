"""The demonstration teacher itself: its architecture and the inputs that it takes.

Outside the model energies are eV, forces eV/Å and lengths Å; inside it energies are Hartree, as in
FeNNol's published models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fennol import FENNIX

from demo_teacher_data import Frame
from distill.units import HARTREE

ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8}
CUTOFF = 5.0  # Å; of the neighbour graph
BATCH = 16  # frames per training step

Arrays = dict[str, Any]
Predictor = Callable[[Arrays, Arrays], tuple[jax.Array, jax.Array]]


def fit_self_energies(frames: list[Frame]) -> dict[str, float]:
    """Energy per element (Hartree): least squares of the energies on the composition."""
    counts = np.array([[np.sum(f.numbers == z) for z in ELEMENTS.values()] for f in frames], float)
    energies = np.array([f.energy for f in frames]) / HARTREE
    solution, *_ = np.linalg.lstsq(counts, energies, rcond=None)
    return dict(zip(ELEMENTS, map(float, solution), strict=True))


def interaction_energy(
    energy: float, numbers: np.ndarray, self_energies: dict[str, float]
) -> float:
    """`energy` (eV) without the self energies (Hartree) of the atoms.

    Subtracting these large numbers in float64 leaves one that float32 resolves.
    """
    by_number = {z: self_energies[e] * HARTREE for e, z in ELEMENTS.items()}
    return energy - sum(by_number[int(z)] for z in numbers)


def build_model(self_energies: dict[str, float], seed: int, small: bool = False) -> FENNIX:
    """An untrained potential; `self_energies` are in Hartree, a `small` one compiles faster."""
    modules = {
        "embedding": {
            "module_name": "CRATE",
            "dim": 96,
            "nlayers": 1 if small else 2,
            "dim_src": 32,
            "dim_dst": 16,
            "lmax": 1 if small else 2,
            "nchannels_l": 16,
            "n_tp": 1,
            "species_init": True,
            "mixing_hidden": [128],
            "activation": "silu",
            # CRATE's own default is only piecewise smooth; molecular dynamics wants better.
            "activation_mixing": "silu",
            "species_encoding": {"encoding": "one_hot", "species_order": list(ELEMENTS)},
            "radial_basis": {"basis": "bessel", "dim": 10},
            "embedding_key": "embedding",
        },
        "energy_network": {
            "module_name": "NEURAL_NET",
            "neurons": [96, 64, 1],
            "activation": "silu",
            "input_key": "embedding",
            "output_key": "energy",
            "squeeze": True,
        },
        # The network's output is of order one; binding energies per atom are not (Hartree).
        "energy_scale": {"module_name": "SCALE", "key": "energy", "scale": 0.03},
        "self_energy": {
            "module_name": "CHEMICAL_CONSTANT",
            "value": self_energies,
            "trainable": True,
        },
    }
    # The polynomial switch has two continuous derivatives at the cutoff (the cosine one has one).
    graph = {"graph": {"switch_params": {"switch_type": "polynomial", "p": 5.0}}}
    return FENNIX(
        cutoff=CUTOFF,
        modules=modules,
        preprocessing=graph,
        energy_terms=["energy", "self_energy"],
        energy_unit="Ha",
        rng_key=jax.random.PRNGKey(seed),
    )


def predictor(model: FENNIX) -> Predictor:
    """f(variables, inputs) -> (energies in eV without self energies, forces in eV/Å).

    It calls the modules themselves: a function taken from `set_energy_terms` follows later
    changes of the terms, so the self energies could not be left out of the fit reliably.
    """

    def predict(variables: Arrays, inputs: Arrays) -> tuple[jax.Array, jax.Array]:
        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            atomic = model.modules.apply(variables, {**inputs, "coordinates": x})["energy"]
            atomic = jnp.where(inputs["true_atoms"], atomic, 0.0) * HARTREE
            energies = jax.ops.segment_sum(atomic, inputs["batch_index"], BATCH + 1)
            return energies.sum(), energies

        gradient, energies = jax.grad(total, has_aux=True)(inputs["coordinates"])
        return energies, -gradient

    return predict


class Batches:
    """Turns frames into FeNNol inputs of one fixed shape, so that JAX compiles only once.

    Args:
        frames: their neighbours are found once, because positions never change in training.
        self_energies: Hartree; left out of the targets.
        like: gives the shape of the batches, so that two data sets share one compilation.
    """

    def __init__(
        self, frames: list[Frame], self_energies: dict[str, float], like: Batches | None = None
    ) -> None:
        self.frames = frames
        self.edges: list[np.ndarray] = []
        for frame in frames:
            gap = np.linalg.norm(frame.positions[:, None] - frame.positions[None], axis=-1)
            np.fill_diagonal(gap, np.inf)
            self.edges.append(np.argwhere(gap < CUTOFF).astype(np.int32))
        self.targets = [interaction_energy(f.energy, f.numbers, self_energies) for f in frames]
        atoms = [len(f.numbers) for f in frames]
        pairs = [len(e) for e in self.edges]
        self.atoms: int = like.atoms if like else _capacity(atoms)
        self.pairs: int = like.pairs if like else _capacity(pairs)

    def epoch(self, order: Iterable[int]) -> Iterator[tuple[np.ndarray, Arrays, Arrays]]:
        """Yield (frame indices, model inputs, targets), taking the frames in `order`."""
        chosen: list[int] = []
        atoms = pairs = 0
        for index in order:
            n, m = len(self.frames[index].numbers), len(self.edges[index])
            if len(chosen) == BATCH or atoms + n > self.atoms or pairs + m > self.pairs:
                yield self.collate(chosen)
                chosen, atoms, pairs = [], 0, 0
            chosen.append(index)
            atoms, pairs = atoms + n, pairs + m
        if chosen:
            yield self.collate(chosen)

    def collate(self, chosen: list[int]) -> tuple[np.ndarray, Arrays, Arrays]:
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


def _capacity(sizes: list[int]) -> int:
    """Room for a batch of average frames with a margin, or for the largest frame."""
    return max(int(1.1 * BATCH * np.mean(sizes)), max(sizes))
