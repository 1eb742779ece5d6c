"""TODO"""

from omni_lab.fusion.cross_modal_attention import CrossModalAttention
from omni_lab.fusion.early import align_by_time
from omni_lab.fusion.plan import FusionPlan, FusionStage
