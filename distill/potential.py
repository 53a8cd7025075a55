"""From one pure energy function to everything else: forces, virial, stress, MD potentials.

A strictly local model is a function of the displacements to the neighbours,
`atomic_energy(displacements [N, K, 3], neighbor_species [N, K], mask [N, K], species [N]) -> [N]`.
Its gradient with respect to the displacements, `g_ik`, is taken once; then
`F_i = sum_k g_ik - sum over pairs (j, k) that point at i of g_jk` and
`virial = sum r ⊗ g`, which is dE/dstrain. The same holds for a model that passes messages, which
takes the indices of the neighbours besides and is evaluated on all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.errors import UnsupportedStructureError
from distill.graph import PADDING_DISTANCE, Graph, displacements, neighbor_species, sum_per_system
from distill.grouped_potential import grouped_functions, in_order_of_atoms
from distill.kernels import Kernel, MomentWeights, RowModel, blocked, kernel_name, pallas, reference
from distill.kernels.kept import if_wanted
from distill.neighbors.device import DEFAULT_SKIN, NeighborList, neighbor_list

GROUPED_FROM = 32
"""Atoms from which grouped lists are used, where the model allows them; few atoms leave most of
the slots empty, and their replicas, under vmap, would search anew in every step."""

__all__ = ["Evaluation", "Potential", "evaluate", "hessian_vector_product", "local_potential"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Evaluation:
    """Results for a graph.

    Attributes:
        energy: `[B]`, eV, without reference energies.
        forces: `[N, 3]`, eV/Å, zero on padding atoms.
        virial: `[B, 3, 3]`, eV, dE/dstrain.
        per_atom_energy: `[N]`, eV, zero on padding atoms.
        beside: what the model returned beside the energies, one row per atom.
    """

    energy: jax.Array
    forces: jax.Array
    virial: jax.Array
    per_atom_energy: jax.Array
    beside: tuple[jax.Array, ...] = ()

    def stress(self, cell: jax.Array) -> jax.Array:
        """Stress `[B, 3, 3]` in eV/Å³, ASE's sign, for `cell` `[B, 3, 3]`."""
        volume = jnp.abs(jnp.linalg.det(cell))
        return self.virial / volume[:, None, None]


def assemble_forces(gradients: jax.Array, neighbors: jax.Array) -> jax.Array:
    """Forces `[N, 3]` from pair gradients `[N, K, 3]`; `neighbors` `[N, K]` holds N for none."""
    return gradients.sum(1).at[neighbors].add(-gradients, mode="drop")


def evaluate(
    atomic_energy: Callable[..., jax.Array],
    graph: Graph,
    kernel: Kernel = reference,
    *,
    message_passing: bool = False,
) -> Evaluation:
    """Energy, forces and virial of every system in `graph` from one differentiation.

    Args:
        atomic_energy: an `AtomicEnergy`, with the neighbours `[N, K]` as a fifth argument if it
            passes messages; it may return a tuple of the energies and further arrays.
        graph: padded.
        kernel: how the rows of a strictly local model are evaluated.
        message_passing: whether rows depend on each other; `kernel` is not used then.
    """
    vectors = displacements(graph)
    elements = range(len(graph.groups))
    others = np.repeat(elements, graph.groups) if graph.groups else neighbor_species(graph)
    output, gradients = _kernel(kernel, message_passing, graph.neighbors)(
        atomic_energy, vectors, others, graph.pair_mask, graph.species
    )
    outputs: tuple[jax.Array, ...] = output if isinstance(output, tuple) else (output,)
    energies, beside = outputs[0], outputs[1:]
    real = graph.atom_mask & graph.system_mask[graph.system]
    energies = jnp.where(real, energies, 0)
    gradients = jnp.where(graph.pair_mask[..., None], gradients, 0)
    virials = jnp.einsum(
        "nka,nkb->nab", jnp.where(graph.pair_mask[..., None], vectors, 0), gradients
    )
    return Evaluation(
        energy=sum_per_system(energies, graph),
        forces=assemble_forces(gradients, graph.neighbors),
        virial=sum_per_system(virials, graph),
        per_atom_energy=energies,
        beside=beside,
    )


def _kernel(kernel: Kernel, message_passing: bool, neighbors: jax.Array) -> Kernel:
    if not message_passing:
        return kernel

    def whole(
        atomic_energy: Any, displacements: Any, neighbor_species: Any, mask: Any, species: Any
    ) -> tuple[jax.Array, jax.Array]:
        rows = displacements, neighbor_species, mask, species
        return reference(lambda *given: atomic_energy(*given, neighbors), *rows)

    return whole


