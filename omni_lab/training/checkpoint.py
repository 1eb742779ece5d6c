"""Checkpoints: weights as 8-bit safetensors, beside a JSON file with the identity of what they were trained from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor, nn

from omni_lab.utils.env import RETRAIN_SINCE_ENV_VAR, project_root

log = logging.getLogger(__name__)
WEIGHTS_FILE, METADATA_FILE = "model.safetensors", "model.json"
LAST_CHECKPOINT = "last.ckpt"  # Lightning's, of a training that is not finished
SHARED_KEY = "shared"  # in the metadata: digests of tensors that only a sibling's file holds
MIN_SHARED_BYTES = 1024  # smaller tensors are not worth sharing
BLOCK = 64  # weights per scale
SCALES = ".scales"  # suffix of the name of a tensor's scales


class CheckpointError(RuntimeError):
    """A checkpoint is missing, broken, or of another identity; the message names the difference."""


class BaseRecipe:
    """What all recipes share: folders of checkpoints, and initial weights that depend on the seed alone.

    inputs: what a model is made for: data; for a router its network; for a compressed model a network and a router.
    Subclasses define `seed`, `folder` (below those of all checkpoints), `identity(*inputs)` and `_build(*inputs)`.
    """

    exact = False  # save weights as they are, not in 8 bits
    may_train: Any = True  # else `load_or_fit` only loads
    command: Any = "this notebook under profile standard"  # what trains the model
    identity: Any  # what a checkpoint must agree with to be loaded

    def build_model(self: Any, *inputs: Any) -> Any:
        """The untrained model. Leaves the global random state alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self._build(*inputs)

    def work_folder(self: Any, *inputs: Any) -> Path:
        """Where a model trained here is saved: one folder per configuration, so that none overwrites another."""
        return project_root() / "data" / "checkpoints" / f"{self.folder}-{digest(self.identity(*inputs))}"

    @property
    def published_folder(self: Any) -> Path:
        return project_root() / "reports" / "published" / "checkpoints" / self.folder


