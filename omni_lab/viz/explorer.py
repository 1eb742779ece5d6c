"""A panel for JupyterLab: ask, take modalities away, turn the budget; see what runs and what the answer rests on."""

from __future__ import annotations

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
from matplotlib.figure import Figure
from torch import Tensor

from omni_lab.batch import Modality, OmniBatch
from omni_lab.data.collate import Sample, collate
from omni_lab.data.datamodule import VQADataset
from omni_lab.data.uploads import MAX_UPLOAD_BYTES, UploadError, read_upload
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.explain.maps import ExplanationError, attention_map, relevance_map, rollout_map, trace_attention
from omni_lab.model import OmniModel
from omni_lab.routing.route import Route
from omni_lab.routing.router import Router
from omni_lab.viz.routes import route_graph
from omni_lab.viz.style import HEAT, MODALITY_COLORS
from omni_lab.viz.worlds import filmstrip

MAPS = {"relevance": relevance_map, "attention": attention_map, "rollout": rollout_map}


@dataclass(frozen=True)
class ExplorerView:
    """One forward. answers: the likeliest, with their probabilities. cost: share of the FLOPs of running everything,
    the controller's own included. maps: a value per token of each modality that the question rests on."""

    batch: OmniBatch
    route: Route
    answers: Mapping[str, float]
    cost: float
    maps: Mapping[Modality, Tensor]


