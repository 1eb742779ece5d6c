"""Encoders: one modality in, `Tokens` of one common width out."""

from omni_lab.encoders.text import TextEncoder
from omni_lab.encoders.vision import VisionEncoder

__all__ = ["TextEncoder", "VisionEncoder"]
