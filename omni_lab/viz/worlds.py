"""Scenes with all their modalities, speech with its labels, and which question family needs which modality."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from omni_lab.batch import SAMPLE_RATE, Modality
from omni_lab.evaluation.predictions import ModalityAblationRow
from omni_lab.viz.style import BASELINE_COLOR, MODALITY_COLORS, chinese_font
from omni_lab.worlds.espeak import Utterance
from omni_lab.worlds.talking_face import draw_faces, mouth

AUDIO_COLOR = MODALITY_COLORS[Modality.AUDIO]


def filmstrip(video: np.ndarray) -> np.ndarray:
    """A video [F, 3, h, w] as one image [h, F*(w+1)-1, 3], its frames side by side with a white line between."""
    frames = np.pad(video.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(frames), axis=1)[:, :-1]


def show_scene(
    image: np.ndarray, annotations: Mapping[str, Any], video: np.ndarray, waveform: np.ndarray, words: Sequence[Any]
) -> Figure:
    """An image with its boxes and captions (in Chinese too where there is a font for it), a video, and its audio.

    image, video, waveform: [3, H, W], [F, 3, h, w], [S] at 16 kHz.
    annotations: of the image: "objects" with a "box" each, and "captions" by language.
    words: (word, start, end) in seconds.
    """
    layout: list[Any] = [["image", "video"], ["image", "audio"]]
    figure, axes = plt.subplot_mosaic(layout, figsize=(12, 3.9), width_ratios=[1, 2.6], height_ratios=[1, 1.1])
    axes["image"].imshow(image.transpose(1, 2, 0))
    for thing in annotations["objects"]:
        left, top, right, bottom = thing["box"]
        corner = (left - 0.5, top - 0.5)
        axes["image"].add_patch(Rectangle(corner, right - left, bottom - top, fill=False, lw=1.5, ec="white"))
    axes["image"].set_title("picture, with its boxes")
    languages = ("en", "de", "zh") if chinese_font() else ("en", "de")
    captions = [textwrap.fill(annotations["captions"][language], 34) for language in languages]
    axes["image"].set_xlabel("\n".join(captions), fontsize=9)
    axes["video"].imshow(filmstrip(video))
    axes["video"].set_title("clip, frame by frame")
    for name in ("image", "video"):
        axes[name].grid(False)
        axes[name].set(xticks=[], yticks=[])
    audio, seconds, times = axes["audio"], len(waveform) / SAMPLE_RATE, np.arange(len(waveform)) / SAMPLE_RATE
    audio.plot(times, waveform / max(1, np.abs(waveform).max()), color=AUDIO_COLOR, lw=0.5)
    for word, start, end in words:
        audio.axvspan(start, end, color=AUDIO_COLOR, alpha=0.15, lw=0)
        audio.text((start + end) / 2, 1.02, word, ha="center", va="bottom", fontsize=9)
    audio.set(ylim=(-1.05, 1.3), xlim=(0, seconds), yticks=[], ylabel="pressure", title="sound", xlabel="seconds")
    return figure


def phonemes_and_mouth(utterance: Utterance, *, frames: int = 20) -> Figure:
    """The waveform of an utterance with its phonemes, and how far the mouth is open: as a curve and as faces."""
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(12, 5.2), height_ratios=[1.2, 1.2, 0.9])
    waveform, seconds, peak = utterance.waveform, utterance.seconds, float(np.abs(utterance.waveform).max())
    top.plot(np.arange(len(waveform)) / SAMPLE_RATE, waveform, color=AUDIO_COLOR, lw=0.6)
    for phoneme in utterance.phonemes:
        top.axvline(phoneme.start, color="#BBBBBB", lw=0.8)
        if phoneme.label.strip("_:|"):
            x = (phoneme.start + phoneme.end) / 2
            top.text(x, peak * 1.08, phoneme.label, ha="center", va="bottom", fontsize=9)
    top.set(ylabel="pressure", yticks=[], xlim=(0, seconds), ylim=(-peak, peak * 1.35))
    top.set_title(" ".join(word.label for word in utterance.words) + ": sound and phonemes")
    times = np.linspace(0, seconds, 400)
    shape = mouth(utterance, times)
    middle.plot(times, shape[:, 0], color=MODALITY_COLORS[Modality.VIDEO], label="open")
    middle.plot(times, shape[:, 1], color=BASELINE_COLOR, label="wide", linestyle="--")
    middle.set(ylabel="mouth, 0 to 1", xlim=(0, seconds), ylim=(-0.05, 1.1), xlabel="seconds")
    middle.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    centers = (np.arange(frames) + 0.5) * seconds / frames
    bottom.imshow(filmstrip(draw_faces(mouth(utterance, centers), 32, np.random.default_rng(3))), aspect="equal")
    bottom.set(xticks=[], yticks=[])
    bottom.set_title("the faces drawn from it, evenly in time", fontsize=10)
    return figure


def modality_ablation_chart(rows: Sequence[ModalityAblationRow]) -> Figure:
    """Per family: accuracy with everything, the best accuracy without one required modality, and the chance level."""
    figure, axis = plt.subplots(figsize=(10, 0.31 * len(rows) + 1.5))
    everything: dict[str, Any] = {"marker": "D", "color": "black", "lw": 0}
    chance: dict[str, Any] = {"marker": "|", "color": "black", "markersize": 14, "markeredgewidth": 2, "lw": 0}
    without: dict[Modality, Any] = {m: {"marker": "o", "color": MODALITY_COLORS[m], "lw": 0} for m in Modality}
    for y, row in enumerate(rows):
        axis.plot(row.dense_interval, (y, y), color="black", lw=2)
        axis.plot(row.blind_interval, (y, y), color=MODALITY_COLORS[row.removed], lw=2)
        axis.plot(row.chance, y, **chance)
        axis.plot(row.blind, y, **without[row.removed])
        axis.plot(row.dense, y, **everything)
    handles = [plt.Line2D([], [], **everything, label="with everything")]
    handles += [plt.Line2D([], [], **look, label=f"without {m}") for m, look in without.items()]
    handles += [plt.Line2D([], [], **chance, label="chance")]
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 1.6 / len(rows)), ncols=6, fontsize=9)
    axis.set_yticks(range(len(rows)), [row.family for row in rows])
    axis.invert_yaxis()
    axis.set(xlim=(-0.01, 1.02), xlabel="accuracy on test questions (lines: 95 % intervals)")
    return figure
