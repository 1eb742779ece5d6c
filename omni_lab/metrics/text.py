"""How good texts are that a model wrote, beside references: BLEU, chrF and error rates, each with an interval.

Counts are made by torchmetrics, text by text; what is resampled are the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchmetrics.text import CharErrorRate, CHRFScore, SacreBLEUScore, WordErrorRate

from omni_lab.metrics.bootstrap import Estimate, corpus_estimate, proportion_interval

TOKENIZERS = {"en": "13a", "de": "13a", "zh": "zh"}  # of SacreBLEU; Chinese by character
ORDER = 4  # of BLEU: up to four tokens in a row
CHARACTERS = 6  # of chrF
BETA = 2.0  # in chrF recall weighs twice as much
UNITS = ("character", "word")


def bleu(
    written: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str,
    *,
    groups: np.ndarray | None = None,
    resamples: int,
    seed: int = 0,
) -> Estimate:
    """BLEU-4 of a corpus (Papineni et al. 2002), 0 to 1, on SacreBLEU's tokens (Post 2018) in lower case, not smoothed:
    0 where nowhere four tokens in a row are right.

    references: of each text, all that would be right. language: "en", "de" or "zh". groups: [n], which texts stand or
    fall together, if any do. The interval resamples texts or groups (`corpus_estimate`).
    """
    counts = _bleu_counts(written, references, language)
    return corpus_estimate(counts, _bleu, groups, resamples=resamples, seed=seed)


def bleu_gain(
    written: Sequence[str],
    others: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str,
    *,
    groups: np.ndarray | None = None,
    resamples: int,
    seed: int = 0,
) -> Estimate:
    """How much higher the BLEU of `written` is than that of `others`, by paired bootstrap (Koehn 2004): both are judged
    on the same draws."""
    first, second = _bleu_counts(written, references, language), _bleu_counts(others, references, language, "others")
    counts = np.concatenate([first, second], axis=1)
    cut = first.shape[1]

    def gain(sums: np.ndarray) -> np.ndarray:
        return _bleu(sums[:, :cut]) - _bleu(sums[:, cut:])

    return corpus_estimate(counts, gain, groups, resamples=resamples, seed=seed)


def chrf(
    written: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    groups: np.ndarray | None = None,
    resamples: int,
    seed: int = 0,
) -> Estimate:
    """chrF2 of a corpus (Popović 2015), 0 to 1: up to six characters in a row, in lower case and without spaces, so it
    needs no words and is the same in every language. Of several references the best of each text counts."""
    _check(written, references)
    metric = CHRFScore(CHARACTERS, 0, BETA, lowercase=True)
    states = [f"total_{of}_char_{n}_grams" for of in ("preds", "target", "matching") for n in range(1, 7)]
    counts = _counts(metric, states, written, references)
    for i in (counts[:, 2 * CHARACTERS :].sum(1) == 0).nonzero()[0]:  # torchmetrics forgets references nobody came near
        known = references[i][0]
        counts[i, CHARACTERS : 2 * CHARACTERS] = _counts(metric, states, [known], [[known]])[0, :CHARACTERS]
    return corpus_estimate(counts, _chrf, groups, resamples=resamples, seed=seed)


def error_rate(
    written: Sequence[str],
    references: Sequence[str],
    *,
    unit: str,
    groups: np.ndarray | None = None,
    resamples: int,
    seed: int = 0,
) -> Estimate:
    """Insertions, deletions and substitutions over the length of the references, all texts together; above 1 where more
    is wrong than was to be written. unit: "character" (CER; spaces count, several as one) or "word" (WER). Case and
    punctuation count: take away first what nobody can hear. Where nothing is wrong, resampling knows no doubt: the
    interval then ends at the exact one of the share of texts (or groups) with errors (`share_interval`). Raises
    ValueError where the references are all empty."""
    counts = _error_counts(written, references, unit)
    found = corpus_estimate(counts, _rate, groups, resamples=resamples, seed=seed)
    if found.value > 0:
        return found
    alone = np.arange(len(counts)) if groups is None else groups
    return found._replace(high=proportion_interval(np.zeros(len(counts)), alone, resamples=resamples)[1])


def error_ratio(
    written: Sequence[str],
    others: Sequence[str],
    references: Sequence[str],
    *,
    unit: str,
    groups: np.ndarray | None = None,
    resamples: int,
    seed: int = 0,
) -> Estimate:
    """How many times as much is wrong in `written` as in `others`, by paired bootstrap as in `bleu_gain`; see
    `error_rate`. Where the others err nowhere, that counts as half an error, so that the ratio has a bound."""
    sides = {"written": written, "others": others}
    counts = np.stack([_error_counts(texts, references, unit, name)[:, 0] for name, texts in sides.items()], axis=1)

    def ratio(sums: np.ndarray) -> np.ndarray:
        return sums[:, 0] / np.maximum(sums[:, 1], 0.5)

    return corpus_estimate(counts, ratio, groups, resamples=resamples, seed=seed)


def _check(written: Sequence[str], references: Sequence[Sequence[str]], name: str = "written") -> None:
    if isinstance(written, str) or len(written) == 0 or len(written) != len(references):
        raise ValueError(
            f"{name} and references must be equally many texts, at least one: got {len(written)} and {len(references)}"
        )
    odd = [i for i, known in enumerate(references) if isinstance(known, str) or len(known) == 0]
    if odd:
        raise ValueError(f"references must list one or more texts for each text written: not so at {odd[:5]}")


def _counts(metric: Any, states: Sequence[str], written: Sequence[str], references: Sequence[Any]) -> np.ndarray:
    """[n, K] float64: the states of the metric after each text alone."""
    rows = []
    for text, known in zip(written, references, strict=True):
        metric.reset()
        metric.update([text], [known])
        rows.append(torch.cat([getattr(metric, state).reshape(-1) for state in states]))
    return torch.stack(rows).double().numpy()


def _error_counts(written: Sequence[str], references: Sequence[str], unit: str, name: str = "written") -> np.ndarray:
    """[n, 2]: errors, and units of the reference. name: what the texts are called in an error."""
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {UNITS}: got {unit!r}")
    _check(written, [[text] for text in references], name)
    texts, known = ([" ".join(text.split()) for text in side] for side in (written, references))
    metric = CharErrorRate() if unit == "character" else WordErrorRate()
    counts = _counts(metric, ["errors", "total"], texts, known)
    if counts[:, 1].sum() == 0:
        raise ValueError(f"references must hold at least one {unit}: all {len(known)} are empty")
    return counts


def _bleu_counts(
    written: Sequence[str], references: Sequence[Sequence[str]], language: str, name: str = "written"
) -> np.ndarray:
    """[n, 2 * ORDER + 2]: n-grams that are right, n-grams, and tokens of the text and of the nearest reference."""
    if language not in TOKENIZERS:
        raise ValueError(f"language must be one of {[*TOKENIZERS]}: got {language!r}")
    _check(written, references, name)
    metric = SacreBLEUScore(ORDER, tokenize=TOKENIZERS[language], lowercase=True)  # type: ignore[arg-type]
    # of two references equally near in length SacreBLEU takes the shorter, torchmetrics the first
    known = [sorted(texts, key=lambda text: len(metric.tokenizer(text))) for texts in references]
    return _counts(metric, ["numerator", "denominator", "preds_len", "target_len"], written, known)


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Papineni et al. 2002, section 2.3. [R, 2 * ORDER + 2] to [R]."""
    right, all_, length, wanted = sums[:, :ORDER], sums[:, ORDER:-2], sums[:, -2], sums[:, -1]
    precision = np.where(right > 0, right, 1.0) / np.maximum(all_, 1.0)
    brevity = np.exp(np.minimum(0.0, 1 - wanted / np.maximum(length, 1.0)))
    return brevity * np.exp(np.log(precision).mean(-1)) * (right > 0).all(-1)


def _chrf(sums: np.ndarray) -> np.ndarray:
    """The F scores of all lengths of n-grams, averaged (Popović 2015, eq. 1). [R, 3 * CHARACTERS] to [R]."""
    ours, theirs, both = np.split(sums, 3, axis=1)
    precision, recall = both / np.maximum(ours, 1.0), both / np.maximum(theirs, 1.0)
    below = np.maximum(BETA**2 * precision + recall, 1e-16)
    return ((1 + BETA**2) * precision * recall / below).mean(-1)


def _rate(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / np.maximum(sums[:, 1], 1.0)
