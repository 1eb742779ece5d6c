"""The penalty on cost that meets a budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def penalty_for_budget(budget: float, costs: NDArray[np.floating], penalties: NDArray[np.floating]) -> float:
    """The smallest penalty whose mean cost is within `budget`, a fraction of the dense cost.

    costs: [K], measured at each of `penalties` [K], which ascend.
    Raises ValueError if no penalty meets it.
    """
    ascending = np.minimum.accumulate(costs.astype(np.float64))[::-1]
    if not budget >= ascending[0] - 1e-6:  # costs are stored in float32
        raise ValueError(f"no penalty meets a budget of {budget:g} of the dense cost: the least is {ascending[0]:.3f}")
    return float(np.exp(np.interp(budget, ascending, np.log(penalties.astype(np.float64))[::-1])))
