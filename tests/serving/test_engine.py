"""Whatever is batched with whatever, every request gets the answer that it would get alone."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from omni_lab.engine.stacking import Sample
from omni_lab.serving.batching import BatchingConfig, QueueFullError
from omni_lab.serving.engine import Engine
from omni_lab.serving.models import ModelRepository, RoutedAnswer, ServedModel, UnknownModelError
from tests.serving.conftest import picture, sound

pytestmark = pytest.mark.slow
VIDEO = np.zeros((4, 3, 32, 32), np.uint8)


def some_samples(served: ServedModel, count: int) -> list[Sample]:
    """Questions with every combination of media, of various lengths."""
    questions = ["what is it?", "where", "is the red two it?"]
    samples = []
    for i in range(count):
        media = {}
        if i % 2:
            media["image"] = picture(i)
        if i % 3 == 0:
            media["audio"] = sound(i, 6000 + 700 * i)
        if i % 5 == 0:
            media["video"] = VIDEO + i
        question = "" if i % 7 == 6 and "audio" in media else questions[i % 3]
        samples.append(served.sample(question, **media))
    return samples


def alone(served: ServedModel, sample: Sample) -> RoutedAnswer:
    return served.answer([sample], served.decide([sample]))[0]


def assert_same(found: RoutedAnswer, expected: RoutedAnswer) -> None:
    assert found.route == expected.route and found.text == expected.text and found.levels == expected.levels
    assert [p for _, p in found.top] == pytest.approx([p for _, p in expected.top], abs=1e-4)
    assert found.flops_saved == pytest.approx(expected.flops_saved)


def test_every_request_gets_its_own_answer(served: ServedModel, engine: Engine) -> None:
    samples = some_samples(served, 40)
    expected = [alone(served, sample) for sample in samples]
    futures = [engine.submit(sample) for sample in samples]
    for future, answer in zip(futures, expected, strict=True):
        found = future.result(30)
        assert_same(found.answer, answer)
        assert set(found.seconds) == {"decide", "answer", "total", "waiting"} and found.seconds["total"] > 0
    assert all(0 <= answer.flops_saved < 1 for answer in expected if answer.flops_saved is not None)
    metrics = engine.telemetry.render().decode()
    assert 'omni_combinations_total{modalities="text+image"}' in metrics
    assert "omni_flops_saved_count 40.0" in metrics
    assert sum(size * n for size, n in engine.stats["decide"].sizes.items()) == 40
    assert len(engine.stats["decide"].sizes) > 0 and engine.waiting == 0


def test_requests_of_one_combination_share_a_batch(served: ServedModel) -> None:
    models = ModelRepository()
    models.add(served)
    seen: list[tuple[int, set[str]]] = []
    decide = served.decide

    def watched(samples: list[Sample]) -> object:
        seen.append((len(samples), {"+".join(sample) for sample in samples}))
        return decide(samples)

    served.decide = watched  # type: ignore[method-assign, assignment]
    try:
        engine = Engine(models, config=BatchingConfig(preferred_batch_size=4, max_queue_delay=0.3))
        samples = [served.sample("what is it?", **({"image": picture(i)} if i % 2 else {})) for i in range(8)]
        for future in [engine.submit(sample) for sample in samples]:
            future.result(30)
        engine.close()
    finally:
        served.decide = decide  # type: ignore[method-assign]
    assert sorted(seen, key=str) == [(4, {"text"}), (4, {"text+image"})]


def test_a_cancelled_request_costs_nothing_and_a_full_engine_refuses(served: ServedModel) -> None:
    models, running, go = ModelRepository(), threading.Event(), threading.Event()
    models.add(served)
    decide = served.decide

    def held(samples: list[Sample]) -> object:
        running.set()
        assert go.wait(10)
        return decide(samples)

    served.decide = held  # type: ignore[method-assign, assignment]
    try:
        engine = Engine(models, config=BatchingConfig(max_queue_size=2))
        sample = served.sample("what is it?")
        first = engine.submit(sample)
        assert running.wait(10)
        gone, kept = engine.submit(sample), engine.submit(sample)
        with pytest.raises(QueueFullError):
            engine.submit(sample)
        assert gone.cancel()
        go.set()
        assert first.result(30).answer == kept.result(30).answer
        with pytest.raises(CancelledError):
            gone.result()
        engine.close()
    finally:
        served.decide = decide  # type: ignore[method-assign]
    assert engine.stats["decide"].cancelled == 1


def test_models_have_versions_and_are_replaced_without_losing_a_request(
    served: ServedModel, served_folder: Path, engine: Engine
) -> None:
    sample = served.sample("what is it?", image=picture(1))
    expected, results, stop = alone(served, sample), [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            results.append(engine.submit(sample).result(30).answer)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    newer = ServedModel.from_folder(served_folder, name="tiny", version=2, budget=0.5)
    engine.models.add(newer)
    engine.models.add(ServedModel.from_folder(served_folder, name="tiny", version=2, budget=0.5))
    stop.set()
    for thread in threads:
        thread.join(30)
    assert len(results) > 3
    for found in results:
        assert_same(found, expected)
    assert engine.models.get("tiny").version == 2 and engine.models.get("tiny", 1) is served
    assert [(m.name, m.version) for m in engine.models.list()] == [("tiny", 1), ("tiny", 2)]
    engine.models.remove("tiny", 2)
    with pytest.raises(UnknownModelError, match=r"has no version 2: it has \[1\]"):
        engine.submit(sample, model="tiny", version=2)
    with pytest.raises(UnknownModelError, match="unknown model 'tyni'; the nearest"):
        engine.submit(sample, model="tyni")
    with pytest.raises(UnknownModelError, match="no model is loaded"):
        ModelRepository().get()


def test_what_a_modality_held_is_freed_and_comes_back(served: ServedModel, engine: Engine) -> None:
    sample = served.sample("what is it?", image=picture(1), audio=sound(1))
    before = engine.submit(sample).result(30).answer
    pool = served.model.pool
    for modality in ("image", "audio", "video"):
        pool.encoder(modality, 3)
    weights = len(pool._weights)
    assert engine.release_idle(3600) == ["tiny/1/video"], "nobody ever sent one"
    freed = engine.release_idle(0)
    assert engine.release_idle(0) == [] and len(pool._weights) < weights
    assert {name.rpartition("/")[2] for name in freed} <= {"text", "image", "audio", "video"}
    assert_same(engine.submit(sample).result(30).answer, before)


@pytest.mark.parametrize(
    ("question", "media", "message"),
    [
        ("", {}, "expected a question, written or spoken: got neither"),
        ("  ", {"image": picture(0)}, "expected a question, written or spoken"),
        ("what", {"image": picture(0)[0]}, "image must have 3 axes"),
        ("what", {"smell": picture(0)}, "a medium must be one of"),
    ],
)
def test_what_is_no_question_is_refused(
    served: ServedModel, question: str, media: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        served.sample(question, **media)
