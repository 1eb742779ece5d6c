from __future__ import annotations

import math

import numpy as np
import pytest

from omni_lab.metrics.bootstrap import bootstrap_interval, proportion
from omni_lab.metrics.text import bleu, bleu_gain, chrf, error_rate, error_ratio

PREDICTIONS = ["a frog left of a key", "two frogs and a bus", "a red rose", "a key"]
REFERENCES = [
    ["a frog left of a key", "a key right of a frog"],
    ["a bus and two frogs", "two frogs and one bus"],
    ["a red rose above a bus", "a bus below a red rose"],
    ["a lion"],
]


def test_bleu_by_hand() -> None:
    """Four of five tokens are right, three of four pairs, two of three threes, one of two fours; as long as wanted."""
    found = bleu(["a b c d x"], [["a b c d e"]], "en", resamples=10)
    assert found.value == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert found.interval == (found.low, found.high) == pytest.approx((found.value, found.value)), "one text: no spread"
    shorter = bleu(["a b c d"], [["a b c d e"]], "en", resamples=10)
    assert shorter.value == pytest.approx(math.exp(1 - 5 / 4)), "all right, but brief"
    assert bleu(["a b c x"], [["a b c d"]], "en", resamples=10).value == 0, "no four in a row"
    assert bleu(["A B c D"], [["x", "a b C d"]], "de", resamples=10).value == 1, "case does not count"
    assert bleu(["一只青蛙"], [["一只青蛙"]], "zh", resamples=10).value == 1, "four characters, four tokens"
    assert bleu(["一只青蛙"], [["一只青蛙"]], "en", resamples=10).value == 0, "one token"


def test_bleu_is_that_of_torchmetrics_and_of_sacrebleu() -> None:
    from torchmetrics.text import SacreBLEUScore

    expected = float(SacreBLEUScore(tokenize="13a", lowercase=True)(PREDICTIONS, REFERENCES))
    found = bleu(PREDICTIONS, REFERENCES, "en", resamples=500)
    assert found.value == pytest.approx(expected) and 0 <= found.low < found.value < found.high <= 1
    # of references as near in length the shorter one counts, wherever it stands
    for known in (["a b c d", "a b c d e f"], ["a b c d e f", "a b c d"]):
        assert bleu(["a b c d e"], [known], "en", resamples=1).value == pytest.approx(1.0)


def test_the_interval_of_bleu_follows_groups() -> None:
    alone = bleu(PREDICTIONS, REFERENCES, "en", resamples=500)
    copies = bleu(PREDICTIONS * 5, REFERENCES * 5, "en", groups=np.tile(np.arange(4), 5), resamples=500)
    assert copies == pytest.approx(alone), "five copies of four texts are still four"
    careless = bleu(PREDICTIONS * 5, REFERENCES * 5, "en", resamples=500)
    assert careless.value == pytest.approx(alone.value) and careless.low > alone.low + 0.05


def test_the_gain_is_paired() -> None:
    others = ["a frog right of a key", *PREDICTIONS[1:]]
    same = bleu_gain(PREDICTIONS, PREDICTIONS, REFERENCES, "en", resamples=100)
    assert same == (0.0, 0.0, 0.0), "the same texts gain nothing, in any draw"
    better = bleu_gain(PREDICTIONS, others, REFERENCES, "en", resamples=500)
    expected = (
        bleu(PREDICTIONS, REFERENCES, "en", resamples=1).value - bleu(others, REFERENCES, "en", resamples=1).value
    )
    assert better.value == pytest.approx(expected) and better.value > 0 and better.low <= better.value <= better.high
    worse = bleu_gain(others, PREDICTIONS, REFERENCES, "en", resamples=500)
    assert worse.value == -better.value and worse.interval == pytest.approx((-better.high, -better.low))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([*"abcde"], 8)) for _ in range(40)]
    known = [[text] for text in texts]
    spoilt = [text[:-1] + "x" for text in texts]
    assert bleu_gain(texts, spoilt, known, "en", resamples=300).low > 0, "each loses its last token"


def test_chrf_by_hand() -> None:
    """ab against ac: of single characters one of two is right, of pairs none; longer there are none."""
    assert chrf(["a B"], [["ac"]], resamples=10).value == pytest.approx(0.5 / 6)
    assert chrf(["一只 青蛙 one"], [["x", "一只青蛙ONE"]], resamples=10).value == pytest.approx(1.0)
    # recall weighs twice: 3 of 3 characters are right, of 6 wanted; 2 of 5 pairs, 1 of 4 threes
    recalls = [3 / 6, 2 / 5, 1 / 4, 0, 0, 0]
    expected = np.mean([5 * r / (4 + r) if r else 0.0 for r in recalls])
    assert chrf(["abc"], [["abcdef"]], resamples=10).value == pytest.approx(expected)


