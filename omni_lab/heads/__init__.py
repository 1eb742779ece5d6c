"""TODO"""

from omni_lab.heads.context import HeadError
from omni_lab.heads.text import GenerationConfig
from omni_lab.heads.tts import GriffinLimVocoder
