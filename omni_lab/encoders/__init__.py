"""TODO"""

from omni_lab.encoders.latents import Int8Latents, adaptive_quantize, fixed_quantize, pack_bits, unpack_bits
from omni_lab.encoders.text import TextEncoder
from omni_lab.encoders.vision import VisionEncoder
