"""One palette and one look (Okabe and Ito 2008: distinguishable with colour blindness, in print and projected), and
elements that several figures share."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.font_manager import fontManager
from matplotlib.image import AxesImage
from matplotlib.patches import FancyBboxPatch

from omni_lab.batch import Modality

MODALITY_COLORS = {
    Modality.TEXT: "#0072B2",
    Modality.IMAGE: "#D55E00",
    Modality.AUDIO: "#009E73",
    Modality.VIDEO: "#CC79A7",
}
METHOD_COLOR = "#0072B2"
BASELINE_COLOR = "#8C8C8C"
HEAT = "magma"


@cache
def chinese_font() -> str | None:
    """Registers a Chinese font with matplotlib (Noto Sans CJK, from the optional package `mplfonts`) and returns its
    name; None without the package."""
    package = importlib.util.find_spec("mplfonts")  # not imported: it would change matplotlib's settings
    if package is None or package.origin is None:
        return None
    file = Path(package.origin).parent / "fonts" / "NotoSansCJKsc-Regular.otf"
    fontManager.addfont(file)
    bold = replace(fontManager.ttflist[-1], weight=700)  # the only weight: no warning for bold titles
    fontManager.ttflist.append(bold)
    return bold.name


def use_style() -> None:
    """Sets the look of all later figures."""
    fonts = ["DejaVu Sans", *filter(None, [chinese_font()])]  # the second for characters that the first lacks
    seaborn.set_theme(
        context="notebook",
        style="whitegrid",
        palette=list(MODALITY_COLORS.values()),
        rc={
            "font.family": fonts,
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
        },
    )


def text_box(axis: Axes, x: float, y: float, text: str, *, size: tuple[float, float], color: str, **box: Any) -> None:
    """A rounded box with centred text, which shrinks to fit where the limits of the axis are set before.

    x: left edge. y: vertical centre. color: of the text. box: look of the box.
    """
    (width, height), style = size, "round,pad=0,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch((x, y - height / 2), width, height, boxstyle=style, **box))
    corners = axis.transData.transform([(x, y), (x + width, y + height)])
    across, up = (corners[1] - corners[0]) * 72 / axis.figure.dpi  # points
    lines = text.split("\n")
    fontsize = min(10.5, across / (0.65 * max(1, *map(len, lines))), up / (1.4 * len(lines)))
    axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=fontsize, color=color)


def labelled_matrix(
    axis: Axes, matrix: np.ndarray, columns: Sequence[str], rows: Sequence[str], *, rotation: int = 60, **options: Any
) -> AxesImage:
    """A matrix as an image with a label for every column and row, from 0 to 1 in blue. options: of `imshow`."""
    defaults: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": 1, "aspect": "auto"}
    image = axis.imshow(matrix, **defaults | options)
    axis.set_xticks(range(len(columns)), columns, rotation=rotation, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(False)
    return image
