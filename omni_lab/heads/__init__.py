"""Heads: what the fused memory is read out as."""

from omni_lab.heads.answer import AnswerHead
from omni_lab.heads.boxes import BoxesHead, Found, Objects
from omni_lab.heads.memory import HeadError, Memory, Remembered
from omni_lab.heads.pixels import PixelsHead
from omni_lab.heads.speech import GriffinLim, SpeechHead, Spoken
from omni_lab.heads.text import Decoding, TextHead, Written

__all__ = [
    "AnswerHead",
    "BoxesHead",
    "Decoding",
    "Found",
    "GriffinLim",
    "HeadError",
    "Memory",
    "Objects",
    "PixelsHead",
    "Remembered",
    "SpeechHead",
    "Spoken",
    "TextHead",
    "Written",
]
