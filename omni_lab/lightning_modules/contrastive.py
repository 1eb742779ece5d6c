"""EncoderAlignment: contrastive pre-training, so that one thing looks alike whichever modality it comes in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchaudio.functional import resample

from omni_lab.batch import SAMPLE_RATE, Modality, OmniBatch, Tokens
from omni_lab.build import build_encoders
from omni_lab.config.schema import ModelConfig, TrainingConfig
from omni_lab.encoders.audio import AudioEncoder
from omni_lab.layers.mel import N_MELS, LogMelSpectrogram
from omni_lab.lightning_modules.schedule import adamw_warmup_cosine, seed_step
from omni_lab.metrics.retrieval import recall_at_k
from omni_lab.model import encode_inputs
from omni_lab.worlds.contrastive_views import UNNAMED, UNWRITTEN


class ContrastiveModel(nn.Module):
    """Encoders whose tokens are compared as they are: the space that is aligned is the one that fusion works in.

    log_scales: [2], of the logits of whole samples and of tokens.
    """

    def __init__(self, config: ModelConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {m.value: encoder for m, encoder in build_encoders(config, vocab_size=vocab_size).items()}
        )
        self.reconstruction = TokenReconstruction(self.encoders, dim=config.dim)
        self.log_scales = nn.Parameter(torch.full((2,), math.log(1 / 0.07)))

    def forward(self, batch: OmniBatch) -> dict[Modality, Float[Tensor, "b w"]]:
        """A unit vector per sample and modality. Every sample must carry every modality of the batch."""
        return {m: pooled_embedding(tokens) for m, tokens in encode_inputs(self.encoders, batch).items()}


def unit_normalize(x: Float[Tensor, "... w"]) -> Float[Tensor, "... w"]:
    """Layer norm without weights, then length one."""
    return F.normalize(F.layer_norm(x, x.shape[-1:]), dim=-1)


def pooled_embedding(tokens: Tokens) -> Float[Tensor, "b w"]:
    """The largest value of each channel over a sample's tokens, as a unit vector."""
    return unit_normalize(tokens.max_pool())


def late_interaction(first: Tokens, second: Tokens) -> Float[Tensor, "b b"]:
    """How well the tokens of each sample of the one find those of each sample of the other: every token takes the
    cosine of its best match; the means over the tokens, there and back, are averaged (FILIP, Yao et al. 2022,
    eq. 4-5)."""
    first, second = first.expand_entries(), second.expand_entries()
    with torch.autocast(first.values.device.type, enabled=False):  # in half precision many matches would tie
        cosines = torch.einsum(
            "bnd,cmd->bcnm", unit_normalize(first.values.float()), unit_normalize(second.values.float())
        )
    there = cosines.masked_fill(~second.mask[None, :, None], -1.0).amax(dim=3)  # [B, B, N]
    back = cosines.masked_fill(~first.mask[:, None, :, None], -1.0).amax(dim=2)  # [B, B, M]
    there = (there * first.mask[:, None]).sum(2) / first.mask.sum(1)[:, None]
    return (there + (back * second.mask).sum(2) / second.mask.sum(1)) / 2


def contrastive_loss(logits: Float[Tensor, "n m"], right: Bool[Tensor, "n m"]) -> Float[Tensor, ""]:
    """Symmetric cross-entropy over the scaled similarities of two modalities (CLIP, Radford et al. 2021, figure 3);
    all that is right for a sample counts equally (supervised contrastive learning, Khosla et al. 2020, eq. 2). Every
    row and every column needs something right."""
    there, back = right.to(logits.dtype), right.T.to(logits.dtype)
    loss = F.cross_entropy(logits, there / there.sum(dim=1, keepdim=True))
    return (loss + F.cross_entropy(logits.T, back / back.sum(dim=1, keepdim=True))) / 2


