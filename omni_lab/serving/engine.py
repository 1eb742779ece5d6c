"""The engine of a server: each request is decided, then answered, each time together with others that run the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from omni_lab.engine.decisions import Decision
from omni_lab.engine.stacking import Sample
from omni_lab.serving.batching import BatchingConfig, DynamicBatcher
from omni_lab.serving.models import ModelRepository, RoutedAnswer, ServedModel
from omni_lab.serving.telemetry import Telemetry

T = TypeVar("T")


class Job(NamedTuple):
    """A question on its way. model: the one that it was asked when it came; a reload in between does not touch it."""

    model: ServedModel
    sample: Sample
    decision: Decision | None = None


class EngineAnswer(NamedTuple):
    """An answer with the seconds of its stages: waiting and running of `decide` and of `answer`, and `total`."""

    answer: RoutedAnswer
    seconds: Mapping[str, float]


class Engine:
    """Batches requests in two stages.

    First those with the same modalities are decided together: their questions are encoded, and the router runs. Then
    those whose routes run the same encoders at the same levels are answered together; so no batch runs an encoder for
    a request that skipped it, and no sound is padded for a request that has none.

    config: of both stages; `configs` has those of some combinations of modalities, written "text+image".
    workers: batches of each stage that run at a time.
    """

    def __init__(
        self,
        models: ModelRepository,
        *,
        config: BatchingConfig | None = None,
        configs: Mapping[str, BatchingConfig] | None = None,
        workers: int = 1,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.models, self.telemetry = models, telemetry or Telemetry()
        self.config = config or BatchingConfig()
        self._last_used: dict[tuple[str, int, str], float] = {}
        self._lock = threading.Lock()
        by_key = _ByCombination(configs or {})
        self.deciding = DynamicBatcher(
            self._decide, self.config, configs=by_key, workers=workers, on_batch=self._note("decide"), name="decide"
        )
        # requests that were accepted are not refused half way
        later = BatchingConfig(
            preferred_batch_size=self.config.preferred_batch_size,
            max_batch_size=self.config.max_batch_size,
            max_queue_delay=self.config.max_queue_delay,
            max_queue_size=1_000_000,
            default_timeout=self.config.default_timeout,
        )
        self.answering = DynamicBatcher(
            self._answer, later, configs=by_key, workers=workers, on_batch=self._note("answer"), name="answer"
        )

    def submit(
        self,
        sample: Sample,
        *,
        model: str = "",
        version: int | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Future[EngineAnswer]:
        """The answer to one question, once it is there; cancelling the future takes the request out of its queue.

        sample: see `ServedModel.sample`. model, version: see `ModelRepository.get`. priority, timeout: see
        `DynamicBatcher.submit`. Raises UnknownModelError, and QueueFullError where too many requests wait.
        """
        self.telemetry.combinations.labels("+".join(sample)).inc()
        served = self.models.get(model, version)
        return _Request(self, Job(served, sample), priority=priority, timeout=timeout).result

    @property
    def waiting(self) -> int:
        """Requests in the queues of both stages."""
        return self.deciding.waiting + self.answering.waiting

    @property
    def stats(self) -> dict[str, Any]:
        """See `BatchingStats`, of both stages."""
        return {"decide": self.deciding.stats, "answer": self.answering.stats}

    def release_idle(self, seconds: float) -> list[str]:
        """Frees the encoders of modalities that no request brought for so long; the next one loads them again.
        Returns which, as "model/version/modality"."""
        now, freed = time.monotonic(), []
        for model in self.models.list():
            for modality in model.modalities:
                used = self._last_used.get((model.name, model.version, modality), float("-inf"))
                if now - used >= seconds and model.release(modality):
                    freed.append(f"{model.name}/{model.version}/{modality}")
        return freed

    def close(self) -> None:
        """Answers what was accepted, and accepts nothing more."""
        self.deciding.close()
        self.answering.close()

    def _decide(self, key: Hashable, jobs: Sequence[Job]) -> list[tuple[Decision, float]]:
        model = jobs[0].model
        with self._lock:
            now = time.monotonic()
            self._last_used |= {(model.name, model.version, m): now for job in jobs for m in job.sample}
        decisions, seconds = _timed(lambda: model.decide([job.sample for job in jobs]))
        self.telemetry.stages.labels("decide").observe(seconds)
        return [(decision, seconds) for decision in decisions]

    def _answer(self, key: Hashable, jobs: Sequence[Job]) -> list[tuple[RoutedAnswer, float]]:
        model = jobs[0].model
        decisions = [job.decision for job in jobs if job.decision is not None]
        answers, seconds = _timed(lambda: model.answer([job.sample for job in jobs], decisions))
        self.telemetry.stages.labels("answer").observe(seconds)
        return [(answer, seconds) for answer in answers]

    def _note(self, stage: str) -> Callable[[Any, int, float], None]:
        def note(key: Any, size: int, waited: float) -> None:
            self.telemetry.batch_size.labels(stage).observe(size)
            self.telemetry.stages.labels(f"{stage} queue").observe(waited)

        return note

    def count(self, answer: RoutedAnswer) -> None:
        for modality, level in answer.levels.items():
            self.telemetry.encoders.labels(modality, str(level)).inc()
        if answer.flops_saved is not None:
            self.telemetry.flops_saved.observe(answer.flops_saved)


class _Request:
    """A request on its way through both stages. result: what its client waits for, and may cancel."""

    def __init__(self, engine: Engine, job: Job, *, priority: int, timeout: float | None) -> None:
        self.engine, self.job, self.priority = engine, job, priority
        self.start, self.timeout = time.perf_counter(), timeout
        self.seconds: dict[str, float] = {}
        self.result: Future[EngineAnswer] = Future()
        self.key = (id(job.model), "+".join(job.sample))
        self.stage: Future[Any] = engine.deciding.submit(self.key, job, priority=priority, timeout=timeout)
        self.result.add_done_callback(self._forget)
        self.stage.add_done_callback(self._decided)

    def _decided(self, done: Future[tuple[Decision, float]]) -> None:
        if self.result.cancelled() or not self._succeeded(done):
            return
        decision, self.seconds["decide"] = done.result()
        key, timeout = (*self.key, tuple(decision.levels[0].tolist())), self.timeout
        if timeout is not None:
            timeout = max(1e-3, timeout - (time.perf_counter() - self.start))
        job = self.job._replace(decision=decision)
        self.stage = self.engine.answering.submit(key, job, priority=self.priority, timeout=timeout)
        self.stage.add_done_callback(self._answered)
        if self.result.cancelled():  # in between
            self.stage.cancel()

    def _answered(self, done: Future[tuple[RoutedAnswer, float]]) -> None:
        if not self._succeeded(done):
            return
        answer, self.seconds["answer"] = done.result()
        total = time.perf_counter() - self.start
        self.seconds |= {"total": total, "waiting": total - self.seconds["decide"] - self.seconds["answer"]}
        self.engine.count(answer)
        if self.result.set_running_or_notify_cancel():
            self.result.set_result(EngineAnswer(answer, self.seconds))

    def _succeeded(self, done: Future[Any]) -> bool:
        """Else whoever waits is told."""
        error = None if done.cancelled() else done.exception()
        if error is not None and self.result.set_running_or_notify_cancel():
            self.result.set_exception(error)
        return error is None and not done.cancelled()

    def _forget(self, done: Future[EngineAnswer]) -> None:
        if done.cancelled():
            self.stage.cancel()


class _ByCombination(dict[Hashable, BatchingConfig]):
    """Settings of queues, whose keys hold a combination of modalities at their second place."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(key[1], default)


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start
