"""Raw inputs as arrays: of one question, or those of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

AXES = {"image": 3, "audio": 1, "video": 4}  # of one medium


@runtime_checkable
class MediaInput(Protocol):
    """The inputs of one modality: `ModalityInput`, or the same with NumPy arrays. See there for shapes."""

    @property
    def values(self) -> Any: ...

    @property
    def mask(self) -> Any: ...

    @property
    def entry_index(self) -> Any: ...


class Media(NamedTuple):
    """A `MediaInput` of arrays."""

    values: np.ndarray
    mask: np.ndarray
    entry_index: np.ndarray


class Arrays(dict[str, Media]):
    """What `as_arrays` returned: it is not done twice."""


def as_arrays(inputs: Mapping[str, MediaInput], samples_per_token: int) -> Arrays:
    """The inputs of a batch; waveforms [U, S] are cut into tokens [U, N, samples_per_token], padded with silence.

    Raises ValueError for an input without anything real: exported graphs have no way to leave it out.
    """
    if isinstance(inputs, Arrays):
        return inputs
    arrays = Arrays(
        {str(m): Media(np.asarray(i.values), np.asarray(i.mask), np.asarray(i.entry_index)) for m, i in inputs.items()}
    )
    for m, media in arrays.items():
        real = media.mask.any(1)
        if not real.all():
            raise ValueError(f"{m} {real.argmin()} is empty: its mask is all False")
    if "audio" in arrays:
        values, mask, entry = arrays["audio"]
        arrays["audio"] = Media(_cut(values, samples_per_token), _cut(mask, samples_per_token), entry)
    return arrays


def _cut(wave: np.ndarray, samples: int) -> np.ndarray:
    tokens = max(1, -(-wave.shape[1] // samples))
    padded = np.zeros((len(wave), tokens * samples), wave.dtype)
    padded[:, : wave.shape[1]] = wave
    return padded.reshape(len(wave), tokens, samples)


def single_medium(name: str, values: np.ndarray) -> Media:
    """One image [3, H, W] uint8, sound [S] float or video [F, 3, h, w] uint8. Raises ValueError for anything else."""
    if name not in AXES:
        raise ValueError(f"a medium must be one of {sorted(AXES)}: got {name!r}")
    if values.ndim != AXES[name]:
        raise ValueError(f"{name} must have {AXES[name]} axes: got an array of shape {values.shape}")
    wanted = np.float32 if name == "audio" else np.uint8
    if name != "audio" and values.dtype != wanted:
        raise ValueError(f"{name} must be uint8: got {values.dtype}")
    length = 1 if name == "image" else len(values)
    return Media(values[None].astype(wanted), np.ones((1, length), bool), np.zeros(1, np.int64))


def single_text(ids: list[int]) -> Media:
    return Media(np.array([ids], np.int64), np.ones((1, len(ids)), bool), np.zeros(1, np.int64))


@lru_cache(maxsize=8)
def load_tokenizer(file: Path) -> Any:
    """A tokenizer of the package tokenizers."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def distinct(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct entries, ascending, and the place of each among them."""
    if len(entries) == 1:
        return entries, np.zeros(1, np.int64)
    return np.unique(entries, return_inverse=True)


def chunks(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows in `count` parts of about equal size, fewer where a part would have less than four."""
    count = min(count, len(rows) // 4)
    return [rows] if count < 2 else np.array_split(rows, count)


def scatter_rows(size: int, used: np.ndarray, values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of `size` rows that hold these ones at the places `used`."""
    if len(used) == size:
        return values, mask
    every, every_mask = np.zeros((size, *values.shape[1:]), values.dtype), np.zeros((size, *mask.shape[1:]), bool)
    every[used], every_mask[used] = values, mask
    return every, every_mask
