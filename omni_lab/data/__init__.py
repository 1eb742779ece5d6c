"""TODO"""

from omni_lab.data.collate import Sample, collate
from omni_lab.data.datamodule import OmniDataModule, VQADataset
from omni_lab.data.media_io import read_image
from omni_lab.data.sampler import OmniBatchSampler
from omni_lab.data.store import Store, StoreError, ensure_store
from omni_lab.data.tokenizer import TokenizerError, encode_letters
