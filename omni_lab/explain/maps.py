"""What an answer rests on: a value for each token of a modality, by several methods, of one question at a time.

Tokens are the common measure. A picture's are the cells of a grid, a sound's are spans of time, a clip's are tiles of
its frames; what a method says of pixels or samples is added up over the token that covers them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from captum.attr import LayerIntegratedGradients, Occlusion
from jaxtyping import Float
from pytorch_grad_cam import GradCAM, RandomCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from omni_lab.batch import Modality, ModalityInput, OmniBatch
from omni_lab.layers.attention import record_attention
from omni_lab.model import OmniModel
from omni_lab.routing.route import CrossModalPath, Route

STEPS = 16  # of integrated gradients


class ExplanationError(ValueError):
    """What cannot be explained, or not so: the message says what and why."""


@dataclass(frozen=True)
class LayerAttention:
    """What one layer of fusion did with one question. cross: weights [H, Nq, Nk] of each path; own: [H, N, N] of each
    modality that listens; both with their gradients, of the answer's logit."""

    cross: Mapping[CrossModalPath, tuple[Tensor, Tensor]]
    own: Mapping[Modality, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AttentionTrace:
    """One forward of one question, whole. logits: [A]. answer: the one explained. question: what carries the question.
    sizes: how many tokens each modality has."""

    logits: Float[Tensor, " a"]
    answer: int
    question: Modality
    layers: Sequence[LayerAttention]
    sizes: Mapping[Modality, int]

    def layer(self, place: int) -> LayerAttention:
        """Raises ExplanationError for a layer that does not exist."""
        if not 0 <= place < len(self.layers):
            raise ExplanationError(f"layer must be from 0 to {len(self.layers) - 1}: got {place}")
        return self.layers[place]


def trace_attention(
    model: OmniModel, batch: OmniBatch, answer: int | None = None, *, route: Route | None = None
) -> AttentionTrace:
    """The forward of one question, with the attention weights that made its answer. answer: which to explain; the
    model's own if not told. route: what runs (default everything). Raises ExplanationError for a batch of several, and
    for an answer that there is not."""
    if len(batch) != 1:
        raise ExplanationError(f"one question is explained at a time: got {len(batch)}")
    with torch.no_grad():
        encoded = model.encode(batch, route)
    held = {m: t.with_values(t.values.detach().clone().requires_grad_()) for m, t in encoded.items()}
    with torch.enable_grad(), record_attention(model.fusion) as weights:
        output = model.fuse(held, heads=["answer"], route=route)
        logits = output.head_outputs["answer"][0]
        answer = int(logits.argmax()) if answer is None else answer
        if not 0 <= answer < len(logits):
            raise ExplanationError(f"answer must be from 0 to {len(logits) - 1}: got {answer}")
        gradients = torch.autograd.grad(logits[answer], [*weights.values()], allow_unused=True)
    both = {
        name: (w.detach()[0], torch.zeros_like(w[0]) if g is None else g[0])  # what the head never hears of has none
        for (name, w), g in zip(weights.items(), gradients, strict=True)
    }
    layers = []
    for depth in range(len(cast(Any, model.fusion).layers)):
        cross, own = f"layers.{depth}.cross.", f"layers.{depth}.blocks."
        layers.append(
            LayerAttention(
                {CrossModalPath.from_string(n.split(".")[3]): both[n] for n in both if n.startswith(cross)},
                {Modality(n.split(".")[3]): both[n] for n in both if n.startswith(own)},
            )
        )
    carrier = next(
        m for m, carries in zip(Modality, model.space.question_mask(batch.present)[0], strict=True) if carries
    )
    sizes = {m: tokens.values.shape[1] for m, tokens in output.fusion.tokens.items()}
    return AttentionTrace(logits.detach(), answer, carrier, layers, sizes)


def attention_map(seen: AttentionTrace, modality: Modality, *, layer: int | None = None) -> Float[Tensor, " n"]:
    """How much the question listens to each token of a modality: the mean over layers, heads and the question's tokens.
    layer: of that one alone. What tokens say to the head directly is not in it."""
    _check(seen, modality)
    layers = seen.layers if layer is None else [seen.layer(layer)]
    path = CrossModalPath(seen.question, modality)
    maps = [one.cross[path][0].mean((0, 1)) for one in layers if path in one.cross]
    if not maps:
        raise ExplanationError(f"the question ({seen.question}) does not listen to {modality}")
    return torch.stack(maps).mean(0)


def _check(seen: AttentionTrace, modality: Modality) -> None:
    if modality not in seen.sizes:
        raise ExplanationError(f"there is no {modality} in this question: it has {[str(m) for m in seen.sizes]}")


def rollout_map(seen: AttentionTrace, modality: Modality) -> Float[Tensor, " n"]:
    """Attention rollout (Abnar and Zuidema 2020, eq. 1): attention matrices, each with half of the identity for the
    residual stream, multiplied through all layers, over the tokens of all modalities together; then the mean over the
    question's tokens. What tokens say to the head directly is not in it."""
    _check(seen, modality)
    places, size = _places(seen)
    rolled = torch.eye(size)
    for layer in seen.layers:
        for weights in (layer.cross, {CrossModalPath(m, m): w for m, w in layer.own.items()}):
            mixed = torch.zeros(size, size)
            for path, (w, _) in weights.items():
                mixed[places[path.query], places[path.key]] += w.mean(0)
            mass = mixed.sum(1, keepdim=True)
            rolled = (
                torch.where(mass > 0, 0.5 * (torch.eye(size) + mixed / mass.clamp(min=1e-12)), torch.eye(size)) @ rolled
            )
    return rolled[places[seen.question], places[modality]].mean(0)


def relevance_map(seen: AttentionTrace, modality: Modality) -> Float[Tensor, " n"]:
    """Gradient-weighted relevance (Chefer et al. 2021). With A-bar the mean over heads of what of gradient times
    attention is positive (eq. 5), self-attention adds A-bar R (eq. 6 and 7), co-attention of s over q adds
    normed(R_ss)^T A-bar normed(R_qq) to R_sq (eq. 8 to 10) and A-bar R_qs to R_ss (eq. 11). Ours: what q heard of a
    third modality r is handed on as in eq. 11, A-bar R_qr to R_sr; the paper has two. The map is the mean over the rows
    of the question's tokens, which stand for the paper's class token; what tokens say to the head directly is not in
    it."""
    _check(seen, modality)
    sizes = seen.sizes
    flow = {(s, q): torch.eye(n) if s is q else torch.zeros(n, sizes[q]) for s, n in sizes.items() for q in sizes}
    for layer in seen.layers:
        before = dict(flow)  # all paths of a layer listen to what was there before it
        for path, both in layer.cross.items():
            s, q = path
            seen_by = _positive(*both)
            flow[s, q] = flow[s, q] + _normed(before[s, s]).T @ seen_by @ _normed(before[q, q])
            for r in sizes:
                if r is not q:
                    flow[s, r] = flow[s, r] + seen_by @ before[q, r]
        for s, both in layer.own.items():
            mixed = _positive(*both)
            for q in sizes:
                flow[s, q] = flow[s, q] + mixed @ flow[s, q]
    return flow[seen.question, modality].mean(0)


def _positive(weights: Tensor, slope: Tensor) -> Tensor:
    return (weights * slope).clamp(min=0).mean(0)


def _normed(relevance: Tensor) -> Tensor:
    """Eq. 8 and 9: what was added to the identity, its rows summing to one, and the identity again."""
    eye = torch.eye(len(relevance))
    added = relevance - eye
    return added / added.sum(1, keepdim=True).clamp(min=1e-12) + eye


def _places(seen: AttentionTrace) -> tuple[dict[Modality, slice], int]:
    """Where each modality's tokens stand if all stand in one row."""
    places, start = {}, 0
    for modality, size in seen.sizes.items():
        places[modality] = slice(start, start + size)
        start += size
    return places, start


class PerturbedModel(nn.Module):
    """Scores for variants of one modality's input, all else the same and encoded once: values [V, ...] to [V, A]."""

    def __init__(self, model: OmniModel, batch: OmniBatch, modality: Modality) -> None:
        super().__init__()
        if len(batch) != 1:
            raise ExplanationError(f"one question is explained at a time: got {len(batch)}")
        require_modality(batch, modality)
        self.model = model
        self.modality = modality
        with torch.no_grad():
            encoded = model.encode(batch.without(modality)) if len(batch.inputs) > 1 else {}
        zero = torch.zeros(1, dtype=torch.long)
        kept = {m: ModalityInput(t.expand_entries().values, t.expand_entries().mask, zero) for m, t in encoded.items()}
        given = batch.inputs[modality]
        entry = int(given.entry_index[0])
        self.values = given.values[entry : entry + 1]
        self.mask = given.mask[entry : entry + 1]
        self._batch = replace(batch, inputs={**kept, modality: replace(given, values=self.values, mask=self.mask)})

    def forward(self, values: Tensor) -> Tensor:
        count = len(values)
        rows = {m: torch.zeros(count, dtype=torch.long) for m in self._batch.inputs}
        rows[self.modality] = torch.arange(count)
        inputs = {m: replace(given, entry_index=rows[m]) for m, given in self._batch.inputs.items()}
        given = ModalityInput(values.to(self.values.dtype), self.mask.expand(count, -1), rows[self.modality])
        batch = OmniBatch(
            inputs={m: given if m is self.modality else inputs[m] for m in Modality if m in inputs},
            tasks=list(self._batch.tasks) * count,
            families=list(self._batch.families) * count,
            ids=[f"{self._batch.ids[0]}-{i}" for i in range(count)],
        )
        return cast(Tensor, self.model(batch, heads=["answer"]).head_outputs["answer"])


def require_modality(batch: OmniBatch, modality: Modality) -> None:
    """Raises ExplanationError for a question without the modality, naming what it has."""
    if not bool(batch.present[0, modality.column]):
        has = ", ".join(str(m) for m in Modality if bool(batch.present[0, m.column]))
        raise ExplanationError(f"{batch.ids[0]!r} has no {modality}: it has {has}")


def token_windows(model: OmniModel, modality: Modality, values: Tensor) -> list[tuple[slice, ...]]:
    """Of each token of a picture [1, 3, H, W] or sound [1, S], the part of the input that it covers. Raises
    ExplanationError for another modality."""
    encoder: Any = model.encoders[modality.value]
    if modality is Modality.IMAGE:
        (down, across), stride = encoder.grid, encoder.stride
        cuts = [slice(i * stride, (i + 1) * stride) for i in range(max(down, across))]
        return [(slice(None), slice(None), cuts[i], cuts[j]) for i in range(down) for j in range(across)]
    if modality is Modality.AUDIO:
        span = round(encoder.seconds_per_token * encoder.sample_rate)
        return [(slice(None), slice(start, start + span)) for start in range(0, values.shape[1], span)]
    raise ExplanationError(f"windows are known of pictures and sounds: got {modality}")


def without_tokens(values: Tensor, windows: Sequence[tuple[slice, ...]], gone: Sequence[int]) -> Tensor:
    """The input without some tokens: a picture's mean colour stands in their place, or silence."""
    altered = values.clone()
    filling = values.float().mean((2, 3)).round().to(values.dtype)[:, :, None, None] if values.ndim == 4 else 0
    for place in gone:
        altered[windows[place]] = filling
    return altered


def integrated_gradients_map(altered: PerturbedModel, answer: int) -> Float[Tensor, " n"]:
    """Integrated gradients (Sundararajan et al. 2017, eq. 1), along a straight line of patch embeddings or mel spectra,
    from the mean colour or silence; the magnitudes of what each token covers, added up."""
    windows = token_windows(altered.model, altered.modality, altered.values)
    encoder: Any = altered.model.encoders[altered.modality.value]
    if altered.modality is Modality.IMAGE:
        layer = encoder.swin.patch_embed
    elif hasattr(encoder.front, "mel"):
        layer = encoder.front.mel
    else:
        raise ExplanationError("integrated gradients of sounds want the mel front end")
    baseline = without_tokens(altered.values, windows, range(len(windows)))
    gradients = LayerIntegratedGradients(altered, layer)
    found = gradients.attribute(altered.values, baseline, target=answer, n_steps=STEPS)
    size = (found.abs().sum(-1) if altered.modality is Modality.IMAGE else found.abs().sum(1)).detach()  # [1, (h,) w]
    if altered.modality is Modality.IMAGE:
        return nn.functional.adaptive_avg_pool2d(size, encoder.grid).flatten()
    span = round(encoder.seconds_per_token * 100)  # a mel spectrum every 10 ms
    return torch.stack([part.sum() for part in size[0].split(span)])[: len(windows)]


def occlusion_map(altered: PerturbedModel, answer: int) -> Float[Tensor, " n"]:
    """What the answer's logit loses when a token is taken away (Zeiler and Fergus 2014)."""
    windows = token_windows(altered.model, altered.modality, altered.values)
    parts, whole = windows[0][1:], altered.values.shape[1:]
    shape = tuple(size if part.stop is None else min(part.stop, size) for part, size in zip(parts, whole, strict=True))
    baseline = without_tokens(altered.values, windows, range(len(windows))).float()
    with torch.inference_mode():
        found = Occlusion(altered).attribute(
            altered.values.float(),
            shape,
            strides=shape,
            baselines=baseline,
            target=answer,
            perturbations_per_eval=len(windows),
        )
    return torch.stack([found[window].mean() for window in windows])


class _RandomCAM(RandomCAM):
    """Drawn from torch's random state, so that a seed repeats it; the package's own draws from NumPy's global one."""

    def get_cam_weights(self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any) -> Any:
        return torch.empty(grads.shape[:2]).uniform_(-1, 1).numpy()


def cam_map(altered: PerturbedModel, answer: int, method: Callable[..., Any] = GradCAM) -> Float[Tensor, " n"]:
    """Grad-CAM (Selvaraju et al. 2017) of the picture encoder's last stage; or another of the family."""
    if altered.modality is not Modality.IMAGE:
        raise ExplanationError(f"class activation maps are of pictures: got {altered.modality}")
    encoder: Any = altered.model.encoders[Modality.IMAGE.value]

    def channels_first(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)

    with method(model=altered, target_layers=[encoder.swin.norm], reshape_transform=channels_first) as cam:
        found = cam(input_tensor=altered.values.float(), targets=[ClassifierOutputTarget(answer)])
    return nn.functional.adaptive_avg_pool2d(torch.from_numpy(found).float(), encoder.grid).flatten()


METHODS = ("attention", "rollout", "relevance", "integrated gradients", "occlusion", "Grad-CAM", "random CAM")


def explain(
    model: OmniModel, batch: OmniBatch, modality: Modality, method: str, *, answer: int | None = None
) -> Float[Tensor, " n"]:
    """The map of one question by one of `METHODS`, a value per token, larger where more depends on it. answer: which to
    explain (default: the model's own). Raises ExplanationError for an unknown method, a question that lacks the
    modality, or a method that does not do it."""
    if method not in METHODS:
        raise ExplanationError(f"method must be one of {METHODS}: got {method!r}")
    require_modality(batch, modality)
    if method in ("attention", "rollout", "relevance"):
        seen = trace_attention(model, batch, answer)
        maps = {"attention": attention_map, "rollout": rollout_map, "relevance": relevance_map}
        return maps[method](seen, modality)
    altered = PerturbedModel(model, batch, modality)
    if answer is None:
        with torch.inference_mode():
            answer = int(altered(altered.values).argmax())
    if method == "integrated gradients":
        return integrated_gradients_map(altered, answer)
    if method == "occlusion":
        return occlusion_map(altered, answer)
    return cam_map(altered, answer, GradCAM if method == "Grad-CAM" else _RandomCAM)
