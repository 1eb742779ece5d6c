from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from omni_lab.experiments.cli import _parse_assignments
from omni_lab.experiments.provenance import CODE, VECTOR, code_state, command, library_digest, provenance


def git(checkout: Path, *words: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    found = subprocess.run(("git", "-C", str(checkout), *identity, *words), capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_a_checkout_is_clean_until_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_state(tmp_path) == (None, None), "no git here"
    for name in (*CODE, "reports"):
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("")
    for folder in ("omni_lab", "notebooks", "reports"):
        (tmp_path / folder / "file.py").write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert code_state(tmp_path) == (commit, True) and re.fullmatch("[0-9a-f]{40}", commit)
    assert code_state(tmp_path / "omni_lab") == (None, None), "below another project's checkout"
    (tmp_path / "reports" / "file.py").write_text("2")
    (tmp_path / "README.md").write_text("2")
    assert code_state(tmp_path) == (commit, True), "results and texts do not count"
    (tmp_path / "omni_lab" / "new.py").write_text("3")
    assert code_state(tmp_path) == (commit, False), "a new file counts"
    (tmp_path / "omni_lab" / "new.py").unlink()
    (tmp_path / "notebooks" / "file.py").write_text("2")
    assert code_state(tmp_path) == (commit, False)
    monkeypatch.setenv("PATH", "")
    assert code_state(tmp_path) == (None, None), "no git at all"


@pytest.mark.parametrize(
    "value", [0, 1e-5, 0.25, True, "", "0.5", "a word", "text: with, signs", "it's", [1, 2], ["a b"]]
)
def test_a_command_gives_its_parameters_again(value: object) -> None:
    words = shlex.split(command("nn", {"profile": "standard", "seed": 1, "what": value}))
    assert words[:5] == ["omni-lab", "run", "nn", "--profile", "standard"] and words[5::2] == ["-p", "-p"]
    assert _parse_assignments(words[6::2]) == {"seed": 1, "what": value}


def test_processor_and_library_are_named() -> None:
    found = provenance("nn", {"profile": "smoke", "seed": 0})
    assert found["library"] == library_digest() and re.fullmatch("[0-9a-f]{64}", found["library"])
    assert found["processor"] and found["threads"] == torch.get_num_threads()
    capability = found["capability"].lower()
    if capability in ("avx2", "avx512"):
        assert any(instruction.startswith(capability) for instruction in found["instructions"])
    named = [flag for flag in ("avx2", "avx512_vnni", "amx_tile", "avx_vnni", "asimddp", "i8mm") if VECTOR.match(flag)]
    assert len(named) == 6 and not VECTOR.match("fpu")