def hessian_vector_product(
    energy: Callable[[jax.Array], jax.Array], positions: jax.Array, direction: jax.Array
) -> jax.Array:
    """Second derivative of a scalar `energy(positions)` times `direction` `[n, 3]`, eV/Å²."""
    return jax.jvp(jax.grad(energy), (positions,), (direction,))[1]


class Observer(NamedTuple):
    """Energy and forces, with what is wanted beside them.

    Attributes:
        function: pure, `(positions, lists, cell [3, 3] or None, wanted [] bool) -> Evaluation`, in
            the cell of the structure for None. `beside` means nothing unless it is wanted, nor does
            the virial in the cell of the structure.
        functions: of the potential that it stands for: `energy_and_forces`, `with_uncertainty` and
            `evaluate`.
    """

    function: Callable[..., Evaluation]
    functions: tuple[Any, Any, Any]


@dataclass(frozen=True)
class Potential:
    """What molecular dynamics needs to know of a model: nothing but these pure functions.

    Attributes:
        numbers: `[n]` atomic numbers.
        dtype: precision of positions, energies and forces.
        allocate: host code, `(positions [n, 3], previous lists or None) -> lists`. Capacities are
            chosen here; with `previous` they are grown beyond those.
        update: pure, `(lists, positions) -> lists` with the same shapes.
        overflow: pure, `(lists, positions) -> bool []`, True when results obtained with these
            lists at these positions are not guaranteed (capacity too small, list too old).
        energy_and_forces: pure, `(positions, lists) -> (energy [] in eV, forces [n, 3] in eV/Å)`.
            The energy leaves out reference (atomic self) energies.
        with_uncertainty: pure, `(positions, lists) -> (energy, forces, expected length of the
            force error of each atom [n] in eV/Å)`; None for a model that has none.
        evaluate: pure, `(positions, lists, cell [3, 3]) -> Evaluation` of one system, in any cell
            in which the lists hold all pairs within the cutoff; `beside` holds the expected force
            errors `[n]`, if there are any. None for models without a virial.
        observer: everything at once at little more than the cost of forces; None for no such way.
        kernel: name of the kernel that evaluates the rows of a student; None for other models.
        cell: `[3, 3]`, Å, rows are lattice vectors; zero for molecules.
        pbc: `[3]` bool, periodic directions.
        with_cell: host code, `(cell [3, 3]) -> Potential`: the same model with lists for another
            cell. None for models without a virial, and where there is no cell to change.
    """

    numbers: np.ndarray
    dtype: Any
    allocate: Callable[..., Any]
    update: Callable[[Any, jax.Array], Any]
    overflow: Callable[[Any, jax.Array], jax.Array]
    energy_and_forces: Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]
    with_uncertainty: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] | None = None
    evaluate: Callable[[jax.Array, Any, jax.Array], Evaluation] | None = None
    observer: Observer | None = None
    kernel: str | None = None
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, bool))
    with_cell: Callable[[np.ndarray], Potential] | None = None

    @classmethod
    def from_energy(cls, energy: Callable[[jax.Array, Any], jax.Array], **fields: Any) -> Potential:
        """Potential whose forces are the gradient of `energy(positions, lists)`."""

        def energy_and_forces(positions: jax.Array, lists: Any) -> tuple[jax.Array, jax.Array]:
            value, gradient = jax.value_and_grad(energy)(positions, lists)
            return value, -gradient

        return cls(energy_and_forces=energy_and_forces, **fields)

    @property
    def observe(self) -> Callable[..., Evaluation] | None:
        """Function of the observer; None where others were put in place of those it stands for."""
        own = self.energy_and_forces, self.with_uncertainty, self.evaluate
        served = self.observer is not None and self.observer.functions == own
        return self.observer.function if self.observer is not None and served else None

    def energy(self, positions: jax.Array, neighbors: Any) -> jax.Array:
        """Energy in eV; jax-md's argument order (`neighbors` by keyword)."""
        return self.energy_and_forces(positions, neighbors)[0]

    def forces(self, positions: jax.Array, neighbors: Any) -> jax.Array:
        """Forces `[n, 3]` in eV/Å: hand this to any `jax_md.simulate` integrator."""
        return self.energy_and_forces(positions, neighbors)[1]


