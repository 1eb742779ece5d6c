"""Building blocks that encoders, fusion and heads share.

attention.py   masked multi-head attention, the transformer block, recording of attention weights
decoder.py     the decoder layer and its key-value caches
layer_drop.py  residual layers that samples may skip
mel.py         log-mel spectrograms
positional.py  sinusoidal embeddings of times and grid cells
"""

from omni_lab.layers.attention import MaskedMultiHeadAttention
from omni_lab.layers.mel import LogMelSpectrogram
