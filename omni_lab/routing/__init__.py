"""Routing: what runs for each question, what that costs, and how a router learns it.

route.py            Route, the decisions for a batch; RouteSpace, all legal routes of a model
cost.py             CostModel: the FLOPs of a route
router.py           Router: the learned policy; it sees the question, not the encoders that it may skip
glance.py           what may be seen before any encoder runs
sequential.py       SequentialRouter: looks, decides, looks again and stops
cascade.py          confidence cascades: encoders in a fixed order, until an answer is confident
plan_router.py      PlanRouter: one decision among static routes, from the question and the glances
policy_gradient.py  advantages, loss and cost penalty that train it
baselines.py        what it must beat: static, random, matched and shuffled routes; the oracle
"""

from omni_lab.routing.baselines import (
    StaticRoute,
    at_cost,
    build_static_policies,
    load_static_policies,
    matched_random,
    modality_subsets,
    oracle_choice,
    random_routes,
    save_static_policies,
    search_static_routes,
    shuffle_routes,
)
from omni_lab.routing.route import ComputeLevel, CrossModalPath
