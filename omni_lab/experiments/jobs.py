"""What to run: notebooks, their parameters, and one job per run, all checked before the first one starts."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from omni_lab.experiments.provenance import library_digest
from omni_lab.utils.env import project_root
from omni_lab.utils.lookup import lookup

RESERVED_PARAMETERS = ("profile", "seed", "output_dir")  # every notebook has them
CPU_CAPABILITIES = {  # values of the parameter `cpu_capability`, with what holds torch's libraries to it
    "": {},
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
}


@dataclass(frozen=True)
class NotebookParameter:
    """One line of the parameters cell: `name = default  # help`."""

    default: Any
    help: str

    def check(self, value: Any, *, where: str) -> Any:
        """Returns `value`, or its int as float for a float parameter. Raises ValueError for another type."""
        expected, hint = type(self.default), ""
        if expected is float and type(value) is int:
            return float(value)
        if expected is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.IGNORECASE):
            hint = f" (YAML reads {value} as text: write {value.lower().replace('e', '.0e')})"
        elements = {type(v) for v in self.default} if expected is list else set()
        if type(value) is not expected or (elements and {type(v) for v in value} - elements):
            raise ValueError(
                f"{where} is {value!r}, a {type(value).__name__}: "
                f"expected {expected.__name__} like {self.default!r}{hint}"
            )
        return value


@dataclass(frozen=True)
class Notebook:
    """A notebook of the series. reads_results: it summarises other runs, so it runs after them, and every time."""

    path: Path
    title: str
    parameters: Mapping[str, NotebookParameter]
    source: str
    reads_results: bool = False

    @property
    def name(self) -> str:
        return self.path.stem


def read_notebook(path: Path) -> Notebook:
    """Reads a notebook. Raises ValueError if it is not readable or its parameters cell is not `NAME = VALUE` lines."""
    try:  # as JSON: importing nbformat takes a second
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
        tags = [cell["metadata"].get("tags", []) for cell in cells]
        tagged = [i for i, of_cell in enumerate(tags) if "parameters" in of_cell]
        if len(tagged) != 1:
            raise ValueError(f"expected one cell tagged 'parameters', found {len(tagged)}")
        parameters = dict(_read_parameters(sources[tagged[0]]))
        if missing := [name for name in RESERVED_PARAMETERS if name not in parameters]:
            raise ValueError(f"the parameters cell lacks {missing}")
        title = sources[0].splitlines()[0].lstrip("# ")
    except Exception as error:
        raise ValueError(f"{path}: not a readable notebook ({error})") from error
    return Notebook(path, title, parameters, "\n".join(sources), "reads-results" in tags[tagged[0]])


def _read_parameters(source: str) -> Iterator[tuple[str, NotebookParameter]]:
    """Names and parameters of a parameters cell. Refused is what papermill, which reads lines, would skip."""
    for statement in ast.parse(source).body:
        lines = source.splitlines()[statement.lineno - 1 : statement.end_lineno]
        if (
            not isinstance(statement, ast.Assign)
            or not isinstance(statement.targets[0], ast.Name)
            or "".join(lines).count("=") != 1
        ):
            raise ValueError("the parameters cell may hold only NAME = VALUE lines, each with one '='")
        name, comment = statement.targets[0].id, lines[-1].encode()[statement.end_col_offset :].decode()
        try:
            yield name, NotebookParameter(ast.literal_eval(statement.value), comment.strip("# "))
        except ValueError as error:
            raise ValueError(f"parameter {name!r} must be a plain value: got {ast.unparse(statement.value)}") from error


def notebook_paths() -> list[Path]:
    """The files of the series: the numbered ones in notebooks/, in order, then those in folders below it."""
    folder = project_root() / "notebooks"
    paths = [path for path in folder.rglob("[0-9][0-9]_*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    return sorted(paths, key=lambda path: (path.parent != folder, path.name))


def list_notebooks() -> list[Notebook]:
    """The notebooks of the series, in its order."""
    return [read_notebook(path) for path in notebook_paths()]


def find_notebook(name: str) -> Notebook:
    """Finds a notebook by file, full name ("04_training") or number ("04"). Raises ValueError naming the nearest."""
    if name.endswith(".ipynb"):
        return read_notebook(Path(name))
    notebooks = {notebook.name: notebook for notebook in list_notebooks()}
    numbers = {known.split("_")[0]: known for known in notebooks}
    return lookup(numbers.get(name, name), notebooks, "notebook")


@dataclass(frozen=True)
class Job:
    """One run.

    parameters: all of the notebook's, defaults included.
    folder: where the results appear when the run has finished.
    fingerprint: digest of notebook, parameters and library.
    """

    notebook: Notebook
    parameters: dict[str, Any]
    folder: Path
    fingerprint: str

    @property
    def label(self) -> str:
        return f"{self.notebook.name} {self.folder.name}"

    @property
    def part_folder(self) -> Path:
        """The hidden folder in which the results are made, renamed when the run has finished."""
        return self.folder.with_name(f".{self.folder.name}.part")

    @property
    def finished(self) -> bool:
        """Whether the folder holds the results of this fingerprint. Never so for a notebook that reads results."""
        recorded = _executed_metadata(self.folder).get("omni_lab", {})
        return not self.notebook.reads_results and recorded.get("fingerprint") == self.fingerprint


def _executed_metadata(folder: Path) -> dict[str, Any]:
    """Metadata of a run's executed notebook, empty if there is none."""
    try:
        return dict(json.loads((folder / "executed.ipynb").read_text(encoding="utf-8"))["metadata"])
    except (OSError, json.JSONDecodeError):
        return {}


