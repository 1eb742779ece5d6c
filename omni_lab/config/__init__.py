"""Configuration of everything that is built and trained.

schema.py      frozen dataclasses, from the config of one encoder to a whole `Profile`
profiles.py    `get_profile`: smoke, quick or full, read from profiles.yaml
profiles.yaml  the values of the three profiles
"""

from omni_lab.config.profiles import get_profile
from omni_lab.config.schema import with_changes
