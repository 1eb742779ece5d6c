"""A tiny exported model, served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from omni_lab.batch import Modality
from omni_lab.compression.export import Exporter
from omni_lab.compression.parts import AssemblySpec, ModelPart
from omni_lab.compression.precision import Precision, PrecisionPolicy
from omni_lab.evaluation.flops import build_cost_model
from omni_lab.model import OmniModel
from omni_lab.routing.router import Router
from omni_lab.serving.app import create_app
from omni_lab.serving.engine import Engine
from omni_lab.serving.media import Limits
from omni_lab.serving.models import ModelRepository, ServedModel
from omni_lab.serving.server import BackgroundServer
from omni_lab.serving.settings import ServerConfig
from omni_lab.serving.turn_detection import EnergyDetector
from tests.engine.conftest import ANSWERS, exporter, make_batch, parts, routed, router, with_latents

__all__ = ["exporter", "make_batch", "parts", "routed", "router", "with_latents"]
SHAPES = {Modality.IMAGE: (3, 64, 64), Modality.VIDEO: (4, 3, 32, 32)}
WORDS = ["what", "is", "it", "where", "the", "?", "red", "two"]


@pytest.fixture(scope="session")
def served_folder(
    exporter: Exporter,
    parts: list[ModelPart],
    routed: OmniModel,
    router: Router,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    exporter.write(
        folder,
        parts,
        AssemblySpec.from_model(routed, router),
        policy=PrecisionPolicy.uniform(Precision.FP32),
        source="abc",
        answers=ANSWERS,
        router=router,
        tokenizer=tokenizer.to_str(),
        shapes=SHAPES,
        costs=build_cost_model(routed, router_flops=router.flops),
    )
    return folder


@pytest.fixture(scope="session")
def served(served_folder: Path) -> ServedModel:
    return ServedModel.from_folder(served_folder, name="tiny", budget=0.5)


@pytest.fixture
def engine(served: ServedModel) -> Iterator[Engine]:
    models = ModelRepository()
    models.add(served)
    engine = Engine(models)
    yield engine
    engine.close()


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 64, 64), dtype=np.uint8)


def sound(seed: int, samples: int = 8000) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=samples) * 0.1).astype(np.float32)


class Beeps:
    """Speaks a tone for each letter, and hears how long a sound is."""

    voices = ("low", "high")

    def speak(self, text: str, voice: str) -> Iterator[np.ndarray]:
        if voice not in self.voices:
            raise ValueError(f"voice must be one of {self.voices}: got {voice!r}")
        if not text.isascii():
            raise ValueError(f"only English letters: got {text!r}")
        hertz = 300 if voice == "low" else 600
        return iter([np.sin(np.arange(1600) / 16_000 * 2 * np.pi * hertz).astype(np.float32) * 0.5 for _ in text])

    def transcribe(self, waveform: np.ndarray) -> Iterator[str]:
        yield from (f"{len(waveform) / 16_000:.1f}", " seconds")


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:
    limits = Limits(body_bytes=2_000_000, pixels=1_000_000, seconds=5.0, frames=16, images=3, characters=500)
    config = ServerConfig(limits=limits, voice_detector=EnergyDetector)
    with BackgroundServer(create_app(engine, speech=Beeps(), config=config)) as url:
        yield url
