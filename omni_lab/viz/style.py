"""One palette and one look (Okabe and Ito 2008: distinguishable with colour-blindness, in print and projected)."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path

import seaborn
from matplotlib.font_manager import fontManager

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
    """The name of a font that has Chinese characters (Noto Sans CJK, from the optional package `mplfonts`), known to
    matplotlib from now on. None without the package."""
    package = importlib.util.find_spec("mplfonts")  # not imported: it would change matplotlib's settings
    if package is None or package.origin is None:
        return None
    file = Path(package.origin).parent / "fonts" / "NotoSansCJKsc-Regular.otf"
    fontManager.addfont(file)
    bold = replace(fontManager.ttflist[-1], weight=700)  # there is no other: titles need not be told so
    fontManager.ttflist.append(bold)
    return bold.name


def use_style() -> None:
    """Sets the look of all figures that follow."""
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
