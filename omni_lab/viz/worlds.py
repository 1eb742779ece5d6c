"""Scenes with all their modalities, sounds with their marks, and which question needs what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from omni_lab.batch import Modality
from omni_lab.evaluation.predictions import ModalityAblationRow
from omni_lab.viz.style import BASELINE_COLOR, MODALITY_COLORS, chinese_font
from omni_lab.worlds.espeak import TimedLabel, Utterance
from omni_lab.worlds.talking_face import draw_faces, mouth


def filmstrip(clip: np.ndarray) -> np.ndarray:
    """A clip [F, 3, h, w] as one picture, its frames side by side with a white line between. [h, F*(w+1)-1, 3]"""
    frames = np.pad(clip.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(frames), axis=1)[:, :-1]


def show_scene(
    picture: np.ndarray, facts: Mapping[str, Any], clip: np.ndarray, sound: np.ndarray, words: Sequence[Sequence[Any]]
) -> Figure:
    """A picture [3, H, W] with its boxes and captions (in Chinese too where there is a font for it), a clip
    [F, 3, h, w] as a strip, and a sound [S] at 16 kHz with its words [label, start, end]."""
    figure, axes = plt.subplot_mosaic(
        [["picture", "clip"], ["picture", "sound"]], figsize=(12, 3.9), width_ratios=[1, 2.6], height_ratios=[1, 1.1]
    )
    axes["picture"].imshow(picture.transpose(1, 2, 0))
    for thing in facts["objects"]:
        left, top, right, bottom = thing["box"]
        corner = (left - 0.5, top - 0.5)
        axes["picture"].add_patch(Rectangle(corner, right - left, bottom - top, fill=False, lw=1.5, ec="white"))
    axes["picture"].set_title("picture, with its boxes")
    languages = ("en", "de", "zh") if chinese_font() else ("en", "de")
    axes["picture"].set_xlabel("\n".join(facts["captions"][language] for language in languages))
    axes["clip"].imshow(filmstrip(clip))
    axes["clip"].set_title("clip, frame by frame")
    for name in ("picture", "clip"):
        axes[name].grid(False)
        axes[name].set(xticks=[], yticks=[])
    _waveform(axes["sound"], sound, [TimedLabel(*word) for word in words])
    axes["sound"].set(title="sound", xlabel="seconds")
    return figure


def _waveform(axis: Axes, sound: np.ndarray, marks: Sequence[TimedLabel]) -> None:
    seconds = np.arange(len(sound)) / 16_000
    axis.plot(seconds, sound / max(1, np.abs(sound).max()), color=MODALITY_COLORS[Modality.AUDIO], lw=0.5)
    for mark in marks:
        axis.axvspan(mark.start, mark.end, color=MODALITY_COLORS[Modality.AUDIO], alpha=0.15, lw=0)
        axis.text((mark.start + mark.end) / 2, 1.02, mark.label, ha="center", va="bottom", fontsize=9)
    axis.set(ylim=(-1.05, 1.3), xlim=(0, len(sound) / 16_000), yticks=[], ylabel="pressure")


def phonemes_and_mouth(utterance: Utterance, *, frames: int = 20) -> Figure:
    """What is said, its phonemes, and below it how far the mouth is open, as a curve and as faces."""
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(12, 5.2), height_ratios=[1.2, 1.2, 0.9])
    top.plot(
        np.arange(len(utterance.waveform)) / 16_000, utterance.waveform, color=MODALITY_COLORS[Modality.AUDIO], lw=0.6
    )
    peak = float(np.abs(utterance.waveform).max())
    for mark in utterance.phonemes:
        top.axvline(mark.start, color="#BBBBBB", lw=0.8)
        if mark.label.strip("_:|"):
            top.text((mark.start + mark.end) / 2, peak * 1.08, mark.label, ha="center", va="bottom", fontsize=9)
    top.set(ylabel="pressure", yticks=[], xlim=(0, utterance.seconds), ylim=(-peak, peak * 1.35))
    top.set_title(" ".join(mark.label for mark in utterance.words) + ": sound and phonemes")
    times = np.linspace(0, utterance.seconds, 400)
    shape = mouth(utterance, times)
    middle.plot(times, shape[:, 0], color=MODALITY_COLORS[Modality.VIDEO], label="open")
    middle.plot(times, shape[:, 1], color=BASELINE_COLOR, label="wide", linestyle="--")
    middle.set(ylabel="mouth, 0 to 1", xlim=(0, utterance.seconds), ylim=(-0.05, 1.1), xlabel="seconds")
    middle.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    at = (np.arange(frames) + 0.5) * utterance.seconds / frames
    bottom.imshow(filmstrip(draw_faces(mouth(utterance, at), 32, np.random.default_rng(3))), aspect="equal")
    bottom.set(xticks=[], yticks=[])
    bottom.set_title("the faces drawn from it, evenly in time", fontsize=10)
    return figure


def modality_ablation_chart(rows: Sequence[ModalityAblationRow]) -> Figure:
    """Per family: the accuracy with everything, the best without one needed modality, and the chance level."""
    figure, axis = plt.subplots(figsize=(10, 0.31 * len(rows) + 1.5))
    for y, row in enumerate(rows):
        axis.plot(row.dense_interval, (y, y), color="black", lw=2)
        axis.plot(row.blind_interval, (y, y), color=MODALITY_COLORS[row.lost], lw=2)
        axis.plot(row.chance, y, marker="|", color="black", markersize=14, markeredgewidth=2, lw=0)
        axis.plot(row.blind, y, marker="o", color=MODALITY_COLORS[row.lost], lw=0)
        axis.plot(row.dense, y, marker="D", color="black", lw=0)
    handles = [plt.Line2D([], [], marker="D", color="black", lw=0, label="with everything")]
    handles += [plt.Line2D([], [], marker="o", color=MODALITY_COLORS[m], lw=0, label=f"without {m}") for m in Modality]
    handles += [plt.Line2D([], [], marker="|", color="black", markersize=14, lw=0, markeredgewidth=2, label="chance")]
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 1.6 / len(rows)), ncols=6, fontsize=9)
    axis.set_yticks(range(len(rows)), [row.family for row in rows])
    axis.invert_yaxis()
    axis.set(xlim=(-0.01, 1.02), xlabel="accuracy on test questions (lines: 95 % intervals)")
    return figure
