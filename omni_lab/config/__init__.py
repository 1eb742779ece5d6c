"""Configuration of everything that is built and trained.

models.py      frozen dataclasses of encoders, fusion and the whole model
schema.py      those of data, training and worlds, up to a whole `Profile`
profiles.py    `get_profile`: smoke, quick or full, read from profiles.yaml
profiles.yaml  the values of the three profiles
"""

from omni_lab.config.profiles import get_profile
from omni_lab.config.schema import with_changes
