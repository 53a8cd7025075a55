"""Orb teachers: batched labels through torch, from ASE structures or straight from JAX arrays.

Orb-v3: B. Rhodes et al., arXiv:2504.06231 (2025); Orb: M. Neumann et al., arXiv:2410.22570 (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from distill.data.labels import Labels
from distill.errors import UnsupportedStructureError
from distill.potential import Potential
from distill.teachers._orb_model import (
    OrbModel,
    hessian_products,
    make_graphs,
    orb_version,
    predict,
    torch_dtype,
    torch_precision,
)
from distill.teachers.base import HessianProduct, TeacherInfo, check_structures
from distill.teachers.dlpack import to_jax, to_torch
from distill.teachers.hessian import directions_of, numerical_hvp, product_of
from distill.teachers.host import HostEnergy, host_potential


@dataclass(frozen=True)
class OrbArrays:
    """Labels as JAX arrays in the teacher's precision.

    Attributes:
        energy: `[B]`, eV.
        forces: `[N, 3]`, eV/Å.
        stress: `[B, 3, 3]`, eV/Å³, NaN for isolated structures; None if the model has none.
    """

    energy: jax.Array
    forces: jax.Array
    stress: jax.Array | None


class OrbTeacher:
    """Teacher made of one Orb network.

    Args:
        model: see `distill.teachers._orb_model.load_network`.
        name: recorded as provenance.
        weights_sha256: of the checkpoint; `random` for an untrained network.
        licence: of the weights.
        elements: atomic numbers that the model was trained on; all that it accepts by default.
    """

    def __init__(
        self,
        model: OrbModel,
        *,
        name: str,
        weights_sha256: str = "random",
        licence: str = "unknown",
        elements: Sequence[int] | None = None,
    ):
        self.model = model
        self._info = TeacherInfo(
            name=name,
            kind="orb",
            version=orb_version(),
            weights_sha256=weights_sha256,
            elements=tuple(sorted(elements)) if elements else model.elements,
            cutoff=model.radius,
            n_members=1,
            n_parameters=model.n_parameters,
            periodic=True,
            partly_periodic=False,
            stress=model.has_stress,
            licence=licence,
            hessian="exact" if model.has_hessian else "numerical",
            conservative=model.conservative,
        )

    @property
    def info(self) -> TeacherInfo:
        """Identity and capabilities."""
        return self._info

    def label(self, structures: Sequence[Atoms], uncertainty: bool = False) -> Labels:
        """Labels of a batch in one call of the network; periodic and isolated may be mixed.

        A model of charged systems reads `charge` and `spin` (multiplicity) from `atoms.info`.

        Raises:
            UnknownElementError, UnsupportedStructureError: see `check_structures`; also a model
                of charged systems without charge and spin.
            ValueError: `uncertainty` of a single network.
        """
        if uncertainty:
            raise ValueError(
                f"{self.info.name} is a single network, it has no spread: load a list of teachers"
            )
        check_structures(self.info, structures)
        if not structures:
            stress = np.zeros((0, 3, 3)) if self.model.has_stress else None
            return Labels(np.zeros(0), [], stress)
        with torch_precision(self.model.dtype):
            result = predict(self.model, make_graphs(self.model, self._tensors(structures)))
        forces = _to_numpy(result["forces"])
        ends = np.cumsum([len(a) for a in structures])
        stress = None
        if "stress" in result:
            stress = _full(_to_numpy(result["stress"]).reshape(-1, 6), np)
            stress[[not a.pbc.all() for a in structures]] = np.nan
        return Labels(_to_numpy(result["energy"]), np.split(forces, ends[:-1]), stress)

    def label_arrays(
        self,
        positions: jax.Array,
        numbers: jax.Array,
        n_atoms: jax.Array,
        cell: jax.Array | None = None,
        charge: jax.Array | None = None,
        spin: jax.Array | None = None,
    ) -> OrbArrays:
        """Labels of a batch that is already in JAX arrays, passed to torch over DLPack.

        Nothing is copied on the way in where the devices agree. The results are new arrays that
        share memory with nothing. Not for use inside jit; see `energy_function` for that.

        Args:
            positions: `[N, 3]`, Å, all atoms one after the other.
            numbers: `[N]`, atomic numbers.
            n_atoms: `[B]`, atoms of each structure.
            cell: `[B, 3, 3]`, Å, zero for isolated structures; all are isolated without it.
            charge: `[B]`, for models of charged systems.
            spin: `[B]`, multiplicity, likewise.

        Raises:
            UnsupportedStructureError: counts that do not add up, or a missing charge or spin.
        """
        device = self.model.device
        if int(n_atoms.sum()) != len(positions) or len(numbers) != len(positions):
            raise UnsupportedStructureError(
                f"n_atoms add up to {int(n_atoms.sum())}, but there are {len(positions)} positions "
                f"and {len(numbers)} atomic numbers"
            )
        cells = jnp.zeros((len(n_atoms), 3, 3), positions.dtype) if cell is None else cell
        arrays = {
            "positions": to_torch(positions, device),
            "numbers": to_torch(numbers, device),
            "n_atoms": to_torch(n_atoms, device).long(),
            "cell": to_torch(cells, device),
        }
        arrays["pbc"] = _is_periodic(arrays["cell"])
        if self.model.charged:
            if charge is None or spin is None:
                raise UnsupportedStructureError(f"{self.info.name} needs the charges and spins")
            arrays |= {"charge": to_torch(charge, device), "spin": to_torch(spin, device)}
        arrays["positions"] = _wrapped(arrays)
        with torch_precision(self.model.dtype):
            result = predict(self.model, make_graphs(self.model, arrays))
        stress = None
        if "stress" in result:
            periodic = jnp.abs(cells).sum((1, 2)) > 0
            full = _full(to_jax(result["stress"]).reshape(-1, 6), jnp)
            stress = jnp.where(periodic[:, None, None], full, jnp.nan)
        return OrbArrays(to_jax(result["energy"]), to_jax(result["forces"]), stress)

    def energy_function(self, atoms: Atoms) -> HostEnergy:
        """Energy of structures like `atoms` for use inside jit, grad and vmap."""
        return HostEnergy(self, atoms, self.model.dtype)

    def potential(self, atoms: Atoms) -> Potential:
        """MD potential: jax-md's compiled loop calls torch back at each step."""
        return host_potential(self, atoms, self.model.dtype)

    def hvp(self, structure: Atoms, direction: np.ndarray) -> HessianProduct:
        """Second derivatives of the energy times `direction` `[n, 3]` or `[k, n, 3]`.

        Exact for a conservative model, by differences of the forces otherwise.

        Raises:
            UnknownElementError, UnsupportedStructureError: see `check_structures`.
            ValueError: a direction of another shape.
        """
        if not self.model.has_hessian:
            return numerical_hvp(self.label, structure, direction)
        check_structures(self.info, [structure])
        directions, single = directions_of(structure, direction)
        import torch

        with torch_precision(self.model.dtype):
            graphs = make_graphs(self.model, self._tensors([structure]))
            vectors = torch.as_tensor(
                directions, dtype=torch_dtype(self.model.dtype), device=self.model.device
            )
            products = hessian_products(self.model, graphs, list(vectors))
        values = np.stack([_to_numpy(product) for product in products])
        return product_of(values, np.zeros(len(directions)), single, exact=True)

    def _tensors(self, structures: Sequence[Atoms]) -> dict[str, Any]:
        """Tensors for `make_graphs`, in float64 up to the graph, as orb-models' calculator does."""
        import torch

        # A zero cell is orb-models' mark of an isolated structure; ASE allows a cell without pbc.
        cells = np.stack([a.cell.array * a.pbc.all() for a in structures])
        columns = {
            "positions": np.concatenate([a.positions for a in structures]),
            "numbers": np.concatenate([a.numbers for a in structures]),
            "n_atoms": np.array([len(a) for a in structures], np.int64),
            "cell": cells,
        }
        if self.model.charged:
            for name in ("charge", "spin"):
                if any(name not in a.info for a in structures):
                    raise UnsupportedStructureError(
                        f"{self.info.name} is a model of charged systems: set atoms.info['charge'] "
                        "and atoms.info['spin'] (multiplicity) of every structure"
                    )
                columns[name] = np.array([float(a.info[name]) for a in structures])
        arrays = {
            name: torch.as_tensor(values, device=self.model.device)
            for name, values in columns.items()
        }
        arrays["pbc"] = _is_periodic(arrays["cell"])
        arrays["positions"] = _wrapped(arrays)
        return arrays


