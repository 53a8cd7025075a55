"""Distil large machine-learned interatomic potentials into small, fast, tested ones."""

__version__ = "0.1.0"
