"""Read image and audio files; errors name the file."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchaudio.functional import resample

from omni_lab.batch import SAMPLE_RATE

MAX_CHANNELS = 8
MAX_RATE = 1_000_000_000  # Hz
MAX_FILTER_ENTRIES = 4_000_000  # of the resampling filter (16 MB)


class ImageError(ValueError):
    """An image file that is missing, corrupt, or not of the expected mode or size."""


class AudioError(ValueError):
    """Audio that is missing, damaged, or not of the expected shape, rate or length; the message names it."""


def read_image(path: Path, *, size: int, exact: bool) -> np.ndarray:
    """Reads an image as [3, size, size] uint8.

    exact: the file must already be RGB and size x size (a set of fixed format: anything else means damage). Otherwise
        the image is turned as its EXIF data say, converted to RGB (16 bits to 8), transparency becomes white, and it is
        resized (bicubic, aspect ratio not kept). Raises ImageError for pixels of 32 bits, whose range nobody knows.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image: Image.Image = file
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such image file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: not a readable image ({error})") from error
    if exact and (image.mode != "RGB" or image.size != (size, size)):
        raise ImageError(f"{path}: got mode {image.mode}, size {image.size}: expected RGB, ({size}, {size})")
    if not exact:
        image = to_rgb(image, name=str(path)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def to_rgb(image: Image.Image, *, name: str) -> Image.Image:
    """The image upright, in 8 bits, without transparency; see `read_image`. Raises ImageError naming it."""
    if image.mode in ("I", "F"):
        raise ImageError(f"{name}: pixels of mode {image.mode}: expected at most 16 bits for each channel")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def prepare_audio(samples: np.ndarray | Tensor, rate: int, *, name: str, max_seconds: float = 30.0) -> np.ndarray:
    """Converts samples at `rate` Hz to mono [S] float32 at 16 kHz.

    samples: [S] or [channels, S]; channels are averaged. Integers are scaled from their full range to [-1, 1], floats
        keep their scale. Silence is legal.
    Raises AudioError for NaN or infinity, no samples, another shape or type, a bad rate, more than `max_seconds`.
    """
    if not isinstance(rate, int) or isinstance(rate, bool) or not 1 <= rate <= MAX_RATE:
        raise AudioError(f"{name}: the sample rate is {rate!r}: expected an int from 1 to {MAX_RATE:,} Hz")
    shape = list(samples.shape)
    if len(shape) not in (1, 2) or (len(shape) == 2 and not 1 <= shape[0] <= MAX_CHANNELS):
        raise AudioError(f"{name}: got shape {shape}: expected [S] or [channels, S], at most {MAX_CHANNELS} channels")
    if shape[-1] == 0:
        raise AudioError(f"{name}: got shape {shape}, zero samples: expected at least one")
    _check_length(shape[-1], rate, name=name, max_seconds=max_seconds)
    waveform = _as_float(samples, name=name)
    broken = int(np.count_nonzero(~np.isfinite(waveform)))
    if broken:
        raise AudioError(f"{name}: {broken} of {waveform.size} samples are NaN or infinite: expected finite numbers")
    mono = waveform.mean(axis=0, dtype=np.float32) if waveform.ndim == 2 else waveform
    return mono if rate == SAMPLE_RATE else _resample(mono, rate)


def read_audio(path: Path, *, max_seconds: float = 30.0) -> np.ndarray:
    """Reads a WAV or FLAC file as mono [S] float32 at 16 kHz. The length is checked before the samples are read.

    A truncated FLAC file is an error; a truncated WAV file cannot be recognised and is read as far as it goes.
    Raises AudioError if the file is missing, unreadable, or refused by `prepare_audio`.
    """
    if not path.exists():
        raise AudioError(f"{path}: no such audio file")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            _check_length(file.frames, rate, name=str(path), max_seconds=max_seconds)
            samples = file.read(dtype="float32", always_2d=True).T  # [channels, S]
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise AudioError(f"{path}: not a readable audio file ({error})") from error
    return prepare_audio(samples, rate, name=str(path), max_seconds=max_seconds)


def _check_length(count: int, rate: int, *, name: str, max_seconds: float) -> None:
    if count / rate > max_seconds:
        raise AudioError(f"{name}: lasts {count / rate:.1f} s: expected at most {max_seconds:g} s")


def _as_float(samples: np.ndarray | Tensor, *, name: str) -> np.ndarray:
    """A float32 copy of the same shape, in [-1, 1] if it held integers."""
    if isinstance(samples, Tensor):
        samples = (samples.float() if samples.is_floating_point() else samples).detach().cpu().numpy()
    if np.issubdtype(samples.dtype, np.floating):
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is reported
            return samples.astype(np.float32)
    if not np.issubdtype(samples.dtype, np.integer):
        raise AudioError(f"{name}: got samples of type {samples.dtype}: expected floats or ints")
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    middle = half if np.issubdtype(samples.dtype, np.unsignedinteger) else 0.0
    return ((samples - middle) / half).astype(np.float32)


def _resample(mono: np.ndarray, rate: int) -> np.ndarray:
    # The filter has one entry for each pair of old and new samples in a period. For rates like 44,101 Hz that would be
    # gigabytes, so the nearest ratio of small numbers is used, off by at most 3 in 10,000.
    largest = max(math.isqrt(MAX_FILTER_ENTRIES * rate // SAMPLE_RATE), -(-rate // SAMPLE_RATE))
    ratio = Fraction(SAMPLE_RATE, rate).limit_denominator(largest)
    return resample(torch.from_numpy(mono), ratio.denominator, ratio.numerator).numpy()
