"""Task heads: what the fused streams are decoded into.

context.py      ContextEncoder: fused tokens of all modalities side by side, which all heads but the answer head read
answer.py       AnswerHead: a class of a fixed list of answers
text.py         TextHead: an autoregressive decoder with greedy, top-p and beam search
detection.py    DetectionHead: objects in an image as a set of boxes (DETR)
restoration.py  RestorationHead: a U-Net that repairs damaged images
tts.py          TTSHead: text to mel spectrogram (FastSpeech); GriffinLimVocoder: mel to waveform
"""

from omni_lab.heads.context import HeadError
from omni_lab.heads.text import GenerationConfig
from omni_lab.heads.tts import GriffinLimVocoder
