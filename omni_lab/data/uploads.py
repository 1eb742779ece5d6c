"""Turn uploaded bytes into a model input: an image, an animation or audio."""

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
ANIMATED = ("GIF", "PNG", "WEBP")  # formats whose frames follow in time; those of a JPEG are views of one moment
MAX_FRAMES = 500  # of an animation


class UploadError(ValueError):
    """An upload that cannot be used; the message names the file, what it was and what was expected."""


def read_upload(
    name: str, content: bytes, shapes: Mapping[Modality, tuple[int, ...]], *, max_seconds: float = 10.0
) -> tuple[Modality, Tensor]:
    """The modality and values of an upload, recognised by its bytes, not by its file name.

    Returns an image [3, H, W] uint8, frames of an animation [F, 3, h, w] uint8, or audio [S] float32 at 16 kHz.
    shapes: image and video shape that the model takes.
    Raises UploadError for more than `MAX_UPLOAD_BYTES`, longer audio than `max_seconds`, and any other content.
    """
    if len(content) > MAX_UPLOAD_BYTES:
        raise UploadError(f"{name}: {len(content) / 1e6:.1f} MB: expected at most {MAX_UPLOAD_BYTES / 1e6:.0f} MB")
    try:
        with Image.open(io.BytesIO(content)) as image:
            num_frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
    except Image.DecompressionBombError as error:
        raise UploadError(f"{name}: {error}: expected an image that fits into memory") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        num_frames = 0  # no image: perhaps audio
    if num_frames > 1:
        return Modality.VIDEO, read_frames(name, content, num_frames, shapes[Modality.VIDEO])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(name).name
        file.write_bytes(content)
        try:
            if num_frames:
                size = shapes[Modality.IMAGE][1]
                return Modality.IMAGE, torch.from_numpy(read_image(file, size=size, exact=False).copy())
            return Modality.AUDIO, torch.from_numpy(read_audio(file, max_seconds=max_seconds))
        except (ImageError, AudioError) as error:
            message = str(error).replace(str(file), name)
            raise UploadError(f"{message}; expected an image, an animated GIF, a WAV or a FLAC file") from error


def read_frames(name: str, content: bytes, count: int, shape: tuple[int, ...]) -> Tensor:
    """Evenly spaced frames of an animation of `count` frames, as uint8 of `shape` [F, 3, H, W]. Raises UploadError for
    more than `MAX_FRAMES`, and for an animation that cannot be read to its end."""
    if count > MAX_FRAMES:
        raise UploadError(f"{name}: {count} frames: expected at most {MAX_FRAMES}")
    frames, _, height, width = shape
    chosen = [int((f + 0.5) * count / frames) for f in range(frames)]
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = [
                np.asarray(frame.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
                for frame in ImageSequence.Iterator(image)
            ]
    except (OSError, SyntaxError, ValueError) as error:
        raise UploadError(f"{name}: a broken animation ({error}): expected one that can be read to its end") from error
    return torch.from_numpy(np.stack([pixels[i].transpose(2, 0, 1) for i in chosen]))
