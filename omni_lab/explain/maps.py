"""Explanation maps: how much an answer depends on each token of a modality, by several methods, one question at a time.

Tokens are cells of an image, spans of audio, and cells of video frames. What a method attributes to pixels or samples
is summed over the token that covers them.
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

INTEGRATION_STEPS = 16
WeightsAndGradient = tuple[Tensor, Tensor]  # attention weights, and gradient of the answer's logit: [H, Nq, Nk] each


class ExplanationError(ValueError):
    """A request that a method cannot explain."""


@dataclass(frozen=True)
class LayerAttention:
    """Attention of one fusion layer for one question."""

    cross_attention: dict[CrossModalPath, WeightsAndGradient]
    self_attention: dict[Modality, WeightsAndGradient]


@dataclass(frozen=True)
class AttentionTrace:
    """The attention of all fusion layers in one forward of one question."""

    logits: Float[Tensor, " a"]
    answer: int  # that the gradients explain
    question: Modality  # that carries the question
    layers: Sequence[LayerAttention]
    sizes: Mapping[Modality, int]  # number of tokens


def trace_attention(
    model: OmniModel, batch: OmniBatch, answer: int | None = None, *, route: Route | None = None
) -> AttentionTrace:
    """Records the attention weights of a forward of one question, and their gradients.

    answer: to explain; default the model's own.
    route: default all paths.
    """
    if len(batch) != 1:
        raise ExplanationError(f"one question is explained at a time: got {len(batch)}")
    with torch.no_grad():
        encoded = model.encode(batch, route)
    leaves = {m: t.with_values(t.values.detach().clone().requires_grad_()) for m, t in encoded.items()}
    with torch.enable_grad(), record_attention(model.fusion) as weights:
        output = model.fuse(leaves, heads=["answer"], route=route)
        logits = output.head_outputs["answer"][0]
        answer = int(logits.argmax()) if answer is None else answer
        if not 0 <= answer < len(logits):
            raise ExplanationError(f"answer must be from 0 to {len(logits) - 1}: got {answer}")
        gradients = torch.autograd.grad(logits[answer], [*weights.values()], allow_unused=True)
    layers = [LayerAttention({}, {}) for _ in cast(Any, model.fusion).layers]
    for (name, w), gradient in zip(weights.items(), gradients, strict=True):
        _, depth, kind, key, *_ = name.split(".")
        # weights that the answer does not depend on have no gradient
        pair = (w.detach()[0], torch.zeros_like(w[0]) if gradient is None else gradient[0])
        if kind == "cross":
            layers[int(depth)].cross_attention[CrossModalPath.from_string(key)] = pair
        elif kind == "blocks":
            layers[int(depth)].self_attention[Modality(key)] = pair
    mask = model.space.question_mask(batch.present)[0]
    question = next(m for m, carries_question in zip(Modality, mask, strict=True) if carries_question)
    sizes = {m: tokens.values.shape[1] for m, tokens in output.fusion.tokens.items()}
    return AttentionTrace(logits.detach(), answer, question, layers, sizes)


def attention_map(trace: AttentionTrace, modality: Modality, *, layer: int | None = None) -> Float[Tensor, " n"]:
    """Attention from the question's tokens to each token of a modality: the mean over layers (or of one), heads and the
    question's tokens. As in all maps of attention, what tokens tell the answer head directly is not in it."""
    _require(trace, modality)
    if layer is not None and not 0 <= layer < len(trace.layers):
        raise ExplanationError(f"layer must be from 0 to {len(trace.layers) - 1}: got {layer}")
    layers = trace.layers if layer is None else [trace.layers[layer]]
    path = CrossModalPath(trace.question, modality)
    maps = [one.cross_attention[path][0].mean((0, 1)) for one in layers if path in one.cross_attention]
    if not maps:
        raise ExplanationError(f"the question ({trace.question}) does not attend to {modality}")
    return torch.stack(maps).mean(0)


def _require(trace: AttentionTrace, modality: Modality) -> None:
    if modality not in trace.sizes:
        raise ExplanationError(f"there is no {modality} in this question: it has {[str(m) for m in trace.sizes]}")


def rollout_map(trace: AttentionTrace, modality: Modality) -> Float[Tensor, " n"]:
    """Attention rollout (Abnar and Zuidema 2020, eq. 1) over the tokens of all modalities together: the product over
    layers of attention matrices, each averaged with the identity for the residual stream; the mean over the rows of the
    question's tokens."""
    _require(trace, modality)
    slices, size = {}, 0
    for m, count in trace.sizes.items():
        slices[m] = slice(size, size + count)
        size += count
    rollout = identity = torch.eye(size)
    for layer in trace.layers:
        self_attention = {CrossModalPath(m, m): weights for m, weights in layer.self_attention.items()}
        for matrices in (layer.cross_attention, self_attention):
            attention = torch.zeros(size, size)
            for path, (weights, _) in matrices.items():
                attention[slices[path.query], slices[path.key]] += weights.mean(0)
            mass = attention.sum(1, keepdim=True)
            mixed = 0.5 * (identity + attention / mass.clamp(min=1e-12))
            rollout = torch.where(mass > 0, mixed, identity) @ rollout
    return rollout[slices[trace.question], slices[modality]].mean(0)


