"""What a server tells about itself: metrics for Prometheus, and logs of one JSON object a line."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Telemetry:
    """Metrics of one server, in a registry of their own, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "omni_requests", "Requests by route and status", ["endpoint", "status"], registry=registry
        )
        self.latency = Histogram(
            "omni_request_seconds",
            "From the request to the whole answer",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "omni_stage_seconds", "Seconds of each stage", ["stage"], buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "omni_batch_size", "Requests in a batch", ["stage"], buckets=SIZES, registry=registry
        )
        self.combinations = Counter(
            "omni_combinations", "Questions by the modalities that they came with", ["modalities"], registry=registry
        )
        self.encoders = Counter(
            "omni_encoder_runs", "Encoders that ran, or were skipped", ["modality", "level"], registry=registry
        )
        self.flops_saved = Histogram(
            "omni_flops_saved",
            "Fraction of the dense FLOPs that a question did not need",
            buckets=[i / 10 for i in range(11)],
            registry=registry,
        )
        self.queue = Gauge("omni_queue_depth", "Requests that wait", registry=registry)
        self.refused = Counter("omni_refused", "Requests that were refused", ["reason"], registry=registry)
        self.speech = Histogram(
            "omni_first_sound_seconds", "From the end of speech to the first sound", buckets=SECONDS, registry=registry
        )

    def render(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message, and what a record carries in `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
