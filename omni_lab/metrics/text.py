"""Corpus metrics of generated texts against references, with bootstrap intervals: BLEU, chrF and error rates.

sacrebleu and rapidfuzz count the statistics of each text once; a resample only sums them up. In all functions `groups`
[n] labels dependent texts, as in `bootstrap_estimate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import BLEU, CHRF

from omni_lab.metrics.bootstrap import Estimate, bootstrap_estimate, proportion

Texts = Sequence[str]
References = Sequence[Sequence[str]]  # one or more valid texts for each prediction
Groups = np.ndarray | None

TOKENIZERS = {"en": "13a", "de": "13a", "zh": "zh"}  # of sacrebleu; "zh" splits Chinese into characters
UNITS = ("character", "word")


def bleu(
    predictions: Texts, references: References, language: str, *, groups: Groups = None, resamples: int
) -> Estimate:
    """Corpus BLEU-4 (Papineni et al. 2002), 0 to 1, on sacrebleu's tokens (Post 2018) in lower case, without smoothing:
    0 if no 4-gram matches. language: "en", "de" or "zh"; it chooses the tokenizer."""
    return bootstrap_estimate(_bleu, _bleu_counts(predictions, references, language), groups, resamples=resamples)


def bleu_gain(
    predictions: Texts, others: Texts, references: References, language: str, *, groups: Groups = None, resamples: int
) -> Estimate:
    """BLEU of `predictions` minus BLEU of `others`, by paired bootstrap (Koehn 2004): both use the same resamples."""
    sides = {"predictions": predictions, "others": others}
    counts = [_bleu_counts(texts, references, language, name) for name, texts in sides.items()]
    columns = np.concatenate(counts, axis=1)  # [n, 2 * 10]
    return bootstrap_estimate(lambda s: _bleu(s[:, :10]) - _bleu(s[:, 10:]), columns, groups, resamples=resamples)


def chrf(predictions: Texts, references: References, *, groups: Groups = None, resamples: int) -> Estimate:
    """Corpus chrF2 (Popović 2015), 0 to 1: character n-grams up to 6, in lower case and without spaces, so it needs no
    tokenizer. Of several references the best counts, text by text."""
    counts = _statistics(CHRF(lowercase=True, eps_smoothing=True), predictions, references, "predictions")
    lengths = np.array([len("".join(text.lower().split())) for text in predictions])
    counts[:, ::3] = np.maximum(lengths[:, None] - np.arange(6), 0)  # sacrebleu drops n-grams longer than the reference
    return bootstrap_estimate(_chrf, counts, groups, resamples=resamples)


def error_rate(predictions: Texts, references: Texts, *, unit: str, groups: Groups = None, resamples: int) -> Estimate:
    """Corpus error rate: insertions, deletions and substitutions over the length of the references; may exceed 1.

    unit: "character" (CER; a run of spaces counts as one) or "word" (WER). Case and punctuation count, so remove them
    before if they cannot be heard.

    Without errors, `high` is that of the `proportion` of texts (or groups) with errors. Raises ValueError if all
    references are empty.
    """
    counts = _error_counts(predictions, references, unit)
    estimate = bootstrap_estimate(lambda s: s[:, 0] / np.maximum(s[:, 1], 1.0), counts, groups, resamples=resamples)
    if estimate.value > 0:
        return estimate
    return estimate._replace(high=proportion(np.zeros(len(counts)), groups, resamples=resamples).high)


def error_ratio(
    predictions: Texts, others: Texts, references: Texts, *, unit: str, groups: Groups = None, resamples: int
) -> Estimate:
    """Errors in `predictions` over errors in `others`, by paired bootstrap as in `bleu_gain`; unit as in `error_rate`.
    No errors in `others` count as half an error, so that the ratio is finite."""
    sides = {"predictions": predictions, "others": others}
    counts = np.stack([_error_counts(texts, references, unit, name)[:, 0] for name, texts in sides.items()], axis=1)
    return bootstrap_estimate(lambda s: s[:, 0] / np.maximum(s[:, 1], 0.5), counts, groups, resamples=resamples)


def _check(predictions: Texts, references: References, name: str) -> None:
    if isinstance(predictions, str) or len(predictions) == 0 or len(predictions) != len(references):
        counts = f"{len(predictions)} and {len(references)}"
        raise ValueError(f"{name} and references must be equally many texts, at least one: got {counts}")
    wrong = [i for i, texts in enumerate(references) if isinstance(texts, str) or len(texts) == 0]
    if wrong:
        raise ValueError(f"references must list one or more texts for each prediction: not so at {wrong[:5]}")


def _statistics(metric: BLEU | CHRF, predictions: Texts, references: References, name: str) -> np.ndarray:
    """[n, K], as sacrebleu's own bootstrap extracts them."""
    _check(predictions, references, name)
    return np.array(metric._extract_corpus_statistics(predictions, [*zip_longest(*references)]), dtype=float)


def _bleu_counts(predictions: Texts, references: References, language: str, name: str = "predictions") -> np.ndarray:
    """[n, 10]: tokens, tokens of the reference nearest in length, matching n-grams [4], n-grams [4]."""
    if language not in TOKENIZERS:
        raise ValueError(f"language must be one of {[*TOKENIZERS]}: got {language!r}")
    return _statistics(BLEU(lowercase=True, tokenize=TOKENIZERS[language], force=True), predictions, references, name)


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Papineni et al. 2002, section 2.3. [R, 10] to [R]."""
    length, reference_length, matches, ngrams = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:]
    precision = np.where(matches > 0, matches, 1.0) / np.maximum(ngrams, 1.0)
    brevity = np.exp(np.minimum(0.0, 1 - reference_length / np.maximum(length, 1.0)))
    return brevity * np.exp(np.log(precision).mean(-1)) * (matches > 0).all(-1)


def _chrf(sums: np.ndarray) -> np.ndarray:
    """Mean F2 score over the orders of n-grams (Popović 2015, eq. 1). [R, 6 * 3] to [R]."""
    predicted, reference, matches = sums.reshape(len(sums), -1, 3).transpose(2, 0, 1)
    precision, recall = matches / np.maximum(predicted, 1.0), matches / np.maximum(reference, 1.0)
    return (5 * precision * recall / np.maximum(4 * precision + recall, 1e-16)).mean(-1)


def _error_counts(predictions: Texts, references: Texts, unit: str, name: str = "predictions") -> np.ndarray:
    """[n, 2]: errors, and length of the reference."""
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {UNITS}: got {unit!r}")
    _check(predictions, [[text] for text in references], name)
    pairs = [(a.split(), b.split()) for a, b in zip(predictions, references, strict=True)]
    if unit == "character":
        pairs = [(list(" ".join(a)), list(" ".join(b))) for a, b in pairs]
    counts = np.array([(Levenshtein.distance(a, b), len(b)) for a, b in pairs], dtype=float)
    if counts[:, 1].sum() == 0:
        raise ValueError(f"references must hold at least one {unit}: all {len(pairs)} are empty")
    return counts
