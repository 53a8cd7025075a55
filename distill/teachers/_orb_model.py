"""Everything that depends on the release of orb-models: 0.5.5 (Python 3.11) and 0.7 (3.12+).

The releases differ in module paths, in who makes graphs (a system configuration or an adapter),
in the name of the spin feature and in the default of the pair repulsion's aggregation. torch's
global precision and default dtype are set by orb-models when it loads a model; here they are put
back, and set only for the time of a call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import ConfigError, MissingDependencyError
from distill.teachers.weights import WeightsError

ARCHITECTURE = "_architecture"


@dataclass(frozen=True)
class OrbModel:
    """A loaded network with what is needed to make its graphs.

    Attributes:
        network: orb-models' regressor, on its device, parameters frozen.
        radius: Å, within which atoms are connected.
        max_neighbors: nearest neighbours that are kept for each atom.
        conservative: whether forces are the gradient of the energy.
        charged: whether total charge and spin multiplicity are inputs.
        device: torch's name of the device.
        dtype: numpy dtype of the arithmetic.
    """

    network: Any
    radius: float
    max_neighbors: int
    conservative: bool
    charged: bool
    device: str
    dtype: Any

    @property
    def has_stress(self) -> bool:
        """Whether the network gives a stress."""
        return bool(self.network.has_stress)

    @property
    def has_hessian(self) -> bool:
        """Whether forces can be differentiated; the explicit ones of a Coulomb term cannot."""
        return self.conservative and getattr(self.network, "coulomb_module", None) is None

    @property
    def n_parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the network can be given; training data may hold fewer."""
        return tuple(range(1, 118))


def require_orb() -> Any:
    """The module `orb_models.forcefield.pretrained`.

    Raises:
        MissingDependencyError: orb-models or torch is not installed.
    """
    try:
        from orb_models.forcefield import pretrained
    except ImportError as error:
        raise MissingDependencyError(
            f"an Orb teacher needs orb-models and torch ({error}): pip install "
            '"distill-mlip[orb]", in a clone pip install -e ".[orb]" -c constraints.txt'
        ) from error
    return pretrained


def orb_version() -> str:
    """Installed version of orb-models."""
    return metadata.version("orb-models")


def torch_dtype(dtype: Any) -> Any:
    """torch's dtype of a numpy dtype."""
    import torch

    return torch.float64 if np.dtype(dtype) == np.float64 else torch.float32


@contextmanager
def torch_precision(dtype: Any) -> Iterator[None]:
    """torch's default dtype and full matmul precision for a block, then what was there before."""
    import torch

    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch_dtype(dtype))
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_float32_matmul_precision(before[1])


def pretrained_names() -> tuple[str, ...]:
    """Names of the pretrained models that this release can still load (Orb-v1 is gone)."""
    table = require_orb().ORB_PRETRAINED_MODELS
    return tuple(n for n, make in table.items() if "compile" in inspect.signature(make).parameters)


def pretrained_url(name: str) -> str:
    """Where the weights of a pretrained model are published."""
    make = require_orb().ORB_PRETRAINED_MODELS[name]
    return str(inspect.signature(make).parameters["weights_path"].default)


def architectures() -> tuple[str, ...]:
    """Names that a checkpoint's architecture may have: functions and pretrained models."""
    module = require_orb()
    functions = [n for n in vars(module) if n.endswith(ARCHITECTURE)]
    return (*functions, *pretrained_names())


