"""What somebody hands in: the bytes of a picture, an animation or a sound, as an input of the model."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence, UnidentifiedImageError
from torch import Tensor

from omni_lab.batch import Modality
from omni_lab.data.media_io import AudioError, ImageError, read_audio, read_image

MAX_UPLOAD_BYTES = 8_000_000  # bytes; JupyterLab's connection to its kernel breaks above 10 MB
ANIMATED = ("GIF", "PNG", "WEBP")  # of many frames; those of a JPEG are other views of one moment
MOST_FRAMES = 500  # of an animation


class UploadError(ValueError):
    """What cannot be used: the message names the file, what it was and what was expected."""


def read_upload(
    name: str, content: bytes, shapes: Mapping[Modality, tuple[int, ...]], *, max_seconds: float = 10.0
) -> tuple[Modality, Tensor]:
    """A picture [3, H, W] uint8, every so many of an animation's frames [F, 3, h, w] uint8, or a sound [S] float32 at
    16 kHz, by what the bytes are and not by what the file is called. shapes: of a picture and of a clip, as the model
    takes them. Raises UploadError for more than `LARGEST` bytes and for anything else."""
    if len(content) > MAX_UPLOAD_BYTES:
        raise UploadError(f"{name}: {len(content) / 1e6:.1f} MB: expected at most {MAX_UPLOAD_BYTES / 1e6:.0f} MB")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            animated = getattr(picture, "n_frames", 1) if picture.format in ANIMATED else 1
    except Image.DecompressionBombError as error:
        raise UploadError(f"{name}: {error}: expected a picture that fits into memory") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        animated = 0
    if animated > 1:
        return Modality.VIDEO, _frames(name, content, animated, shapes[Modality.VIDEO])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(name).name
        file.write_bytes(content)
        try:
            if animated:
                size = shapes[Modality.IMAGE][1]
                return Modality.IMAGE, torch.from_numpy(read_image(file, size=size, exact=False).copy())
            return Modality.AUDIO, torch.from_numpy(read_audio(file, max_seconds=max_seconds))
        except (ImageError, AudioError) as error:
            said = str(error).replace(str(file), name)
            raise UploadError(f"{said}; what can be used: a picture, an animated GIF, a WAV or a FLAC file") from error


def _frames(name: str, content: bytes, count: int, shape: tuple[int, ...]) -> Tensor:
    if count > MOST_FRAMES:
        raise UploadError(f"{name}: {count} frames: expected at most {MOST_FRAMES}")
    frames, _, height, width = shape
    wanted = [int((f + 0.5) * count / frames) for f in range(frames)]
    try:
        with Image.open(io.BytesIO(content)) as picture:
            shown = [
                np.asarray(frame.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
                for frame in ImageSequence.Iterator(picture)
            ]
    except (OSError, SyntaxError, ValueError) as error:
        raise UploadError(f"{name}: a broken animation ({error}): expected one that can be read to its end") from error
    return torch.from_numpy(np.stack([shown[i].transpose(2, 0, 1) for i in wanted]))
