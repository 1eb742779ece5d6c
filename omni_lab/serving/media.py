"""What strangers send: bounded before it is decoded, and never fetched from anywhere."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageSequence

from omni_lab.batch import SAMPLE_RATE
from omni_lab.data.media_io import AudioError, prepare_audio, to_rgb

DATA_URL = re.compile(r"data:(?P<type>[\w.+/-]*)(?:;[\w=.+-]+)*;base64,(?P<data>.*)", re.DOTALL)
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PCM_RATE = 24_000  # Hz, of the audio that OpenAI's protocols send as pcm16
Shape = tuple[int, ...]


class MediaError(ValueError):
    """Media that cannot be used: the message names it, what it was and what was expected."""


@dataclass(frozen=True)
class Limits:
    """What a request may hold.

    body_bytes: of a whole request. pixels: of one image or frame, before it is scaled. seconds: of one sound.
    frames: of one clip. images: of one conversation. characters: of one text.
    """

    body_bytes: int = 32_000_000
    pixels: int = 16_000_000
    seconds: float = 30.0
    frames: int = 256
    images: int = 16
    characters: int = 4_000


def decode_base64(text: str, *, name: str, limits: Limits) -> bytes:
    """Raises MediaError for what is no base64, empty or too long."""
    if len(text) > limits.body_bytes * 4 / 3 + 4:
        raise MediaError(f"{name}: {len(text)} characters of base64: expected at most {limits.body_bytes} bytes")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"{name}: not valid base64 ({error})") from error
    if not content:
        raise MediaError(f"{name}: empty")
    return content


def decode_data_url(url: str, *, name: str, limits: Limits) -> bytes:
    """The bytes of a data URL. Raises MediaError for any other URL: nothing is fetched."""
    found = DATA_URL.fullmatch(url)
    if found is None:
        shown = url if len(url) < 80 else f"{url[:77]}..."
        raise MediaError(f"{name}: expected a data URL with base64, as this server fetches nothing: got {shown!r}")
    return decode_base64(found["data"], name=name, limits=limits)


def read_picture(content: bytes, shape: Shape, *, name: str, limits: Limits) -> np.ndarray:
    """An image as [3, H, W] uint8 of `shape`; the first frame of an animation. Raises MediaError."""
    with _open_image(content, name=name, limits=limits) as image:
        try:
            return _pixels(image, shape, name)
        except Exception as error:  # decoders of images raise whatever they like
            raise MediaError(f"{name}: a damaged image ({error})") from error


def is_animation(content: bytes, *, name: str, limits: Limits) -> bool:
    """Whether it has several frames. Raises MediaError for what is no image."""
    with _open_image(content, name=name, limits=limits) as image:
        return getattr(image, "n_frames", 1) > 1


def read_clip(content: bytes, shape: Shape, *, name: str, limits: Limits) -> np.ndarray:
    """Evenly spaced frames of an animation, [F, 3, h, w] uint8 of `shape`. Raises MediaError."""
    with _open_image(content, name=name, limits=limits) as image:
        count = getattr(image, "n_frames", 1)
        if count > limits.frames:
            raise MediaError(f"{name}: {count} frames: expected at most {limits.frames}")
        try:
            frames = [_pixels(frame, shape[1:], name) for frame in ImageSequence.Iterator(image)]
        except Exception as error:  # likewise
            raise MediaError(f"{name}: a damaged animation ({error})") from error
    return sample_frames(frames, shape)


def read_frames(contents: Sequence[bytes], shape: Shape, *, name: str, limits: Limits) -> np.ndarray:
    """The same from one image for each frame."""
    if not 1 <= len(contents) <= limits.frames:
        raise MediaError(f"{name}: {len(contents)} frames: expected 1 to {limits.frames}")
    frames = [read_picture(c, shape[1:], name=f"{name}[{i}]", limits=limits) for i, c in enumerate(contents)]
    return sample_frames(frames, shape)


def sample_frames(frames: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
    """As many frames as `shape` wants, evenly spaced; fewer are repeated."""
    return np.stack([frames[int((f + 0.5) * len(frames) / shape[0])] for f in range(shape[0])])


def read_sound(content: bytes, *, name: str, limits: Limits) -> np.ndarray:
    """A WAV, FLAC, OGG or MP3 file as mono [S] float32 at 16 kHz. Raises MediaError.

    The length that a header tells is checked before anything is decoded, and no more than that is decoded.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, allowed = file.samplerate, int(limits.seconds * file.samplerate)
            if file.frames > allowed:
                raise MediaError(f"{name}: lasts {file.frames / rate:.1f} s: expected at most {limits.seconds:g} s")
            samples = file.read(frames=allowed + 1, dtype="float32", always_2d=True).T
            told = file.frames
    except (soundfile.SoundFileError, OSError, TypeError, RuntimeError) as error:
        raise MediaError(f"{name}: not a readable sound file ({error})") from error
    if samples.shape[1] > allowed:
        raise MediaError(f"{name}: lasts more than {limits.seconds:g} s")
    if samples.shape[1] < told:
        raise MediaError(f"{name}: its header tells of {told} samples, but it holds {samples.shape[1]}: truncated")
    if content[:4] == b"RIFF" and _declared_bytes(content) > len(content):
        raise MediaError(f"{name}: its header tells of {_declared_bytes(content)} bytes: it has {len(content)}")
    try:
        return prepare_audio(samples, rate, name=name, max_seconds=limits.seconds)
    except AudioError as error:
        raise MediaError(str(error)) from error


def read_pcm16(content: bytes, *, name: str, rate: int = PCM_RATE) -> np.ndarray:
    """Samples of 16 bits, little-endian, mono, as [S] float32 at 16 kHz."""
    if len(content) % 2:
        raise MediaError(f"{name}: {len(content)} bytes: expected samples of two bytes")
    return soxr.resample(np.frombuffer(content, "<i2").astype(np.float32) / 32768, rate, SAMPLE_RATE)


def _declared_bytes(content: bytes) -> int:
    """Of a RIFF file, by its header; streams of unknown length say 0 or 0xFFFFFFFF."""
    declared = int.from_bytes(content[4:8], "little") + 8
    return 0 if declared > 0xFFFF0000 else declared


def _open_image(content: bytes, *, name: str, limits: Limits) -> Image.Image:
    """Opened, not decoded: its size is known, and checked, before any pixel is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name}: {error}: expected at most {limits.pixels} pixels") from error
    except Exception as error:  # likewise
        raise MediaError(f"{name}: not a readable image of {', '.join(IMAGE_FORMATS)}") from error
    if image.width * image.height > limits.pixels:
        raise MediaError(f"{name}: {image.width} x {image.height} pixels: expected at most {limits.pixels} in all")
    return image


def _pixels(image: Image.Image, shape: Shape, name: str) -> np.ndarray:
    resized = to_rgb(image, name=name).resize((shape[2], shape[1]), Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)