def positive_pairs(
    targets: Mapping[str, Tensor], first: Modality, second: Modality
) -> tuple[Int[Tensor, " n"], Bool[Tensor, "n n"]]:
    """Which samples' views in two modalities can be compared, and which of the one are right for which of the other.

    A text is right for a sound if all that it says holds: the things that are named, or the question that is asked,
    and who speaks. Anything else is right for anything else if it is about the same things; a text or sound that names
    none is not compared. targets: see `ThingViews`.
    """
    things, (named, asked) = targets["thing"], targets["said"].unbind(1)
    if (first, second) == (Modality.TEXT, Modality.AUDIO):
        written, (told, heard) = targets["written"][:, None], targets["speaker"].unbind(1)
        words = (written == named) | (written == asked) | (written == UNWRITTEN)
        return torch.arange(len(things)), words & ((told[:, None] == heard) | (told[:, None] == UNWRITTEN))
    compared = torch.ones_like(things, dtype=torch.bool)
    if {first, second} & {Modality.TEXT, Modality.AUDIO}:
        compared &= named != UNNAMED
    if Modality.TEXT in (first, second):
        compared &= targets["written"] != UNWRITTEN
    kept = compared.nonzero().squeeze(1)
    return kept, things[kept, None] == things[kept]


class LitContrastive(L.LightningModule):
    """Draws the modalities of each sample together and different samples apart: the mean of `contrastive_loss` over
    pairs of modalities, once for samples summed up, which makes retrieval, and once for `late_interaction`, which makes
    each token say what it is itself about: where in a picture, and when in a sound. Added to that, `Sketches` keep what
    names do not say.

    Pictures and clips, the two with most tokens, meet token by token only through words.
    """

    columns: ClassVar = {
        "train loss": "train/loss",
        "validation loss": "validation/loss",
        "recall@1": "validation/recall_at_1",
    }

    def __init__(
        self, model: ContrastiveModel, config: TrainingConfig, *, reconstruction_weight: float = 3.0, seed: int = 0
    ) -> None:
        """sketch: weight of the sketches beside the contrast. Raises ValueError for a configuration that freezes what
        is to be aligned."""
        if config.frozen_encoders:
            raise ValueError(f"alignment trains all encoders: got frozen {config.frozen_encoders}")
        super().__init__()
        self.model = model
        self.sketch = reconstruction_weight
        self.config = config
        self.seed_value = seed
        self._views: list[tuple[Mapping[Modality, Tensor], Tensor]] = []

    def forward(self, batch: OmniBatch) -> Mapping[Modality, Tensor]:
        return self.model(batch)

    def _loss(self, batch: OmniBatch, streams: dict[Modality, Tokens]) -> Tensor:
        contrast = self._contrast(streams, batch.targets)
        return contrast + self.sketch * self.model.reconstruction(batch, streams)

    def _contrast(self, streams: Mapping[Modality, Tokens], targets: Mapping[str, Tensor]) -> Tensor:
        whole, part = self.model.log_scales.exp().clamp(max=100)
        sums = {m: pooled_embedding(tokens) for m, tokens in streams.items()}
        of_sums, of_tokens = [], []
        for a, b in itertools.combinations(sorted(streams, key=lambda m: m.column), 2):
            samples, right = positive_pairs(targets, a, b)
            if len(samples) == 0:
                continue
            samples, right = samples.to(whole.device), right.to(whole.device)
            with torch.autocast(whole.device.type, enabled=False):
                of_sums.append(contrastive_loss(whole * sums[a][samples].float() @ sums[b][samples].float().T, right))
            if {a, b} != {Modality.IMAGE, Modality.VIDEO}:
                found = late_interaction(streams[a].select(samples), streams[b].select(samples))
                of_tokens.append(contrastive_loss(part * found, right))
        return torch.stack(of_sums).mean() + (torch.stack(of_tokens).mean() if of_tokens else 0.0)

    def on_train_batch_start(self, batch: OmniBatch, batch_idx: int) -> None:
        seed_step(self, self.seed_value, batch_idx)

    def training_step(self, batch: OmniBatch, batch_idx: int) -> Tensor:
        loss = self._loss(batch, encode_inputs(self.model.encoders, batch))
        self.log("train/loss", loss, batch_size=len(batch), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: OmniBatch, batch_idx: int) -> None:
        streams = encode_inputs(self.model.encoders, batch)
        self.log("validation/loss", self._loss(batch, streams), batch_size=len(batch))
        self._views.append(({m: pooled_embedding(tokens) for m, tokens in streams.items()}, batch.targets["thing"]))

    def on_validation_epoch_end(self) -> None:
        """Each validation batch is one gallery: the mean over all ordered pairs of modalities."""
        pairs = [
            recall_at_k(1, views[a], views[b], labels, labels).mean()
            for views, labels in self._views
            for a, b in itertools.permutations(views, 2)
        ]
        self._views.clear()
        self.log("validation/recall_at_1", torch.stack(pairs).mean())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return adamw_warmup_cosine(self, self.config)