def read_grid(path: Path) -> tuple[list[str], dict[str, Any], dict[str, list[Any]]]:
    """Reads a YAML file: `notebooks`, `parameters` (the same in every run), `grid` (lists of values, all combined)."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable grid file ({error})") from error
    types = {"notebooks": list, "parameters": dict, "grid": dict}
    if not isinstance(content, dict) or not content.get("notebooks"):
        raise ValueError(f"{path}: expected the keys {list(types)}, `notebooks` not empty: got {content!r}")
    if bad := {key: value for key, value in content.items() if not isinstance(value, types.get(key, ()))}:
        raise ValueError(f"{path}: expected `notebooks`, a list, `parameters` and `grid`, mappings: got {bad!r}")
    for name, values in content.get("grid", {}).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: grid.{name} must be a list of values to try: got {values!r}")
    return [str(name) for name in content["notebooks"]], content.get("parameters", {}), content.get("grid", {})


def plan_jobs(
    notebooks: Sequence[Notebook], *, output: Path, parameters: Mapping[str, Any], grid: Mapping[str, Any] | None = None
) -> list[Job]:
    """One job per notebook and combination of `grid` values. Raises ValueError for an unknown name or a wrong type."""
    from omni_lab.config.profiles import get_profile

    jobs: list[Job] = []
    for notebook, values in itertools.product(notebooks, itertools.product(*(grid or {}).values())):
        settings = {name: parameter.default for name, parameter in notebook.parameters.items()}
        for name, value in {**parameters, **dict(zip(grid or {}, values, strict=True))}.items():
            parameter = lookup(name, notebook.parameters, f"parameter of {notebook.name}")
            if name == "output_dir":
                raise ValueError(f"{notebook.name}: output_dir is set for each run: give --output instead")
            settings[name] = parameter.check(value, where=f"{notebook.name}: parameter {name!r}")
        get_profile(settings["profile"])
        lookup(settings.get("cpu_capability", ""), CPU_CAPABILITIES, f"cpu_capability of {notebook.name}")
        folder = (output / settings["profile"] / notebook.name / _run_name(notebook, settings)).resolve()
        if any(job.folder == folder for job in jobs):
            raise ValueError(f"{notebook.name}: two runs with the same parameters: {folder.name}")
        jobs.append(Job(notebook, settings, folder, _fingerprint(notebook, settings)))
    return jobs


def _run_name(notebook: Notebook, settings: Mapping[str, Any]) -> str:
    """Seed and changed parameters, as the name of a folder."""
    fixed = (*RESERVED_PARAMETERS, "retrain")
    changed = {k: v for k, v in settings.items() if k not in fixed and v != notebook.parameters[k].default}
    full = "-".join([f"seed{settings['seed']}", *(f"{k}={v}" for k, v in sorted(changed.items()))])
    name = re.sub(r"[^\w=.,-]", "_", full)
    return name if name == full and len(name) <= 80 else f"{name[:71]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _fingerprint(notebook: Notebook, settings: Mapping[str, Any]) -> str:
    relevant = {name: value for name, value in settings.items() if name not in ("output_dir", "retrain")}
    content = json.dumps([notebook.source, relevant, library_digest()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def run_states(output: Path, profile: str, notebook: Notebook) -> Iterator[str]:
    """One line per run of a notebook: finished, out of date, failed or interrupted."""
    for folder in sorted((output / profile / notebook.name).glob("*")):
        if folder.name.startswith(".") and folder.name.endswith(".part"):
            yield f"{folder.name[1:-5]}: interrupted"
        elif metadata := _executed_metadata(folder):
            current = _fingerprint(notebook, metadata["papermill"]["parameters"])
            finished = metadata.get("omni_lab", {}).get("fingerprint") == current
            yield f"{folder.name}: {'finished' if finished else 'out of date'}"
        if (folder / "failed.ipynb").exists():
            yield f"{folder.name}: failed"
