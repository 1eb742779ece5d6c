"""TODO"""

from omni_lab.routing.baselines import (
    StaticRoute,
    at_cost,
    build_static_policies,
    matched_random,
    modality_subsets,
    oracle_choice,
    random_routes,
    search_static_routes,
    shuffle_routes,
)
from omni_lab.routing.route import ComputeLevel, CrossModalPath
