"""TODO"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from omni_lab.batch import Modality
from omni_lab.data.collate import Sample
from omni_lab.fusion.early import align_by_time
from omni_lab.fusion.plan import Pair, _held_out_correlation, _signal


def canonical_correlation(samples: Sequence[Sample], pair: Pair, *, dims: int = 16, seed: int = 0) -> float:
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
