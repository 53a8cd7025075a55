"""The unit contract: eV, Å, fs, K, amu inside `distill`; all else is converted at the border.

Lengths are in Å, energies in eV, forces in eV/Å, stress in eV/Å³ with ASE's sign
(stress = (1/V) dE/dstrain), times in fs, temperatures in K, masses in amu, pressures in GPa.
Constants are CODATA values as shipped by ASE.
"""

from __future__ import annotations

import ase.units

HARTREE = ase.units.Hartree
"""eV per Hartree."""

BOHR = ase.units.Bohr
"""Å per Bohr."""

BOLTZMANN = ase.units.kB
"""eV per K."""

GPA = ase.units.GPa
"""eV/Å³ per GPa."""

AMU_TO_EV_FS2_PER_ANG2 = 1.0 / ase.units.fs**2
"""eV fs²/Å² per amu: masses in this unit go with times in fs and energies in eV."""

ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "Ha": ase.units.Hartree,
    "Hartree": ase.units.Hartree,
    "kcal/mol": ase.units.kcal / ase.units.mol,
    "kJ/mol": ase.units.kJ / ase.units.mol,
    "Ry": ase.units.Rydberg,
}
"""eV per named energy unit."""

LENGTH_UNITS = {
    "Angstrom": 1.0,
    "Ang": 1.0,
    "Å": 1.0,
    "Bohr": ase.units.Bohr,
    "nm": ase.units.nm,
}
"""Å per named length unit."""


class UnitError(ValueError):
    """Units of an input are missing, unknown or mixed."""


def energy_factor(name: str) -> float:
    """eV in one energy unit called `name`; raises `UnitError` for an unknown name."""
    return _factor(name, ENERGY_UNITS, "energy")


def length_factor(name: str) -> float:
    """Å in one length unit called `name`; raises `UnitError` for an unknown name."""
    return _factor(name, LENGTH_UNITS, "length")


def _factor(name: str, table: dict[str, float], kind: str) -> float:
    if name not in table:
        raise UnitError(f"unknown {kind} unit {name!r}; known: {', '.join(sorted(table))}")
    return table[name]
