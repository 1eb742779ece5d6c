from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_lab.batch import SAMPLE_RATE, Modality
from omni_lab.data.datamodule import VQADataset
from omni_lab.data.sources.base import SPLITS
from omni_lab.data.store import Store, ensure_store
from omni_lab.worlds.espeak import HELD_OUT_VOICES, Utterance, Voice, synthesize, synthesize_cached
from omni_lab.worlds.scene import CLIP_SECONDS
from omni_lab.worlds.talking_face import LEAST_SHIFT, FaceClip, TalkingFace, draw_faces, mouth, viseme

PAIRS = 300


@pytest.fixture(scope="module")
def face() -> TalkingFace:
    return TalkingFace(clips={"train": PAIRS, "validation": 4, "test": 6})


@pytest.fixture(scope="module")
def pairs(face: TalkingFace) -> list[FaceClip]:
    return list(face.split_clips("train"))


def openness(utterance: Utterance, label: str, start: float = 0.0) -> list[float]:
    """How open the mouth is in the middle of each phoneme of that label."""
    middles = [start + (m.start + m.end) / 2 for m in utterance.phonemes if m.label.lstrip("',") == label]
    assert middles, (label, [m.label for m in utterance.phonemes])
    return mouth(utterance, np.array(middles), start=start)[:, 0].tolist()


def test_the_mouth_is_closed_before_and_after() -> None:
    said = synthesize("a banana", "en", Voice("f1"))
    times = np.array([-1.0, 0.0, 0.5, 0.5 + said.seconds, 2.0])
    assert mouth(said, times, start=0.5)[:, 0] == pytest.approx(0.0)
    assert mouth(said, np.linspace(0.5, 0.5 + said.seconds, 50), start=0.5)[:, 0].max() > 0.8


def test_vowels_open_it_and_lip_sounds_close_it() -> None:
    said = synthesize("a banana", "en", Voice("m1"))
    assert min(openness(said, "a", start=0.3)) > 0.8
    assert max(openness(said, "b", start=0.3)) < 0.05
    for text, label in (("map", "m"), ("map", "p"), ("bob", "b")):
        assert max(openness(synthesize(text), label)) < 0.05, text
    assert min(openness(synthesize("bob"), "0")) > 0.5
    wide, narrow = (mouth(u, np.array([u.seconds / 2]))[0, 1] for u in (synthesize("eee"), synthesize("ooh")))
    assert wide > narrow + 0.3


def test_every_phoneme_has_a_shape() -> None:
    assert viseme("p") == viseme("'b") == viseme("m") == viseme("_:") == (0.0, 0.5)
    assert viseme("a")[0] > viseme("e")[0] > viseme("t")[0] > viseme("f")[0] > 0
    assert viseme("i:")[1] > viseme("a")[1] > viseme("u:")[1]
    assert all(0 <= value <= 1 for label in ("?", "Q^", "") for value in viseme(label)), "an unknown one too"


def test_the_drawn_mouth_follows(face: TalkingFace) -> None:
    """Dark red pixels in the lower half of the face."""
    shapes = np.array([[0.0, 0.5], [0.5, 0.5], [1.0, 0.5], [0.0, 0.5]])
    frames = draw_faces(shapes, 32, np.random.default_rng(0)).astype(int)
    assert frames.shape == (4, 3, 32, 32)
    changed = [(frame != frames[0]).any(axis=0) for frame in frames]
    sizes = [int(c.sum()) for c in changed]
    assert 0 == sizes[0] == sizes[3] < sizes[1] < sizes[2]
    rows, columns = np.nonzero(changed[2])
    assert rows.min() > 14 and 8 < columns.mean() < 24


def test_half_match_and_the_others_are_shifted_or_swapped(pairs: list[FaceClip]) -> None:
    kinds = [pair.kind for pair in pairs]
    for kind, share in (("matched", 0.5), ("shifted", 0.25), ("swapped", 0.25)):
        assert abs(kinds.count(kind) / PAIRS - share) < 4 * (share * (1 - share) / PAIRS) ** 0.5
    for pair in pairs:
        apart = abs(pair.start - pair.lip_start)
        assert (pair.text == pair.lip_text) == (pair.kind != "swapped")
        assert apart >= LEAST_SHIFT if pair.kind == "shifted" else apart == 0
        for text, start in ((pair.text, pair.start), (pair.lip_text, pair.lip_start)):
            assert start >= 0 and start + synthesize_cached(text, pair.speech.voice).seconds <= CLIP_SECONDS + 1e-6
        assert pair.speech.utterances == ((pair.text, pair.start),) and pair.speech.seconds == CLIP_SECONDS


