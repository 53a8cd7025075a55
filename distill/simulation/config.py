"""Settings of a simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

ENSEMBLES = ("nve", "nvt_langevin", "nvt_nose_hoover", "nvt_csvr", "npt_scr")
"""Names of the ensembles available."""

BAROSTATS = ("npt_scr",)
"""Those whose cell moves."""


@dataclass(frozen=True)
class MDConfig:
    """A molecular dynamics run.

    `nvt_langevin` moves the centre of mass too. `nvt_nose_hoover` (chains) and `nvt_csvr`
    (stochastic velocity rescaling, J. Chem. Phys. 126, 014101) scale all velocities alike: they
    hold the centre of mass still and the 3n - 3 other degrees of freedom at the temperature, so
    they suit potentials without an external field. `npt_scr` (stochastic cell rescaling with the
    thermostat of `nvt_csvr`, J. Chem. Phys. 153, 114107) besides scales a cell, periodic in all
    directions, without changing its shape.

    Attributes:
        ensemble: one of `ENSEMBLES`.
        timestep: fs.
        temperature: K; of the initial velocities and, in NVT, of the bath.
        temperatures: K, one for each replica, instead of `temperature`; none by default.
        friction: 1/fs, of the Langevin bath.
        thermostat_time: fs, period of the Nosé-Hoover chain or relaxation time of CSVR, also in
            NPT.
        chain_length: thermostats in the Nosé-Hoover chain, at least 2.
        exchange_every: steps between attempts of neighbouring `temperatures`, which must rise, to
            exchange their replicas; 0 for none. A multiple of `record_every` that divides
            `block_steps` and `steps`. See `distill.simulation.exchange`.
        steps: integration steps.
        record_every: steps between recorded frames and energies.
        block_steps: steps per compiled block; the host looks at the run between blocks. A
            multiple of `record_every`.
        seed: of velocities and noise.
        pressure: GPa, of the barostat; the default is one bar.
        pressures: GPa, one for each replica, instead of `pressure`; none by default.
        barostat_time: fs, relaxation time of the volume, if `compressibility` is right.
        compressibility: 1/GPa, isothermal, roughly that of the system: it only scales the pace.
            The default is that of water.
    """

    ensemble: str = "nve"
    timestep: float = 0.5
    temperature: float = 300.0
    friction: float = 0.01
    steps: int = 1000
    record_every: int = 10
    block_steps: int = 500
    seed: int = 0
    thermostat_time: float = 100.0
    chain_length: int = 3
    temperatures: tuple[float, ...] = ()
    exchange_every: int = 0
    pressure: float = 1e-4
    pressures: tuple[float, ...] = ()
    barostat_time: float = 1000.0
    compressibility: float = 0.45

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise ValueError(f"ensemble must be one of {', '.join(ENSEMBLES)}: {self.ensemble!r}")
        for name in ("timestep", "steps", "record_every", "block_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be larger than zero, got {getattr(self, name)}")
        if not (self.temperature >= 0 and self.friction >= 0):
            raise ValueError("temperature and friction must not be negative")
        if not all(0 <= value < math.inf for value in self.temperatures):
            raise ValueError(
                f"temperatures must be at least 0 and finite: {list(self.temperatures)}"
            )
        if self.ensemble in ("nvt_nose_hoover", "nvt_csvr", *BAROSTATS):
            if not min(self.temperatures or (self.temperature,)) > 0:
                raise ValueError(f"{self.ensemble} needs a temperature above zero")
            if not self.thermostat_time >= 10 * self.timestep:
                raise ValueError(
                    f"thermostat_time ({self.thermostat_time} fs) must be at least ten timesteps "
                    f"({10 * self.timestep} fs)"
                )
        if self.chain_length < 2:
            raise ValueError(f"chain_length must be at least 2, got {self.chain_length}")
        if self.block_steps % self.record_every or self.steps % self.record_every:
            raise ValueError(
                f"block_steps ({self.block_steps}) and steps ({self.steps}) must be multiples of "
                f"record_every ({self.record_every})"
            )
        self._check_barostat()
        if self.exchange_every:
            self._check_exchange()

    def _check_barostat(self) -> None:
        pressures = [self.pressure, *self.pressures]
        if not all(math.isfinite(value) for value in pressures):
            raise ValueError(f"pressure must be a finite number in GPa, got {pressures}")
        if not 0 < self.compressibility < math.inf:
            raise ValueError(
                f"compressibility must be larger than zero and finite, got {self.compressibility}"
            )
        if self.ensemble in BAROSTATS and not self.barostat_time >= 10 * self.timestep:
            raise ValueError(
                f"barostat_time ({self.barostat_time} fs) must be at least ten timesteps "
                f"({10 * self.timestep} fs)"
            )

    def _check_exchange(self) -> None:
        every, ladder = self.exchange_every, self.temperatures
        if not self.ensemble.startswith("nvt_"):
            raise ValueError(
                f"exchange_every needs an ensemble nvt_..., a bath and a fixed cell, not "
                f"{self.ensemble}"
            )
        rising = all(low < high for low, high in pairwise(ladder))
        if len(ladder) < 2 or not rising or not ladder[0] > 0:
            raise ValueError(
                "exchange_every needs temperatures, at least two, above zero and rising: "
                f"{list(ladder)}"
            )
        if every < 0 or every % self.record_every:
            raise ValueError(
                f"exchange_every ({every}) must be a multiple of record_every ({self.record_every})"
            )
        if self.block_steps % every or self.steps % every:
            raise ValueError(
                f"block_steps ({self.block_steps}) and steps ({self.steps}) must be multiples of "
                f"exchange_every ({every})"
            )
