from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource
from omni_lab.utils.env import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for repeat in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(48 << 20)
    ctypes.memset(block, 1, 48 << 20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of the GNU C library")
def test_kept_memory_costs_no_page_faults() -> None:
    def page_faults(keep: bool) -> int:
        code = FAULTS.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    pages = (48 << 20) // 4096
    assert page_faults(keep=False) > pages // 600, "at least one for each huge page"
    assert page_faults(keep=True) == 0
