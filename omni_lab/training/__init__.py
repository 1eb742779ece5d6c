"""From a recipe to a trained model, on disk once and for all.

checkpoint.py           files and folders of trained models; `load_or_fit`, which loads one or has it trained
frozen_encoders.py      training of early exits, and latents that are computed once
callbacks.py            the progress table, the best router's weights, latents for a training
recipes.py              recipes of models, by name
fit.py                  `load_or_train` for models, and the Lightning trainer of all trainings
sequential_recipes.py   recipes of sequential routers, by name, and `load_or_train_sequential`
table_routers.py        sequential routers, trained where the outcome of every trajectory is known
table_baselines.py      routers that decide once, trained where every outcome is known
content_study.py        every kind of policy on one network, chosen on validation, measured on fresh questions
depth_allocation.py     a baseline: the same number of layers for all, which ones by a glance
router_recipes.py       recipes of routers, by name, and `load_or_train_router`
compression_recipes.py  recipes of compressed models, by name, and `compress`
own_model.py            the recipe of a set of one's own, its router, and what both reach
pretrained.py           a model with all that an answer needs, in one folder with a model card
exporting.py            a compressed model and its router in a folder that `omni_lab.engine` runs
"""

from omni_lab.training.checkpoint import weights_digest
from omni_lab.training.compression_recipes import compress, get_compression_recipe
from omni_lab.training.content_study import ContentStudy
from omni_lab.training.exporting import example_batch, export_compressed, frequent_routes
from omni_lab.training.fit import load_or_train
from omni_lab.training.pretrained import VQAPipeline
from omni_lab.training.recipes import get_recipe
from omni_lab.training.router_recipes import (
    build_router_module,
    cache_latents_for_routing,
    get_router_recipe,
    load_or_train_router,
    penalties_of,
)
from omni_lab.training.sequential_recipes import (
    get_sequential_recipe,
    glance_flops,
    held_out,
    load_or_train_sequential,
    prepare_for_routing,
)
from omni_lab.training.table_baselines import ONE_SHOT, train_one_shot