class Explorer:
    """Questions of a dataset, or one's own, under any budget.

    controller: conditioned, so that it follows a budget; a budget of 1 runs everything. Raises ValueError for another
    controller.
    """

    def __init__(self, model: OmniModel, controller: Router, dataset: VQADataset) -> None:
        if not controller.penalty_conditioned:
            raise ValueError("the explorer turns the budget: it wants a controller that follows one ('conditioned')")
        self.model = model.eval()
        self.router = controller.eval()
        self.dataset = dataset
        self.costs = build_cost_model(model)
        self.least = float(controller.costs.min())
        self.said: Sample = dataset[0]

    def explore(
        self, sample: Sample, *, budget: float = 1.0, without: Collection[Modality] = (), kind: str = "relevance"
    ) -> ExplorerView:
        """Raises ExplanationError for a kind of map that is not one of `MAPS`, and if nothing is left to go by."""
        if kind not in MAPS:
            raise ExplanationError(f"the map must be one of {[*MAPS]}: got {kind!r}")
        kept = {m: given for m, given in sample.inputs.items() if m not in without}
        if not {Modality.TEXT, Modality.AUDIO} & kept.keys():
            raise ExplanationError("a question must be read or heard: text and sound are both switched off")
        batch = collate([replace(sample, inputs=kept)])
        counts = self.costs.count_tokens(batch)
        dense = self.model.space.dense(batch.present)
        with torch.no_grad():
            route = dense if budget >= 1 else self.model.select_route(self.router, batch, budget=budget)[0]
        spent = self.costs(self.model.space, route, counts).total + (self.router.flops if budget < 1 else 0)
        seen = trace_attention(self.model, batch, route=route)
        likely = seen.logits.softmax(0).topk(3)
        names = self.dataset.store.answers
        answers = {names[i]: p for p, i in zip(likely.values.tolist(), likely.indices.tolist(), strict=True)}
        maps = {}
        for modality in seen.sizes:
            try:
                heat = MAPS[kind](seen, modality)
            except ExplanationError:  # nothing listens to it
                continue
            if heat.any():
                maps[modality] = heat
        everything = self.costs(self.model.space, self.model.space.dense(batch.present), counts).total
        return ExplorerView(batch, route, answers, float(spent.sum() / everything.sum()), maps)

    def draw(self, found: ExplorerView, *, title: str = "") -> Figure:
        """The route, the answers, and what is shown of each modality with its map."""
        figure, axes = plt.subplot_mosaic(
            [["route", "route", "answers"], ["picture", "clip", "clip"], ["picture", "sound", "sound"]],
            figsize=(10.5, 6.2),
            height_ratios=[2.1, 1, 0.8],
            layout="none",  # a constrained one takes longer than everything else
            gridspec_kw={"left": 0.01, "right": 0.97, "top": 0.87, "bottom": 0.06, "hspace": 0.45, "wspace": 0.3},
        )
        route_graph(self.model.space, found.route, axis=axes["route"], title=f"{found.cost:.0%} of the FLOPs")
        names = list(found.answers)
        axes["answers"].barh(names, list(found.answers.values()), color=MODALITY_COLORS[Modality.TEXT])
        axes["answers"].invert_yaxis()
        axes["answers"].set(xlim=(0, 1), xlabel="probability", title=names[0])
        self._media(axes, found)
        figure.suptitle(title)
        return figure

    def _media(self, axes: Mapping[str, Any], found: ExplorerView) -> None:
        given = {m: i.values[0].numpy() for m, i in found.batch.inputs.items()}
        for name in ("picture", "clip", "sound"):
            axes[name].set(xticks=[], yticks=[])
            axes[name].grid(False)
        for name, modality in (("picture", Modality.IMAGE), ("clip", Modality.VIDEO), ("sound", Modality.AUDIO)):
            if modality not in given:
                axes[name].text(0.5, 0.5, f"no {name}", ha="center", va="center", transform=axes[name].transAxes)
        if Modality.IMAGE in given:
            picture = given[Modality.IMAGE]
            axes["picture"].imshow(picture.transpose(1, 2, 0))
            if Modality.IMAGE in found.maps:
                side = self.model.encoders["image"].grid
                heat = found.maps[Modality.IMAGE].reshape(side).numpy()  # type: ignore[call-overload]
                extent = (0, picture.shape[2], picture.shape[1], 0)
                axes["picture"].imshow(heat, cmap=HEAT, alpha=0.55, extent=extent)
        if Modality.VIDEO in given:
            clip = given[Modality.VIDEO]
            axes["clip"].imshow(filmstrip(clip))
            if Modality.VIDEO in found.maps:
                side = self.model.encoders["video"].grid
                heat = found.maps[Modality.VIDEO].reshape(len(clip), side, side).numpy()  # type: ignore[call-overload]
                high, wide = clip.shape[2:]
                for place, tile in enumerate(heat):
                    left = place * (wide + 1)
                    extent = (left, left + wide, high, 0)
                    low, top = float(heat.min()), float(heat.max())
                    axes["clip"].imshow(tile, cmap=HEAT, alpha=0.55, extent=extent, vmin=low, vmax=top)
                axes["clip"].set(xlim=(0, len(clip) * (wide + 1)), ylim=(high, 0))
        if Modality.AUDIO in given:
            wave = given[Modality.AUDIO]
            seconds = len(wave) / 16_000
            axes["sound"].set(xlim=(0, seconds), xlabel="sound")
            if Modality.AUDIO in found.maps:
                heat = found.maps[Modality.AUDIO].numpy()[None]
                span = float(self.model.encoders["audio"].seconds_per_token)  # type: ignore[arg-type]
                extent = (0, heat.shape[1] * span, -1, 1)
                axes["sound"].imshow(heat, cmap=HEAT, alpha=0.55, extent=extent, aspect="auto")
            step = max(1, len(wave) // 2000)
            shown = wave[::step] / max(1e-9, float(np.abs(wave).max()))
            axes["sound"].plot(
                np.arange(len(shown)) * step / 16_000, shown, color=MODALITY_COLORS[Modality.AUDIO], lw=0.5
            )

    def _text(self, sample: Sample) -> str:
        text = sample.dedup_keys.get(Modality.TEXT)
        return str(text) if text is not None else "(a spoken question)"

    def panel(self, *, first: int = 0) -> widgets.Widget:
        """The controls and the picture; the picture changes with every control."""
        families = sorted({*self.dataset.families})
        places = {f: np.flatnonzero(np.array(self.dataset.families) == f) for f in families}
        family = widgets.Dropdown(options=families, value=self.dataset.families[first], description="kind")
        number = widgets.BoundedIntText(
            value=int(np.flatnonzero(places[family.value] == first)[0]), min=0, max=10**6, description="number"
        )
        own = widgets.Text(placeholder="type a question", description="or ask", continuous_update=False)
        limit = f"up to {MAX_UPLOAD_BYTES / 1e6:.0f} MB"
        upload = widgets.FileUpload(
            accept="image/*,.wav,.flac",
            description=f"picture, GIF, sound ({limit})",
            layout=widgets.Layout(width="auto"),
        )
        budget = widgets.FloatSlider(
            value=1.0,
            min=round(self.least + 0.01, 2),
            max=1.0,
            step=0.01,
            description="budget",
            continuous_update=False,
        )
        kind = widgets.Dropdown(options=[*MAPS], description="map")
        on = {m: widgets.Checkbox(value=True, description=str(m), indent=False) for m in Modality}
        image = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        said = widgets.HTML()
        uploaded: dict[Modality, Tensor] = {}

        def sample() -> Sample:
            chosen = places[family.value]
            asked = self.dataset[int(chosen[number.value % len(chosen)])]
            inputs, keys = dict(asked.inputs), dict(asked.dedup_keys)
            if own.value.strip():
                written = self.dataset.make_sample(own.value.strip(), int(self.dataset.image_rows[chosen[0]]))
                inputs[Modality.TEXT], keys[Modality.TEXT] = written.inputs[Modality.TEXT], own.value.strip()
            for modality, values in uploaded.items():
                inputs[modality] = values
                keys.pop(modality, None)
            return replace(asked, inputs={m: inputs[m] for m in Modality if m in inputs}, dedup_keys=keys)

        def refresh(_: Any = None) -> None:
            start = time.perf_counter()
            try:
                current = sample()
                without = [m for m, box in on.items() if not box.value]
                found = self.explore(current, budget=budget.value, without=without, kind=kind.value)
                figure = self.draw(found, title=self._text(current))
                image.value = png(figure)
                plt.close(figure)
                self.said = current
                said.value = f"<small>{1000 * (time.perf_counter() - start):.0f} ms</small>"
            except (ExplanationError, UploadError, ValueError) as error:
                said.value = f"<b style='color:#a04000'>{html.escape(str(error))}</b>"

        def take(change: Mapping[str, Any]) -> None:
            for one in change["new"]:
                try:
                    modality, values = read_upload(one["name"], bytes(one["content"]), self.dataset.store.shapes)
                    uploaded[modality] = values
                except UploadError as error:
                    said.value = f"<b style='color:#a04000'>{html.escape(str(error))}</b>"
                    return
            refresh()

        for control in (family, number, own, budget, kind, *on.values()):
            control.observe(refresh, names="value")
        upload.observe(take, names="value")
        refresh()
        rows = [
            widgets.HBox([family, number, own]),
            widgets.HBox([*on.values(), upload]),
            widgets.HBox([budget, kind, said]),
        ]
        return widgets.VBox([*rows, image])


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file, for the screen."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=80)
    return held.getvalue()
