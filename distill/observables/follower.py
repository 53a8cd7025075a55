"""Measures a run while it goes on, in bounded memory."""

from __future__ import annotations

from typing import Any

from ase import Atoms

from distill.errors import ConfigError
from distill.observables.config import ObservablesConfig
from distill.observables.curves import Curve
from distill.observables.diffusion import self_diffusion
from distill.observables.parts import CurvePart, DisplacementPart, RadialPart, VibrationPart
from distill.observables.results import Observed
from distill.observables.scalars import ScalarMeans
from distill.simulation.frames import Frames


class Observables:
    """Adds up what `ObservablesConfig` asks for; a `Follower` for `run_md`.

    After a restart the results are those of a run that was not interrupted. Kept are the means of
    at most 32 blocks for each curve and 1024 for each mean, and the frames of a window that is not
    full yet.
    """

    def __init__(
        self,
        atoms: Atoms,
        config: ObservablesConfig,
        interval: float,
        n_replicas: int = 1,
        pooled: bool = True,
        wrapped: bool = False,
    ) -> None:
        """`atoms` are the start of the run, whose bonds say what its molecules are.

        Args:
            atoms: elements, masses, cell and periodicity too.
            config: what is measured.
            interval: fs between the frames.
            n_replicas: runs side by side.
            pooled: they have the same conditions, so that each is one more part of the same
                average; otherwise there is one result for each.
            wrapped: positions were put back into the cell in each frame, as other programs do.

        Raises:
            ConfigError: the frames are too far apart for what is asked for, or the windows hold
                too few.
            UnsupportedStructureError: gyration of something else than molecules.
        """
        self.config = config
        self._n_replicas, self._pooled = n_replicas, pooled
        self._scalars = ScalarMeans(atoms, config.gyration)
        self._parts: list[CurvePart] = []
        if config.rdf:
            self._parts.append(RadialPart(atoms, config, interval))
        if config.msd:
            self._parts.append(DisplacementPart(atoms, config, interval, wrapped))
        if config.vdos:
            self._parts.append(VibrationPart(atoms, config, interval))
        self._count, self._first, self._last = 0, 0.0, 0.0

    def __call__(self, frames: Frames) -> None:
        """Measure the next frames."""
        chosen = frames.time >= 1000 * self.config.start - 1e-6
        single = frames.positions.ndim == 3
        values = {name: array[chosen] for name, array in vars(frames).items()}
        if single:
            values = {name: v if name == "time" else v[:, None] for name, v in values.items()}
        frames = Frames(**values)
        if not len(frames.time):
            return
        if frames.positions.shape[1] != self._n_replicas:
            raise ConfigError(
                f"the frames hold {frames.positions.shape[1]} replicas, the observables were made "
                f"for {self._n_replicas}"
            )
        if not self._count:
            self._first = float(frames.time[0])
        self._last = float(frames.time[-1])
        self._count += len(frames.time)
        self._scalars.add(frames)
        for part in self._parts:
            part.add(frames)

    def results(self) -> list[Observed]:
        """What was seen so far: of all replicas together, or one for each."""
        if self._pooled:
            return [self._observed(None, slice(None))]
        return [self._observed(r, slice(r, r + 1)) for r in range(self._n_replicas)]

    def mark(self) -> dict[str, Any]:
        """See `distill.simulation.Follower`."""
        return {
            "seen": [self._count, self._first, self._last],
            "scalars": self._scalars.mark(),
            "parts": [part.mark() for part in self._parts],
        }

    def rewind(self, mark: dict[str, Any]) -> None:
        """See `distill.simulation.Follower`."""
        self._count, self._first, self._last = mark["seen"]
        self._scalars.rewind(mark["scalars"])
        for part, own in zip(self._parts, mark["parts"], strict=True):
            part.rewind(own)

    def _observed(self, replica: int | None, chosen: slice) -> Observed:
        curves: dict[str, Curve] = {}
        notes = []
        for part in self._parts:
            found = part.curves(chosen)
            if not found:
                notes.append(f"no {part.name}: less than one {part.piece} was seen")
            curves |= found
        diffusion = {
            name.removeprefix("msd "): self_diffusion(curve, self.config.fit)
            for name, curve in curves.items()
            if name.startswith("msd ")
        }
        return Observed(
            replica=replica,
            time=(self._first / 1000, self._last / 1000),
            frames=self._count,
            scalars=self._scalars.estimates(chosen),
            curves=curves,
            diffusion=diffusion,
            notes=notes,
        )