def relevance_map(trace: AttentionTrace, modality: Modality) -> Float[Tensor, " n"]:
    """Relevance propagation (Chefer et al. 2021), the mean over the question's tokens (the paper: class token).

    With A the mean over heads of the positive part of gradient times attention (eq. 5), self-attention adds A R (eq. 6
    and 7), and attention of s to q adds N(R_ss)^T A N(R_qq) to R_sq (eq. 8 to 10) and A R_qs to R_ss (eq. 11). Beyond
    the paper's two modalities, eq. 11 also holds for a third one, r, that q attended to: A R_qr is added to R_sr.
    """
    _require(trace, modality)
    sizes = trace.sizes
    relevance = {(s, q): torch.eye(n) if s is q else torch.zeros(n, sizes[q]) for s, n in sizes.items() for q in sizes}
    for layer in trace.layers:
        before = dict(relevance)  # all paths of a layer attend to its inputs
        for (s, q), (weights, gradient) in layer.cross_attention.items():
            attention = (weights * gradient).clamp(min=0).mean(0)
            relevance[s, q] = relevance[s, q] + _normalize(before[s, s]).T @ attention @ _normalize(before[q, q])
            for r in sizes:
                if r is not q:
                    relevance[s, r] = relevance[s, r] + attention @ before[q, r]
        for s, (weights, gradient) in layer.self_attention.items():
            attention = (weights * gradient).clamp(min=0).mean(0)
            for q in sizes:
                relevance[s, q] = relevance[s, q] + attention @ relevance[s, q]
    return relevance[trace.question, modality].mean(0)


def _normalize(relevance: Tensor) -> Tensor:
    """Eq. 8 and 9: the identity, plus what was added to it with rows that sum to one."""
    identity = torch.eye(len(relevance))
    added = relevance - identity
    return added / added.sum(1, keepdim=True).clamp(min=1e-12) + identity


class PerturbedModel(nn.Module):
    """Answer logits for variants of one modality's values, [V, ...] to [V, A]; other modalities are encoded once."""

    def __init__(self, model: OmniModel, batch: OmniBatch, modality: Modality) -> None:
        super().__init__()
        if len(batch) != 1:
            raise ExplanationError(f"one question is explained at a time: got {len(batch)}")
        require_modality(batch, modality)
        self.model = model
        self.modality = modality
        with torch.no_grad():
            encoded = model.encode(batch.without(modality)) if len(batch.inputs) > 1 else {}
        tokens = {m: t.expand_entries() for m, t in encoded.items()}
        inputs = {m: ModalityInput(t.values, t.mask, torch.zeros(1, dtype=torch.long)) for m, t in tokens.items()}
        original = batch.inputs[modality]
        entry = int(original.entry_index[0])
        self.values = original.values[entry : entry + 1]
        self.mask = original.mask[entry : entry + 1]
        inputs[modality] = replace(original, values=self.values, mask=self.mask)
        self._batch = replace(batch, inputs=inputs)

    def forward(self, values: Tensor) -> Tensor:
        count = len(values)
        shared = torch.zeros(count, dtype=torch.long)
        inputs = {m: replace(one, entry_index=shared) for m, one in self._batch.inputs.items()}
        values, mask = values.to(self.values.dtype), self.mask.expand(count, -1)
        inputs[self.modality] = ModalityInput(values, mask, torch.arange(count))
        batch = OmniBatch(
            inputs={m: inputs[m] for m in Modality if m in inputs},
            tasks=list(self._batch.tasks) * count,
            families=list(self._batch.families) * count,
            ids=[f"{self._batch.ids[0]}-{i}" for i in range(count)],
        )
        return cast(Tensor, self.model(batch, heads=["answer"]).head_outputs["answer"])


def require_modality(batch: OmniBatch, modality: Modality) -> None:
    """Raises ExplanationError for a question without the modality."""
    if not bool(batch.present[0, modality.column]):
        present = ", ".join(str(m) for m in Modality if bool(batch.present[0, m.column]))
        raise ExplanationError(f"{batch.ids[0]!r} has no {modality}: it has {present}")


def token_windows(model: OmniModel, modality: Modality, values: Tensor) -> list[tuple[slice, ...]]:
    """For each token of an image [1, 3, H, W] or audio [1, S], the part of the input that it covers."""
    encoder: Any = model.encoders[modality.value]
    if modality is Modality.IMAGE:
        (rows, columns), stride = encoder.grid, encoder.stride
        cells = [slice(i * stride, (i + 1) * stride) for i in range(max(rows, columns))]
        return [(slice(None), slice(None), cells[i], cells[j]) for i in range(rows) for j in range(columns)]
    if modality is Modality.AUDIO:
        span = encoder.samples_per_token
        return [(slice(None), slice(start, start + span)) for start in range(0, values.shape[1], span)]
    raise ExplanationError(f"modality must be image or audio: got {modality}")


