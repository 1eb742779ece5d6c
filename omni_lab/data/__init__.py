"""What the model eats: real sets, their memory-mapped store, batching, and the LightningDataModule."""

from omni_lab.data.easy_vqa import EasyVqa
from omni_lab.data.module import OmniDataModule
from omni_lab.data.samples import Sample, collate
from omni_lab.data.sources import Question, VqaSource
from omni_lab.data.store import Store, StoreError, ensure_store
from omni_lab.data.vqa_v2 import VqaV2

__all__ = [
    "EasyVqa",
    "OmniDataModule",
    "Question",
    "Sample",
    "Store",
    "StoreError",
    "VqaSource",
    "VqaV2",
    "collate",
    "ensure_store",
]