def load_network(
    architecture: str,
    weights: Path | None,
    *,
    arguments: Mapping[str, Any] | None = None,
    radius: float = 6.0,
    max_neighbors: int = 120,
    repulsion: str | None = None,
    device: str = "cpu",
    dtype: Any = np.float32,
) -> OrbModel:
    """Build an architecture and load weights into it.

    Args:
        architecture: one of `architectures()`.
        weights: a checkpoint; None leaves the random initial weights (for timings only).
        arguments: of an architecture function.
        radius: Å; a pretrained model's own is used for its name.
        max_neighbors: likewise.
        repulsion: how the pair repulsion of the atoms is gathered, `mean` or `sum`; the release's
            own way by default, which for conservative models changed from 0.5.5 to 0.7.
        device: torch's name.
        dtype: numpy dtype.

    Raises:
        ConfigError: an unknown architecture or argument.
        WeightsError: a checkpoint that is damaged or belongs to another architecture.
    """
    module = require_orb()
    if architecture not in architectures():
        raise ConfigError(
            f"unknown Orb architecture {architecture!r}; known: {', '.join(architectures())}"
        )
    with torch_precision(dtype):
        if architecture.endswith(ARCHITECTURE):
            function = getattr(module, architecture)
            try:
                network = function(**dict(arguments or {}), device="cpu")
            except TypeError as error:
                raise ConfigError(f"Orb architecture {architecture}: {error}") from error
        else:
            network, radius, max_neighbors = _pretrained_network(module, architecture)
        conservative = hasattr(network, "grad_forces_name")
        if repulsion is not None and getattr(network, "pair_repulsion", False):
            network.pair_repulsion_fn.node_aggregation = repulsion
        network = network.to(torch_dtype(dtype))
        if weights is not None:
            _load_weights(network, weights, architecture)
        network = network.to(device).eval()
    for parameter in network.parameters():
        parameter.requires_grad = False
    conditioner = getattr(network.model, "conditioner", None)
    charged = type(conditioner).__name__ == "ChargeSpinConditioner"
    return OrbModel(network, radius, max_neighbors, conservative, charged, device, dtype)


def _pretrained_network(module: Any, name: str) -> tuple[Any, float, int]:
    """The network of a pretrained model without its weights, its radius and neighbour limit."""
    captured: dict[str, Any] = {}

    def keep(model: Any, *_: Any, **__: Any) -> Any:
        captured["model"] = model
        return model

    # The loading function alone knows the architecture, but it also reads the weights and changes
    # torch's globals; its last step is replaced for the time of the call.
    original = module.load_model
    module.load_model = keep
    try:
        loaded = module.ORB_PRETRAINED_MODELS[name](device="cpu", compile=False)
    finally:
        module.load_model = original
    source = loaded[1] if isinstance(loaded, tuple) else captured["model"].system_config
    return captured["model"], float(source.radius), int(source.max_num_neighbors)


def _load_weights(network: Any, weights: Path, architecture: str) -> None:
    import torch

    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{weights} cannot be read as an Orb checkpoint ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}): the file is truncated, damaged or of another kind; "
            "replace it"
        ) from error
    wrong = (
        f"{weights} does not hold the weights of {architecture}: give the architecture that it "
        "was trained with (?arch=...)"
    )
    if not isinstance(state, Mapping):
        raise WeightsError(f"{wrong}; it is no state dictionary")
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{wrong} ({str(error).splitlines()[0][:200]})") from error
    # orb-models lets a head keep its random weights when the checkpoint has none for it.
    heads = {k.split(".")[1] for k in network.state_dict() if k.startswith("heads.")}
    legacy = {"graph_head": "energy", "node_head": "forces", "stress_head": "stress"}
    held = {
        legacy.get(k.split(".")[0], k.split(".")[1]) for k in state if "head" in k.split(".")[0]
    }
    if heads - held:
        raise WeightsError(f"{wrong} (no weights for the {', '.join(sorted(heads - held))} head)")


