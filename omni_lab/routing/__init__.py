"""Routing: which encoders and which cross-modal paths run for which sample, at what cost, and who decides."""

from omni_lab.routing.route import Level, Path, Route, RouteError, RouteSpace, all_paths, open_rates

__all__ = ["Level", "Path", "Route", "RouteError", "RouteSpace", "all_paths", "open_rates"]
