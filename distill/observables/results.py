"""What was observed, as JSON and as arrays."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import DatasetError
from distill.observables.blocks import Estimate
from distill.observables.curves import Curve
from distill.observables.diffusion import Diffusion

FINITE_SIZE = (
    "of this box: the infinite liquid has 2.837 k T / (6 pi eta L) more "
    "(distill.observables.finite_size_correction)"
)


@dataclass(frozen=True)
class Observed:
    """Of one run, or of replicas that are runs of the same conditions.

    Attributes:
        replica: which one; None for all together.
        time: ps, of the first and the last frame.
        frames: of each replica.
        scalars: by name, with the unit as its last word: `density_g_per_cm3`.
        curves: `rdf O-H`, `msd O` and `vdos O`; the VDOS of all atoms is `vdos all`, of unit area.
        diffusion: by element.
        notes: what is missing and why.
    """

    replica: int | None
    time: tuple[float, float]
    frames: int
    scalars: dict[str, Estimate]
    curves: dict[str, Curve]
    diffusion: dict[str, Diffusion]
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """For JSON; None for what is not known."""
        return {
            "replica": self.replica,
            "time_ps": list(self.time),
            "frames": self.frames,
            "scalars": {name: _plain(asdict(e)) for name, e in self.scalars.items()},
            "diffusion_cm2_per_s": {
                element: _plain({**asdict(d), "finite_size": FINITE_SIZE})
                for element, d in self.diffusion.items()
            },
            "curves": {
                name: {
                    "x_label": curve.x_label,
                    "y_label": curve.y_label,
                    "n_blocks": len(curve.blocks),
                    "x": _numbers(curve.x),
                    "value": _numbers(curve.mean),
                    "error": _numbers(curve.error),
                }
                for name, curve in self.curves.items()
            },
            "notes": self.notes,
        }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """NaN is no JSON."""

    def known(value: Any) -> bool:
        return not isinstance(value, float) or bool(np.isfinite(value))

    return {name: value if known(value) else None for name, value in values.items()}


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.7g}") if np.isfinite(v) else None for v in values]


def save_observed(folder: Path, observed: list[Observed], settings: dict[str, Any]) -> None:
    """`observables.json` with `settings`, and all curves with their blocks in `observables.npz`.

    Both files are complete or as before, whatever happens meanwhile.
    """
    arrays: dict[str, Any] = {}
    for i, one in enumerate(observed):
        for name, curve in one.curves.items():
            arrays[f"{i}/{name}/x"] = curve.x
            arrays[f"{i}/{name}/blocks"] = curve.blocks
            arrays[f"{i}/{name}/labels"] = np.array([curve.x_label, curve.y_label])
    draft = folder / "observables.tmp"
    with draft.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(draft, folder / "observables.npz")
    record = {"settings": settings, "results": [one.record() for one in observed]}
    draft.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, folder / "observables.json")


def read_curves(path: str | Path) -> list[dict[str, Curve]]:
    """Curves by name, one dictionary for each `Observed`; for `overlap`.

    Raises:
        DatasetError: the file does not hold them.
    """
    found: dict[int, dict[str, Curve]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                index, name, part = key.split("/")
                if part == "x":
                    labels = [str(label) for label in archive[f"{index}/{name}/labels"]]
                    blocks = archive[f"{index}/{name}/blocks"]
                    found.setdefault(int(index), {})[name] = Curve(archive[key], blocks, *labels)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DatasetError(f"{path} does not hold the curves of observables ({error})") from error
    return [found[index] for index in sorted(found)]
