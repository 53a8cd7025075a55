"""Molecular dynamics of other programs behind one small interface, for `benchmark.py`.

Every peer runs its own loop with its own neighbour list. One that is not installed raises
`MissingDependencyError` with the command that installs it. The time of a step does not depend on
the values of the weights, so most have random ones here; forces are then scaled to next to nothing
where that is possible, and the atoms fly freely.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmark_ase import (
    Case,
    Run,
    nep_header,
    nep_run,
    orb_run,
    random_nep,
    read_nep,
    require,
)
from distill.errors import MissingDependencyError

MACE: dict[str, Any] = {"num_channels": 32, "l_max": 2, "num_layers": 2}
"""Options of the MACE model; mlip's default (128 channels, l up to 3) takes several GB."""


@dataclass(frozen=True)
class Peer:
    """Another program.

    Attributes:
        name: in records.
        detail: what a reader must know of the comparison.
        start: prepares a run; raises `MissingDependencyError` where something is not installed.
        few: calls take seconds: run on small boxes only, once or twice.
    """

    name: str
    detail: str
    start: Callable[[Case], Run]
    few: bool = False


def peers(cutoff: float, nep: Path | None = None) -> list[Peer]:
    """All of them, with cutoff `cutoff` in Å where it can be chosen.

    `nep` is a potential file of GPUMD, in place of random weights.
    """
    return [
        Peer(
            "FeNNol MD, ANI-1ccx",
            "one network; FeNNol's own integrator, its list made anew at every step (its default)",
            lambda case: FennolRun(case, 0.0),
        ),
        Peer(
            "FeNNol MD, ANI-1ccx, skin 0.5 Å",
            "the same with a list made anew at the interval that FeNNol derives from the skin",
            lambda case: FennolRun(case, 0.5),
        ),
        *(random_neps(cutoff) if nep is None else [given_nep(nep)]),
        Peer(
            "Lennard-Jones (jax-md)",
            "argon at reduced density 0.84, as many atoms, cutoff 2.5 sigma: the floor",
            LennardJonesRun,
        ),
        Peer(
            "MACE (mlip)",
            f"random weights, a small one (32 channels, l up to 2), cutoff {cutoff:g} Å, "
            "mlip's own JAX-MD engine",
            lambda case: MlipRun(case, cutoff),
            few=True,
        ),
        Peer(
            "Orb v3 conservative",
            "random weights, full size (25M parameters), float32; velocity Verlet of ASE",
            orb_run,
            few=True,
        ),
    ]


NEP_RUN = "double precision; velocity Verlet of ASE, list made anew at every step"


def random_neps(cutoff: float) -> list[Peer]:
    """NEP4 with the radial cutoff of the students, and the same or a usual one for angles."""
    return [
        Peer(
            f"NEP4 (calorine), {cutoff:g} and {angular:g} Å",
            f"radial and angular cutoff; random weights, {NEP_RUN}",
            lambda case, angular=angular: nep_run(case, random_nep(cutoff, angular)),  # type: ignore[misc]
        )
        for angular in sorted({cutoff, min(cutoff, 4.0)}, reverse=True)
    ]


def given_nep(path: Path) -> Peer:
    """A trained NEP from a file.

    Raises:
        ConfigError: it cannot be read, or does not know water.
    """
    text = read_nep(path)
    version, radial, angular = nep_header(text, path)
    return Peer(
        f"{version.upper()} (calorine), {radial:g} and {angular:g} Å, trained",
        f"{path.name}; radial and angular cutoff; {NEP_RUN}",
        lambda case: nep_run(case, text),
    )