def test_neither_stream_alone_tells_the_kind(pairs: list[FaceClip]) -> None:
    """Starts, lengths, loudness and voices are drawn alike for every kind: their means agree within four errors."""
    facts = {
        "sound starts": lambda p: p.start,
        "lips start": lambda p: p.lip_start,
        "sound lasts": lambda p: synthesize_cached(p.text, p.speech.voice).seconds,
        "lips last": lambda p: synthesize_cached(p.lip_text, p.speech.voice).seconds,
        "noise": lambda p: p.speech.snr,
        "women": lambda p: p.speech.voice.group == "woman",
    }
    for name, fact in facts.items():
        matched, others = (
            np.array([fact(p) for p in pairs if (p.kind == "matched") == wanted], dtype=float)
            for wanted in (True, False)
        )
        error = (matched.var() / len(matched) + others.var() / len(others)) ** 0.5
        assert abs(matched.mean() - others.mean()) < 4 * error, name


def test_held_out_voices_speak_in_the_test_split_alone(face: TalkingFace, pairs: list[FaceClip]) -> None:
    assert {p.speech.voice.variant for p in face.split_clips("test")} <= set(HELD_OUT_VOICES)
    assert not {p.speech.voice.variant for p in pairs} & set(HELD_OUT_VOICES)
    keys = [p.key for split in SPLITS for p in face.split_clips(split)]
    assert keys == list(range(PAIRS + 10))


def test_a_pair_depends_on_its_seed_and_key_alone(face: TalkingFace, pairs: list[FaceClip]) -> None:
    synthesize_cached.cache_clear()  # what was said before does not matter
    other = TalkingFace(clips={"train": 1000, "validation": 1, "test": 1})
    assert [other.clip("train", key) for key in (9, 3, 7)] == [pairs[key] for key in (9, 3, 7)]
    assert replace(face, seed=1).clip("train", 3) != pairs[3]


def likeness(face: TalkingFace, pair: FaceClip) -> float:
    """The correlation of how loud the speech is with how open the mouth is, a frame at a time."""
    times = (np.arange(face.frames) + 0.5) * CLIP_SECONDS / face.frames
    heard, seen = (synthesize_cached(text, pair.speech.voice) for text in (pair.text, pair.lip_text))
    wave = np.zeros(round(CLIP_SECONDS * SAMPLE_RATE) + 2)
    first = round(pair.start * SAMPLE_RATE)
    wave[first : first + len(heard.waveform)] = heard.waveform[: len(wave) - first]
    loud = np.abs(wave[:-2]).reshape(face.frames, -1).mean(axis=1)
    return float(np.corrcoef(loud, mouth(seen, times, start=pair.lip_start)[:, 0])[0, 1])


def test_lips_go_with_their_own_speech(face: TalkingFace, pairs: list[FaceClip]) -> None:
    found = {kind: np.array([likeness(face, p) for p in pairs if p.kind == kind]) for kind in ("matched", "shifted")}
    assert found["matched"].mean() > 0.5
    assert found["matched"].mean() > found["shifted"].mean() + 0.3


def test_a_store_of_sounds_and_clips_only(tmp_path: Path) -> None:
    small = TalkingFace(clips={"train": 5, "validation": 2, "test": 2}, frames=10)
    store = ensure_store(small, tmp_path)
    assert set(store.shapes) == {Modality.AUDIO, Modality.VIDEO}
    assert store.manifest["rows"] == {"train": 5, "validation": 2, "test": 2, "audio": 9, "video": 9}
    assert store.media(Modality.VIDEO, 8).shape == (10, 3, 32, 32)
    assert len(store.media(Modality.AUDIO, 8)) == round(CLIP_SECONDS * SAMPLE_RATE)
    dataset = VQADataset(store, "train")
    for i, pair in enumerate(small.split_clips("train")):
        assert set(dataset[i].inputs) == {Modality.TEXT, Modality.AUDIO, Modality.VIDEO}
        assert store.answers[int(dataset.scores[i].argmax())] == ("yes" if pair.kind == "matched" else "no")
        assert store.annotations(Modality.VIDEO, i)["kind"] == pair.kind
    assert Store.open(store.path, small).families["in_step"].required_modalities == (Modality.AUDIO, Modality.VIDEO)
