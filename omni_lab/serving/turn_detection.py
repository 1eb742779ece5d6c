"""When somebody starts and stops speaking: a voice detector for each 32 ms, and hysteresis over what it says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from omni_lab.batch import SAMPLE_RATE

FRAME = 512  # samples, 32 ms
VoiceProbability = Callable[[np.ndarray], float]  # of a frame [FRAME] at 16 kHz; keeps a state between calls


class EnergyDetector:
    """A rule: voice is ten times as strong as the quietest moments were. ratio: of energies."""

    def __init__(self, *, ratio: float = 10.0, least: float = 1e-5) -> None:
        self.ratio, self.least, self.floor = ratio, least, 1e-4

    def __call__(self, frame: np.ndarray) -> float:
        energy = float(np.mean(frame**2))
        self.floor = min(max(energy, self.least), self.floor * 1.005)  # sinks at once, rises in seconds
        return float(energy > self.ratio * self.floor and energy > 3 * self.least)


class SileroDetector:
    """Silero VAD (Silero Team 2021), whose weights are in the package silero-vad, run by ONNX Runtime. Raises
    ModuleNotFoundError where the package is missing."""

    CONTEXT = 64  # samples of the frame before

    def __init__(self) -> None:
        import onnxruntime as ort

        spec = importlib.util.find_spec("silero_vad")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("turns are found better with the package silero-vad: see data/README.md")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = Path(spec.origin).parent / "data" / "silero_vad.onnx"
        self._session = ort.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        self._state = np.zeros((2, 1, 128), np.float32)
        self._before = np.zeros(self.CONTEXT, np.float32)

    def __call__(self, frame: np.ndarray) -> float:
        values = np.concatenate([self._before, frame]).astype(np.float32)
        feed = {"input": values[None], "state": self._state, "sr": np.array(SAMPLE_RATE, np.int64)}
        probability, self._state = self._session.run(None, feed)
        self._before = values[-self.CONTEXT :]
        return float(probability[0, 0])


def best_detector() -> VoiceProbability:
    """Silero's where it is installed, else the rule."""
    try:
        return SileroDetector()
    except ModuleNotFoundError:
        return EnergyDetector()


class Turn(NamedTuple):
    """Somebody started or stopped speaking. sample: where, counted from the first sample that was fed."""

    kind: Literal["started", "stopped"]
    sample: int


class TurnDetector:
    """threshold: probability from which a frame is voice; it stays so until it falls 0.15 lower.
    silence: seconds without voice that end a turn. shortest: seconds of voice that begin one."""

    def __init__(
        self, voice: VoiceProbability, *, threshold: float = 0.5, silence: float = 0.5, shortest: float = 0.064
    ) -> None:
        self.voice, self.threshold, self.silence = voice, threshold, silence
        self.shortest_frames = max(1, round(shortest * SAMPLE_RATE / FRAME))
        self.speaking, self.position = False, 0  # position: samples that were looked at
        self._rest = np.zeros(0, np.float32)
        self._voiced = 0  # frames of voice in a row
        self._last_voice = 0  # the sample at which the last voice ended

    def feed(self, samples: np.ndarray) -> list[Turn]:
        """What happened in these samples [S] at 16 kHz, of any number; those of an incomplete frame wait."""
        self._rest = np.concatenate([self._rest, samples])
        turns = []
        while len(self._rest) >= FRAME:
            frame, self._rest = self._rest[:FRAME], self._rest[FRAME:]
            turn = self._step(self.voice(frame))
            if turn is not None:
                turns.append(turn)
        return turns

    def _step(self, probability: float) -> Turn | None:
        start = self.position
        self.position += FRAME
        if probability >= self.threshold - 0.15 * self.speaking:
            self._voiced += 1
            self._last_voice = self.position
            if not self.speaking and self._voiced >= self.shortest_frames:
                self.speaking = True
                return Turn("started", start - (self._voiced - 1) * FRAME)
            return None
        self._voiced = 0
        if self.speaking and self.position - self._last_voice >= self.silence * SAMPLE_RATE:
            self.speaking = False
            return Turn("stopped", self.position)
        return None