class FennolRun:
    """FeNNol's molecular dynamics with one network of ANI-1ccx; a run continues the one before."""

    def __init__(self, case: Case, skin: float):
        """Prepare; `skin` in Å, 0 for none."""
        from fennol.md.integrate import initialize_dynamics
        from fennol.utils.input_parser import InputFile

        from distill.teachers.weights import find_weights
        from distill.teachers.zoo import FENNOL_MODELS

        if not os.environ.get("DISTILL_MODELS"):
            raise MissingDependencyError(
                "the weights of ANI-1ccx are needed: set DISTILL_MODELS to their folder "
                "(docs/teachers.md)"
            )
        weights = find_weights(FENNOL_MODELS["ani1ccx"], "ani1ccx_model0.fnx")
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            start = Path(folder) / "start.xyz"
            case.atoms.write(start, format="xyz", fmt="%20.10f")
            settings = InputFile(
                model_file=str(weights),
                energy_terms=["energy"],
                system_name=str(Path(folder) / "run"),
                xyz_input={"file": str(start)},
                cell=case.atoms.cell.array.ravel().tolist(),
                dt=1e-3 * case.timestep,
                temperature=case.temperature,
                thermostat="NVE",
                nsteps=case.steps,
                **({"nblist_skin": skin} if skin else {}),
            )
            step, _, _, *state = initialize_dynamics(settings, "float32", jax.random.PRNGKey(0))
        # Ångström of skin make 20 fs between rebuilds in FeNNol: a run holds whole intervals.
        interval = int(20 * skin / case.timestep) if skin else 1
        self._step, self._steps = step, -(-case.steps // interval) * interval
        self._state: tuple[Any, ...] = (state[0], state[2], state[1])
        self.seconds_per_step()
        self.compile_seconds = time.perf_counter() - begun

    def seconds_per_step(self) -> float:
        """Wall time of a run, over its steps."""
        dynamics, system, conformation = self._state
        begun = time.perf_counter()
        for number in range(1, self._steps + 1):
            dynamics, system, conformation, _ = self._step(number, dynamics, system, conformation)
        jax.block_until_ready(system)
        seconds = time.perf_counter() - begun
        self._state = dynamics, system, conformation
        return seconds / self._steps


class LennardJonesRun:
    """A Lennard-Jones liquid in jax-md, in reduced units: what a loop with a list costs at least.

    Positions are those of a lattice, displaced; the list has a skin of 0.3 sigma.
    """

    def __init__(self, case: Case):
        import jax.numpy as jnp
        from jax_md import energy, partition, simulate, space

        count = len(case.atoms)
        side = (count / 0.8442) ** (1 / 3)
        per_side = int(np.ceil(count ** (1 / 3)))
        grid = np.array(list(np.ndindex(per_side, per_side, per_side)))[:count]
        rng = np.random.default_rng(0)
        positions = (grid + 0.5) * side / per_side + rng.normal(scale=0.02, size=(count, 3))
        self._steps = max(100, case.steps)
        begun = time.perf_counter()
        displacement, shift = space.periodic(side)
        lists, energy_of = energy.lennard_jones_neighbor_list(
            displacement,
            side,
            r_cutoff=2.5,
            r_onset=2.3,
            dr_threshold=0.3,
            format=partition.OrderedSparse,
            capacity_multiplier=1.5,
        )
        init, apply = simulate.nve(energy_of, shift, dt=0.005)

        def one_step(_: Any, carry: Any) -> Any:
            state, neighbors = carry
            neighbors = neighbors.update(state.position)
            return apply(state, neighbor=neighbors), neighbors

        self._run = jax.jit(
            lambda state, neighbors: jax.lax.fori_loop(0, self._steps, one_step, (state, neighbors))
        )
        start = jnp.asarray(positions, jnp.float32) % side
        neighbors = lists.allocate(start)
        state = init(jax.random.PRNGKey(0), start, 0.72, neighbor=neighbors)
        # From the lattice to a liquid, so that a run is one of the liquid.
        for _ in range(5):
            state, neighbors = jax.block_until_ready(self._run(state, neighbors))
            if bool(neighbors.did_buffer_overflow):
                neighbors = lists.allocate(state.position)
        self._first = state, lists.allocate(state.position)
        self.seconds_per_step()
        self.compile_seconds = time.perf_counter() - begun

    def seconds_per_step(self) -> float:
        """Wall time of a run, over its steps."""
        begun = time.perf_counter()
        _, neighbors = jax.block_until_ready(self._run(*self._first))
        seconds = time.perf_counter() - begun
        if bool(neighbors.did_buffer_overflow):
            raise RuntimeError("jax-md's neighbour list overflowed in a timing run")
        return seconds / self._steps


class MlipRun:
    """MACE of InstaDeep's `mlip` in its own engine; a run continues the one before."""

    def __init__(self, case: Case, cutoff: float):
        require("mlip", "pip install mlip -c constraints.txt")
        from mlip.data import DatasetInfo
        from mlip.models import ForceField, Mace
        from mlip.simulation.configs import JaxMDSimulationConfig
        from mlip.simulation.enums import MDIntegrator
        from mlip.simulation.jax_md import JaxMDSimulationEngine

        begun = time.perf_counter()
        info = DatasetInfo(
            atomic_energies_map={1: 0.0, 8: 0.0},
            graph_cutoff_angstrom=cutoff,
            avg_num_neighbors=50.0,
            avg_r_min_angstrom=1.0,
            scaling_stdev=1e-6,
        )
        model = ForceField.from_mlip_network(Mace(Mace.Config(**MACE), info))
        self._steps = case.steps
        settings = JaxMDSimulationConfig(
            num_steps=self._steps,
            num_episodes=1,
            timestep_fs=case.timestep,
            md_integrator=MDIntegrator.NVE_VELOCITY_VERLET,
        )
        self._engine = JaxMDSimulationEngine(case.atoms.copy(), model, settings)
        self.seconds_per_step()
        self.compile_seconds = time.perf_counter() - begun

    def seconds_per_step(self) -> float:
        """Wall time of a run, over its steps."""
        begun = time.perf_counter()
        self._engine.run()
        return (time.perf_counter() - begun) / self._steps
