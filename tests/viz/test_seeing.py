"""Maps and routes as figures: they show what they are given, and refuse what does not fit."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.contour import QuadContourSet
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text

from omni_lab.batch import Modality
from omni_lab.routing.route import ComputeLevel, CrossModalPath, Route, RouteSpace
from omni_lab.viz.attention import map_over_text, map_over_video, maps_over_audio, maps_over_image
from omni_lab.viz.routes import route_graph, route_matrix
from omni_lab.viz.style import MODALITY_COLORS

TEXT, IMAGE, AUDIO, VIDEO = Modality
TI, TA, AI = CrossModalPath(TEXT, IMAGE), CrossModalPath(TEXT, AUDIO), CrossModalPath(AUDIO, IMAGE)
SPACE = RouteSpace(
    modalities=(TEXT, IMAGE, AUDIO),
    paths=(TI, TA, AI),
    depth=2,
    encoder_levels={IMAGE: tuple(ComputeLevel)},
    pruned_paths=((1, TA),),
)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def a_route(*opened: tuple[int, CrossModalPath], image: ComputeLevel = ComputeLevel.FULL, size: int = 1) -> Route:
    levels = torch.tensor([[ComputeLevel.FULL, image, ComputeLevel.SKIP, ComputeLevel.SKIP]] * size)
    interactions = torch.zeros(size, 2, 4, 4, dtype=torch.bool)
    for layer, path in opened:
        interactions[:, layer, path.query.column, path.key.column] = True
    return Route(levels, interactions)


def arrows(figure: plt.Figure, colour: str) -> list[FancyArrowPatch]:
    wanted = plt.matplotlib.colors.to_rgb(colour)
    found = [p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)]
    return [p for p in found if p.get_edgecolor()[:3] == pytest.approx(wanted)]


def test_open_paths_have_the_colour_of_who_is_listened_to() -> None:
    figure = route_graph(SPACE, a_route((0, TI), (1, TI)), title="a title")
    assert len(arrows(figure, MODALITY_COLORS[IMAGE])) == 2 and not arrows(figure, MODALITY_COLORS[AUDIO])
    assert figure.axes[0].get_title() == "a title"
    words = [t.get_text() for t in figure.axes[0].findobj(Text)]
    assert "image\nencoder" in words and "audio\nskipped" in words
    closed = len(arrows(figure, "#dddddd"))
    assert closed == 3 + 3, "three closed paths, one is taken out; and nobody hears from the skipped sound"


def test_thickness_is_how_often() -> None:
    both = Route.cat([a_route((0, TI), size=3), a_route(image=ComputeLevel.EARLY_EXIT)])
    (arrow,) = arrows(route_graph(SPACE, both), MODALITY_COLORS[IMAGE])
    (always,) = arrows(route_graph(SPACE, a_route((0, TI))), MODALITY_COLORS[IMAGE])
    assert 0.5 * always.get_linewidth() < arrow.get_linewidth() < always.get_linewidth()


def test_an_early_exit_is_dashed() -> None:
    figure = route_graph(SPACE, a_route(image=ComputeLevel.EARLY_EXIT))
    dashed = [p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch) and p.get_linestyle() == "--"]
    assert len(dashed) == 1 and "image\nearly exit" in [t.get_text() for t in figure.axes[0].findobj(Text)]


def test_the_matrix_holds_the_shares() -> None:
    routes = {
        "seeing": Route.cat([a_route((1, TI), size=3), a_route()]),
        "reading": a_route(image=ComputeLevel.SKIP, size=2),
    }
    figure = route_matrix(SPACE, routes, {"seeing": (TEXT, IMAGE)})
    shares = figure.axes[0].images[0].get_array()
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert shares is not None and shares.shape == (2, 3 + 2 * 3)
    assert shares[0, labels.index("text from image, 2")] == 0.75 and shares[0, labels.index("image")] == 1
    assert shares[1].tolist() == [1] + [0] * 8
    assert len(figure.axes[0].patches) == 2, "what is needed is framed"


def test_maps_over_a_picture_leave_it_as_it_is() -> None:
    picture = np.arange(3 * 16 * 16, dtype=np.uint8).reshape(3, 16, 16)
    heat = np.array([0.0, 0.0, 0.3, 1.0])
    figure = maps_over_image(picture, {"one": heat, "none": -heat}, (2, 2), title="what it rests on")
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == ["the picture", "one", "none"]
    assert all(np.array_equal(p.images[0].get_array(), picture.transpose(1, 2, 0)) for p in panels)
    assert not panels[2].collections, "nothing above zero"
    lines = panels[1].collections[-1]
    assert isinstance(lines, QuadContourSet)
    first, *_, last = (path.get_extents() for path in lines.get_paths())
    assert first.x0 < 0 and first.y0 > 6, "the lowest level goes around the lower two cells"
    assert last.x0 > 6 and last.y0 > 6, "the highest around one"
    with pytest.raises(ValueError, match="two: a map must have 4 values: got 3"):
        maps_over_image(picture, {"one": heat, "two": heat[:3]}, (2, 2))


def test_maps_over_a_sound_share_its_clock() -> None:
    figure = maps_over_audio(
        np.random.default_rng(0).normal(size=16_000), {"one": np.arange(5.0)}, 0.2, [("hot", 0.1, 0.4)]
    )
    top, strip = figure.axes
    assert top.get_xlim() == (0, 1) and strip.images[0].get_extent()[:2] == [0, 1]
    assert [t.get_text() for t in top.texts] == ["hot"] and strip.get_xlabel() == "time [s]"


def test_a_map_over_a_clip_and_a_text() -> None:
    clip = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    figure = map_over_video(clip, np.arange(12.0).reshape(3, 2, 2), seconds=1.5)
    assert [a.get_title() for a in figure.axes[:6] if a.get_title()] == ["0.25 s", "0.75 s", "1.25 s"]
    with pytest.raises(ValueError, match="a value for each of 3 frames"):
        map_over_video(clip, np.zeros((2, 2, 2)), seconds=1.5)
    figure = map_over_text(["where", "is", "it"], {"one": np.array([0.0, 2.0, 1.0]), "flat": np.ones(3)})
    blues = [p.get_facecolor()[0] for p in figure.axes[0].patches[:3]]
    assert blues[1] < blues[2] < blues[0], "the darker, the more"
