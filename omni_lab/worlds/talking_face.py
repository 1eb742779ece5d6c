"""TalkingFace: does the mouth of a face follow the speech, or other words, or the same words too early or too late?

Audio and lips are strongly associated: neither alone tells whether they match.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from omni_lab.batch import Modality
from omni_lab.data.sources.base import SPLITS, MediaItem, Question, QuestionFamily, split_keys
from omni_lab.utils.parallel import parallel_map
from omni_lab.worlds.captions import RELATIONS, relation
from omni_lab.worlds.espeak import Utterance, sample_voice, synthesize_cached
from omni_lab.worlds.scene import CLIP_SECONDS, SpeechTrack, mix_audio, pick
from omni_lab.worlds.things import background, load_table, thing_vocabulary

AUDIO_VIDEO = (Modality.AUDIO, Modality.VIDEO)
LEAST_SHIFT = 0.25  # seconds between the starts of lips and speech that do not match
QUESTION = "do the lips follow the speech?"
_CLOSED = (0.0, 0.5)
_VISEMES = {phoneme: (row["open"], row["wide"]) for row in load_table("visemes.yaml") for phoneme in row["phonemes"]}


def viseme(phoneme: str) -> tuple[float, float]:
    """(open, wide), each in [0, 1], of a phoneme in eSpeak's notation, without regard to stress marks."""
    bare = phoneme.lstrip("',%=")
    return next((_VISEMES[bare[:n]] for n in (2, 1) if bare[:n] in _VISEMES), (0.3, 0.5))


def mouth(utterance: Utterance, times: np.ndarray, *, start: float = 0.0) -> np.ndarray:
    """How open and how wide the mouth is, [T, 2], at the times [T] if an utterance starts at `start`, in seconds.

    Each viseme holds at the midpoint of its phoneme, with linear interpolation between midpoints. Before and after the
    utterance the mouth is closed.
    """
    midpoints = [start, *(start + (p.start + p.end) / 2 for p in utterance.phonemes), start + utterance.seconds]
    shapes = np.array([_CLOSED, *(viseme(p.label) for p in utterance.phonemes), _CLOSED])
    order = np.argsort(midpoints, kind="stable")
    return np.stack([np.interp(times, np.array(midpoints)[order], shapes[order, k]) for k in range(2)], axis=1)


@dataclass(frozen=True)
class FaceClip:
    """The audio says `text` from `start`, the lips say `lip_text` from `lip_start`, in seconds."""

    key: int
    split: str
    kind: str  # "matched", "shifted" or "swapped"
    text: str
    start: float
    lip_text: str
    lip_start: float
    speech: SpeechTrack