def without_tokens(values: Tensor, windows: Sequence[tuple[slice, ...]], removed: Sequence[int]) -> Tensor:
    """The input with some tokens replaced: by the mean colour of the image, or by silence."""
    perturbed = values.clone()
    filling = values.float().mean((2, 3)).round().to(values.dtype)[:, :, None, None] if values.ndim == 4 else 0
    for token in removed:
        perturbed[windows[token]] = filling
    return perturbed


def integrated_gradients_map(perturbed: PerturbedModel, answer: int) -> Float[Tensor, " n"]:
    """Integrated gradients (Sundararajan et al. 2017, eq. 1) of patch embeddings or mel spectra, the baseline being the
    mean colour or silence; the sum of magnitudes per token."""
    windows = token_windows(perturbed.model, perturbed.modality, perturbed.values)
    encoder: Any = perturbed.model.encoders[perturbed.modality.value]
    is_image = perturbed.modality is Modality.IMAGE
    if not is_image and not hasattr(encoder.front, "mel"):
        raise ExplanationError("integrated gradients of audio need the mel front end")
    baseline = without_tokens(perturbed.values, windows, range(len(windows)))
    method = LayerIntegratedGradients(perturbed, encoder.swin.patch_embed if is_image else encoder.front.mel)
    attributions = method.attribute(perturbed.values, baseline, target=answer, n_steps=INTEGRATION_STEPS)
    magnitude = attributions.abs().sum(-1 if is_image else 1).detach()  # [1, h, w] or [1, frames]
    if is_image:
        return nn.functional.adaptive_avg_pool2d(magnitude, encoder.grid).flatten()
    span = round(encoder.seconds_per_token * 100)  # a mel spectrum every 10 ms, whatever the sample rate
    return torch.stack([part.sum() for part in magnitude[0].split(span)])[: len(windows)]


def occlusion_map(perturbed: PerturbedModel, answer: int) -> Float[Tensor, " n"]:
    """How much the answer's logit drops without each token (Zeiler and Fergus 2014)."""
    values = perturbed.values.float()
    windows = token_windows(perturbed.model, perturbed.modality, perturbed.values)
    baseline = without_tokens(perturbed.values, windows, range(len(windows))).float()
    sides = zip(windows[0][1:], values.shape[1:], strict=True)
    shape = tuple(size if part.stop is None else min(part.stop, size) for part, size in sides)
    count = len(windows)
    with torch.inference_mode():
        drops = Occlusion(perturbed).attribute(
            values, shape, strides=shape, baselines=baseline, target=answer, perturbations_per_eval=count
        )
    return torch.stack([drops[window].mean() for window in windows])


class _RandomCAM(RandomCAM):
    """With weights from torch's random state, so that a seed repeats it; the package uses NumPy's global state."""

    def get_cam_weights(self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any) -> Any:
        return torch.empty(grads.shape[:2]).uniform_(-1, 1).numpy()


def cam_map(perturbed: PerturbedModel, answer: int, method: Callable[..., Any] = GradCAM) -> Float[Tensor, " n"]:
    """Grad-CAM (Selvaraju et al. 2017), or another class activation map, of the image encoder's last stage."""
    if perturbed.modality is not Modality.IMAGE:
        raise ExplanationError(f"class activation maps are of images: got {perturbed.modality}")
    encoder: Any = perturbed.model.encoders[Modality.IMAGE.value]
    layers = [encoder.swin.norm]  # its output has the channels last
    with method(model=perturbed, target_layers=layers, reshape_transform=lambda x: x.permute(0, 3, 1, 2)) as cam:
        activation = cam(input_tensor=perturbed.values.float(), targets=[ClassifierOutputTarget(answer)])
    return nn.functional.adaptive_avg_pool2d(torch.from_numpy(activation).float(), encoder.grid).flatten()


METHODS = ("attention", "rollout", "relevance", "integrated gradients", "occlusion", "Grad-CAM", "random CAM")


def explain(
    model: OmniModel, batch: OmniBatch, modality: Modality, method: str, *, answer: int | None = None
) -> Float[Tensor, " n"]:
    """A map of one question by one of `METHODS`: a value per token, higher for more influence. Raises ExplanationError
    for a modality that the question or the method lacks. answer: to explain; default the model's own."""
    if method not in METHODS:
        raise ExplanationError(f"method must be one of {METHODS}: got {method!r}")
    require_modality(batch, modality)
    if method in ("attention", "rollout", "relevance"):
        trace = trace_attention(model, batch, answer)
        maps = {"attention": attention_map, "rollout": rollout_map, "relevance": relevance_map}
        return maps[method](trace, modality)
    perturbed = PerturbedModel(model, batch, modality)
    if answer is None:
        with torch.inference_mode():
            answer = int(perturbed(perturbed.values).argmax())
    if method == "integrated gradients":
        return integrated_gradients_map(perturbed, answer)
    if method == "occlusion":
        return occlusion_map(perturbed, answer)
    return cam_map(perturbed, answer, GradCAM if method == "Grad-CAM" else _RandomCAM)
