"""Hearing and speaking for a server: text to a waveform in pieces, a waveform to text in pieces."""

from __future__ import annotations

import io
import re
import threading
import wave
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soxr
import torch

from omni_lab.batch import SAMPLE_RATE, Modality
from omni_lab.data.collate import Sample, collate
from omni_lab.data.tokenizer import LETTERS, DecoderTokenizer, encode_letters
from omni_lab.heads.text import GenerationConfig
from omni_lab.heads.tts import GriffinLimVocoder
from omni_lab.serving.media import PCM_RATE
from omni_lab.training.recipes import TrainedModel


@runtime_checkable
class Speech(Protocol):
    """What a server needs to hear and speak."""

    voices: Sequence[str]

    def speak(self, text: str, voice: str) -> Iterator[np.ndarray]:
        """Pieces [S] float32 at 16 kHz, each as soon as it is there. Raises ValueError for a text or voice that cannot
        be spoken."""
        ...

    def transcribe(self, waveform: np.ndarray) -> Iterator[str]:
        """Pieces of the text that was said. waveform: [S] float32 at 16 kHz."""
        ...


class HeadsSpeech:
    """The text head and the text-to-speech head of the model `heads`. Its methods may be called by several threads.

    voices: names of the voices that the speech head has learned. chunk: frames of 10 ms that are made at a time.
    """

    def __init__(self, trained: TrainedModel, voices: Sequence[str], *, chunk: int = 30) -> None:
        self.model, self.voices, self.chunk = trained.model.eval(), [*voices], chunk
        self.tokenizer: DecoderTokenizer = trained.data.tokenizer
        self.vocoder = GriffinLimVocoder().eval()
        self._lock = threading.Lock()

    def speak(self, text: str, voice: str) -> Iterator[np.ndarray]:
        if voice not in self.voices:
            raise ValueError(f"voice must be one of {self.voices}: got {voice!r}")
        letters = speakable(text)
        number = torch.tensor([self.voices.index(voice)])
        ids, head = encode_letters([letters]), self.model.heads["tts"]
        if ids.shape[1] > head.max_length:
            raise ValueError(f"a text may have at most {head.max_length} letters: got {ids.shape[1]}")

        def pieces() -> Iterator[np.ndarray]:
            with torch.inference_mode():
                context = self._context({Modality.TEXT: torch.tensor(self.tokenizer.encode_input(letters))})
                mel = head.stream(context, ids=ids, voice=number, chunk=self.chunk)
                for piece in self.vocoder.stream(mel):
                    yield piece[0].clamp(-1, 1).numpy()

        return pieces()

    def transcribe(self, waveform: np.ndarray) -> Iterator[str]:
        prompt = self.tokenizer.encode_prompts(["transcript"])
        with torch.inference_mode():
            context = self._context({Modality.AUDIO: torch.from_numpy(waveform)})
            head: Any = self.model.heads["text"]
            yield from head.stream(context, self.tokenizer, prompt, GenerationConfig())

    def _context(self, inputs: dict[Modality, torch.Tensor]) -> Any:
        encoded = self.model.encode(collate([Sample("speech", "", "", inputs)]))
        return self.model.context_encoder(self.model.fusion(encoded).tokens, None)


def speakable(text: str) -> str:
    """In lower case, without marks that are not spoken. Raises ValueError for letters that no voice has learned."""
    plain = re.sub(r"[^\w\s,'-]|_", " ", text.lower())
    plain = re.sub(r"\s+", " ", plain).strip()
    unknown = sorted({*plain} - {*LETTERS})
    if unknown or not plain:
        raise ValueError(f"these voices speak English letters: got {''.join(unknown) or text!r}")
    return plain


def to_pcm16(pieces: Iterable[np.ndarray], rate: int = PCM_RATE) -> Iterator[bytes]:
    """Pieces at 16 kHz as 16-bit samples at another rate, which join without a seam."""
    resampler = soxr.ResampleStream(SAMPLE_RATE, rate, 1, dtype="float32")
    for piece in pieces:
        yield _pcm(resampler.resample_chunk(piece))
    yield _pcm(resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _pcm(samples: np.ndarray) -> bytes:
    return (samples.clip(-1, 1) * 32767).astype("<i2").tobytes()


def wav_file(pcm: bytes, rate: int = PCM_RATE) -> bytes:
    """16-bit mono samples with a header."""
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm)
    return written.getvalue()