def embed(model: ContrastiveModel, batches: Sequence[OmniBatch]) -> tuple[dict[Modality, Tensor], Tensor]:
    """Unit vectors [n, W] per modality and the things [n] of all batches, in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        views = [model(batch) for batch in batches]
    things = torch.cat([batch.targets["thing"] for batch in batches])
    return {m: torch.cat([v[m] for v in views]) for m in views[0]}, things


WIDTHS = {Modality.IMAGE: 12, Modality.AUDIO: N_MELS, Modality.VIDEO: 48}  # numbers per token


class TokenReconstruction(nn.Module):
    """Reads a sketch off the tokens of pictures, sounds and clips, linearly, and says how far off it is.

    A cell of a picture: the colours of its four quarters. A cell of a frame: of its sixteen sixteenths. A stretch of
    sound: the mean log energy in each mel band. All scaled to a spread of about one.
    """

    def __init__(self, encoders: nn.ModuleDict, *, dim: int) -> None:
        super().__init__()
        known = {name: encoder for name, encoder in encoders.items() if name in WIDTHS}
        self.read = nn.ModuleDict({name: nn.Linear(dim, WIDTHS[Modality(name)]) for name in known})
        audio = known.get("audio")
        self.samples_per_token = round(audio.seconds_per_token * SAMPLE_RATE) if isinstance(audio, AudioEncoder) else 0
        self.input_rate = audio.sample_rate if isinstance(audio, AudioEncoder) else SAMPLE_RATE
        self.mel = LogMelSpectrogram()

    def forward(self, batch: OmniBatch, streams: dict[Modality, Tokens]) -> Float[Tensor, ""]:
        """Mean squared error over the real tokens, then over the modalities. streams: what `batch` was encoded as."""
        errors = []
        for modality in WIDTHS:
            if modality in streams:
                tokens = streams[modality]
                wanted = self._drawn(modality, batch.inputs[modality].values, tokens)
                off = (self.read[modality.value](tokens.values) - wanted).square().mean(dim=2)  # [U, N]
                errors.append((off * tokens.mask).sum() / tokens.mask.sum())
        return torch.stack(errors).mean()

    @torch.no_grad()
    def _drawn(self, modality: Modality, values: Tensor, tokens: Tokens) -> Float[Tensor, "u n w"]:
        count, length = tokens.mask.shape
        if modality is Modality.AUDIO:
            waves = values if self.input_rate == SAMPLE_RATE else resample(values, self.input_rate, SAMPLE_RATE)
            waves = F.pad(waves, (0, length * self.samples_per_token - waves.shape[1]))
            return F.adaptive_avg_pool1d(self.mel(waves), length).transpose(1, 2) / 4 + 1
        pictures = values.flatten(0, -4) / 255.0  # [U * F, 3, H, W]
        side = round((length * count / len(pictures)) ** 0.5)  # cells along an edge
        fine = round((WIDTHS[modality] / 3) ** 0.5)  # parts of a cell along an edge
        parts = F.adaptive_avg_pool2d(pictures, side * fine)
        cells = F.unfold(parts, fine, stride=fine).transpose(1, 2)  # [U * F, cells, 3 * fine * fine]
        return cells.reshape(count, length, -1) * 4 - 2
