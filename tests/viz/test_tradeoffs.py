"""Fronts are labelled where they end, and shares are drawn as they are."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest

from omni_lab.viz.style import BASELINE_COLOR, METHOD_COLOR
from omni_lab.viz.tradeoffs import cost_accuracy_fronts, decision_maps


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def test_fronts_leave_out_what_is_dominated() -> None:
    policies = {"router": [(0.2, 0.9), (0.5, 0.8), (0.6, 0.95)], "static": [(0.3, 0.85), (1.0, 0.96)]}
    figure = cost_accuracy_fronts(policies, ours=["router"], close_up=((0.1, 0.8), (0.7, 1.0)))
    whole, close = figure.axes
    assert whole.lines[0].get_xydata().tolist() == [[0.2, 0.9], [0.6, 0.95]]
    assert [text.get_text() for text in close.texts] == ["static", "router"]
    assert close.texts[0].xy == pytest.approx((0.7, 0.85 + 0.11 * 4 / 7)), "where it leaves the close-up"
    assert close.texts[1].xy == pytest.approx((0.7, 0.95)), "at the edge, at the height of its end"
    crowded = {name: [(0.3, 0.9)] for name in "abcd"}
    _, close = cost_accuracy_fronts(crowded, ours=["a"], close_up=((0.1, 0.8), (0.7, 1.0))).axes
    heights = [text.get_position()[1] for text in close.texts]
    assert min(np.diff(heights)) > 0.05, "no label over another"
    high = {name: [(0.3, 0.99)] for name in "abcdef"}
    _, close = cost_accuracy_fronts(high, ours=["a"], close_up=((0.1, 0.8), (0.7, 1.0))).axes
    assert max(text.get_position()[1] for text in close.texts) <= 1.0 + 1e-9, "nor above the axis"
    assert close.get_xlim() == (0.1, 0.7)


def test_the_rest_is_grey_and_costs_may_be_logarithmic() -> None:
    policies = {"router": [(0.02, 0.9), (0.05, 0.91)], "static": [(0.03, 0.85), (0.3, 0.88)], "random": [(0.2, 0.5)]}
    window = ((0.01, 0.84), (0.1, 0.92))
    whole, close = cost_accuracy_fronts(policies, ours=["router"], close_up=window, rest=["static"], log_cost=True).axes
    colors = [line.get_color() for line in close.lines[:3]]
    assert colors[0] == METHOD_COLOR and colors[1] == BASELINE_COLOR and colors[2] not in colors[:2]
    assert whole.get_xscale() == close.get_xscale() == "log"
    assert [label.get_text() for label in close.get_xticklabels()] == ["0.01", "0.02", "0.05", "0.1"]
    left = {text.get_text(): text.xy[1] for text in close.texts}  # where lines leave the close-up
    assert left["static"] == pytest.approx(0.85 + 0.03 * np.log(0.1 / 0.03) / np.log(10)), "straight as it is drawn"
    assert [text.get_text() for text in whole.texts] == ["random"]


def test_maps_share_their_labels() -> None:
    shares = {"a": np.array([[0.0, 1.0], [0.5, 0.25]]), "b": np.zeros((2, 2))}
    figure = decision_maps(shares, ["low", "high"], ["quiet", "loud"], xlabel="sound", ylabel="picture")
    first = figure.axes[0]
    assert first.images[0].get_array().tolist() == shares["a"].tolist() and first.get_ylabel() == "picture"
    assert [label.get_text() for label in first.get_xticklabels()] == ["quiet", "loud"]
    assert [text.get_text() for text in first.texts] == ["0", "100", "50", "25"], "percent"
    shares["b"] = np.array([[np.nan, 0.1], [0.2, 0.3]])
    second = decision_maps(shares, ["low", "high"], ["quiet", "loud"], xlabel="sound", ylabel="picture").axes[1]
    assert [text.get_text() for text in second.texts] == ["", "10", "20", "30"]
