from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest

from omni_lab.data.media_io import AudioError
from omni_lab.metrics import speech_recognition
from omni_lab.metrics.speech_recognition import GrammarRecognizer, is_recognizer_available
from omni_lab.metrics.text import error_rate
from omni_lab.worlds.captions import RELATIONS, caption_grammar, listing, relation
from omni_lab.worlds.espeak import Voice, synthesize
from omni_lab.worlds.things import all_things, thing_vocabulary

needs_recognizer = pytest.mark.skipif(not is_recognizer_available(), reason="pocketsphinx is not installed")
needs_voices = pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed")


@pytest.fixture(scope="module")
def captions_recognizer() -> GrammarRecognizer:
    return GrammarRecognizer(caption_grammar(all_things()))


def test_a_missing_package_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_recognition, "find_spec", lambda _: None)
    assert not is_recognizer_available()
    with pytest.raises(ImportError, match="pocketsphinx: pip install .* worlds.txt"):
        GrammarRecognizer(["a frog"])


@needs_recognizer
def test_the_grammar_is_that_of_captions(captions_recognizer: GrammarRecognizer) -> None:
    things = all_things()
    for first, second in zip(things, [*things[1:], things[0]], strict=True):
        for where in RELATIONS:
            assert captions_recognizer.accepts(relation(first, where, second, "en", colour=True))
    for counts in ((1,), (4,), (1, 1), (3, 1), (2, 1, 1), (1, 1, 1, 1)):
        for start in range(0, len(things) - 4, 4):
            said = listing(dict(zip(things[start:], counts, strict=False)), "en")
            assert captions_recognizer.accepts(said.replace(",", "")), said
    for wrong in ("", "frog", "a frogs", "two frog", "an frog", "a owl", "a frog left", "a frog a key", "a frog and"):
        assert not captions_recognizer.accepts(wrong), wrong
    assert captions_recognizer.accepts("a red owl above an elephant") and not captions_recognizer.accepts("an red owl")
    few = GrammarRecognizer(caption_grammar(thing_vocabulary(8)[:2]))
    assert few.accepts("a frog and two bananas") and not few.accepts("a key")
    with pytest.raises(ValueError, match="at least one thing: got none"):
        caption_grammar([])


@needs_recognizer
@needs_voices
def test_it_transcribes_speech(captions_recognizer: GrammarRecognizer) -> None:
    said = ["a green frog left of a key", "three penguins and a rocket", "a pizza an anchor and two octopuses"]
    sounds = [synthesize(text, "en", Voice("m1")).waveform for text in said]
    heard = [captions_recognizer.transcribe(sound) for sound in sounds]
    assert error_rate(heard, said, unit="word", resamples=10).value <= 0.1
    assert error_rate(heard[1:] + heard[:1], said, unit="word", resamples=10).value > 0.5, "each its own sentence"
    # at any loudness, whatever was recognised before
    assert captions_recognizer.transcribe(sounds[0] * 0.01) == heard[0] == captions_recognizer.transcribe(sounds[0])
    assert GrammarRecognizer(["a frog", "a key"]).transcribe(synthesize("a key", "en", Voice("m1")).waveform) == "a key"


@needs_recognizer
@needs_voices
def test_earlier_calls_do_not_matter() -> None:
    many, rng = GrammarRecognizer(caption_grammar(thing_vocabulary(32))), np.random.default_rng(0)
    sounds = [synthesize(f"a frog above a {name}", "en", Voice("f1")).waveform for name in ("key", "bus")]
    unclear = synthesize("a banana above a bus", "en", Voice("m1")).waveform
    sounds += [unclear + rng.normal(size=len(unclear)).astype(np.float32) * noise for noise in (0.0, 0.005, 0.007)]
    alone = [GrammarRecognizer(many.grammar).transcribe(sound) for sound in sounds]
    assert [many.transcribe(sound) for sound in sounds] == alone
    assert [many.transcribe(sound) for sound in sounds[::-1]] == alone[::-1]


@needs_recognizer
@needs_voices
def test_several_processes_give_the_same(
    captions_recognizer: GrammarRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["a frog", "two keys", "three penguins and a rocket", "an owl above a key"]
    sounds = [synthesize(text, "en", Voice("m1")).waveform for text in said]
    monkeypatch.setattr(speech_recognition, "MIN_PARALLEL_WAVES", 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert captions_recognizer.transcribe_all(sounds) == [captions_recognizer.transcribe(sound) for sound in sounds]
    with pytest.raises(AudioError, match="waveform"):
        captions_recognizer.transcribe_all([np.zeros(0, dtype=np.float32)] * speech_recognition.MIN_PARALLEL_WAVES)


@needs_recognizer
@needs_voices
def test_it_does_not_transcribe_noise() -> None:
    few = GrammarRecognizer(caption_grammar(thing_vocabulary(8)))
    text = "a frog left of a key"
    sound = synthesize(text, "en", Voice("m1")).waveform
    assert few.transcribe(sound) == text
    noise = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    for other in (sound[::-1].copy(), noise * 0.1, np.zeros(8000, dtype=np.float32)):
        assert few.transcribe(other) != text


@needs_recognizer
def test_wrong_input_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"pronunciations must cover \['flibber', 'gloop'\]: the dictionary lacks them"
    ):
        GrammarRecognizer(["a frog", "a flibber gloop"])
    assert GrammarRecognizer(["a flibber"], pronunciations={"flibber": "F L IH B ER"}).accepts("a flibber")
    with pytest.raises(ValueError, match=r"every rule that it uses: lacks \['thing'\]"):
        GrammarRecognizer("#JSGF V1.0; grammar g; public <all> = a <thing>;")
    with pytest.raises(ValueError, match="JSGF with a public rule: got '#JSGF V1.0; grammar g; <all> = a frog;'"):
        GrammarRecognizer("#JSGF V1.0; grammar g; <all> = a frog;")
    with pytest.raises(ValueError, match="JSGF with a public rule: got 'a frog'"):
        GrammarRecognizer("a frog")
    with pytest.raises(AudioError, match="waveform: got shape"):
        GrammarRecognizer(["a frog"]).transcribe(np.zeros((2, 3, 4), dtype=np.float32))