def make_graphs(model: OrbModel, arrays: Mapping[str, Any]) -> Any:
    """orb-models' batch of graphs.

    Args:
        model: whose radius and neighbour limit are used.
        arrays: torch tensors on the model's device: `positions [N, 3]` (wrapped), `numbers [N]`,
            `cell [B, 3, 3]` (zero for isolated structures), `pbc [B, 3]`, `n_atoms [B]`, and for
            a charged model `charge [B]` and `spin [B]` (multiplicity).
    """
    import torch

    positions, n_atoms = arrays["positions"], arrays["n_atoms"]
    limit = torch.full_like(n_atoms, model.max_neighbors)
    common = {
        "positions": positions,
        "cells": arrays["cell"],
        "n_node": n_atoms,
        "max_number_neighbors": limit,
        "device": torch.device(model.device),
    }
    new = _is_new()
    if new:
        from orb_models.common.atoms.batch.graph_batch import AtomGraphs
        from orb_models.common.atoms.graph_featurization import batch_compute_pbc_radius_graph

        index = torch.repeat_interleave(torch.arange(len(n_atoms), device=model.device), n_atoms)
        edges, vectors, shifts, counts = batch_compute_pbc_radius_graph(
            **common,
            pbcs=arrays["pbc"],
            radius=torch.tensor([model.radius], device=model.device),
            node_batch_index=index,
            float_dtype=torch_dtype(model.dtype),
        )
    else:
        from orb_models.forcefield.base import AtomGraphs
        from orb_models.forcefield.featurization_utilities import batch_compute_pbc_radius_graph

        edges, vectors, shifts, counts = batch_compute_pbc_radius_graph(
            **common, pbc=arrays["pbc"], radius=model.radius
        )
    dtype = torch_dtype(model.dtype)
    numbers = arrays["numbers"].long()
    one_hot = torch.nn.functional.one_hot(numbers, num_classes=118).to(dtype)
    system: dict[str, Any] = {"cell": arrays["cell"].to(dtype), "pbc": arrays["pbc"]}
    if model.charged:
        system["total_charge"] = arrays["charge"].to(dtype)
        system["spin_multiplicity" if new else "total_spin"] = arrays["spin"].to(dtype)
    return AtomGraphs(
        senders=edges[0].long(),
        receivers=edges[1].long(),
        n_node=n_atoms,
        n_edge=counts.long(),
        node_features={
            "positions": positions.to(dtype),
            "atomic_numbers": numbers,
            "atomic_numbers_embedding": one_hot,
        },
        edge_features={"vectors": vectors.to(dtype), "unit_shifts": shifts.to(dtype)},
        system_features=system,
        node_targets={},
        edge_targets={},
        system_targets={},
        system_id=None,
        fix_atoms=None,
        tags=None,
        radius=model.radius,
        max_num_neighbors=limit,
    )


def predict(model: OrbModel, graphs: Any) -> dict[str, Any]:
    """`energy [B]`, `forces [N, 3]` and, if there is one, `stress [B, 6]` (Voigt), detached."""
    network = model.network
    if model.conservative:
        out = network.predict(graphs)
        names = network.energy_name, network.grad_forces_name
        stress = network.grad_stress_name if network.has_stress else None
    else:
        import torch

        with torch.no_grad():
            out = network.predict(graphs)
        names = "energy", "forces"
        stress = "stress" if network.has_stress else None
    found = {"energy": out[names[0]], "forces": out[names[1]]}
    if stress is not None:
        found["stress"] = out[stress]
    # Release 0.7 promotes some results.
    dtype = torch_dtype(model.dtype)
    return {name: tensor.detach().to(dtype) for name, tensor in found.items()}


def hessian_products(model: OrbModel, graphs: Any, directions: Sequence[Any]) -> list[Any]:
    """Second derivatives of the energy of a conservative model times each `[N, 3]` direction."""
    import torch

    network = model.network
    # The flag of the outer module alone decides whether the graph of the forces is kept; layers
    # and normalisers stay in evaluation mode.
    network.training = True
    try:
        forces = network(graphs)[network.grad_forces_name]
    finally:
        network.training = False
    positions = graphs.node_features["positions"]
    return [
        -torch.autograd.grad(forces, positions, grad_outputs=v, retain_graph=True)[0].detach()
        for v in directions
    ]


def library_calculator(model: OrbModel) -> Any:
    """orb-models' own ASE calculator of the same network, as a reference for tests and timings."""
    if _is_new():
        from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter
        from orb_models.forcefield.inference.calculator import ORBCalculator

        adapter = ForcefieldAtomsAdapter(model.radius, model.max_neighbors)
        return ORBCalculator(model.network, adapter, device=model.device)
    from orb_models.forcefield.atomic_system import SystemConfig
    from orb_models.forcefield.calculator import ORBCalculator

    config = SystemConfig(radius=model.radius, max_num_neighbors=model.max_neighbors)
    return ORBCalculator(model.network, system_config=config, device=model.device)


def _is_new() -> bool:
    return tuple(int(part) for part in orb_version().split(".")[:2]) >= (0, 6)
