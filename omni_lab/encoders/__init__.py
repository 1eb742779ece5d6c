"""Encoders: one modality in, `Tokens` of one common width out; and their latents in few bits."""

from omni_lab.encoders.audio import AudioEncoder, LogMel, MelFrontEnd
from omni_lab.encoders.clock import time_features
from omni_lab.encoders.latents import Int8Latents, LatentTable, adaptive, fake_quantize, fixed_grid, pack, unpack
from omni_lab.encoders.text import TextEncoder
from omni_lab.encoders.video import VideoEncoder
from omni_lab.encoders.vision import VisionEncoder

__all__ = [
    "AudioEncoder",
    "Int8Latents",
    "LatentTable",
    "LogMel",
    "MelFrontEnd",
    "TextEncoder",
    "VideoEncoder",
    "VisionEncoder",
    "adaptive",
    "fake_quantize",
    "fixed_grid",
    "pack",
    "time_features",
    "unpack",
]
