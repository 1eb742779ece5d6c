"""A panel for JupyterLab: ask, switch modalities off, change the budget; see what runs and what the answer uses."""

from __future__ import annotations

import contextlib
import html
import io
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from omni_lab.batch import SAMPLE_RATE, Modality, OmniBatch
from omni_lab.data.collate import Sample, collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.data.uploads import MAX_UPLOAD_BYTES, read_upload
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.explain.maps import ExplanationError, attention_map, relevance_map, rollout_map, trace_attention
from omni_lab.model import OmniModel
from omni_lab.routing.route import Route
from omni_lab.routing.router import Router
from omni_lab.viz.attention import outline_cells
from omni_lab.viz.routes import route_graph
from omni_lab.viz.style import HEAT, MODALITY_COLORS
from omni_lab.viz.worlds import filmstrip

MAPS = {"relevance": relevance_map, "attention": attention_map, "rollout": rollout_map}
MEDIA = {"picture": Modality.IMAGE, "clip": Modality.VIDEO, "sound": Modality.AUDIO}
LAYOUT: list[Any] = [["route"] * 3, ["answers", "picture", "sound"], ["clip"] * 3]


@dataclass(frozen=True)
class ExplorerView:
    """One forward pass.

    answers: the likeliest, with their probabilities.
    cost: fraction of the dense FLOPs, the router's own included.
    maps: a value per token of each modality that the question attends to.
    """

    batch: OmniBatch
    route: Route
    answers: Mapping[str, float]
    cost: float
    maps: Mapping[Modality, Tensor]


