"""Trained models on disk: weights as safetensors in half precision, and beside them what they were made from."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

WEIGHTS, FACTS = "model.safetensors", "model.json"


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, broken, or of another configuration: the message says in what it differs."""


def plain(value: Any) -> Any:
    """A value as JSON sees it: dataclasses become objects, tuples lists."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def digest(identity: dict[str, Any]) -> str:
    """Eight hex digits that differ wherever identities do: so no two configurations share a folder."""
    return hashlib.sha256(json.dumps(plain(identity), sort_keys=True).encode()).hexdigest()[:8]


def save_model(folder: Path, model: nn.Module, *, identity: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes both files under temporary names, then renames them.

    identity: what the weights depend on, compared by `load_model`. facts: anything worth keeping (history, timings).
    """
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_model(copy.deepcopy(model).half(), str(folder / f"{WEIGHTS}.part"))  # shared weights once
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
    try:
        safetensors.torch.load_model(model, str(folder / WEIGHTS))
    except Exception as error:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be loaded ({error})") from error
    return facts


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
