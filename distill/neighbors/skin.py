"""Which skin is fastest: a wide one makes each step slower, a narrow one asks for more rebuilds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from distill.neighbors.device import REBUILD_FRACTION

SKINS = tuple(np.round(np.arange(0.2, 2.01, 0.1), 1).tolist())
"""Å, the skins to choose from."""


def cost_by_volume(
    cutoff: float, skins: tuple[float, float], costs: tuple[float, float]
) -> Callable[[float], float]:
    """The cost at any skin: a constant, and a part that grows as the sphere searched.

    Args:
        cutoff: Å.
        skins: Å, two of them, the smaller one first.
        costs: measured there, of a step or of a rebuild, in any unit. Where the cost at the wider
            skin is not the larger one, the mean is taken for both.
    """
    narrow, wide = ((cutoff + skin) ** 3 for skin in skins)
    slope = (costs[1] - costs[0]) / (wide - narrow)
    if not slope > 0:
        return lambda skin: 0.5 * (costs[0] + costs[1])
    return lambda skin: costs[0] + slope * ((cutoff + skin) ** 3 - narrow)


def choose_skin(
    step_cost: Callable[[float], float],
    rebuild_cost: Callable[[float], float],
    steps_per_rebuild: Callable[[float], float],
    speed: float,
    skins: Sequence[float] = SKINS,
) -> float:
    """The skin in Å at which a step costs least on the average.

    Args:
        step_cost: cost of a step without a rebuild, as a function of the skin in Å; measured or
            from `cost_by_volume`.
        rebuild_cost: the same for a rebuild, in the same unit.
        steps_per_rebuild: how many steps a list lasts, at least 1; infinite for atoms at rest.
        speed: largest way of an atom in a step, Å. Skins of which it takes more than a list leaves
            after the last check are left out, because a list must survive the step after it.
        skins: Å, to choose from.

    Raises:
        ValueError: a cost is negative, the speed is negative or not finite, or the atoms are too
            fast for all skins.
    """
    if not 0 <= speed < np.inf:
        raise ValueError(f"the speed must be a length in Å per step, not {speed}")
    allowed = [s for s in skins if speed <= (0.5 - REBUILD_FRACTION) * s]
    if not allowed:
        raise ValueError(
            f"atoms that move by {speed} Å in a step are too fast for skins up to "
            f"{max(skins, default=0.0)} Å; use a smaller timestep"
        )
    costs = [step_cost(s) + rebuild_cost(s) / steps_per_rebuild(s) for s in allowed]
    if not min(costs) >= 0:
        raise ValueError("costs must not be negative or NaN")
    return float(allowed[int(np.argmin(costs))])
