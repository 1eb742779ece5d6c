"""From media files to batches.

sources/       data sets that are read from files, and the interface of all sources (worlds/ holds generated ones)
media_io.py    read images and audio
uploads.py     turn uploaded bytes into a model input
tokenizer.py   byte-level BPE; the text decoder's tokenizer; letters for text to speech
media_chunks.py  the media of a store, built in chunks when they are needed
store.py       the memory-mapped store that a source is written to once
collate.py     Sample, and collate: samples to an OmniBatch
sampler.py     which samples go into which batch
datamodule.py  the dataset of questions, and the LightningDataModule
"""

from omni_lab.data.collate import Sample, collate
from omni_lab.data.datamodule import OmniDataModule, VQADataset
from omni_lab.data.media_io import read_image
from omni_lab.data.sampler import OmniBatchSampler
from omni_lab.data.sources.easy_vqa import EasyVQA
from omni_lab.data.sources.hsk import hsk_sentences
from omni_lab.data.sources.speech_corpora import human_recordings
from omni_lab.data.sources.vqa_v2 import normalize_answer, soft_scores
from omni_lab.data.store import Store, StoreError, ensure_store
from omni_lab.data.tokenizer import TokenizerError, encode_letters
