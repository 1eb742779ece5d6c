"""TODO"""

from __future__ import annotations

import os
from pathlib import Path

RETRAIN_SINCE_ENV_VAR = (
    "OMNI_LAB_RETRAIN_SINCE"  # checkpoints made before this moment (seconds since 1970) do not count
)


def project_root() -> Path:
    """The folder that holds data/ and reports/: OMNI_LAB_ROOT, else the checkout this file lies in, else here."""
    if "OMNI_LAB_ROOT" in os.environ:
        return Path(os.environ["OMNI_LAB_ROOT"])
    checkout = Path(__file__).parents[2]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
