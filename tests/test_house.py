"""The floor plan: which room may import which, how long a file may be, and how much the core may hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "omni_lab"
MODEL = (
    *("utils", "batch", "config", "layers", "encoders", "routing", "fusion", "heads", "model", "rollout"),
    *("registry", "build"),
)
DATA = ("data", "worlds", "metrics")
RULES: dict[str, tuple[str, ...]] = {  # room -> what it may import; a dotted entry is that module alone
    "utils": (),
    "batch": (),
    "config": ("utils", "batch"),
    "layers": ("batch",),
    "encoders": ("batch", "config", "layers"),
    "routing": ("utils", "batch", "config", "layers"),
    "fusion": ("batch", "config", "layers", "encoders", "routing.route"),
    "heads": ("batch", "layers"),
    "model": MODEL[:8],
    "rollout": MODEL[:9],
    "registry": ("utils", "config"),
    "build": (*MODEL[:9], "registry", "data.tokenizer"),
    "data": ("utils", "batch", "config"),
    "worlds": ("utils", "batch", "config", "layers", "data"),
    "metrics": ("utils", "batch", "data.media_io"),
    "engine": ("utils",),
    "compression": (*MODEL, "engine"),
    "evaluation": (*MODEL, "data", "worlds", "metrics", "compression"),
    "explain": MODEL,
    "lightning_modules": (*MODEL, "data", "worlds", "metrics", "compression"),
    "training": (
        *MODEL,
        "engine",
        "data",
        "worlds",
        "metrics",
        "compression",
        "evaluation",
        "explain",
        "lightning_modules",
    ),
    "serving": ("utils", "batch", "config", "heads", "data", "engine", "training"),
    "viz": (*MODEL, "data", "worlds", "metrics", "compression", "evaluation", "explain", "lightning_modules"),
    "experiments": ("utils", "config"),  # at import time, so that the command line starts at once; all inside functions
}
TYPES_ONLY = {("heads", "data.tokenizer")}  # imported under TYPE_CHECKING
CORE = ("batch", "model", "rollout", "build", "layers", "encoders", "fusion", "routing", "heads", "lightning_modules")
CORE_LINES, FILE_LINES, FUNCTION_LINES, ALL_LINES = 6300, 300, 60, 28_000
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[tuple[str, bool, bool]]:
    """Each module of the package that a file imports; whether at import time; whether for its types alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    typing = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test)
        for n in ast.walk(i)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("omni_lab"):
            base = (node.module or "").removeprefix("omni_lab").lstrip(".")
            names = [base] if base else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.removeprefix("omni_lab.") for alias in node.names if alias.name.startswith("omni_lab.")]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside, id(node) in typing


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_room_imports_only_what_it_may(file: Path) -> None:
    module = module_of(file)
    room = module.split(".")[0]
    if room in ("", "__main__"):  # the package itself, and `python -m omni_lab`
        return
    assert room in RULES, f"omni_lab/{room} is a new room: give it a line in RULES"
    for name, at_import, types_only in imports(file):
        if name.split(".")[0] == room or (room == "experiments" and not at_import):
            continue
        if types_only and (room, name) in TYPES_ONLY:
            continue
        allowed = [rule for rule in RULES[room] if name == rule or name.startswith(f"{rule}.")]
        assert allowed, f"{module} imports omni_lab.{name}: {room} may import {RULES[room]}"


def test_no_circle() -> None:
    """Of modules, inside rooms too; a package's own files may not import the package."""
    graph = {module_of(f): {n for n, at_import, _ in imports(f) if at_import} for f in FILES}
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != 1, f"a circle of imports: {' -> '.join((*path, module))}"
        if state.get(module) == 2 or module not in graph:
            return
        state[module] = 1
        for name in graph[module]:
            visit(name, (*path, module))
        state[module] = 2

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES
    long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES
    }
    assert not long


def test_the_library_stays_small() -> None:
    lines = {file: file.read_text(encoding="utf-8").count("\n") for file in FILES}
    core = sum(n for file, n in lines.items() if module_of(file).split(".")[0] in CORE)
    assert core <= CORE_LINES and sum(lines.values()) <= ALL_LINES


@pytest.mark.parametrize("room", sorted({f.parent for f in FILES if f.parent != PACKAGE}), ids=lambda p: p.name)
def test_a_room_lists_its_files(room: Path) -> None:
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    missing = [file.name for file in room.glob("*.py") if file.name != "__init__.py" and file.name not in said]
    assert not missing


def test_the_map_names_what_exists() -> None:
    """Files and identifiers in omni_lab/README.md."""
    words = re.findall(r"`([^`\n]+)`", (PACKAGE / "README.md").read_text(encoding="utf-8"))
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in FILES]
    defined = {
        name
        for tree in trees
        for node in ast.walk(tree)
        for name in (
            [node.name]
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
            else [node.id]
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else [node.attr]
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            else [node.arg]
            if isinstance(node, ast.arg)
            else []
        )
    }
    modules = {part for file in FILES for part in module_of(file).split(".")}
    executions = {"gathered", "masked", "packed"}  # of `CrossModalFusion.forward`
    known = defined | modules | executions | {"run", "save_figure", "parameters", "json"}
    for word in words:
        if "/" in word or word.endswith((".py", ".yaml", ".md")):
            found = any((folder / word).exists() for folder in (PACKAGE, PACKAGE.parent)) or "NN_" in word
            assert found, f"{word} is no file or folder"
        elif re.fullmatch(r"[A-Za-z_][\w.]*", word):
            missing = [part for part in word.split(".") if part not in known]
            assert not missing, f"{word}: nothing is called {missing}"
