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
    figure, axes = plt.subplot_mosaic(layout, figsize=(9.2, 3.7), width_ratios=[1, 2.4], height_ratios=[1, 1.4])
    axes["image"].imshow(image.transpose(1, 2, 0))
    for thing in annotations["objects"]:
        left, top, right, bottom = thing["box"]
        corner = (left - 0.5, top - 0.5)
        axes["image"].add_patch(Rectangle(corner, right - left, bottom - top, fill=False, lw=1.5, ec="white"))
    languages = ("en", "de", "zh") if chinese_font() else ("en", "de")
    captions = [textwrap.fill(annotations["captions"][language], 32) for language in languages]
    axes["image"].set_xlabel("\n".join(captions), fontsize=10)
    axes["video"].imshow(filmstrip(video))
    for name, title in (("image", "image and boxes"), ("video", f"video, {len(video)} frames")):
        axes[name].grid(False)
        axes[name].set(xticks=[], yticks=[])
        axes[name].set_title(title)
    audio, seconds, times = axes["audio"], len(waveform) / SAMPLE_RATE, np.arange(len(waveform)) / SAMPLE_RATE
    audio.plot(times, waveform / max(1, np.abs(waveform).max()), color=AUDIO_COLOR, lw=0.5)
    for word, start, end in words:
        audio.axvspan(start, end, color=AUDIO_COLOR, alpha=0.15, lw=0)
        audio.text((start + end) / 2, 1.05, f"“{word}”", ha="center", va="bottom", fontsize=11)
    audio.set(ylim=(-1.05, 1.5), xlim=(0, seconds), yticks=[], ylabel="sound pressure", xlabel="time (seconds)")
    audio.set_title("audio, and what is said when")
    return figure


def phonemes_and_mouth(utterance: Utterance, *, frames: int = 20) -> Figure:
    """The waveform of an utterance with its phonemes, and how far the mouth is open: as a curve and as faces."""
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(9.2, 5), height_ratios=[1.3, 1.2, 0.7])
    waveform, seconds, peak = utterance.waveform, utterance.seconds, float(np.abs(utterance.waveform).max())
    top.plot(np.arange(len(waveform)) / SAMPLE_RATE, waveform, color=AUDIO_COLOR, lw=0.6)
    for phoneme in utterance.phonemes:
        top.axvline(phoneme.start, color="#BBBBBB", lw=0.8)
        if phoneme.label.strip("_:|"):
            x = (phoneme.start + phoneme.end) / 2
            top.text(x, peak * 1.08, phoneme.label, ha="center", va="bottom", fontsize=10)
    top.set(ylabel="pressure", yticks=[], xlim=(0, seconds), ylim=(-peak, peak * 1.5))
    top.set_title(f"“{' '.join(word.label for word in utterance.words)}”: the mouth follows the phonemes")
    times = np.linspace(0, seconds, 400)
    shape = mouth(utterance, times)
    middle.plot(times, shape[:, 0], color=MODALITY_COLORS[Modality.VIDEO], label="how far open")
    middle.plot(times, shape[:, 1], color=BASELINE_COLOR, label="how wide", linestyle="--")
    middle.set(ylabel="mouth (0 to 1)", xlim=(0, seconds), ylim=(-0.05, 1.1), xlabel="time (seconds)")
    middle.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    centers = (np.arange(frames) + 0.5) * seconds / frames
    bottom.imshow(filmstrip(draw_faces(mouth(utterance, centers), 32, np.random.default_rng(3))), aspect="equal")
    bottom.set(xticks=[], yticks=[])
    bottom.set_title(f"{frames} of the faces that are drawn from it, evenly in time", fontsize=11, weight="normal")
    return figure


def modality_ablation_chart(rows: Sequence[ModalityAblationRow]) -> Figure:
    """Per family: accuracy with everything, the best accuracy without one required modality, and the chance level."""
    figure, axis = plt.subplots(figsize=(9.2, 0.31 * len(rows) + 1.6))
    everything: dict[str, Any] = {"marker": "D", "color": "black", "lw": 0}
    chance: dict[str, Any] = {"marker": "|", "color": "black", "markersize": 14, "markeredgewidth": 2, "lw": 0}
    blind: dict[str, Any] = {"marker": "o", "lw": 0}
    for y, row in enumerate(rows):
        color = MODALITY_COLORS[row.removed]
        axis.plot(row.dense_interval, (y, y), color="black", lw=2)
        axis.plot(row.blind_interval, (y, y), color=color, lw=2)
        axis.plot(row.chance, y, **chance)
        axis.plot(row.blind, y, color=color, **blind)
        axis.plot(row.dense, y, **everything)
    handles = [
        plt.Line2D([], [], color=BASELINE_COLOR, label="without the modality that the row names", **blind),
        plt.Line2D([], [], label="chance", **chance),
        plt.Line2D([], [], label="with everything", **everything),
    ]
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.36, 1.0 + 1.3 / len(rows)), ncols=3)
    axis.set_yticks(range(len(rows)), [f"{row.family}, no {row.removed}" for row in rows])
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-0.01, 1.02))
    axis.set_xlabel("accuracy on test questions (lines: 95 % intervals)")
    figure.suptitle("Without one modality that it needs, a family of questions stays at chance or below", weight="bold")
    return figure
