"""One palette and one look (Okabe and Ito 2008: distinguishable with colour-blindness, in print and projected)."""

from __future__ import annotations

import seaborn

from omni_lab.modalities import Modality

COLOURS = {
    Modality.TEXT: "#0072B2",
    Modality.IMAGE: "#D55E00",
    Modality.AUDIO: "#009E73",
    Modality.VIDEO: "#CC79A7",
}
METHOD = "#0072B2"
CONTROL = "#8C8C8C"
HEAT = "magma"


def use_style() -> None:
    """Sets the look of all figures that follow."""
    seaborn.set_theme(
        context="notebook",
        style="whitegrid",
        palette=list(COLOURS.values()),
        rc={
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
        },
    )
