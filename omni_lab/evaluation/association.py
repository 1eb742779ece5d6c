"""How strongly two modalities are associated, from their raw signals; fusion plans follow from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omni_lab.batch import Modality, Tokens
from omni_lab.data.collate import Sample
from omni_lab.fusion.early import align_by_time
from omni_lab.fusion.plan import Pair
from omni_lab.layers.mel import LogMelSpectrogram


def canonical_correlation(samples: Sequence[Sample], pair: Pair, *, dims: int = 16, seed: int = 0) -> float:
    """First canonical correlation (Hotelling 1936) of two raw signals, fitted on one half of the samples, evaluated on
    the other, and averaged over both ways round: 1 for linearly equivalent signals, about 0 for independent ones.

    Two modalities with timestamps are compared moment by moment, as deviations from the mean of their sample, so that
    joint movement counts and constant content does not; others sample by sample.

    dims: principal components that are kept of each signal.
    """
    both = [s for s in samples if pair[0] in s.inputs and pair[1] in s.inputs]
    if len(both) < 10:
        raise ValueError(f"association needs at least ten samples with {pair[0]} and {pair[1]}: got {len(both)}")
    vocab_size = 1 + max((int(s.inputs[Modality.TEXT].max()) for s in both if Modality.TEXT in s.inputs), default=0)
    first, second, owner = [], [], []
    for number, sample in enumerate(both):
        one, other = (_raw_signal(m, sample.inputs[m], vocab_size) for m in pair)
        if one.times is not None and other.times is not None:
            mask = torch.ones(other.times.shape, dtype=torch.bool)
            aligned = align_by_time(one, other.times, mask, tolerance=0.1)
            x, y = aligned.values[aligned.mask], other.values[aligned.mask]
            x, y = x - x.mean(0), y - y.mean(0)
        else:
            x, y = one.values.mean(1), other.values.mean(1)
        first.append(x.double().numpy())
        second.append(y.double().numpy())
        owner.extend([number] * len(x))
    half = np.random.default_rng(seed).permutation(len(both))[np.array(owner)] < len(both) // 2
    signals = np.concatenate(first), np.concatenate(second)
    return float(np.mean([_held_out_correlation(*signals, fitted, dims) for fitted in (half, ~half)]))


def _held_out_correlation(x: np.ndarray, y: np.ndarray, fitted: np.ndarray, dims: int) -> float:
    """The first canonical correlation of x and y, found on the `fitted` rows and measured on the others."""
    x, y = _whiten(x, fitted, dims), _whiten(y, fitted, dims)
    left, _, right = np.linalg.svd(x[fitted].T @ y[fitted] / fitted.sum())
    u, v = x[~fitted] @ left[:, 0], y[~fitted] @ right[0]
    return float(np.corrcoef(u, v)[0, 1]) if u.std() > 0 and v.std() > 0 else 0.0


def _whiten(x: np.ndarray, fitted: np.ndarray, dims: int) -> np.ndarray:
    """[n, k], the first k <= dims principal components of the fitted rows, scaled to unit variance."""
    x = x - x[fitted].mean(0)
    _, scale, axes = np.linalg.svd(x[fitted], full_matrices=False)
    scale = scale / np.sqrt(fitted.sum())
    k = min(dims, int((scale > 1e-6 * max(scale[0], 1e-12)).sum()))
    return x @ axes[:k].T / scale[:k]


def _raw_signal(modality: Modality, values: Tensor, vocab_size: int) -> Tokens:
    """The raw signal of one sample's input, [1, N, D].

    Text: which token ids occur. Image: 8 x 8 mean colours. Audio: log-mel bands every 10 ms. Video: 16 x 16 mean grey
    values per frame, over two seconds.
    """
    times = None
    if modality is Modality.TEXT:
        signal = torch.bincount(values, minlength=vocab_size).clamp(max=1).float()[None]
    elif modality is Modality.IMAGE:
        signal = F.adaptive_avg_pool2d(values.float() / 255, 8).flatten()[None]
    elif modality is Modality.AUDIO:
        signal = LogMelSpectrogram()(F.pad(values, (0, -len(values) % 160))[None])[0].T  # [T, 64]
        times = (torch.arange(len(signal)) + 0.5) / 100
    else:
        signal = F.adaptive_avg_pool2d(values.float().mean(1) / 255, 16).flatten(1)
        times = (torch.arange(len(signal)) + 0.5) * 2.0 / len(signal)
    mask = torch.ones(1, len(signal), dtype=torch.bool)
    return Tokens(signal[None], mask, None if times is None else times[None])
