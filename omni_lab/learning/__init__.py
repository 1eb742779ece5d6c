"""Learning: the LightningModules, their callbacks, and the recipes that make a trained model from a profile."""

from omni_lab.learning.checkpoints import CheckpointError, load_model, save_model, share_weights
from omni_lab.learning.multitask import MultitaskTraining
from omni_lab.learning.recipes import Recipe, Trained, get_recipe, load_or_train, train

__all__ = [
    "CheckpointError",
    "MultitaskTraining",
    "Recipe",
    "Trained",
    "get_recipe",
    "load_model",
    "load_or_train",
    "save_model",
    "share_weights",
    "train",
]