def _is_periodic(cell: Any) -> Any:
    return (cell != 0).any(-1).any(-1)[:, None].expand(-1, 3)


def _wrapped(arrays: dict[str, Any]) -> Any:
    """Positions inside the cell: orb-models' neighbour search loses pairs outside it."""
    import torch

    positions, periodic = arrays["positions"], arrays["pbc"][:, 0]
    if not bool(periodic.any()):
        return positions
    identity = torch.eye(3, dtype=torch.float64, device=positions.device)
    cells = torch.where(periodic[:, None, None], arrays["cell"].double(), identity)
    counts = arrays["n_atoms"]
    per_atom = torch.repeat_interleave(torch.linalg.inv(cells), counts, dim=0)
    fractional = torch.einsum("na,nab->nb", positions.double(), per_atom)
    cell_of = torch.repeat_interleave(cells, counts, dim=0)
    inside = torch.einsum("na,nab->nb", fractional - torch.floor(fractional), cell_of)
    chosen = torch.repeat_interleave(periodic, counts)[:, None]
    return torch.where(chosen, inside, positions.double()).to(positions.dtype)


def _to_numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy().copy()


def _full(voigt: Any, xp: Any) -> Any:
    """`[B, 3, 3]` from Voigt order xx, yy, zz, yz, xz, xy."""
    rows = xp.asarray([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    return voigt[:, rows]
