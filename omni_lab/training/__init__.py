"""TODO"""

from omni_lab.training.checkpoint import weights_digest
from omni_lab.training.compression_recipes import compress, get_compression_recipe
from omni_lab.training.fit import load_or_train
from omni_lab.training.recipes import get_recipe
from omni_lab.training.router_recipes import (
    build_router_module,
    cache_latents_for_routing,
    get_router_recipe,
    load_or_train_router,
    penalties_of,
)
