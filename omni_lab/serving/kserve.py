"""KServe's protocol, version 2 (Open Inference Protocol): tensors as JSON in, answers out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from omni_lab.serving.asking import find_model
from omni_lab.serving.engine import Engine, EngineAnswer
from omni_lab.serving.errors import ApiError
from omni_lab.serving.models import ServedModel
from omni_lab.serving.settings import ServerConfig

DTYPES: Mapping[str, Any] = {"UINT8": np.uint8, "FP32": np.float32}
MEDIA = {"image": "UINT8", "video": "UINT8", "audio": "FP32"}
MAX_ROWS = 256


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]

    model_config = ConfigDict(extra="allow")


class InferRequest(BaseModel):
    """Rows of questions. inputs: question (BYTES), image and video (UINT8), audio (FP32, 16 kHz), one row for each."""

    id: str | None = None
    inputs: list[Tensor] = Field(min_length=1)

    model_config = ConfigDict(extra="allow")


def metadata(model: ServedModel, versions: Sequence[int]) -> dict[str, Any]:
    """What a model takes and returns."""
    shapes = {m.value: [-1, *shape] for m, shape in model.shapes.items()} | {"audio": [-1, -1]}
    media = [{"name": m, "datatype": kind, "shape": shapes[m]} for m, kind in MEDIA.items() if m in model.modalities]
    return {
        "name": model.name,
        "versions": [str(v) for v in versions],
        "platform": "onnxruntime",
        "inputs": [{"name": "question", "datatype": "BYTES", "shape": [-1]}, *media],
        "outputs": [
            {"name": "answer", "datatype": "BYTES", "shape": [-1]},
            {"name": "probability", "datatype": "FP32", "shape": [-1]},
            {"name": "flops_saved", "datatype": "FP32", "shape": [-1]},
        ],
    }


def read_rows(request: InferRequest, model: ServedModel, *, characters: int) -> list[dict[str, Any]]:
    """The inputs of each row. Raises ApiError naming the tensor."""
    columns: dict[str, Any] = {}
    for tensor in request.inputs:
        name = tensor.name
        if name == "question":
            columns[name] = _read_texts(tensor, characters)
        elif name in MEDIA and name in model.modalities:
            columns[name] = _read_array(tensor, MEDIA[name])
        else:
            known = ["question", *(m for m in MEDIA if m in model.modalities)]
            raise ApiError(f"unknown input {name!r}: expected one of {known}", code="invalid_value", param=name)
    counts = {name: len(column) for name, column in columns.items()}
    if len({*counts.values()}) != 1 or not 1 <= next(iter(counts.values())) <= MAX_ROWS:
        raise ApiError(f"inputs must have the same number of rows, 1 to {MAX_ROWS}: got {counts}", code="invalid_value")
    for m, shape in model.shapes.items():
        if m.value in columns and columns[m.value].shape[1:] != shape:
            found = [*columns[m.value].shape]
            raise ApiError(f"{m}: expected shape {[-1, *shape]}: got {found}", code="invalid_value", param=m.value)
    return [{name: column[i] for name, column in columns.items()} for i in range(next(iter(counts.values())))]


async def answer_rows(request: InferRequest, model: ServedModel, engine: Engine, *, characters: int) -> dict[str, Any]:
    """Answers all rows; each is a request of its own to the engine. Raises ApiError."""
    rows = read_rows(request, model, characters=characters)
    futures = []
    try:
        for row in rows:
            sample = model.sample(row.pop("question", ""), **row)
            futures.append(engine.submit(sample, model=model.name, version=model.version))
        found: list[EngineAnswer] = await asyncio.gather(*map(asyncio.wrap_future, futures))
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    answers = [one.answer for one in found]
    size = [len(answers)]
    saved = [float("nan") if a.flops_saved is None else a.flops_saved for a in answers]
    outputs = [
        {"name": "answer", "datatype": "BYTES", "shape": size, "data": [a.text for a in answers]},
        {"name": "probability", "datatype": "FP32", "shape": size, "data": [a.confidence for a in answers]},
    ]
    if not np.isnan(saved).any():
        outputs.append({"name": "flops_saved", "datatype": "FP32", "shape": size, "data": saved})
    version = str(model.version)
    return {"model_name": model.name, "model_version": version, "id": request.id or "", "outputs": outputs}


def _read_texts(tensor: Tensor, characters: int) -> list[str]:
    if tensor.datatype != "BYTES" or tensor.shape not in ([len(tensor.data)], [len(tensor.data), 1]):
        raise ApiError("question: expected BYTES of shape [rows]", code="invalid_value", param="question")
    for text in tensor.data:
        if not isinstance(text, str) or len(text) > characters:
            message = f"question: expected texts of at most {characters} characters"
            raise ApiError(message, code="invalid_value", param="question")
    return tensor.data


def _read_array(tensor: Tensor, datatype: str) -> np.ndarray:
    name = tensor.name
    if tensor.datatype != datatype:
        raise ApiError(f"{name}: expected {datatype}: got {tensor.datatype!r}", code="invalid_value", param=name)
    try:
        flat = np.asarray(tensor.data, dtype=np.float64).ravel()
        values = flat.reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError) as error:
        message = f"{name}: data that does not fit the shape {tensor.shape} ({error})"
        raise ApiError(message, code="invalid_value", param=name) from error
    if datatype == "UINT8" and not ((flat >= 0) & (flat <= 255) & (flat == np.floor(flat))).all():
        raise ApiError(f"{name}: expected whole numbers from 0 to 255", code="invalid_value", param=name)
    if not np.isfinite(flat).all():
        raise ApiError(f"{name}: expected finite numbers", code="invalid_value", param=name)
    return values.astype(DTYPES[datatype])


def add_kserve(app: FastAPI, engine: Engine, config: ServerConfig) -> None:
    @app.get("/v2")
    async def server() -> dict[str, Any]:
        """What this server is."""
        return {"name": "omni-lab", "version": app.version, "extensions": []}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """Whether it runs."""
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        """Whether it can answer."""
        loaded = bool(engine.models.list())
        return JSONResponse({"ready": loaded}, status_code=200 if loaded else 503)

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def describe(name: str, version: int | None = None) -> dict[str, Any]:
        """The tensors of a model."""
        served = find_model(engine, name, version)
        return metadata(served, [m.version for m in engine.models.list() if m.name == name])

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: int | None = None) -> dict[str, Any]:
        """Whether a model can answer."""
        return {"name": find_model(engine, name, version).name, "ready": True}

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(body: InferRequest, name: str, version: int | None = None) -> dict[str, Any]:
        """Answers rows of questions."""
        served = find_model(engine, name, version)
        try:
            return await answer_rows(body, served, engine, characters=config.limits.characters)
        except Exception as error:
            raise ApiError.of(error) from error
