"""Where a result comes from: the code, the command that repeats it, and the processor with its vector instructions."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

KEYS = ("commit", "clean", "library", "command", "processor", "instructions", "capability", "threads")
CODE = ("omni_lab", "notebooks", "pyproject.toml", "constraints.txt")  # what a result can depend on
VECTOR = re.compile(r"(avx|amx|sse4_2|vnni|neon|asimd|sve|i8mm)\w*")


def provenance(notebook: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.json holds beside the numbers: `KEYS`. What cannot be found out is None."""
    import torch

    commit, clean = code_state()
    processor, instructions = _processor()
    found = (commit, clean, library_digest(), command(notebook, parameters), processor, instructions)
    return dict(zip(KEYS, (*found, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()), strict=True))


def code_state(checkout: Path = Path(__file__).parents[2]) -> tuple[str | None, bool | None]:
    """The commit of a checkout, 40 hex digits, and whether `CODE` is as committed; (None, None) outside of git."""
    top, _, commit = (_output("git", "-C", str(checkout), "rev-parse", "--show-toplevel", "HEAD") or "").partition("\n")
    if not commit or not checkout.samefile(top):  # the library may be installed below another project's checkout
        return None, None
    # It may refresh the index: else the filter that strips outputs would be run on every notebook, each time.
    changes = _output("git", "-C", str(checkout), "status", "--porcelain", "--", *CODE)
    return commit, None if changes is None else not changes


@cache
def library_digest() -> str:
    """Digest of code, configuration and tables of the library. Claims are only compared with results."""
    found = (file for file in Path(__file__).parents[1].rglob("*.*") if "__pycache__" not in file.parts)
    files = sorted(file for file in found if file.name not in ("README.md", "claims.yaml") and file.is_file())
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def command(notebook: str, parameters: Mapping[str, Any]) -> str:
    """The command line that runs a notebook with these parameters again."""
    words = ["omni-lab", "run", notebook, "--profile", str(parameters["profile"])]
    for name, value in parameters.items():
        text = yaml.safe_dump([value], default_flow_style=True, width=math.inf).strip()[1:-1]
        if isinstance(value, str) and text != value:
            text = json.dumps(value)
        words += ["-p", f"{name}={text}"] if name != "profile" else []
    return shlex.join(words)


def _processor() -> tuple[str, list[str] | None]:
    """The processor's name and its vector instructions, None where the system does not list them."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        lines = (line.partition(":") for line in file.read_text(encoding="utf-8").splitlines())
        known = {key.strip().lower(): value.strip() for key, _, value in lines}
        name, flags = known.get("model name"), known.get("flags") or known.get("features")
    else:
        name = _output("sysctl", "-n", "machdep.cpu.brand_string")
        flags = _output("sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features")
    instructions = sorted({flag for flag in (flags or "").lower().split() if VECTOR.match(flag)})
    return name or platform.processor() or platform.machine(), instructions or None


def _output(*words: str) -> str | None:
    """What a command prints, None if it fails or does not exist."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