def test_chrf_is_that_of_torchmetrics_where_it_counts_what_was_missed() -> None:
    from torchmetrics.text import CHRFScore

    metric = CHRFScore(n_word_order=0, lowercase=True)
    found = chrf(PREDICTIONS, REFERENCES, resamples=300)
    assert found.value == pytest.approx(float(metric(PREDICTIONS, REFERENCES))) and found.low < found.value < found.high
    missed = chrf(["", *PREDICTIONS[1:]], REFERENCES, resamples=10)
    assert missed.value < chrf(PREDICTIONS[1:], REFERENCES[1:], resamples=10).value - 0.05, (
        "to write nothing is not free"
    )


def test_error_rates_by_hand() -> None:
    written, known = ["a frg", "the key  is red"], ["a frog", "a key is red"]
    words = error_rate(written, known, unit="word", resamples=500)
    assert words.value == pytest.approx(2 / 6), "one of two words, one of four"
    assert words.interval == pytest.approx((1 / 4, 1 / 2)), "either text alone"
    letters = error_rate(written, known, unit="character", resamples=500)
    assert letters.value == pytest.approx((1 + 3) / (6 + 12)), "o is missing; a becomes the; spaces are one"
    assert error_rate([""], ["a b"], unit="word", resamples=1).value == 1.0
    assert error_rate(["a b c d"], ["a"], unit="word", resamples=1).value == 3.0, "more can be wrong than there is"
    assert error_rate(["x", "a"], ["", "a"], unit="word", resamples=1).value == 1.0, "of nothing, something"
    none = error_rate(["a b"] * 30, ["a b"] * 30, unit="word", resamples=10)
    assert none.value == none.low == 0 and none.high == pytest.approx(1 - 0.025 ** (1 / 30)), "as in `proportion`"
    errors, lengths = np.array([1.0, 0.0, 2.0]), np.array([2, 2, 2])
    three = error_rate(["a x", "a b", "x y"], ["a b"] * 3, unit="word", resamples=200)
    assert three.interval == pytest.approx(bootstrap_interval(errors / lengths, np.arange(3), resamples=200))


def test_the_ratio_of_errors_is_paired() -> None:
    known = ["a b", "c d e", "f", "g h"]
    mine, other = ["x b", "x x e", "f", "g h"], ["x b", "c d x", "x", "g h"]
    found = error_ratio(mine, other, known, unit="word", resamples=500)
    assert found.value == pytest.approx(3 / 3) and found.low < 1 < found.high
    twice = error_ratio(["x b", "x x e"], ["x b", "x x e"], ["a b", "c d e"], unit="word", resamples=200)
    assert twice == (1.0, 1.0, 1.0), "the same errors, in any draw"
    letters = error_ratio(["ab"], ["ad"], ["cd"], unit="character", resamples=10)
    assert letters.value == 2.0 == letters.low == letters.high
    none = error_ratio(["x", "a"], ["a", "a"], ["a", "a"], unit="word", resamples=300)
    assert none.value == 2.0 and none.interval == (0.0, 4.0), "one against half an error; at most two"


def test_proportions() -> None:
    hits, groups = np.array([1.0, 1.0, 0.0, 1.0]), np.array([0, 0, 1, 1])
    found = proportion(hits, groups, resamples=100)
    assert found.value == 0.75 and found.interval == bootstrap_interval(hits, groups, resamples=100)
    assert proportion(hits, resamples=100).interval == bootstrap_interval(hits, np.arange(4), resamples=100)
    assert proportion(np.ones(30), resamples=10).low == pytest.approx(0.025 ** (1 / 30))
    with pytest.raises(ValueError, match="hits must not be empty"):
        proportion(np.array([]), resamples=10)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"language must be one of \['en', 'de', 'zh'\]: got 'fr'"):
        bleu(["a"], [["a"]], "fr", resamples=10)
    with pytest.raises(ValueError, match="equally many texts, at least one: got 2 and 1"):
        bleu(["a", "b"], [["a"]], "en", resamples=10)
    with pytest.raises(ValueError, match="others and references must be equally many texts, at least one: got 1 and 2"):
        bleu_gain(["a", "b"], ["a"], [["a"], ["b"]], "en", resamples=10)
    with pytest.raises(ValueError, match="equally many texts, at least one: got 0 and 0"):
        chrf([], [], resamples=10)
    with pytest.raises(ValueError, match=r"one or more texts for each prediction: not so at \[1, 2\]"):
        chrf(["a", "b", "c"], [["a"], "b", []], resamples=10)
    with pytest.raises(ValueError, match=r"unit must be one of \('character', 'word'\): got 'letter'"):
        error_rate(["a"], ["a"], unit="letter", resamples=10)
    with pytest.raises(ValueError, match="at least one word: all 2 are empty"):
        error_rate(["a", ""], ["", " "], unit="word", resamples=10)
    with pytest.raises(ValueError, match="others and references must be equally many texts, at least one: got 1 and 2"):
        error_ratio(["a", "b"], ["a"], ["a", "b"], unit="word", resamples=10)
    with pytest.raises(ValueError, match="equally long, not empty: got 1 and 2"):
        bleu(["a"], [["a"]], "en", groups=np.arange(2), resamples=10)
    with pytest.raises(ValueError, match="resamples must be at least 1: got 0"):
        chrf(["a"], [["a"]], resamples=0)
