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

from omni_lab.utils.env import RETRAIN_SINCE_ENV_VAR

WEIGHTS_FILE, METADATA_FILE = "model.safetensors", "model.json"
SHARED_KEY = "shared"  # among the facts: which tensors lie in which sibling's file
WORTH_SHARING = 1024  # bytes
BLOCK = 64
SCALES = ".scales"


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, broken, or of another configuration: the message says in what it differs."""


def to_jsonable(value: Any) -> Any:
    """A value as JSON sees it: dataclasses become objects, tuples lists."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def weights_digest(model: nn.Module) -> str:
    """Eight hex digits of the bytes of all weights, in the order of the model's parameters; names do not count."""
    digest = hashlib.sha256()
    for weights in _weights(model).values():
        digest.update(weights.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def is_fresh(file: Path) -> bool:
    """Whether it is there, and not older than `omni-lab run --retrain`, if that is what runs."""
    return file.exists() and file.stat().st_mtime >= float(os.environ.get(RETRAIN_SINCE_ENV_VAR, "-inf"))


def digest(identity: dict[str, Any]) -> str:
    """Eight hex digits that differ wherever identities do: so no two configurations share a folder."""
    return hashlib.sha256(json.dumps(to_jsonable(identity), sort_keys=True).encode()).hexdigest()[:8]


def to_blocks(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of any shape as int8 of that shape, and a float16 scale for every 64 of them in a row [ceil(n / 64)].

    Block-wise 8-bit quantization (Dettmers et al. 2022, section 2.1, here on a linear grid): no weight is off by more
    than 1/253 of the largest in its block (or 4e-6), about what bfloat16 leaves of it. Raises ValueError if any is not
    finite, or beyond 8e6.
    """
    if not weights.isfinite().all():
        raise ValueError("weights to be saved must be finite: got NaN or infinity")
    flat = weights.detach().float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).unflatten(0, (-1, BLOCK))
    scales = (blocks.abs().amax(1) / 127).half()
    if not scales.isfinite().all():
        raise ValueError(f"weights to be saved must be at most 8e6: got {float(flat.abs().max()):g}")
    least = torch.finfo(torch.float16).tiny / 1024  # that half precision can hold
    steps = (blocks / scales.float().clamp(min=least)[:, None]).round().clamp(-127, 127)
    return steps.to(torch.int8).flatten()[: len(flat)].reshape(weights.shape), scales


def from_blocks(steps: Tensor, scales: Tensor) -> Tensor:
    """The float32 weights that `to_blocks` stands for."""
    return (steps.flatten() * scales.float().repeat_interleave(BLOCK)[: steps.numel()]).reshape(steps.shape)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What of a model is saved; what two modules share is named once."""
    saved = model.state_dict().keys()
    return {name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if name in saved}


def save_model(
    folder: Path, model: nn.Module, *, identity: dict[str, Any], metadata: dict[str, Any], exact: bool = False
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
    _write(
        folder,
        tensors,
        {"identity": to_jsonable(identity), **to_jsonable(metadata)},
        order=(WEIGHTS_FILE, METADATA_FILE),
    )


def _write(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any], *, order: tuple[str, str]) -> None:
    """Both files; of the facts, a line each. order: in which they are renamed."""
    safetensors.torch.save_file(tensors, str(folder / f"{WEIGHTS_FILE}.part"))
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(facts[key], separators=(',', ':'))}" for key in facts)
    (folder / f"{METADATA_FILE}.part").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    for name in order:
        (folder / f"{name}.part").replace(folder / name)


def deduplicate_weights(folder: Path, sibling: Path) -> int:
    """Leaves to a sibling what its file holds, too, under the same names and bit for bit, and returns how many bytes
    that saves. From then on `folder` is loaded only with that sibling, unchanged, beside it: for published models.

    Raises ValueError if the two do not lie in one folder, CheckpointError if one of them is missing or broken.
    """
    if folder.parent != sibling.parent or folder == sibling:
        raise ValueError(f"{folder}: cannot share weights with {sibling}, expected another folder beside it")
    facts, own, theirs = _parse_facts(folder), _load_file(folder / WEIGHTS_FILE), _load_file(sibling / WEIGHTS_FILE)
    large = {name for name in own.keys() & theirs.keys() if own[name].nbytes >= WORTH_SHARING}
    same = {name: _sha256(own[name]) for name in sorted(large) if _sha256(own[name]) == _sha256(theirs[name])}
    if not same:
        return 0
    before = sum((folder / name).stat().st_size for name in (WEIGHTS_FILE, METADATA_FILE))
    shared = facts.get(SHARED_KEY, {})
    facts[SHARED_KEY] = shared | {sibling.name: shared.get(sibling.name, {}) | same}
    left = {name: tensor for name, tensor in own.items() if name not in same}
    _write(folder, left, facts, order=(METADATA_FILE, WEIGHTS_FILE))  # loads between the two, as well
    return before - sum((folder / name).stat().st_size for name in (WEIGHTS_FILE, METADATA_FILE))


def read_metadata(folder: Path, *, identity: dict[str, Any]) -> dict[str, Any]:
    """The facts beside the weights. Raises CheckpointError if absent, broken, or of another identity."""
    facts = _parse_facts(folder)
    found, expected = _flat(facts["identity"]), _flat(to_jsonable(identity))
    differing = sorted(k for k in expected | found if expected.get(k) != found.get(k))
    if differing:
        pairs = ", ".join(f"{k}: has {found.get(k)!r}, expected {expected.get(k)!r}" for k in differing[:5])
        raise CheckpointError(f"{folder}: checkpoint from another configuration ({pairs})")
    return facts


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """What `save_model` wrote, in bytes and half precision as saved; also what `share_weights` left to siblings.

    Raises CheckpointError if a file is missing or broken, or if a sibling's tensor is no longer the same.
    """
    tensors = _load_file(folder / WEIGHTS_FILE)
    for sibling, digests in _parse_facts(folder).get(SHARED_KEY, {}).items():
        file = folder.parent / sibling / WEIGHTS_FILE
        held = _load_file(file) if file.exists() else {}
        for name, expected in digests.items():
            if name in tensors:  # an interrupted save left it here, as well
                continue
            found = _sha256(held[name]) if name in held else "missing"
            if found != expected:
                raise CheckpointError(f"{file}: {name!r}, which {folder} shares, is {found}, expected {expected}")
            tensors[name] = held[name]
    return tensors


def load_model(folder: Path, model: nn.Module, *, identity: dict[str, Any]) -> dict[str, Any]:
    """Loads the weights into `model` and returns the facts. Raises CheckpointError, naming what does not fit."""
    facts = read_metadata(folder, identity=identity)
    path, own = folder / WEIGHTS_FILE, _weights(model)
    found = read_tensors(folder)
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


def _parse_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
        _flat(facts["identity"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no checkpoint there (no {METADATA_FILE})") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{folder / METADATA_FILE}: broken ({error})") from error
    return facts


def _load_file(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(str(file))
    except Exception as error:
        raise CheckpointError(f"{file}: cannot be loaded ({error})") from error


def _sha256(tensor: Tensor) -> str:
    """Of type, shape and bytes."""
    raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {[*tensor.shape]} ".encode() + raw).hexdigest()


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
