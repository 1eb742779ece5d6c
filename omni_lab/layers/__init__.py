"""TODO"""

from omni_lab.layers.attention import MaskedMultiHeadAttention
from omni_lab.layers.mel import LogMelSpectrogram