@dataclass(frozen=True)
class TalkingFace:
    """A generated source of `clips` per split. Half of them match; the others are shifted or swapped."""

    clips: Mapping[str, int] = field(default_factory=lambda: {"train": 2000, "validation": 300, "test": 500})
    frames: int = 20  # per clip
    frame_size: int = 32  # side in pixels
    snr: tuple[float, float] = (0.0, 30.0)  # range of the signal-to-noise ratio in dB
    seed: int = 0
    _clips: dict[int, FaceClip] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        low, high = self.snr
        return f"talking_face_{sum(self.clips.values())}_{low:g}_to_{high:g}db_seed{self.seed}"

    @property
    def shapes(self) -> Mapping[Modality, tuple[int, ...]]:
        return {Modality.AUDIO: (), Modality.VIDEO: (self.frames, 3, self.frame_size, self.frame_size)}

    def fingerprint(self) -> dict[str, Any]:
        options = {"clips": dict(self.clips), "snr": list(self.snr), "frames": self.frames, "seed": self.seed}
        return {"rules": 2, **options, "espeakng-loader": version("espeakng-loader")}

    def answers(self) -> Sequence[str]:
        return ["no", "yes"]

    def families(self) -> Mapping[str, QuestionFamily]:
        return {"in_step": QuestionFamily(AUDIO_VIDEO, (AUDIO_VIDEO,), 1 / 2)}

    def corpus(self) -> Sequence[str]:
        return ()

    def __getstate__(self) -> dict[str, Any]:  # pickled without the cached clips
        return vars(self) | {"_clips": {}}

    def split_clips(self, split: str) -> list[FaceClip]:
        """The clips of a split, cached."""
        return self._cached_clips(split_keys(self.clips)[split])

    def _cached_clips(self, keys: Sequence[int]) -> list[FaceClip]:
        for split, own in split_keys(self.clips).items():
            missing = [key for key in keys if key in own and key not in self._clips]
            self._clips.update(
                zip(missing, parallel_map(partial(self.clip, split), missing, min_items=64), strict=True)
            )
        return [self._clips[key] for key in keys]

    def clip(self, split: str, key: int) -> FaceClip:
        """One clip. Both starts are always sampled, used or not, so that neither stream alone tells the kind."""
        rng = np.random.default_rng([self.seed, key, 0])
        voice = sample_voice(split, rng)
        texts = []
        for _ in range(2):
            first, second = (thing_vocabulary(32)[i] for i in rng.permutation(32)[:2])
            texts.append(relation(first, pick([*RELATIONS], rng), second, "en"))
        room = CLIP_SECONDS - max(synthesize_cached(text, voice).seconds for text in texts)
        if room < LEAST_SHIFT + 0.1:  # too long to be shifted: shorten
            texts = [" ".join(text.split()[:2]) for text in texts]
            room = CLIP_SECONDS - max(synthesize_cached(text, voice).seconds for text in texts)
        starts = [0.0, 0.0]
        while abs(starts[0] - starts[1]) < LEAST_SHIFT:
            starts = rng.uniform(0, room, size=2).tolist()
        kind = pick(("matched", "matched", "shifted", "swapped"), rng)
        lip_text, lip_start = texts[kind == "swapped"], starts[kind == "shifted"]
        speech = SpeechTrack(((texts[0], starts[0]),), voice, float(rng.uniform(*self.snr)), CLIP_SECONDS)
        return FaceClip(key, split, kind, texts[0], starts[0], lip_text, lip_start, speech)

    def questions(self) -> Mapping[str, Sequence[Question]]:
        def question(clip: FaceClip) -> Question:
            scores = {"yes" if clip.kind == "matched" else "no": 1.0}
            media = dict.fromkeys(AUDIO_VIDEO, clip.key)
            return Question(str(clip.key), QUESTION, "in_step", clip.key, scores, media)

        return {split: [question(clip) for clip in self.split_clips(split)] for split in SPLITS}

    def media(self, modality: Modality, keys: Sequence[int]) -> Iterator[MediaItem]:
        render = self.video_item if modality is Modality.VIDEO else self.audio_item
        return parallel_map(render, self._cached_clips(keys), min_items=64)

    def audio_item(self, clip: FaceClip) -> MediaItem:
        utterance = synthesize_cached(clip.text, clip.speech.voice)
        samples = mix_audio(clip.speech, [utterance], np.random.default_rng([self.seed, clip.key, 1]))
        words = [[w.label, clip.start + w.start, clip.start + w.end] for w in utterance.words]
        return MediaItem(clip.key, samples, {"words": words, "snr_db": round(clip.speech.snr, 1)})

    def video_item(self, clip: FaceClip) -> MediaItem:
        times = (np.arange(self.frames) + 0.5) * CLIP_SECONDS / self.frames
        shapes = mouth(synthesize_cached(clip.lip_text, clip.speech.voice), times, start=clip.lip_start)
        frames = draw_faces(shapes, self.frame_size, np.random.default_rng([self.seed, clip.key, 2]))
        return MediaItem(clip.key, frames, {"kind": clip.kind, "lips_start": clip.lip_start})


def draw_faces(shapes: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """One random face with a frame for each mouth shape (open, wide) of shapes [F, 2]. [F, 3, size, size] uint8."""
    side = size * 4  # drawn larger, then averaged: the mouth's edge moves by less than a pixel
    base = background(side, rng).convert("RGB")
    skin = tuple(int(c) for c in np.array([205, 160, 130]) * rng.uniform(0.45, 1.15) + rng.uniform(-10, 10, size=3))
    x, y = rng.uniform(-0.04, 0.04, size=2) * side + side / 2
    pen = ImageDraw.Draw(base)
    pen.ellipse((x - 0.42 * side, y - 0.47 * side, x + 0.42 * side, y + 0.47 * side), fill=skin)
    for eye in (-1, 1):
        middle = x + eye * 0.17 * side
        pen.ellipse((middle - 0.05 * side, y - 0.2 * side, middle + 0.05 * side, y - 0.1 * side), fill=(30, 30, 40))
    frames = []
    for openness, width in shapes:
        face = base.copy()
        half_width, half_height = (0.1 + 0.14 * width) * side, (0.012 + 0.13 * openness) * side
        box = (x - half_width, y + 0.22 * side - half_height, x + half_width, y + 0.22 * side + half_height)
        ImageDraw.Draw(face).ellipse(box, fill=(110, 20, 30))
        small = face.resize((size, size), Image.Resampling.BOX)
        frames.append(np.asarray(small).transpose(2, 0, 1))
    return np.stack(frames)
