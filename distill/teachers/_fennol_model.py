"""Every use of FeNNol's own members, in one file.

FeNNol's pure path inside jit is `preprocessing.process(state, inputs)` followed by
`_total_energy_raw(variables, data)`; the latter and the layout of `preproc_state` are private
upstream, so nothing outside this file touches them. Capacities are in `state`, which is static.
An overflow is silent upstream: `overflow_flag` collects every flag that the chain sets.
Energies here are in the model's own unit; `FennolModel.to_ev` converts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers

from distill.errors import DistillError, MissingDependencyError
from distill.units import HARTREE

CAPACITY_MARGIN = 1.1
"""Factor on every capacity found on the host, so that small changes need no recompilation."""

GROWTH = 1.2
"""Factor by which capacities grow after an overflow at positions that are not known."""


_CAPACITIES = {"npairs", "npairs_noself", "nangles", "max_neigh", "nshifts_pbc", "nvec_pbc"}
"""Names of buffer sizes in the states of FeNNol's layers."""


@dataclass(frozen=True)
class FennolModel:
    """One or more FeNNol networks of the same architecture, their variables stacked.

    Attributes:
        modules: FeNNol's `FENNIX` object of the first member.
        variables: variables of all members, each leaf with a leading axis of `n_members`.
        self_energies: `[n_members, 119]` float64, eV, per atomic number; zeros when the model
            has no separate self-energy term. Not included in `energies`.
        elements: atomic numbers the model was made for.
        weights_sha256: one hash per member.
    """

    modules: Any
    variables: Any
    self_energies: np.ndarray
    elements: tuple[int, ...]
    weights_sha256: tuple[str, ...]
    to_ev: float

    @property
    def n_members(self) -> int:
        """Number of networks."""
        return len(self.weights_sha256)

    @property
    def cutoff(self) -> float:
        """Largest cutoff in Å."""
        return float(self.modules.cutoff)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of all members together."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.variables))

    def allocate(self, inputs: dict[str, Any], state: Any = None, enlarge: bool = False) -> Any:
        """Capacities large enough for `inputs` (host code).

        Args:
            inputs: FeNNol's input arrays.
            state: capacities to start from; none shrinks.
            enlarge: first enlarge those of `state`, for an overflow at positions not known here.
        """
        chain = self.modules.preprocessing
        start = _with_margin(chain.init() if state is None else state, enlarge)
        on_host = {k: v if k == "flags" else np.asarray(v) for k, v in inputs.items()}
        state = chain(start, on_host)[0]
        return _with_room_for_angles(state, chain.layers, len(on_host["species"]))

    def process(self, state: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Neighbour lists for `inputs` inside jit; no gradient flows through them."""
        frozen = {k: (jax.lax.stop_gradient(v) if k != "flags" else v) for k, v in inputs.items()}
        return self.modules.preprocessing.process(state, frozen)

    def energies(self, data: dict[str, Any], variables: Any = None) -> jax.Array:
        """Interaction energies `[n_members, n_systems]` in eV for processed `data`, pure."""
        variables = self.variables if variables is None else variables

        def one(member):
            return self.modules._total_energy_raw(member, data)[0]

        return jax.vmap(one)(variables) * self.to_ev


def load_members(paths: Sequence[Path], elements: Sequence[int] | None = None) -> FennolModel:
    """Load `.fnx` files of the same architecture as one model.

    Raises:
        MissingDependencyError: FeNNol is not installed.
        DistillError: a file is not a FeNNol model, is a pickle, or the members differ.
    """
    try:
        import fennol
    except ImportError as error:
        raise MissingDependencyError("FeNNol teachers need `pip install fennol`") from error

    members, hashes = [], []
    for path in paths:
        if path.suffix != ".fnx":
            raise DistillError(
                f"{path} is not a .fnx file: pickled FeNNol models are refused because reading "
                "them can run code; save the model as .fnx with FENNIX.save"
            )
        content = path.read_bytes()
        hashes.append(hashlib.sha256(content).hexdigest())
        try:
            members.append(fennol.load(str(path)))
        except Exception as error:
            raise DistillError(
                f"{path} ({len(content)} bytes) cannot be read as a FeNNol model: {error}. "
                "It may be truncated; compare its SHA-256 or download it again"
            ) from error

    first = members[0]
    constants = [_self_energies(member) for member in members]
    terms = [t for t in first.energy_terms or () if t not in constants[0][1]]
    if not terms:
        raise DistillError(f"{paths[0]} has no energy term besides atomic constants")
    first.set_energy_terms(terms, jit=False)
    shapes = [jax.tree.map(jnp.shape, member.variables) for member in members]
    if any(shape != shapes[0] for shape in shapes):
        raise DistillError("the members of a committee must have the same architecture")

    to_ev = HARTREE / first.Ha_to_model_energy
    return FennolModel(
        modules=first,
        variables=jax.tree.map(lambda *leaves: jnp.stack(leaves), *[m.variables for m in members]),
        self_energies=np.stack([values for values, _ in constants]) * to_ev,
        elements=tuple(elements) if elements is not None else _elements(first, paths[0]),
        weights_sha256=tuple(hashes),
        to_ev=to_ev,
    )


def fennol_version() -> str:
    """Installed version of FeNNol."""
    return metadata.version("fennol")


def overflow_flag(data: dict[str, Any]) -> jax.Array:
    """OR of every overflow flag that FeNNol's preprocessing leaves in `data`."""
    flag = jnp.zeros((), bool)
    for key, value in data.items():
        if isinstance(value, dict) and "overflow" in value:
            flag = flag | value["overflow"]
        elif key.endswith("_overflow"):
            flag = flag | value
    return flag


def _with_margin(state: Any, enlarge: bool) -> Any:
    layers = []
    for layer in state["layers_state"]:
        changed = dict(layer)
        if "nblist_mult_size" in layer:
            changed["nblist_mult_size"] = CAPACITY_MARGIN
        if enlarge:
            for name in _CAPACITIES & set(layer):
                changed[name] = int(GROWTH * layer[name]) + 1
        layers.append(type(state)(changed))
    return type(state)({**state, "layers_state": tuple(layers)})


def _with_room_for_angles(state: Any, layers: Sequence[Any], n_atoms: int) -> Any:
    """At least as many neighbours per atom as the buffer of pairs holds on the average.

    FeNNol gives the pairs a margin but not the neighbours of an atom, and refuses molecules such as
    methanol, in which every atom has every other one as a neighbour.
    """
    pairs: dict[str, int] = {}
    changed = []
    for layer, own in zip(layers, state["layers_state"], strict=True):
        if "npairs" in own:
            pairs[layer.graph_key] = int(own["npairs"])
        if "max_neigh" in own and layer.graph_key in pairs:
            least = -(-pairs[layer.graph_key] // n_atoms)
            own = type(state)({**own, "max_neigh": max(int(own["max_neigh"]), least)})
        changed.append(own)
    return type(state)({**state, "layers_state": tuple(changed)})


def _self_energies(model: Any) -> tuple[np.ndarray, set[str]]:
    """Constants `[119]` in the model's unit (float64) and the names of the constant terms."""
    from fennol.utils.periodic_table import PERIODIC_TABLE

    total, names = np.zeros(len(PERIODIC_TABLE)), set()
    for name, settings in model.to_dict()["modules"].items():
        if name not in (model.energy_terms or ()):
            continue
        kind = str(settings.get("module_name", settings.get("FID", name))).upper()
        value = settings.get("value")
        if kind != "CHEMICAL_CONSTANT" or not (
            hasattr(value, "items") or name in model.variables.get("params", {})
        ):
            continue
        if settings.get("trainable", False):
            constant = np.asarray(model.variables["params"][name]["constant"], np.float64)
        else:
            constant = np.zeros(len(PERIODIC_TABLE), np.float32)
            for symbol, number in value.items():
                constant[atomic_numbers[symbol]] = number
        total[: len(constant)] += constant.astype(np.float64)
        names.add(name)
    return total, names


def _elements(model: Any, path: Path) -> tuple[int, ...]:
    settings = list(model.to_dict()["modules"].values())
    for entry in settings:
        if "species_order" in entry:
            order = entry["species_order"]
            order = order.split(",") if isinstance(order, str) else order
            return tuple(sorted(atomic_numbers[str(s).strip()] for s in order))
    for entry in settings:
        value = entry.get("value")
        if hasattr(value, "items"):
            return tuple(sorted(atomic_numbers[s] for s in value))
    raise DistillError(
        f"{path} does not say which elements it was made for: "
        "pass them, e.g. load('fennol:model.fnx?elements=H,C,N,O')"
    )
