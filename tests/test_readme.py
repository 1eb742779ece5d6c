"""Numbers in README and in the text of notebooks come from published runs.

A result is followed by a comment that names the run and the metric:
`0.958 (0.955 to 0.961)<!-- metric: 01_data_preparation/seed0 worlds/dense_accuracy -->`.
It speaks for the numbers before it, back to the comment before, the table's cell or the paragraph.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase

import pytest

from omni_lab.experiments.results import read_results
from omni_lab.utils.env import project_root

ROOT = project_root()
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
MARK = re.compile(r"<!-- metric:\s+(\S+)\s+([^>]+?)\s+-->")
DECIMAL = r"(?<![\w.,/])[-+−]?\d+\.\d+(?! ?MB| ?GB|\.\d|\w)"
CODE_AND_LINKS = r"```.*?```|`[^`\n]*`|<[^>]+>|\]\([^)]*\)"
NO_RESULTS = re.compile(rf"{CODE_AND_LINKS}|(?:Python|Apache|Runtime|wav2vec|VQA v) ?[\d.]+", re.DOTALL)
UNMARKED = 0


def published(run: str, names: str) -> list[float]:
    """What may be written of a metric: its value, the ends of its interval, its cases. Of several, which `*` or a comma
    name: mean, least and most of their values."""
    folder = ROOT / "reports" / "published" / "standard"
    results = [r for r in read_results(folder) if fnmatchcase(r["folder"].relative_to(folder).as_posix(), run)]
    wanted = [name.strip() for name in names.split(",")]
    found = [m for r in results for m in r["metrics"] if any(fnmatchcase(m["name"], name) for name in wanted)]
    if len(found) == 1:
        return [found[0]["value"], *(found[0]["interval"] or ()), found[0].get("n", found[0]["value"])]
    values = [m["value"] for m in found]
    return [sum(values) / len(values), min(values), max(values)] if values else []


def is_rounded(written: str, value: float) -> bool:
    """Whether a number, whatever its sign, is a value rounded to the digits that are written; "95.8 %" is 0.958."""
    number, percent = written.strip(" %").replace(",", "").lstrip("+-−"), written.endswith("%")
    digits = len(number.partition(".")[2])
    return abs(float(number) - abs(value) * (100 if percent else 1)) <= 0.5001 * 10**-digits


def wrong_numbers(text: str, values: list[float]) -> list[str]:
    """Of the decimals in a text, or its last whole number if it has none, those that are no value."""
    plain = NO_RESULTS.sub(" ", text)
    numbers = re.findall(DECIMAL + r"(?: ?%)?", plain) or re.findall(r"\d[\d,]*(?: ?%)?", plain)[-1:]
    return [n for n in numbers if not any(is_rounded(n, v) for v in values)] if numbers else ["no number"]


def text_of(document: str) -> str:
    if document == "README.md":
        return README
    cells = json.loads((ROOT / "notebooks" / document).read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("document", ["README.md", *NOTEBOOKS])
def test_marked_numbers_are_those_of_the_runs(document: str) -> None:
    text, start = text_of(document), 0
    for mark in MARK.finditer(text):
        before = re.split(r"\||\n\n", text[start : mark.start()])[-1]
        values, start = published(mark[1], mark[2]), mark.end()
        assert values, f"{mark[0]}: no published run recorded this"
        assert not wrong_numbers(before, values), f"{before.strip()} {mark[0]}: the run has {values}"


def test_no_result_is_added_without_its_metric() -> None:
    rest, start = "", 0
    for mark in MARK.finditer(README):
        before = re.split(r"(\||\n\n)", README[start : mark.start()])
        rest, start = rest + "".join(before[:-1]), mark.end()
    unmarked = re.findall(DECIMAL, NO_RESULTS.sub(" ", rest + README[start:]))
    assert len(unmarked) <= UNMARKED, f"{len(unmarked)} numbers without a comment that names their metric: {unmarked}"


@pytest.mark.parametrize(
    ("text", "values", "wrong"),
    [
        ("0.958 (95 % interval 0.955 to 0.961)", [0.9584, 0.9551, 0.9614], []),
        ("0.959 (0.955 to 0.961)", [0.9584, 0.9551, 0.9614], ["0.959"]),
        ("95.8 %", [0.9584], []),
        ("a loss of 0.36", [-0.3625], []),
        ("-0.0177, +0.02", [-0.01767, 0.0243], []),
        ("24,033 questions", [0.958, 24033], []),
        ("`0.5` of Python 3.11", [1.0], ["no number"]),
        ("3 of 4.0", [4.0], []),
    ],
)
def test_a_written_number_is_a_rounded_one(text: str, values: list[float], wrong: list[str]) -> None:
    assert [n.strip() for n in wrong_numbers(text, values)] == wrong


def test_what_the_readme_links_to_exists() -> None:
    links = re.findall(r'\]\(([^)#]+)|src="([^"]+)"', README)
    missing = [link for link in map("".join, links) if not link.startswith("http") and not (ROOT / link).exists()]
    assert not missing
