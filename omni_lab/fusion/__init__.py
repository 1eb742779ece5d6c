"""Fusion: how the token streams of the modalities exchange information.

cross_modal_attention.py  CrossModalAttention: one directed path from one modality to another
cross_modal.py            CrossModalFusion: layers of paths under a route, executed gathered, masked or packed
packed.py                 packed execution: all paths of a layer as one ragged batch on a GPU
early.py                  EarlyFusion of audio and video inside their encoders; align_by_time
plan.py                   FusionPlan: which pairs of modalities meet early, mid or late
"""

from omni_lab.fusion.cross_modal_attention import CrossModalAttention
from omni_lab.fusion.early import align_by_time
from omni_lab.fusion.plan import FusionPlan, FusionStage
