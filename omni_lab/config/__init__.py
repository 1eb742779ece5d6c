"""TODO"""

from omni_lab.config.profiles import get_profile
from omni_lab.config.schema import with_changes
