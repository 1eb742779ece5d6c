"""Requests that follow the interface's description never break the server, nor do such as break the description."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from omni_lab.serving.app import create_app
from omni_lab.serving.engine import Engine
from omni_lab.serving.media import Limits
from omni_lab.serving.settings import ServerConfig
from tests.serving.conftest import Beeps


@pytest.mark.slow
def test_no_request_breaks_the_server(engine: Engine) -> None:
    limits = Limits(body_bytes=1_000_000, pixels=100_000, seconds=2.0)
    app = create_app(engine, speech=Beeps(), config=ServerConfig(limits=limits))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses = set()
    for operation in operations:
        for mode in GenerationMode:

            @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                response = case.call()
                assert response.status_code < 500, response.text
                statuses.add(response.status_code)
                if response.status_code >= 400:
                    assert "error" in response.json()

            try:
                check()
            except Exception as error:
                if type(error).__name__ not in ("Unsatisfiable", "SkipTest"):  # nothing there can be wrong
                    raise
    assert len(operations) >= 14 and {200, 400, 404} <= statuses
