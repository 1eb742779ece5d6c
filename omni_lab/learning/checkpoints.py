"""Trained models on disk: weights as safetensors in a byte each, and beside them what they were made from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from omni_lab.config import RETRAIN_SINCE

WEIGHTS, FACTS = "model.safetensors", "model.json"
BLOCK = 64
SCALES = ".scales"


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, broken, or of another configuration: the message says in what it differs."""


def plain(value: Any) -> Any:
    """A value as JSON sees it: dataclasses become objects, tuples lists."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def weights_digest(model: nn.Module) -> str:
    """Eight hex digits that differ between models of different weights."""
    held = hashlib.sha256()
    for name, weights in sorted(_weights(model).items()):
        held.update(name.encode() + weights.detach().cpu().contiguous().numpy().tobytes())
    return held.hexdigest()[:8]


def recent(file: Path) -> bool:
    """Whether it is there, and not older than `omni-lab run --retrain`, if that is what runs."""
    return file.exists() and file.stat().st_mtime >= float(os.environ.get(RETRAIN_SINCE, "-inf"))


def digest(identity: dict[str, Any]) -> str:
    """Eight hex digits that differ wherever identities do: so no two configurations share a folder."""
    return hashlib.sha256(json.dumps(plain(identity), sort_keys=True).encode()).hexdigest()[:8]


def to_blocks(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of any shape as int8 of that shape, and a float32 scale for every 64 of them in a row [ceil(n / 64)].

    Block-wise 8-bit quantization (Dettmers et al. 2022, section 2.1, here on a linear grid): no weight is off by more
    than 1/254 of the largest in its block, about what bfloat16 leaves of it. Raises ValueError if any is not finite.
    """
    if not weights.isfinite().all():
        raise ValueError("weights to be saved must be finite: got NaN or infinity")
    flat = weights.detach().float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).unflatten(0, (-1, BLOCK))
    scales = blocks.abs().amax(1) / 127
    steps = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-127, 127)
    return steps.to(torch.int8).flatten()[: len(flat)].reshape(weights.shape), scales


def from_blocks(steps: Tensor, scales: Tensor) -> Tensor:
    """The float32 weights that `to_blocks` stands for."""
    return (steps.flatten() * scales.repeat_interleave(BLOCK)[: steps.numel()]).reshape(steps.shape)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What of a model is saved; what two modules share is named once."""
    saved = model.state_dict().keys()
    return {name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if name in saved}


def save_model(
    folder: Path, model: nn.Module, *, identity: dict[str, Any], facts: dict[str, Any], exact: bool = False
) -> None:
    """Writes both files under temporary names, then renames them. Matrices are kept `to_blocks`, vectors in half
    precision; if `exact`, all as they are.

    identity: what the weights depend on, compared by `load_model`. facts: anything worth keeping (history, timings).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, weights in _weights(model).items():
        if exact or not weights.is_floating_point():
            tensors[name] = weights.detach().contiguous()
        elif weights.ndim < 2:
            tensors[name] = weights.detach().half()
        else:
            tensors[name], tensors[name + SCALES] = to_blocks(weights)
    safetensors.torch.save_file(tensors, str(folder / f"{WEIGHTS}.part"))
    (folder / f"{FACTS}.part").write_text(
        json.dumps({"identity": plain(identity), **plain(facts)}, indent=2), encoding="utf-8"
    )
    for name in (WEIGHTS, FACTS):
        (folder / f"{name}.part").replace(folder / name)


def read_facts(folder: Path, *, identity: dict[str, Any]) -> dict[str, Any]:
    """The facts beside the weights. Raises CheckpointError if absent, broken, or of another identity."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        found = _flat(facts["identity"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no checkpoint there (no {FACTS})") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{folder / FACTS}: broken ({error})") from error
    expected = _flat(plain(identity))
    differing = sorted(k for k in expected | found if expected.get(k) != found.get(k))
    if differing:
        pairs = ", ".join(f"{k}: has {found.get(k)!r}, expected {expected.get(k)!r}" for k in differing[:5])
        raise CheckpointError(f"{folder}: checkpoint from another configuration ({pairs})")
    return facts


def load_model(folder: Path, model: nn.Module, *, identity: dict[str, Any]) -> dict[str, Any]:
    """Loads the weights into `model` and returns the facts. Raises CheckpointError, naming what does not fit."""
    facts = read_facts(folder, identity=identity)
    path, own = folder / WEIGHTS, _weights(model)
    try:
        found = safetensors.torch.load_file(str(path))
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be loaded ({error})") from error
    saved = {n: from_blocks(t, found[n + SCALES]) if n + SCALES in found else t for n, t in found.items()}
    saved = {n: t for n, t in saved.items() if not n.endswith(SCALES)}
    wrong = sorted(n for n in own | saved if n not in own or n not in saved or own[n].shape != saved[n].shape)
    if wrong:
        shapes = [list(t[wrong[0]].shape) if wrong[0] in t else None for t in (saved, own)]
        raise CheckpointError(f"{path}: cannot be loaded ({wrong[0]!r} is {shapes[0]}, expected {shapes[1]})")
    with torch.no_grad():
        for name, weights in own.items():
            weights.copy_(saved[name])
    return facts


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
