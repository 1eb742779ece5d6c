"""Training: load a checkpoint, or fit a module with Lightning, resuming where it was interrupted, and save it."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from omni_lab.config.schema import RouterConfig, TrainingConfig
from omni_lab.evaluation.profiling import peak_memory_mb, reset_peak_memory
from omni_lab.training.callbacks import CacheFrozenLatents, ProgressTable
from omni_lab.training.checkpoint import LAST_CHECKPOINT, load_or_fit
from omni_lab.training.frozen_encoders import train_early_exits
from omni_lab.training.recipes import Recipe, TrainedModel


def load_or_train(recipe: Recipe, *, retrain: bool = False, use_published: bool = True) -> TrainedModel:
    """The model of a recipe: trained here before, else published, else trained now. Arguments: see `load_or_fit`."""
    data, train = recipe.data_module(), partial(_train, recipe)
    model, metadata, origin = load_or_fit(recipe, (data,), train, retrain=retrain, use_published=use_published)
    return TrainedModel(model, data, metadata, f"{origin} ({metadata['device']}, {metadata['seconds']:.0f} s)")


def initial_model(recipe: Recipe, data: Any) -> Any:
    """The model that training starts from: new, or with the weights of `init_from` as far as names and shapes agree."""
    model = recipe.build_model(data)
    if recipe.init_from is not None:
        new, pretrained = model.state_dict(), load_or_train(recipe.init_from).model.state_dict()
        matching = {n: w for n, w in pretrained.items() if n in new and w.shape == new[n].shape}
        model.load_state_dict(new | matching)
    if recipe.modality_copy is not None:
        model.copy_modality_weights(*recipe.modality_copy)
    return model


def _train(recipe: Recipe, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    data = replace(recipe, eval_scenes={}).data_module()  # of its own: it caches latents
    model = initial_model(recipe, data)
    steps = recipe.training.early_exit_steps
    if steps and not (folder / LAST_CHECKPOINT).exists():
        train_early_exits(model, data.dataset("train"), steps=steps, seed=recipe.seed)
    cache = CacheFrozenLatents()
    reset_peak_memory()
    trainer, table = fit(recipe.lightning_module(model, data), data, recipe.training, folder, cache)
    return model, {
        "history": table.rows,
        "samples_per_second": table.totals["questions"] / table.totals["seconds"],
        "pictures_per_second": table.totals["images"] / table.totals["seconds"],
        "seconds": table.totals["seconds"],
        "encoding_seconds": cache.seconds,
        "peak_memory_mb": peak_memory_mb(),
        "device": device_name(),
        "precision": str(trainer.precision),
        "command": recipe.command,
    }


def fit(
    module: Any, data: Any, config: TrainingConfig | RouterConfig, folder: Path, *callbacks: Callback, **overrides: Any
) -> tuple[L.Trainer, ProgressTable]:
    """Fits a module to data, from `folder`'s last checkpoint if there is one. Other arguments: see `build_trainer`."""
    table, last = ProgressTable(module.columns), folder / LAST_CHECKPOINT
    trainer = build_trainer(config, folder, callbacks=[*callbacks, table], **overrides)
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=False)
    return trainer, table


def build_trainer(
    config: TrainingConfig | RouterConfig, folder: Path, *, callbacks: list[Callback], **overrides: Any
) -> L.Trainer:
    """A Lightning Trainer that logs to `folder` and saves its last checkpoint there, always after an optimizer step.
    overrides: arguments of `L.Trainer`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for harmless in ("does not have many workers", "exists and is not empty", "treespec", "logging interval"):
        warnings.filterwarnings("ignore", message=f".*{harmless}.*")
    last = ModelCheckpoint(
        dirpath=folder, filename="last", every_n_train_steps=config.checkpoint_every, enable_version_counter=False
    )
    auto = "bf16-mixed" if torch.cuda.is_available() else "32-true"  # in float32, a resumed training ends bit-identical
    settings: dict[str, Any] = {
        "max_epochs": config.epochs,
        "accelerator": "gpu" if torch.cuda.is_available() else "cpu",
        "devices": 1,
        "precision": auto if config.precision == "auto" else config.precision,
        "accumulate_grad_batches": config.accumulate,
        "gradient_clip_val": config.clip_norm,
        "logger": [CSVLogger(folder / "logs", name="csv"), TensorBoardLogger(folder / "logs", name="tensorboard")],
        "callbacks": [*callbacks, last],
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": 20,
    }
    return L.Trainer(**(settings | overrides))


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
