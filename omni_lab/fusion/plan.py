"""Which modalities meet where: progressive fusion, from how strongly they are associated."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omni_lab.batch import Modality, Tokens
from omni_lab.config.schema import FusionConfig
from omni_lab.layers.mel import LogMelSpectrogram

Pair = tuple[Modality, Modality]  # in the order of Modality
TIMED_MODALITIES = (Modality.AUDIO, Modality.VIDEO)


class FusionStage(enum.StrEnum):
    """EARLY: below the upper layers of an encoder, moment by moment. MID: by cross-modal attention, in both
    directions. LATE: only in the head."""

    EARLY = "early"
    MID = "mid"
    LATE = "late"


@dataclass(frozen=True)
class FusionPlan:
    """A stage for each pair of modalities. Only sound and clips, which share a clock, can meet early; raises ValueError
    for another pair that shall."""

    stages: Mapping[Pair, FusionStage]

    def __post_init__(self) -> None:
        for pair, stage in self.stages.items():
            if stage is FusionStage.EARLY and pair != TIMED_MODALITIES:
                raise ValueError(f"only {TIMED_MODALITIES} can meet early, as both have a clock: got {pair}")

    @classmethod
    def from_association(
        cls, measured: Mapping[Pair, float], *, question: Modality | None = None, early: float = 0.5, mid: float = 0.1
    ) -> FusionPlan:
        """measured: see `association`. early, mid: the least association of a pair that meets so soon. question: the
        modality that asks; it must be heard by all others whatever it is associated with, so it never meets them
        late."""
        stages = {}
        for pair, value in measured.items():
            stage = FusionStage.MID if value >= mid or question in pair else FusionStage.LATE
            stages[pair] = FusionStage.EARLY if value >= early and pair == TIMED_MODALITIES else stage
        return cls(stages)

    def config(self, base: FusionConfig) -> FusionConfig:
        """Fusion that follows the plan, otherwise like `base`."""
        mid = [pair for pair, stage in self.stages.items() if stage is FusionStage.MID]
        paths = tuple(path for first, second in mid for path in ((first, second), (second, first)))
        return replace(base, early=self.stages.get(TIMED_MODALITIES) is FusionStage.EARLY, paths=paths)


def _held_out_correlation(x: np.ndarray, y: np.ndarray, known: np.ndarray, dims: int) -> float:
    x, y = _whitened(x, known, dims), _whitened(y, known, dims)
    left, _, right = np.linalg.svd(x[known].T @ y[known] / known.sum())
    u, v = x[~known] @ left[:, 0], y[~known] @ right[0]
    return float(np.corrcoef(u, v)[0, 1]) if u.std() > 0 and v.std() > 0 else 0.0


def _whitened(x: np.ndarray, known: np.ndarray, dims: int) -> np.ndarray:
    """[n, k], the first principal components of the known ones at unit variance; k at most `dims`."""
    x = x - x[known].mean(0)
    _, spread, axes = np.linalg.svd(x[known], full_matrices=False)
    spread = spread / np.sqrt(known.sum())
    kept = min(dims, int((spread > 1e-6 * max(spread[0], 1e-12)).sum()))
    return x @ axes[:kept].T / spread[:kept]


def _signal(modality: Modality, medium: Tensor, words: int) -> Tokens:
    """One sample's raw signal, [1, N, D]: which tokens a text has, a picture's 8 x 8 colours, a sound's log-mel bands
    every 10 ms, a clip's 16 x 16 grey values per frame (of two seconds)."""
    if modality is Modality.TEXT:
        values = torch.bincount(medium, minlength=words).clamp(max=1).float()[None]
        times = None
    elif modality is Modality.IMAGE:
        values = F.adaptive_avg_pool2d(medium.float() / 255, 8).flatten()[None]
        times = None
    elif modality is Modality.AUDIO:
        mel = LogMelSpectrogram()(F.pad(medium, (0, -len(medium) % 160))[None])[0].T  # [T, 64]
        values, times = mel, (torch.arange(len(mel)) + 0.5) / 100
    else:
        values = F.adaptive_avg_pool2d(medium.float().mean(1) / 255, 16).flatten(1)
        times = (torch.arange(len(values)) + 0.5) * 2.0 / len(values)
    mask = torch.ones(1, len(values), dtype=torch.bool)
    return Tokens(values[None], mask, None if times is None else times[None])