class Explorer:
    """Explores questions of a dataset, or the user's own, under any budget.

    router: must be conditioned on the penalty, so that it follows a budget; a budget of 1 runs everything.
    Raises ValueError for another router.
    """

    def __init__(self, model: OmniModel, router: Router, dataset: VQADataset) -> None:
        if not router.penalty_conditioned:
            raise ValueError("the explorer needs a router that follows a budget: recipe 'conditioned'")
        self.model = model.eval()
        self.router = router.eval()
        self.dataset = dataset
        self.costs = build_cost_model(model)
        self.min_budget = float(router.costs.min())

    def explore(
        self, sample: Sample, *, budget: float = 1.0, without: Collection[Modality] = (), kind: str = "relevance"
    ) -> ExplorerView:
        """Runs the model on a sample. without: modalities to leave out. kind: a key of `MAPS`. Raises ExplanationError
        for another kind, or if neither text nor audio remains."""
        if kind not in MAPS:
            raise ExplanationError(f"the map must be one of {[*MAPS]}: got {kind!r}")
        inputs = {m: values for m, values in sample.inputs.items() if m not in without}
        if not {Modality.TEXT, Modality.AUDIO} & inputs.keys():
            raise ExplanationError("a question needs text or audio: both are switched off")
        batch, space = collate([replace(sample, inputs=inputs)]), self.model.space
        counts, dense = self.costs.count_tokens(batch), space.dense(batch.present)
        with torch.no_grad():
            route = dense if budget >= 1 else self.model.select_route(self.router, batch, budget=budget)[0]
        spent = self.costs(space, route, counts).total + (self.router.flops if budget < 1 else 0)
        cost = float(spent.sum() / self.costs(space, dense, counts).total.sum())
        trace = trace_attention(self.model, batch, route=route)
        top = trace.logits.softmax(0).topk(3)
        names = [self.dataset.store.answers[i] for i in top.indices.tolist()]
        maps = {}
        for modality in trace.sizes:
            with contextlib.suppress(ExplanationError):  # nothing attends to it
                heat = MAPS[kind](trace, modality)
                if heat.any():
                    maps[modality] = heat
        return ExplorerView(batch, route, dict(zip(names, top.values.tolist(), strict=True)), cost, maps)

    def draw(self, view: ExplorerView, *, title: str = "") -> Figure:
        """The route, the answers, and every input with its map."""
        margins = {"left": 0.11, "right": 0.98, "top": 0.89, "bottom": 0.04, "hspace": 0.5, "wspace": 0.18}
        options: Any = {"figsize": (9.2, 7.2), "height_ratios": [2.7, 1.7, 1.1], "gridspec_kw": margins}
        # constrained layout takes longer than everything else
        figure, axes = plt.subplot_mosaic(LAYOUT, layout="none", **options)
        route_graph(self.model.space, view.route, axis=axes["route"], title=f"route: {view.cost:.0%} of the FLOPs")
        axes["answers"].barh([*view.answers], [*view.answers.values()], color=MODALITY_COLORS[Modality.TEXT])
        axes["answers"].invert_yaxis()
        axes["answers"].set(xlim=(0, 1), xlabel="probability", title=f"answer: {next(iter(view.answers))}")
        for name, modality in MEDIA.items():
            axis = axes[name]
            axis.set(xticks=[], yticks=[], title=name)
            axis.grid(False)
            if modality in view.batch.inputs:
                self._draw_input(axis, modality, view.batch.inputs[modality].values[0].numpy(), view.maps.get(modality))
            else:
                axis.text(0.5, 0.5, f"no {name}", ha="center", va="center", transform=axis.transAxes)
        figure.suptitle(title, x=0.545)
        return figure

    def _draw_input(self, axis: Axes, modality: Modality, values: np.ndarray, heat: Tensor | None) -> None:
        encoder: Any = self.model.encoders[modality.value]
        if modality is Modality.AUDIO:
            step = max(1, len(values) // 2000)
            shown = values[::step] / max(1e-9, float(np.abs(values).max()))
            times = np.arange(len(shown)) * step / SAMPLE_RATE
            axis.plot(times, shown, color=MODALITY_COLORS[modality], lw=0.5)
            axis.set(xlim=(0, len(values) / SAMPLE_RATE), xlabel="below: its map, dark is high")
        else:
            axis.imshow(filmstrip(values) if modality is Modality.VIDEO else values.transpose(1, 2, 0))
        if heat is None:
            return
        if modality is Modality.AUDIO:
            extent = (0, len(heat) * float(encoder.seconds_per_token), -1.7, -1.2)
            axis.imshow(heat[None], extent=extent, aspect="auto", cmap=f"{HEAT}_r")
            axis.set(ylim=(-1.7, 1))
            return
        height, width = values.shape[-2:]
        tiles = heat.reshape(-1, *np.broadcast_to(encoder.grid, 2)).numpy()  # a tile per frame
        for left, tile in zip(range(0, len(tiles) * (width + 1), width + 1), tiles, strict=True):
            outline_cells(axis, tile, (left - 0.5, left + width - 0.5, height - 0.5, -0.5), high=float(heat.max()))

    def _make_sample(self, index: int, question: str, uploads: Mapping[Modality, Tensor]) -> Sample:
        """A question of the dataset, its text and media replaced by what the user gave."""
        sample = self.dataset[index]
        inputs, keys = dict(sample.inputs), dict(sample.dedup_keys)
        if question:
            written = self.dataset.make_sample(question, int(self.dataset.image_rows[index]))
            inputs[Modality.TEXT], keys[Modality.TEXT] = written.inputs[Modality.TEXT], question
        inputs |= uploads
        keys = {m: key for m, key in keys.items() if m not in uploads}
        return replace(sample, inputs={m: inputs[m] for m in Modality if m in inputs}, dedup_keys=keys)

    def panel(self, *, first: int = 0) -> widgets.Widget:
        """The controls and the figure, which follows every control. first: index of the first question."""
        families = np.array(self.dataset.families)
        indices = {str(name): np.flatnonzero(families == name) for name in np.unique(families)}
        family = widgets.Dropdown(options=[*indices], value=self.dataset.families[first], description="kind")
        position = int(np.flatnonzero(indices[family.value] == first)[0])
        number = widgets.BoundedIntText(value=position, min=0, max=10**6, description="number")
        question = widgets.Text(placeholder="type a question", description="or ask", continuous_update=False)
        label = f"picture, GIF, sound (up to {MAX_UPLOAD_BYTES / 1e6:.0f} MB)"
        upload = widgets.FileUpload(accept="image/*,.wav,.flac", description=label, layout=widgets.Layout(width="auto"))
        bounds = {"min": round(self.min_budget + 0.01, 2), "max": 1.0, "step": 0.01}
        budget = widgets.FloatSlider(value=1.0, **bounds, description="budget", continuous_update=False)
        kind = widgets.Dropdown(options=[*MAPS], description="map")
        switches = {m: widgets.Checkbox(value=True, description=str(m), indent=False) for m in Modality}
        image = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        message = widgets.HTML()
        uploads: dict[Modality, Tensor] = {}

        def refresh(change: Any = None) -> None:
            start, rows = time.perf_counter(), indices[family.value]
            without = [m for m, switch in switches.items() if not switch.value]
            try:
                if change is not None and change["owner"] is upload:
                    shapes = self.dataset.store.shapes
                    uploads.update(read_upload(f["name"], bytes(f["content"]), shapes) for f in upload.value)
                sample = self._make_sample(int(rows[number.value % len(rows)]), question.value.strip(), uploads)
                view = self.explore(sample, budget=budget.value, without=without, kind=kind.value)
                figure = self.draw(view, title=str(sample.dedup_keys.get(Modality.TEXT, "(a spoken question)")))
            except ValueError as error:
                message.value = f"<b style='color:#a04000'>{html.escape(str(error))}</b>"
                return
            image.value = png(figure)
            plt.close(figure)
            message.value = f"<small>{1000 * (time.perf_counter() - start):.0f} ms</small>"

        for control in (family, number, question, upload, budget, kind, *switches.values()):
            control.observe(refresh, names="value")
        refresh()
        rows = [[family, number, question], [*switches.values(), upload], [budget, kind, message]]
        return widgets.VBox([*map(widgets.HBox, rows), image])


def png(figure: Figure) -> bytes:
    """The figure as PNG, at the resolution of a screen."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()