def to_jsonable(value: Any, *, defaults: bool = True) -> Any:
    """A value as JSON represents it: tuples become lists, dataclasses objects of the fields that determine a model.

    defaults: whether these include fields at their default.
    """

    def fields(config: Any) -> dict[str, Any]:
        values = {f: getattr(config, f.name) for f in dataclasses.fields(config) if f.metadata.get("identity", True)}
        return {f.name: v for f, v in values.items() if defaults or v != _default(f)}

    return json.loads(json.dumps(value, default=fields))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def weights_digest(model: nn.Module) -> str:
    """Eight hex digits of the bytes of all weights, in the model's order; their names do not count."""
    digest = hashlib.sha256()
    for weights in _saved_tensors(model).values():
        digest.update(weights.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def digest(identity: dict[str, Any]) -> str:
    """Eight hex digits that differ wherever identities differ. A new field at its default does not change them."""
    return hashlib.sha256(json.dumps(to_jsonable(identity, defaults=False), sort_keys=True).encode()).hexdigest()[:8]


def is_fresh(file: Path) -> bool:
    """Whether a file exists and, under `omni-lab run --retrain`, is not older than that command."""
    return file.exists() and file.stat().st_mtime >= float(os.environ.get(RETRAIN_SINCE_ENV_VAR, "-inf"))


def to_blocks(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of any shape as int8 of that shape, and a float16 scale for every 64 consecutive ones [ceil(n / 64)].

    Block-wise 8-bit quantization (Dettmers et al. 2022, section 2.1, here on a linear grid): the error of a weight is
    at most 1/253 of the largest in its block (or 4e-6), about that of bfloat16. Raises ValueError if any weight is not
    finite or beyond 8e6.
    """
    if not weights.isfinite().all():
        raise ValueError("weights to be saved must be finite: got NaN or infinity")
    flat = weights.detach().float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).unflatten(0, (-1, BLOCK))
    scales = (blocks.abs().amax(1) / 127).half()
    if not scales.isfinite().all():
        raise ValueError(f"weights to be saved must be at most 8e6: got {float(flat.abs().max()):g}")
    smallest = torch.finfo(torch.float16).tiny / 1024  # positive float16
    steps = (blocks / scales.float().clamp(min=smallest)[:, None]).round().clamp(-127, 127)
    return steps.to(torch.int8).flatten()[: len(flat)].reshape(weights.shape), scales


def from_blocks(steps: Tensor, scales: Tensor) -> Tensor:
    """The float32 weights that `to_blocks` encoded."""
    return (steps.flatten() * scales.float().repeat_interleave(BLOCK)[: steps.numel()]).reshape(steps.shape)


def _saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers of a model; a shared one has one name."""
    saved = model.state_dict().keys()
    return {name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if name in saved}


def save_model(
    folder: Path, model: nn.Module, *, identity: dict[str, Any], metadata: dict[str, Any], exact: bool = False
) -> None:
    """Writes both files under temporary names, then renames them. Matrices become `to_blocks`, vectors float16.

    identity: what the weights depend on; `load_model` compares it. metadata: anything else, as history and timings.
    exact: save all tensors as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, weights in _saved_tensors(model).items():
        if exact or not weights.is_floating_point():
            tensors[name] = weights.detach().contiguous()
        elif weights.ndim < 2:
            tensors[name] = weights.detach().half()
        else:
            tensors[name], tensors[name + SCALES] = to_blocks(weights)
    metadata = {"identity": to_jsonable(identity), **to_jsonable(metadata)}
    _write(folder, tensors, metadata, order=(WEIGHTS_FILE, METADATA_FILE))


def _write(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, Any], *, order: tuple[str, str]) -> None:
    """Both files, the metadata with a line per key. order: in which they are renamed."""
    safetensors.torch.save_file(tensors, str(folder / f"{WEIGHTS_FILE}.part"))
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in metadata.items())
    (folder / f"{METADATA_FILE}.part").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    for name in order:
        (folder / f"{name}.part").replace(folder / name)


def deduplicate_weights(folder: Path, sibling: Path) -> int:
    """Removes the tensors that a sibling's file also holds, bit for bit under the same names; returns the bytes saved.

    For published checkpoints: from then on `folder` can be loaded only with the unchanged sibling beside it. Raises
    ValueError if the two do not lie in one folder, CheckpointError if one of them is missing or broken.
    """
    if folder.parent != sibling.parent or folder == sibling:
        raise ValueError(f"{folder}: cannot share weights with {sibling}, expected another folder beside it")
    metadata, (own, others) = read_metadata(folder), (_load_file(f / WEIGHTS_FILE) for f in (folder, sibling))
    large = {name for name in own.keys() & others.keys() if own[name].nbytes >= MIN_SHARED_BYTES}
    same = {name: _sha256(own[name]) for name in sorted(large) if _sha256(own[name]) == _sha256(others[name])}
    if not same:
        return 0
    before = sum((folder / name).stat().st_size for name in (WEIGHTS_FILE, METADATA_FILE))
    shared = metadata.get(SHARED_KEY, {})
    metadata[SHARED_KEY] = shared | {sibling.name: shared.get(sibling.name, {}) | same}
    remaining = {name: tensor for name, tensor in own.items() if name not in same}
    _write(folder, remaining, metadata, order=(METADATA_FILE, WEIGHTS_FILE))  # can be loaded between the two as well
    return before - sum((folder / name).stat().st_size for name in (WEIGHTS_FILE, METADATA_FILE))


def read_metadata(folder: Path, *, identity: dict[str, Any] | None = None) -> dict[str, Any]:
    """The metadata of a checkpoint. Raises CheckpointError if it is missing, broken, or not of a given identity.

    A field that the checkpoint lacks is newer than it, and may have its default: this is what it was trained with.
    """
    try:
        metadata: dict[str, Any] = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
        found = _flatten(metadata["identity"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no checkpoint there (no {METADATA_FILE})") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{folder / METADATA_FILE}: broken ({error})") from error
    expected = found if identity is None else _flatten(to_jsonable(identity))
    changed = found if identity is None else _flatten(to_jsonable(identity, defaults=False))
    differing = sorted(k for k in found | changed if expected.get(k) != found.get(k))
    if differing:
        pairs = ", ".join(f"{k}: has {found.get(k)!r}, expected {expected.get(k)!r}" for k in differing[:5])
        raise CheckpointError(f"{folder}: checkpoint from another configuration ({pairs})")
    return metadata


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors that `save_model` wrote, as saved, also those that `deduplicate_weights` left to siblings.

    Raises CheckpointError if a file is missing or broken, or a sibling's tensor has changed.
    """
    tensors = _load_file(folder / WEIGHTS_FILE)
    for sibling, digests in read_metadata(folder).get(SHARED_KEY, {}).items():
        file = folder.parent / sibling / WEIGHTS_FILE
        shared = _load_file(file) if file.exists() else {}
        for name in digests.keys() - tensors.keys():  # an interrupted `deduplicate_weights` left some here as well
            expected = digests[name]
            found = _sha256(shared[name]) if name in shared else "missing"
            if found != expected:
                raise CheckpointError(f"{file}: {name!r}, which {folder} shares, is {found}, expected {expected}")
            tensors[name] = shared[name]
    return tensors


def load_model(folder: Path, model: nn.Module, *, identity: dict[str, Any]) -> dict[str, Any]:
    """Loads the weights into `model` and returns the metadata. Raises CheckpointError that names what does not fit."""
    metadata = read_metadata(folder, identity=identity)
    own, found = _saved_tensors(model), read_tensors(folder)
    saved = {n: from_blocks(t, found[n + SCALES]) if n + SCALES in found else t for n, t in found.items()}
    saved = {n: t for n, t in saved.items() if not n.endswith(SCALES)}
    wrong = sorted(n for n in own | saved if n not in own or n not in saved or own[n].shape != saved[n].shape)
    if wrong:
        shapes = [list(t[wrong[0]].shape) if wrong[0] in t else None for t in (saved, own)]
        file = folder / WEIGHTS_FILE
        raise CheckpointError(f"{file}: cannot be loaded ({wrong[0]!r} is {shapes[0]}, expected {shapes[1]})")
    with torch.no_grad():
        for name, weights in own.items():
            weights.copy_(saved[name])
    return metadata


def load_or_fit(
    recipe: BaseRecipe,
    inputs: tuple[Any, ...],
    train: Callable[[Path], tuple[nn.Module, dict[str, Any]]],
    *,
    build: Callable[[dict[str, Any]], nn.Module] | None = None,
    part: str = "",
    retrain: bool = False,
    use_published: bool = True,
) -> tuple[Any, dict[str, Any], str]:
    """A recipe's model: trained here before, else published, else trained now; its metadata; its origin in words.

    A checkpoint of another identity is logged and not used. Raises CheckpointError if none fits and the recipe may not
    train (unless told to `retrain`): a notebook that expects a published model never trains for hours instead.
    inputs: of the recipe's methods.
    train: trains a model in a folder, or resumes there, and returns it with its metadata.
    build: a model for a checkpoint with this metadata; by default `recipe.build_model`.
    part: subfolder, if the model is trained in several parts.
    retrain: ignore all checkpoints; the command line's --retrain ignores those that are older than the command.
    """
    folder, identity = recipe.work_folder(*inputs) / part, recipe.identity(*inputs)
    places = [(folder, "trained here earlier"), (recipe.published_folder / part, "published with the project")]

    def load(place: Path) -> tuple[nn.Module, dict[str, Any]]:
        metadata = read_metadata(place, identity=identity)
        model = recipe.build_model(*inputs) if build is None else build(metadata)
        return model.eval(), load_model(place, model, identity=identity)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # of notebooks that run side by side and need the same model, one trains it
        reason = f"{recipe.published_folder / part}: no checkpoint there"
        for place, origin in [] if retrain else places[: 1 + use_published]:
            if is_fresh(place / METADATA_FILE):
                try:
                    return *load(place), origin
                except CheckpointError as error:
                    log.warning("not using a checkpoint: %s", error)
                    reason = str(error)
        if not (recipe.may_train or retrain or RETRAIN_SINCE_ENV_VAR in os.environ):
            raise CheckpointError(f"{reason}; this profile trains no models: train it by {recipe.command!r}")
        last = folder / LAST_CHECKPOINT
        if retrain or (last.exists() and not is_fresh(last)):
            shutil.rmtree(folder, ignore_errors=True)
        model, metadata = train(folder)
        save_model(folder, model, identity=identity, metadata=metadata, exact=recipe.exact)
        last.unlink(missing_ok=True)
        return *load(folder), "trained just now"


def _load_file(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(str(file))
    except Exception as error:
        raise CheckpointError(f"{file}: cannot be loaded ({error})") from error


def _sha256(tensor: Tensor) -> str:
    """Of type, shape and bytes."""
    raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {[*tensor.shape]} ".encode() + raw).hexdigest()


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