def local_potential(
    atomic_energy: Callable[..., jax.Array],
    atoms: Atoms,
    species: np.ndarray,
    cutoff: float,
    *,
    skin: float = DEFAULT_SKIN,
    dtype: Any = np.float32,
    kernel: Kernel = reference,
    message_passing: bool = False,
    uncertainty: Callable[..., jax.Array] | None = None,
    devices: Sequence[jax.Device] = (),
) -> Potential:
    """MD potential of a model of rows for structures like `atoms`, its cell fixed.

    Args:
        atomic_energy: the model with its parameters bound. A `RowModel` with weights is evaluated
            on grouped lists by the kernels `blocked` and `pallas`.
        atoms: elements, cell and periodicity.
        species: `[n]` index of each atom in the model's element table.
        cutoff: of the model, Å.
        skin: extra radius of the list in Å; it is rebuilt only when an atom moved far enough.
        dtype: precision of the simulation.
        kernel: how rows are evaluated, see `distill.kernels`.
        message_passing: see `evaluate`.
        uncertainty: `(features [N, F], species [N]) -> [N]`, expected force errors in eV/Å;
            `atomic_energy` must then give a tuple, features after the energies.
        devices: that share the rows of the system, each with the whole list; by default one does
            it all.

    Raises:
        UnsupportedStructureError: several devices for a model or a system that cannot be shared.
    """

    def with_cell(cell: np.ndarray) -> Potential:
        other = atoms.copy()
        other.set_cell(cell)
        return local_potential(
            atomic_energy,
            other,
            species,
            cutoff,
            skin=skin,
            dtype=dtype,
            kernel=kernel,
            message_passing=message_passing,
            uncertainty=uncertainty,
            devices=devices,
        )

    if len(set(devices)) != len(devices):
        raise ValueError(f"devices must be different ones, not {list(devices)}")
    if not message_passing and kernel in (blocked, pallas) and len(atoms) >= GROUPED_FROM:
        weights = atomic_energy.moments if isinstance(atomic_energy, RowModel) else None
        if weights is not None:
            grouped = _grouped_potential(
                weights, atoms, species, skin, dtype, kernel, uncertainty, devices
            )
            return replace(grouped, with_cell=with_cell)
    if devices:
        raise UnsupportedStructureError(
            f"`devices` share the rows of strictly local students of at least {GROUPED_FROM} "
            f"atoms, evaluated by `blocked` or `pallas`; for this one of {len(atoms)} atoms leave "
            "`devices` out"
        )
    lists = neighbor_list(np.asarray(atoms.cell.array), atoms.pbc, cutoff, skin=skin)
    cell = jnp.asarray(atoms.cell.array, dtype)
    # A numpy array stays static in a trace, so that the networks are evaluated per element.
    species = np.asarray(species, np.int32)
    species_on_device = jnp.asarray(species)

    def allocate(positions: jax.Array, previous: NeighborList | None = None) -> NeighborList:
        return lists.allocate(jnp.asarray(positions, dtype), previous=previous)

    def run(
        positions: jax.Array, neighbors: NeighborList, cell: jax.Array = cell
    ) -> tuple[Any, jax.Array, Callable[[], jax.Array]]:
        mask = neighbors.neighbors < positions.shape[0]
        vectors = positions.at[neighbors.neighbors].get(mode="clip") - positions[:, None]
        if atoms.pbc.any():
            vectors = vectors + jnp.matmul(
                neighbors.shifts, cell, precision=jax.lax.Precision.HIGHEST
            )
        far = jnp.asarray([PADDING_DISTANCE, 0, 0], positions.dtype)
        vectors = jnp.where(mask[..., None], vectors, far)
        others = jnp.where(mask, species_on_device.at[neighbors.neighbors].get(mode="clip"), 0)
        evaluated = _kernel(kernel, message_passing, neighbors.neighbors)
        output, gradients = evaluated(atomic_energy, vectors, others, mask, species)
        outputs = output if isinstance(output, tuple) else (output,)

        def virial() -> jax.Array:
            return jnp.einsum("nka,nkb->ab", jnp.where(mask[..., None], vectors, 0), gradients)

        return outputs, assemble_forces(gradients, neighbors.neighbors), virial

    def energy_and_forces(
        positions: jax.Array, neighbors: NeighborList
    ) -> tuple[jax.Array, jax.Array]:
        outputs, forces, _ = run(positions, neighbors)
        return outputs[0].sum(), forces

    def uncertain(
        positions: jax.Array, neighbors: NeighborList
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        assert uncertainty is not None
        outputs, forces, _ = run(positions, neighbors)
        return outputs[0].sum(), forces, uncertainty(outputs[1], species)

    def observe(
        positions: jax.Array, neighbors: NeighborList, own: jax.Array | None, wanted: Any
    ) -> Evaluation:
        outputs, forces, sums = run(positions, neighbors, cell if own is None else own)
        virial = sums() if own is not None else if_wanted(wanted, sums)
        beside = _beside(uncertainty, wanted, outputs[1:], species)
        return _of_one_system(outputs[0], forces, virial, beside)

    def in_cell(positions: jax.Array, neighbors: NeighborList, cell: jax.Array) -> Evaluation:
        return observe(positions, neighbors, cell, True)

    def overflow(neighbors: NeighborList, positions: jax.Array) -> jax.Array:
        return neighbors.overflow | neighbors.stale | lists.is_stale(neighbors, positions)

    with_uncertainty = uncertain if uncertainty is not None else None
    return Potential(
        numbers=atoms.numbers.copy(),
        dtype=dtype,
        allocate=allocate,
        update=lists.update,
        overflow=overflow,
        energy_and_forces=energy_and_forces,
        with_uncertainty=with_uncertainty,
        evaluate=in_cell,
        observer=Observer(observe, (energy_and_forces, with_uncertainty, in_cell)),
        kernel=kernel_name(reference if message_passing else kernel),
        cell=atoms.cell.array.copy(),
        pbc=atoms.pbc.copy(),
        with_cell=with_cell,
    )


def _beside(
    uncertainty: Callable[..., jax.Array] | None, wanted: Any, features: Any, species: np.ndarray
) -> tuple[jax.Array, ...]:
    if uncertainty is None:
        return ()
    return (if_wanted(wanted, lambda: uncertainty(features[0], species)),)


def _of_one_system(
    energies: jax.Array, forces: jax.Array, virial: jax.Array, beside: tuple[jax.Array, ...]
) -> Evaluation:
    return Evaluation(energies.sum()[None], forces, virial[None], energies, beside)


def _grouped_potential(
    weights: MomentWeights,
    atoms: Atoms,
    species: np.ndarray,
    skin: float,
    dtype: Any,
    kernel: Kernel,
    uncertainty: Callable[..., jax.Array] | None,
    devices: Sequence[jax.Device],
) -> Potential:
    grouped = grouped_functions(weights, atoms, species, skin, dtype, kernel, devices)

    def energy_and_forces(positions: jax.Array, nbrs: Any) -> tuple[jax.Array, jax.Array]:
        found = grouped.run(positions, nbrs)
        return found.energies.sum(), found.forces

    def uncertain(positions: jax.Array, nbrs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = grouped.run(positions, nbrs, beside=uncertainty)
        assert found.beside is not None
        return found.energies.sum(), found.forces, in_order_of_atoms(found.beside, nbrs)

    def observe(positions: jax.Array, nbrs: Any, cell: jax.Array | None, wanted: Any) -> Evaluation:
        found = grouped.run(positions, nbrs, cell, wanted, uncertainty)
        beside: tuple[jax.Array, ...] = ()
        if found.beside is not None:
            by_row = found.beside
            beside = (if_wanted(wanted, lambda: in_order_of_atoms(by_row, nbrs)),)
        assert found.virial is not None
        by_atom = in_order_of_atoms(found.energies, nbrs)
        # The sum is by row, so that the order is not made where it is not asked for.
        return replace(
            _of_one_system(by_atom, found.forces, found.virial, beside),
            energy=found.energies.sum()[None],
        )

    def in_cell(positions: jax.Array, nbrs: Any, cell: jax.Array) -> Evaluation:
        return observe(positions, nbrs, cell, True)

    with_uncertainty = uncertain if uncertainty is not None else None
    return Potential(
        numbers=atoms.numbers.copy(),
        dtype=dtype,
        allocate=grouped.allocate,
        update=grouped.update,
        overflow=grouped.overflow,
        energy_and_forces=energy_and_forces,
        with_uncertainty=with_uncertainty,
        evaluate=in_cell,
        observer=Observer(observe, (energy_and_forces, with_uncertainty, in_cell)),
        kernel=kernel_name(kernel),
        cell=atoms.cell.array.copy(),
        pbc=atoms.pbc.copy(),
    )
