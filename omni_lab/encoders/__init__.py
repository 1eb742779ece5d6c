"""One encoder per modality, and the storage of encoded tokens in few bits.

text.py     token embedding and a small transformer
vision.py   a backbone of timm: a Swin transformer, with an early exit, or any other
audio.py    mel or wav2vec 2.0 front end, pooled to few tokens in time
video.py    the vision encoder per frame, then attention over time
tiny.py     tiny stand-ins for image, audio and video, from coarse copies of the input
levels.py   the levels of an encoder, as calls
hidden_states.py  an adapter for encoders of other libraries, such as transformers
latents.py  int8 latents, fixed and adaptive quantization
"""

from omni_lab.encoders.hidden_states import HiddenStateEncoder
from omni_lab.encoders.latents import Int8Latents, adaptive_quantize, fixed_quantize, pack_bits, unpack_bits
from omni_lab.encoders.text import TextEncoder
from omni_lab.encoders.vision import VisionEncoder
