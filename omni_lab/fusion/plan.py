"""Which modalities meet where: progressive fusion, from how strongly they are associated."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omni_lab.config import FusionConfig
from omni_lab.data.samples import Sample
from omni_lab.encoders import LogMel
from omni_lab.fusion.timing import align_by_time
from omni_lab.modalities import Modality, Tokens

Pair = tuple[Modality, Modality]  # in the order of Modality
CLOCKED = (Modality.AUDIO, Modality.VIDEO)


class Stage(enum.StrEnum):
    """EARLY: below the upper layers of an encoder, moment by moment. MID: by cross-modal attention, in both
    directions. LATE: only in the head."""

    EARLY = "early"
    MID = "mid"
    LATE = "late"


@dataclass(frozen=True)
class FusionPlan:
    """A stage for each pair of modalities. Only sound and clips, which share a clock, can meet early; raises ValueError
    for another pair that shall."""

    stages: Mapping[Pair, Stage]

    def __post_init__(self) -> None:
        for pair, stage in self.stages.items():
            if stage is Stage.EARLY and pair != CLOCKED:
                raise ValueError(f"only {CLOCKED} can meet early, as both have a clock: got {pair}")

    @classmethod
    def from_association(
        cls, measured: Mapping[Pair, float], *, question: Modality | None = None, early: float = 0.5, mid: float = 0.1
    ) -> FusionPlan:
        """measured: see `association`. early, mid: the least association of a pair that meets so soon. question: the
        modality that asks; it must be heard by all others whatever it is associated with, so it never meets them
        late."""
        stages = {}
        for pair, value in measured.items():
            stage = Stage.MID if value >= mid or question in pair else Stage.LATE
            stages[pair] = Stage.EARLY if value >= early and pair == CLOCKED else stage
        return cls(stages)

    def config(self, base: FusionConfig) -> FusionConfig:
        """Fusion that follows the plan, otherwise like `base`."""
        mid = [pair for pair, stage in self.stages.items() if stage is Stage.MID]
        paths = tuple(path for first, second in mid for path in ((first, second), (second, first)))
        return replace(base, early=self.stages.get(CLOCKED) is Stage.EARLY, paths=paths)


def association(samples: Sequence[Sample], pair: Pair, *, dims: int = 16, seed: int = 0) -> float:
    """How well the one modality tells the other, linearly: the first canonical correlation (Hotelling 1936) of the two
    raw signals, found on one half of the samples and measured on the other, both ways round, and averaged. 0 for
    signals that know nothing of each other (it may come out slightly below), 1 for those that say the same.

    Where both have a clock the signals are compared moment by moment, as deviations from their sample's mean: what
    moves together counts, not who is in the picture. Otherwise sample by sample. dims: principal components kept of
    each. Raises ValueError if fewer than ten samples have both.
    """
    both = [s for s in samples if pair[0] in s.inputs and pair[1] in s.inputs]
    if len(both) < 10:
        raise ValueError(f"association wants ten samples or more that have {pair[0]} and {pair[1]}: got {len(both)}")
    words = 1 + max((int(s.inputs[Modality.TEXT].max()) for s in both if Modality.TEXT in s.inputs), default=0)
    first, second, owner = [], [], []
    for number, sample in enumerate(both):
        one, other = (_signal(m, sample.inputs[m], words) for m in pair)
        if one.times is not None and other.times is not None:
            mask = torch.ones(other.times.shape, dtype=torch.bool)
            heard = align_by_time(one, other.times, mask, tolerance=0.1)
            x, y = heard.values[heard.mask], other.values[heard.mask]
            x, y = x - x.mean(0), y - y.mean(0)
        else:
            x, y = one.values.mean(1), other.values.mean(1)
        first.append(x.double().numpy())
        second.append(y.double().numpy())
        owner.extend([number] * len(x))
    half = np.random.default_rng(seed).permutation(len(both))[np.array(owner)] < len(both) // 2
    signals = np.concatenate(first), np.concatenate(second)
    return float(np.mean([_held_out_correlation(*signals, known, dims) for known in (half, ~half)]))


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
        mel = LogMel()(F.pad(medium, (0, -len(medium) % 160))[None])[0].T  # [T, 64]
        values, times = mel, (torch.arange(len(mel)) + 0.5) / 100
    else:
        values = F.adaptive_avg_pool2d(medium.float().mean(1) / 255, 16).flatten(1)
        times = (torch.arange(len(values)) + 0.5) * 2.0 / len(values)
    mask = torch.ones(1, len(values), dtype=torch.bool)
    return Tokens(values[None], mask, None if times is None else times[None])
