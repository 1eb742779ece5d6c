"""What the model eats: real sets, their memory-mapped store, batching, and the LightningDataModule."""

from omni_lab.data.distracted import Distracted
from omni_lab.data.easy_vqa import EasyVqa
from omni_lab.data.module import OmniDataModule, ViewsDataModule
from omni_lab.data.samples import Sample, collate
from omni_lab.data.sources import Family, Question, VqaSource
from omni_lab.data.spoken import Spoken
from omni_lab.data.store import Store, StoreError, ensure_store
from omni_lab.data.vqa_v2 import VqaV2
from omni_lab.data.worlds import EmojiWorld, TalkingFace

__all__ = [
    "Distracted",
    "EasyVqa",
    "EmojiWorld",
    "Family",
    "OmniDataModule",
    "Question",
    "Sample",
    "Spoken",
    "Store",
    "StoreError",
    "TalkingFace",
    "ViewsDataModule",
    "VqaSource",
    "VqaV2",
    "collate",
    "ensure_store",
]
