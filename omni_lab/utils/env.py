"""The project's folder and environment variables."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

RETRAIN_SINCE_ENV_VAR = "OMNI_LAB_RETRAIN_SINCE"  # ignore checkpoints older than this (seconds since 1970)


def limit_spinning() -> None:
    """Threads of GNU OpenMP that wait for work spin for 1,000 rounds, then sleep; call it before torch is loaded.

    By default they spin on, and two processes that share the cores take up to a hundred times as long. Threads that
    sleep at once (OMP_WAIT_POLICY=PASSIVE) are three times as slow at small products as threads that spin briefly."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_freed_memory() -> bool:
    """Lets this process keep up to 1 GiB of freed memory, where the C library is GNU's. Returns whether it does.

    By default large blocks go back to the operating system at once, and each new tensor of some megabytes costs the
    zeroing of its pages anew: on CPUs that took up to half of a training step, and more of a small convolution.
    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    trim_threshold, mmap_threshold, kept = -1, -3, 1 << 30
    return mallopt is not None and all([mallopt(option, kept) for option in (mmap_threshold, trim_threshold)])


def project_root() -> Path:
    """The folder of data/ and reports/: OMNI_LAB_ROOT, else the checkout of this file, else the working directory."""
    if "OMNI_LAB_ROOT" in os.environ:
        return Path(os.environ["OMNI_LAB_ROOT"])
    checkout = Path(__file__).parents[2]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
