"""Settings of the observables of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ObservablesConfig:
    """What is measured beside the means of temperature, energies, density and pressure.

    Attributes:
        rdf: radial distribution functions of all pairs of elements (densities of distances where
            the system is not periodic).
        msd: mean squared displacements and self-diffusion coefficients.
        vdos: vibrational densities of states.
        gyration: radii of gyration of molecules.
        start: ps of equilibration left out.
        r_max: Å; by default half the smallest height of the cell, at most 10 Å.
        r_width: Å, of the bins of distances.
        rdf_interval: fs between frames for the RDF, to whole recorded frames.
        msd_interval: fs between frames for the MSD, to whole recorded frames.
        msd_window: ps, length of the pieces of the run from which displacements are taken. They
            are followed for half of it.
        msd_fit: part of the window from which and to which the diffusion coefficient is fitted.
        vdos_window: ps, length of the pieces of the run that are transformed: its inverse is the
            resolution, about 67 cm⁻¹ ps / window with the Hann window.
        fastest: cm⁻¹, of the vibrations that the recorded frames must resolve; by default 4400
            with hydrogen and 2500 without.
    """

    rdf: bool = False
    msd: bool = False
    vdos: bool = False
    gyration: bool = False
    start: float = 0.0
    r_max: float | None = None
    r_width: float = 0.05
    rdf_interval: float = 50.0
    msd_interval: float = 50.0
    msd_window: float = 10.0
    msd_fit: tuple[float, float] = (0.1, 0.5)
    vdos_window: float = 2.0
    fastest: float | None = None

    def __post_init__(self) -> None:
        for name in ("r_width", "rdf_interval", "msd_interval", "msd_window", "vdos_window"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be larger than zero, got {getattr(self, name)}")
        for name in ("r_max", "fastest"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be larger than zero, got {value}")
        if self.start < 0:
            raise ValueError(f"start must not be negative, got {self.start}")
        low, high = self.msd_fit
        if not 0 <= low < high <= 0.5:
            raise ValueError(f"msd_fit must lie between 0 and 0.5 of the window, got {low}, {high}")

    @property
    def fit(self) -> tuple[float, float]:
        """ps, first and last lag of the fit of diffusion coefficients."""
        return self.msd_fit[0] * self.msd_window, self.msd_fit[1] * self.msd_window
