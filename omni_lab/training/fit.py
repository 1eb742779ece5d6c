"""TODO"""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from omni_lab.config.schema import RouterConfig, TrainingConfig
from omni_lab.evaluation.profiling import peak_memory_mb, reset_peak_memory
from omni_lab.training.callbacks import CacheFrozenLatents, ProgressTable, ThroughputMeter
from omni_lab.training.checkpoint import METADATA_FILE, CheckpointError, is_fresh, load_model, save_model
from omni_lab.training.early_exit import train_early_exits
from omni_lab.training.recipes import Recipe, TrainedModel

log = logging.getLogger(__name__)


def resolve_precision(precision: str) -> str:
    """ "auto" is bfloat16 autocast on a GPU, and on a CPU float32, in which resuming is exact."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if torch.cuda.is_available() else "32-true"


def build_trainer(
    config: TrainingConfig | RouterConfig, folder: Path, *, callbacks: list[Callback], **overrides: Any
) -> L.Trainer:
    """A Lightning Trainer that logs to `folder` and keeps `folder/last.ckpt`, taken at an update, never between two."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for harmless in ("does not have many workers", "exists and is not empty", "treespec", "logging interval"):
        warnings.filterwarnings("ignore", message=f".*{harmless}.*")
    keep_last = ModelCheckpoint(
        dirpath=folder, filename="last", every_n_train_steps=config.checkpoint_every, enable_version_counter=False
    )
    settings: dict[str, Any] = {
        "max_epochs": config.epochs,
        "accelerator": "gpu" if torch.cuda.is_available() else "cpu",
        "devices": 1,
        "precision": resolve_precision(config.precision),
        "accumulate_grad_batches": config.accumulate,
        "gradient_clip_val": config.clip_norm,
        "logger": [CSVLogger(folder / "logs", name="csv"), TensorBoardLogger(folder / "logs", name="tensorboard")],
        "callbacks": [*callbacks, keep_last],
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": 20,
    }
    return L.Trainer(**(settings | overrides))


def initial_model(recipe: Recipe, data: Any) -> Any:
    """The model that training begins with: new, but for what it has in common with an `init_from`."""
    model = recipe.build_model(data)
    if recipe.init_from is not None:
        known = model.state_dict()
        earlier = load_or_train(recipe.init_from).model.state_dict()
        fitting = {n: w for n, w in earlier.items() if n in known and w.shape == known[n].shape}
        model.load_state_dict(known | fitting)
    if recipe.modality_copy is not None:
        model.copy_modality_weights(*recipe.modality_copy)
    return model


def train(recipe: Recipe, *, retrain: bool = False) -> TrainedModel:
    """Trains from the recipe, shows progress, saves the model, and returns it as saved (8-bit weights).

    An interrupted training continues from its last checkpoint; afresh=True begins again.
    """
    data = recipe.data_module()
    folder = recipe.work_folder(data)
    if retrain:
        shutil.rmtree(folder, ignore_errors=True)
    model = initial_model(recipe, data)
    last = folder / "last.ckpt"
    if recipe.training.early_exit_steps and not last.exists():
        train_early_exits(model, data.dataset("train"), updates=recipe.training.early_exit_steps, seed=recipe.seed)
    module: Any = recipe.lightning_module(model, data)
    table, meter, encoding = ProgressTable(module.columns), ThroughputMeter(), CacheFrozenLatents()
    trainer = build_trainer(recipe.training, folder, callbacks=[encoding, meter, table])
    reset_peak_memory()
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=False)
    facts = {
        "history": table.rows,
        "samples_per_second": meter.totals["questions"] / meter.totals["seconds"],
        "pictures_per_second": meter.totals["pictures"] / meter.totals["seconds"],
        "seconds": meter.totals["seconds"],
        "encoding_seconds": encoding.seconds,
        "peak_memory_mb": peak_memory_mb(),
        "device": device_name(),
        "precision": str(trainer.precision),
        "command": f"omni-lab train {recipe.name} --profile {recipe.profile} --seed {recipe.seed}",
    }
    save_model(folder, model, identity=recipe.identity(data), metadata=facts)
    last.unlink(missing_ok=True)
    return _load(recipe, recipe.data_module(), folder, "trained just now")


def load_or_train(recipe: Recipe, *, retrain: bool = False, use_published: bool = True) -> TrainedModel:
    """The model of a recipe: the one trained here before, else the published one, else trained now.

    retrain: ignore both and train afresh; the command line's --retrain ignores what is older than the command itself,
    so that a whole series trains each model once. A checkpoint that does not fit the recipe is reported and not used.
    """
    data = recipe.data_module()
    work = recipe.work_folder(data)
    places = [(work, "trained here earlier")]
    if use_published:
        places.append((recipe.published_folder, "published with the project"))
    work.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{work}.lock"):  # notebooks that run side by side want the same model: one trains, the others wait
        for folder, origin in [] if retrain else places:
            if is_fresh(folder / METADATA_FILE):
                try:
                    return _load(recipe, data, folder, origin)
                except CheckpointError as error:
                    log.warning("not using a checkpoint: %s", error)
        last = work / "last.ckpt"
        return train(recipe, retrain=retrain or (last.exists() and not is_fresh(last)))


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _load(recipe: Recipe, data: Any, folder: Path, origin: str) -> TrainedModel:
    model = recipe.build_model(data)
    facts = load_model(folder, model, identity=recipe.identity(data))
    return TrainedModel(model.eval(), data, facts, f"{origin} ({facts['device']}, {facts['seconds']:.0f} s)")
