"""Molecular dynamics in compiled blocks, with the host in between.

The loop of a block stays on the device. Its carry holds the overflow flag of the neighbour list;
a block that overflowed is thrown away and run again from the last good state with a larger list,
so the result is the one that a large list would have given from the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.errors import CapacityError, CheckpointError, DistillError, SimulationError
from distill.potential import Potential
from distill.progress import progress_bar
from distill.simulation.bath import bath_of
from distill.simulation.blocks import MAX_REALLOCATIONS
from distill.simulation.checkpoints import (
    Follower,
    MDCheckpoints,
    Moment,
    identity_of,
    wait_for,
)
from distill.simulation.config import BAROSTATS, MDConfig
from distill.simulation.exchange import ExchangeState
from distill.simulation.frames import Frames, join_frames, no_frames, require_finite, to_frames
from distill.simulation.programs import Programs


@dataclass(frozen=True)
class MDResult:
    """Frames, the final state, and how often the list had to grow."""

    frames: Frames
    state: Any
    n_reallocations: int


def run_md(
    potential: Potential,
    positions: np.ndarray,
    config: MDConfig,
    *,
    velocities: np.ndarray | None = None,
    on_frames: Callable[[Frames], None] | Sequence[Callable[[Frames], None]] | None = None,
    checkpoints: MDCheckpoints | None = None,
    devices: Sequence[jax.Device] = (),
    keep_frames: bool = True,
    progress: bool = True,
    description: str = "MD",
) -> MDResult:
    """Run molecular dynamics.

    With `checkpoints` the run goes on from the checkpoint in its folder, if there is one, and ends
    as it would have without the interruption, bit for bit where the machine and the versions are
    the same and the steps of the interrupted run were a multiple of `config.block_steps`. What
    `on_frames` holds is taken back to the checkpoint where it is a `Follower`.

    Args:
        potential: see `distill.potential.Potential`.
        positions: `[n, 3]` or, for replicas run side by side, `[R, n, 3]`, Å.
        config: settings; `temperatures` need as many replicas.
        velocities: like positions, Å/fs; drawn from Maxwell-Boltzmann by default.
        on_frames: called with the frames of each block, in this order, e.g.
            `TrajectoryWriter.write`.
        checkpoints: where the state is saved, at the start, every so many blocks, at the end, and
            before a block that fails.
        devices: different ones that divide the replicas among them, which scales better than
            devices that share each system (see `Student.potential`). The results are the same
            to rounding. Not for teachers that are called back on the host.
        keep_frames: False for a long run whose frames go to files: the result has none.
        progress: show a bar.
        description: label of the bar.

    Raises:
        SimulationError: positions or energies became NaN or infinite (names time and atoms), or
            with `checkpoints` a file could not be written.
        CapacityError: the neighbour list kept overflowing.
        UnsupportedStructureError: NPT with a potential without a virial, or a cell that is not
            periodic in all directions.
        CheckpointError: the checkpoint is damaged or belongs to another run.
    """
    positions = np.asarray(positions)
    if positions.ndim not in (2, 3) or positions.shape[-2:] != (len(potential.numbers), 3):
        raise ValueError(
            f"positions must have shape [n, 3] or [R, n, 3] with n = {len(potential.numbers)}, "
            f"got {positions.shape}"
        )
    if len(set(devices)) != len(devices):
        raise ValueError(f"devices must be different ones, not {list(devices)}")
    if devices and (positions.ndim == 2 or len(positions) % len(devices)):
        told = f"{len(positions)} replicas" if positions.ndim == 3 else "one system"
        raise ValueError(
            f"{told} cannot be divided among {len(devices)} devices: give a multiple of "
            f"{len(devices)} replicas, or let a student's potential share each system"
        )
    if not np.isfinite(positions).all():
        raise SimulationError("initial positions are NaN or infinite")
    replicas = positions.ndim == 3
    bath = bath_of(config, len(positions) if replicas else None)
    followers = _as_tuple(on_frames)
    # Without checkpoints no one looks at the lists that a block began with; those of teachers may
    # share arrays with the state.
    donate = checkpoints is None and potential.kernel is not None
    programs = Programs(potential, config, replicas, donate, devices)
    key = jax.random.PRNGKey(config.seed)
    if replicas:
        key = jax.random.split(key, len(positions))
    moment = Moment(0, *programs.first(key, positions, velocities, bath), 0, _marks(followers))
    saver = None
    if checkpoints is not None:
        saver = _Saver(checkpoints, identity_of(potential, config, positions, velocities))
        moment = saver.first(moment, followers)

    recorded = [no_frames(potential, positions)]
    with progress_bar(config.steps, description, initial=moment.steps, disable=not progress) as bar:
        while moment.steps < config.steps:
            begun = time.perf_counter()
            try:
                new, frames = _advance(potential, config, programs, moment, replicas)
                require_finite(frames, replicas)
                for follow in followers:
                    follow(frames)
            except OSError as error:
                if saver is None:
                    raise
                raise saver.cannot_write(error) from error
            except DistillError:
                if saver is not None:
                    saver.save(moment)
                raise
            n_steps = new.steps - moment.steps
            moment = replace(new, marks=_marks(followers))
            if saver is not None:
                saver.count_block(moment, moment.steps >= config.steps)
            if keep_frames:
                recorded.append(frames)
            bar.update(n_steps)
            bar.set_postfix(_figures(frames, moment.state, potential, config, n_steps, begun))
    if saver is None:  # a checkpoint has waited already
        wait_for(moment.marks)
    return MDResult(join_frames(recorded), moment.state, moment.reallocations)


def _advance(
    potential: Potential, config: MDConfig, programs: Programs, moment: Moment, replicas: bool
) -> tuple[Moment, Frames]:
    """The next block, run again with larger lists as often as they overflow."""
    done, neighbors, reallocations = moment.steps, moment.lists, moment.reallocations
    # A run that is extended goes on at the same ends of blocks.
    n_steps = min(config.block_steps - done % config.block_steps, config.steps - done)
    for growths in range(1, MAX_REALLOCATIONS + 1):
        state, new_neighbors, records, overflow = programs.block(
            moment.state, neighbors, n_steps // config.record_every
        )
        frames = to_frames(records, potential, config, done)
        if not bool(jnp.any(overflow)):
            neighbors = programs.adapted(state, new_neighbors)
            return Moment(done + n_steps, state, neighbors, reallocations, []), frames
        reallocations += 1
        neighbors = programs.larger(moment.state, new_neighbors, growths)
    # Lost atoms make every list look too old: say what really happened.
    require_finite(frames, replicas)
    raise CapacityError(
        f"the neighbour list still overflows after {MAX_REALLOCATIONS} growths at "
        f"{done * config.timestep:.1f} fs: the atoms collapse or fly apart (the "
        "potential is outside its range), or they move further than the skin within "
        "one step: use a smaller timestep or a larger skin, and check the start; in NPT the cell "
        "may collapse: check the pressure too",
        replicas=np.flatnonzero(np.atleast_1d(overflow)),
    )


def _figures(
    frames: Frames,
    state: Any,
    potential: Potential,
    config: MDConfig,
    n_steps: int,
    begun: float,
) -> dict[str, str]:
    """Of the last block, for the bar; ns/day are those of each replica."""
    femtoseconds = n_steps * config.timestep
    figures = {
        "temperature": f"{np.mean(frames.temperature[-1]):.0f} K",
        "speed": f"{0.0864 * femtoseconds / (time.perf_counter() - begun):.3g} ns/day",
    }
    if config.ensemble in BAROSTATS:
        figures["density"] = f"{np.mean(frames.density(potential.numbers)[-1]):.3f} g/cm³"
        figures["pressure"] = f"{np.mean(frames.pressure):.3g} GPa"
    if frames.uncertainty.size:
        figures["uncertainty"] = f"{frames.uncertainty[-1].max():.2f} eV/Å"
    if isinstance(state, ExchangeState):
        tried, accepted = (int(n.sum()) for n in (state.exchange.tried, state.exchange.accepted))
        figures["exchanged"] = f"{100 * accepted / tried:.0f} %"
    return figures


class _Saver:
    """Saves the moments of one run and knows which the checkpoint holds."""

    def __init__(self, checkpoints: MDCheckpoints, identity: dict[str, Any]):
        self._checkpoints, self._identity = checkpoints, identity
        self._saved = -1
        self._blocks = 0

    def first(self, moment: Moment, followers: Sequence[Any]) -> Moment:
        """Where to begin: at the checkpoint, which is made if there is none."""
        if not self._checkpoints.exists:
            self.save(moment)
        # Read back in any case, so that arrays have the same types in every run.
        moment = self._checkpoints.load(self._identity, moment.state, moment.lists)
        self._saved = moment.steps
        resumed = [follower for follower in followers if isinstance(follower, Follower)]
        if len(resumed) != len(moment.marks):
            raise CheckpointError(
                f"{self._checkpoints.path} was written with {len(moment.marks)} files and checks "
                f"beside the run, now there are {len(resumed)}: use the same ones"
            )
        for follower, mark in zip(resumed, moment.marks, strict=True):
            follower.rewind(mark)
        return moment

    def count_block(self, moment: Moment, last: bool) -> None:
        """Save after every so many blocks and after the last."""
        self._blocks += 1
        if last or self._blocks % self._checkpoints.every == 0:
            self.save(moment)

    def save(self, moment: Moment) -> None:
        """Save, unless it is saved already. Raises SimulationError where it cannot be written."""
        if moment.steps == self._saved:
            return
        try:
            self._checkpoints.save(moment, self._identity)
        except OSError as error:
            raise self.cannot_write(error) from error
        self._saved = moment.steps

    def cannot_write(self, error: OSError) -> SimulationError:
        """What to raise where a file cannot be written."""
        last = f"of step {self._saved} is intact" if self._saved >= 0 else "has not been written"
        return SimulationError(
            f"the run stopped because a file cannot be written ({error}). The checkpoint {last} "
            f"in {self._checkpoints.path.parent}: make room and run again to go on from it"
        )


def _as_tuple(on_frames: Any) -> tuple[Callable[[Frames], None], ...]:
    if on_frames is None:
        return ()
    return (on_frames,) if callable(on_frames) else tuple(on_frames)


def _marks(followers: Sequence[Any]) -> list[Any]:
    return [follower.mark() for follower in followers if isinstance(follower, Follower)]
