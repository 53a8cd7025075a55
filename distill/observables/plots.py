"""One picture of all curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from distill.observables.results import Observed

TITLES = {
    "rdf": "Radial distribution",
    "msd": "Mean squared displacement",
    "vdos": "Vibrational density of states",
}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def save_plot(path: Path, observed: list[Observed]) -> bool:
    """A panel for each kind of curves, with two standard errors; False if there are no curves."""
    kinds = [k for k in TITLES if any(n.startswith(k + " ") for o in observed for n in o.curves)]
    if not kinds:
        return False
    figure = Figure(figsize=(5.5 * len(kinds), 4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        names = [n for n in observed[0].curves if n.startswith(kind + " ")]
        for k, name in enumerate(names):
            color = COLORS[k % len(COLORS)]
            for one in observed:
                curve = one.curves[name]
                label = name.removeprefix(kind + " ") if one is observed[0] else None
                axes.plot(curve.x, curve.mean, color=color, linewidth=1, label=label)
                error = 2 * np.nan_to_num(curve.error)
                low, high = curve.mean - error, curve.mean + error
                axes.fill_between(curve.x, low, high, color=color, alpha=0.25, linewidth=0)
        axes.set(
            xlabel=curve.x_label,
            ylabel=curve.y_label,
            title=TITLES[kind],
            xlim=(0, curve.x[-1]),
            ylim=(0, None),
        )
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    return True
