"""Contrastive pre-training of the encoders: the same thing gets similar tokens in whichever modality it comes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchaudio.functional import resample

from omni_lab.batch import SAMPLE_RATE, Modality, OmniBatch, Tokens
from omni_lab.build import build_encoders
from omni_lab.config.models import ModelConfig
from omni_lab.config.schema import TrainingConfig
from omni_lab.encoders.audio import AudioEncoder
from omni_lab.layers.mel import N_MELS, LogMelSpectrogram
from omni_lab.lightning_modules.base import SeededModule
from omni_lab.metrics.retrieval import recall_at_k
from omni_lab.model import encode_inputs
from omni_lab.worlds.contrastive_views import UNNAMED, UNWRITTEN


class ContrastiveModel(nn.Module):
    """Encoders without projection heads: the space that is aligned is the one that fusion works in.

    log_scales: [2], logarithms of the inverse temperatures of pooled embeddings and of tokens.
    """

    def __init__(self, config: ModelConfig, *, vocab_size: int) -> None:
        super().__init__()
        encoders = build_encoders(config, vocab_size=vocab_size)
        self.encoders = nn.ModuleDict({m.value: encoder for m, encoder in encoders.items()})
        self.reconstruction = TokenReconstruction(self.encoders, dim=config.dim)
        self.log_scales = nn.Parameter(torch.full((2,), math.log(1 / 0.07)))

    def forward(self, batch: OmniBatch) -> dict[Modality, Float[Tensor, "b w"]]:
        """A unit vector per sample and modality. Every sample must have every modality of the batch."""
        return {m: pooled_embedding(tokens) for m, tokens in encode_inputs(self.encoders, batch).items()}


def unit_normalize(x: Float[Tensor, "... w"]) -> Float[Tensor, "... w"]:
    """Layer norm without weights, then scaled to length one."""
    return F.normalize(F.layer_norm(x, x.shape[-1:]), dim=-1)


def pooled_embedding(tokens: Tokens) -> Float[Tensor, "b w"]:
    """A unit vector per sample: its tokens max-pooled and normalized."""
    return unit_normalize(tokens.max_pool())


def late_interaction(first: Tokens, second: Tokens) -> Float[Tensor, "b b"]:
    """Similarity of every sample of `first` to every sample of `second`: each token takes the cosine of its best match;
    these are averaged over the tokens, and then over both directions (FILIP, Yao et al. 2022, eq. 4-5)."""
    first, second = first.expand_entries(), second.expand_entries()
    with torch.autocast(first.values.device.type, enabled=False):  # in half precision many matches would tie
        units = unit_normalize(first.values.float()), unit_normalize(second.values.float())
        cosines = torch.einsum("bnd,cmd->bcnm", *units)  # [B, B, tokens of first, tokens of second]
    forward = cosines.masked_fill(~second.mask[None, :, None], -1.0).amax(dim=3)  # [B, B, tokens of first]
    backward = cosines.masked_fill(~first.mask[:, None, :, None], -1.0).amax(dim=2)  # [B, B, tokens of second]
    forward = (forward * first.mask[:, None]).sum(2) / first.mask.sum(1)[:, None]
    return (forward + (backward * second.mask).sum(2) / second.mask.sum(1)) / 2


def contrastive_loss(logits: Float[Tensor, "n m"], positives: Bool[Tensor, "n m"]) -> Float[Tensor, ""]:
    """Symmetric cross-entropy over scaled similarities of two modalities (CLIP, Radford et al. 2021, figure 3).

    A sample's positives count equally (supervised contrastive learning, Khosla et al. 2020, eq. 2). Every row and every
    column needs one.
    """
    rows, columns = positives.to(logits.dtype), positives.T.to(logits.dtype)
    loss = F.cross_entropy(logits, rows / rows.sum(dim=1, keepdim=True))
    return (loss + F.cross_entropy(logits.T, columns / columns.sum(dim=1, keepdim=True))) / 2


def positive_pairs(
    targets: Mapping[str, Tensor], first: Modality, second: Modality
) -> tuple[Int[Tensor, " n"], Bool[Tensor, "n n"]]:
    """The samples that two modalities are compared on, and which pairs of them are positives.

    A text is a positive for an audio if all its content holds there: the things that it names or the question that it
    asks, and the speaker. Other pairs of modalities are positives if they show the same things; a text or an audio that
    names none is not compared with images and videos. targets: see `ContrastiveViews`.
    """
    things, (named, asked) = targets["thing"], targets["said"].unbind(1)
    if (first, second) == (Modality.TEXT, Modality.AUDIO):
        written, (written_speaker, speaker) = targets["written"][:, None], targets["speaker"].unbind(1)
        same_words = (written == named) | (written == asked) | (written == UNWRITTEN)
        same_speaker = (written_speaker[:, None] == speaker) | (written_speaker[:, None] == UNWRITTEN)
        return torch.arange(len(things)), same_words & same_speaker
    compared = torch.ones_like(things, dtype=torch.bool)
    if {first, second} & {Modality.TEXT, Modality.AUDIO}:
        compared &= named != UNNAMED
    if Modality.TEXT in (first, second):
        compared &= targets["written"] != UNWRITTEN
    samples = compared.nonzero().squeeze(1)
    return samples, things[samples, None] == things[samples]


class LitContrastive(SeededModule):
    """Trains encoders with `contrastive_loss`, averaged over all pairs of modalities.

    The loss is taken twice: of pooled embeddings, for retrieval, and of `late_interaction`, so that each token encodes
    what is at its own place in an image or time in an audio. Images and videos, which have most tokens, are compared
    token by token only with text and audio. `TokenReconstruction` is added, to keep what names do not mention.
    """

    columns: ClassVar = {
        "train loss": "train/loss",
        "validation loss": "validation/loss",
        "recall@1": "validation/recall_at_1",
    }

    def __init__(
        self, model: ContrastiveModel, config: TrainingConfig, *, reconstruction_weight: float = 3.0, seed: int = 0
    ) -> None:
        """reconstruction_weight: weight of the reconstruction loss; the contrastive loss has weight 1.

        Raises ValueError if the configuration freezes encoders.
        """
        if config.frozen_encoders:
            raise ValueError(f"contrastive training trains all encoders: got frozen_encoders {config.frozen_encoders}")
        super().__init__(config, seed)
        self.model = model
        self.reconstruction_weight = reconstruction_weight
        self._embeddings: list[tuple[Mapping[Modality, Tensor], Tensor]] = []

    def _loss(self, batch: OmniBatch, tokens: dict[Modality, Tokens]) -> Tensor:
        contrastive = self._contrastive_loss(tokens, batch.targets)
        return contrastive + self.reconstruction_weight * self.model.reconstruction(batch, tokens)

    def _contrastive_loss(self, tokens: Mapping[Modality, Tokens], targets: Mapping[str, Tensor]) -> Tensor:
        pooled_scale, token_scale = self.model.log_scales.exp().clamp(max=100)
        pooled = {m: pooled_embedding(t) for m, t in tokens.items()}
        pooled_losses, token_losses = [], []
        for a, b in itertools.combinations(sorted(tokens, key=lambda m: m.column), 2):
            samples, positives = positive_pairs(targets, a, b)
            if len(samples) == 0:
                continue
            samples, positives = samples.to(pooled_scale.device), positives.to(pooled_scale.device)
            with torch.autocast(pooled_scale.device.type, enabled=False):
                logits = pooled_scale * pooled[a][samples].float() @ pooled[b][samples].float().T
                pooled_losses.append(contrastive_loss(logits, positives))
            if {a, b} != {Modality.IMAGE, Modality.VIDEO}:
                similarity = late_interaction(tokens[a].select(samples), tokens[b].select(samples))
                token_losses.append(contrastive_loss(token_scale * similarity, positives))
        return torch.stack(pooled_losses).mean() + (torch.stack(token_losses).mean() if token_losses else 0.0)

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        loss = self._loss(batch, encode_inputs(self.model.encoders, batch))
        self.log("train/loss", loss, batch_size=len(batch), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        tokens = encode_inputs(self.model.encoders, batch)
        self.log("validation/loss", self._loss(batch, tokens), batch_size=len(batch))
        self._embeddings.append(({m: pooled_embedding(t) for m, t in tokens.items()}, batch.targets["thing"]))

    def on_validation_epoch_end(self) -> None:
        """Logs recall@1 within each validation batch, averaged over all ordered pairs of modalities."""
        recalls = [
            recall_at_k(1, embeddings[a], embeddings[b], labels, labels).mean()
            for embeddings, labels in self._embeddings
            for a, b in itertools.permutations(embeddings, 2)
        ]
        self._embeddings.clear()
        self.log("validation/recall_at_1", torch.stack(recalls).mean())


def embed(model: ContrastiveModel, batches: Sequence[OmniBatch]) -> tuple[dict[Modality, Tensor], Tensor]:
    """Unit vectors [n, W] per modality, and labels [n] of the things, of all batches. Sets the model to eval mode."""
    model.eval()
    with torch.inference_mode():
        embeddings = [model(batch) for batch in batches]
    labels = torch.cat([batch.targets["thing"] for batch in batches])
    return {m: torch.cat([e[m] for e in embeddings]) for m in embeddings[0]}, labels


TARGET_DIMS = {Modality.IMAGE: 12, Modality.AUDIO: N_MELS, Modality.VIDEO: 48}  # values to reconstruct per token


class TokenReconstruction(nn.Module):
    """Linear reconstruction of a small version of the input from each token of images, audios and videos.

    Targets, scaled to a standard deviation of about one: of an image token the colours of the four quarters of its
    patch, of a video token those of its sixteen sixteenths, of an audio token the mean log energy in each mel band.
    """

    def __init__(self, encoders: nn.ModuleDict, *, dim: int) -> None:
        super().__init__()
        reconstructed = {name: encoder for name, encoder in encoders.items() if name in TARGET_DIMS}
        self.read = nn.ModuleDict({name: nn.Linear(dim, TARGET_DIMS[Modality(name)]) for name in reconstructed})
        audio = reconstructed.get("audio")
        self.samples_per_token = audio.samples_per_token if isinstance(audio, AudioEncoder) else 0
        self.sample_rate = audio.sample_rate if isinstance(audio, AudioEncoder) else SAMPLE_RATE
        self.mel = LogMelSpectrogram()

    def forward(self, batch: OmniBatch, tokens: dict[Modality, Tokens]) -> Float[Tensor, ""]:
        """Mean squared error, averaged over real tokens and then over modalities. tokens: the encoded `batch`."""
        losses = []
        for modality in TARGET_DIMS:
            if modality in tokens:
                encoded = tokens[modality]
                target = self._targets(modality, batch.inputs[modality].values, encoded)
                error = (self.read[modality.value](encoded.values) - target).square().mean(dim=2)  # [U, N]
                losses.append((error * encoded.mask).sum() / encoded.mask.sum())
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _targets(self, modality: Modality, values: Tensor, tokens: Tokens) -> Float[Tensor, "u n w"]:
        count, length = tokens.mask.shape
        if modality is Modality.AUDIO:
            waves = F.pad(values, (0, length * self.samples_per_token - values.shape[1]))
            waves = waves if self.sample_rate == SAMPLE_RATE else resample(waves, self.sample_rate, SAMPLE_RATE)
            return F.adaptive_avg_pool1d(self.mel(waves), length).transpose(1, 2) / 4 + 1
        images = values.flatten(0, -4) / 255.0  # [U * F, 3, H, W]
        grid = round((length * count / len(images)) ** 0.5)  # patches along an edge
        cells = round((TARGET_DIMS[modality] / 3) ** 0.5)  # cells of a patch along an edge
        colours = F.adaptive_avg_pool2d(images, grid * cells)
        patches = F.unfold(colours, cells, stride=cells).transpose(1, 2)  # [U * F, patches, 3 * cells * cells]
        return patches.reshape(count, length, -1) * 4 - 2
