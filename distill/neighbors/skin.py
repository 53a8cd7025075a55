"""Which skin is fastest: a wide one makes each step slower, a narrow one asks for more rebuilds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from distill.neighbors.device import REBUILD_FRACTION

SKINS = tuple(np.round(np.arange(0.2, 2.01, 0.1), 1).tolist())
"""Å, the skins to choose from."""


def cost_by_volume(cost: float, cutoff: float, skin: float) -> Callable[[float], float]:
    """The cost at any skin from the `cost` measured at `skin`: as the sphere searched grows.

    Args:
        cost: in any unit, of a step or of a rebuild.
        cutoff: Å.
        skin: Å.
    """
    return lambda other: cost * ((cutoff + other) / (cutoff + skin)) ** 3


def speed_of(skin: float, steps: float) -> float:
    """Å per step of the fastest atom, if lists with `skin` (Å) lasted for `steps` steps."""
    return REBUILD_FRACTION * skin / steps


def cost_per_step(skin: float, step_cost: float, rebuild_cost: float, speed: float) -> float:
    """Mean cost of a step with its share of the rebuilds, in the unit of the two costs.

    Args:
        skin: Å.
        step_cost: of a step without a rebuild.
        rebuild_cost: of a rebuild.
        speed: Å per step, of the fastest atom; atoms that vibrate or diffuse get along less far
            than that in many steps, so that lists last at least as long as is assumed here.
    """
    steps = max(REBUILD_FRACTION * skin / speed, 1.0) if speed > 0 else np.inf
    return step_cost + rebuild_cost / steps


def choose_skin(
    step_cost: Callable[[float], float],
    rebuild_cost: Callable[[float], float],
    speed: float,
    skins: Sequence[float] = SKINS,
) -> float:
    """The skin in Å at which a step costs least on the average.

    Args:
        step_cost: cost of a step without a rebuild, as a function of the skin in Å; measured or
            from `cost_by_volume`.
        rebuild_cost: the same for a rebuild, in the same unit.
        speed: Å per step, of the fastest atom; see `speed_of`.
        skins: Å, to choose from. Those that an atom could cross in one step are left out, because
            a list must survive the step after it was checked.

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
    costs = [cost_per_step(s, step_cost(s), rebuild_cost(s), speed) for s in allowed]
    if not min(costs) >= 0:
        raise ValueError("costs must not be negative or NaN")
    return float(allowed[int(np.argmin(costs))])
