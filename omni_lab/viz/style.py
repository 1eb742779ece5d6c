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
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.image import AxesImage
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

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
PAGE_WIDTH = 928  # CSS pixels, of the column in which a page shows a figure


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


def smallest_text(figure: Figure, *, page_width: float = PAGE_WIDTH) -> float:
    """The size of a drawn figure's smallest text in CSS points, on a page where a figure that is wider than
    `page_width` CSS pixels is shrunk to it; infinite for a figure without text."""
    texts = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip()]
    shown = figure.dpi / 96 * min(1.0, page_width / (figure.get_figwidth() * figure.dpi))
    return min((float(text.get_fontsize()) * shown for text in texts), default=float("inf"))


def text_box(
    axis: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: tuple[float, float],
    color: str,
    largest: float = 10.5,
    **box: Any,
) -> None:
    """A rounded box with centred text, which shrinks to fit where the limits of the axis are set before.

    x: left edge. y: vertical centre. color: of the text. largest: size of text that has room. box: look of the box.
    """
    (width, height), style = size, "round,pad=0,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch((x, y - height / 2), width, height, boxstyle=style, **box))
    corners = axis.transData.transform([(x, y), (x + width, y + height)])
    across, up = (corners[1] - corners[0]) * 72 / axis.figure.dpi  # points
    lines = text.split("\n")
    fontsize = min(largest, across / (0.65 * max(1, *map(len, lines))), up / (1.4 * len(lines)))
    axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=fontsize, color=color)


def labelled_matrix(
    axis: Axes, matrix: np.ndarray, columns: Sequence[str], rows: Sequence[str], *, rotation: int = 60, **options: Any
) -> AxesImage:
    """A matrix as an image with a label for every column and row, from 0 to 1 in blue. options: of `imshow`."""
    defaults: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": 1, "aspect": "auto"}
    image = axis.imshow(matrix, **defaults | options)
    side = "right" if rotation else "center"
    axis.set_xticks(range(len(columns)), columns, rotation=rotation, ha=side, rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(False)
    return image
