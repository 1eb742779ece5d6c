"""The project's folder and environment variables."""

from __future__ import annotations

import os
from pathlib import Path

RETRAIN_SINCE_ENV_VAR = "OMNI_LAB_RETRAIN_SINCE"  # ignore checkpoints older than this (seconds since 1970)


def limit_spinning() -> None:
    """Threads of GNU OpenMP that wait for work spin for 1,000 rounds, then sleep; call it before torch is loaded.

    By default they spin on, and two processes that share the cores take up to a hundred times as long. Threads that
    sleep at once (OMP_WAIT_POLICY=PASSIVE) are three times as slow at small products as threads that spin briefly."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def project_root() -> Path:
    """The folder of data/ and reports/: OMNI_LAB_ROOT, else the checkout of this file, else the working directory."""
    if "OMNI_LAB_ROOT" in os.environ:
        return Path(os.environ["OMNI_LAB_ROOT"])
    checkout = Path(__file__).parents[2]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
