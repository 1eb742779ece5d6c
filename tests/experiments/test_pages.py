"""Executed notebooks as pages that fetch nothing."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import soundfile
from IPython.display import Audio
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image, ImageDraw

from omni_lab.experiments.pages import WIDGET, glossary_page, notebook_page, render_template, to_webp
from omni_lab.experiments.slides import slides_page
from omni_lab.utils.env import project_root

CODE = 'figure = draw()\nrun.save_figure(figure, "two_dots");'
FORMULAS = "Where $x_1 < y$ holds:\n\n$$\\frac{a}{b} = \\mathbb{E}[R]$$"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TEXT = f"# A title <with signs>\n\n{FORMULAS}\n\n| a | b |\n|---|---|\n| 1 | 2 |"


def png(size: tuple[int, int] = (40, 30)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(noise).save(written, "PNG")
    return written.getvalue()


def rendered(tmp_path: Path) -> str:
    outputs = [
        new_output("stream", text="said <this>\n"),
        new_output("stream", text="and that\n"),
        new_output("display_data", {"image/png": base64.b64encode(png()).decode(), "text/plain": "<Figure>"}),
        new_output("display_data", {WIDGET: {"model_id": "a"}, "text/plain": "VBox()"}),
        new_output("error", ename="ValueError", evalue="bad", traceback=["\x1b[31mValueError\x1b[0m: bad"]),
    ]
    notebook = new_notebook(cells=[new_markdown_cell(TEXT), new_code_cell(CODE, outputs=outputs)])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    return notebook_page(tmp_path / "executed.ipynb")


def test_a_notebook_becomes_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    text = rendered(tmp_path)
    assert "<title>A title &lt;with signs&gt;</title>" in text and "<h1" in text
    assert not re.search(r"<script|<link|(src|href)=[\"\']?(http|//)", text)
    assert "<td>2</td>" in text and "said &lt;this&gt;" in text and "ValueError" in text
    assert "width=device-width" in text and "@media print" in text
    assert "save_figure" in text and "Alive in JupyterLab only" in text and "VBox()" not in text


def sections(folder: Path, *, figures: int = 1) -> Path:
    """An executed notebook like those of the series."""
    text = "See [softmax](GLOSSARY.md#softmax), [05](05_routing.ipynb#its-arms) and [data](../data/README.md)."
    picture = new_output("display_data", {"image/png": base64.b64encode(png((400, 300))).decode()})
    wave = Audio(np.zeros(1_600), rate=16_000, normalize=False)._repr_html_()
    row = "<tr><td>row</td></tr>"
    table = f"<table class=dataframe><tr><th></th><th>n</th></tr><tr><th rowspan=40>g</th>{row[4:]}{row * 39}</table>"
    cells = [
        new_markdown_cell("# The title\n\n**The question.** What is it?"),
        new_code_cell("import json\nimport math"),
        new_code_cell("from os import (\n    path,\n)"),
        new_code_cell('seed = 0  # of all\nname = "a"  # of it', metadata={"tags": ["parameters"]}),
        new_markdown_cell(f"## First, *then*\n\n{text}\n\n### Detail\n\n$$\\begin{{aligned}}a &= b\\end{{aligned}}$$"),
        new_code_cell(
            'run.save_figure(\n    bars(title="two words"), f"the_bars_{world}"\n);', outputs=[picture] * figures
        ),
        new_markdown_cell(
            "## First, then\n\n" + "A sentence of eight words is here again. " * 20 + "\n\n1. one\n2. two"
        ),
        new_code_cell("\n".join(f"line_{i} = {i}" for i in range(16)), outputs=[new_output("stream", text="7\n" * 80)]),
        new_code_cell("Audio(wave)", outputs=[new_output("display_data", {"text/html": wave})]),
        new_code_cell("table", outputs=[new_output("display_data", {"text/html": table})]),
        new_markdown_cell("## Summary\n\nIt is."),
    ]
    nbformat.write(new_notebook(cells=cells), folder / "executed.ipynb")
    return folder / "executed.ipynb"


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project with a series of four notebooks and this project's glossary."""
    text = (project_root() / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
    for name in ("05_routing.ipynb", "10_content.ipynb", "99_scorecard.ipynb", "solutions/90_solutions.ipynb"):
        file = tmp_path / "notebooks" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "notebooks" / "GLOSSARY.md").write_text(text, encoding="utf-8")
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))


def test_imports_and_parameters_are_folded(tmp_path: Path) -> None:
    page = notebook_page(sections(tmp_path))
    imports, parameters = re.findall(r'<details class="folded"><summary>(.*?)</summary>(.*?)</details>', page, re.S)
    assert imports[0] == "Imports" and all(word in imports[1] for word in ("json", "math", "path")), "in one"
    assert parameters[0] == 'Parameters: seed = 0, name = "a"' and "# of all" in parameters[1]
    assert "<nav" not in page, "of which notebook it is was not said"


def test_contents_name_the_parts_and_lead_there(tmp_path: Path) -> None:
    page = notebook_page(sections(tmp_path))
    listed = re.findall(r'<li class="(h\d)"><a href="#([^"]+)">([^<]+)</a>', page)
    assert listed == [
        ("h2", "first-then", "First, then"),
        ("h3", "detail", "Detail"),
        ("h2", "first-then-1", "First, then"),
        ("h2", "summary", "Summary"),
    ]
    assert all(page.count(f'id="{place}"') == 1 for _, place, _ in listed)
    assert page.index("What is it?") < page.index('class="contents"') < page.index("Imports")


@pytest.mark.usefixtures("series")
def test_a_page_links_its_neighbours_the_index_and_what_its_text_links(tmp_path: Path) -> None:
    def links(name: str) -> list[str]:
        return re.findall(r'href="([^"#]+[^"]*)"', notebook_page(sections(tmp_path), name))

    index, glossary = "../../index.html", "../../glossary.html"
    here = [f"{glossary}#softmax", "../../05_routing/seed0/notebook.html#its-arms"]
    first, last = "../../05_routing/seed0/notebook.html", "../../99_scorecard/seed0/notebook.html"
    ends = [first, index, glossary, last]
    assert links("10_content") == [*ends, *here, *ends], "and none to a file that is not there"
    assert links("90_solutions")[:3] == [last, index, glossary], "solutions come last"
    assert links("05_routing")[0] == index and links("my_own") == [index, glossary, *here, index, glossary]


def test_formulas_in_lines_are_aligned(tmp_path: Path) -> None:
    page = notebook_page(sections(tmp_path))
    assert '<mtd columnalign="right"><mi>a</mi></mtd>' in page and "<mi>&amp;</mi>" not in page


def test_figures_are_named_however_they_are_saved(tmp_path: Path) -> None:
    assert '<img alt="the bars" ' in notebook_page(sections(tmp_path))


def test_the_glossary_becomes_a_page_with_a_place_for_each_term() -> None:
    text = (project_root() / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
    page = glossary_page(text)
    terms = re.findall(r"^### (.+)$", text, re.M)
    places = [re.sub(r"[^\w -]", "", term.lower()).replace(" ", "-") for term in terms]
    assert places and all(page.count(f'<h3 id="{place}">') == 1 for place in places)
    assert re.findall(r'<li class="h3"><a href="#([^"]+)"', page) == places
    assert 'href="./index.html"' in page
    linked = glossary_page("# G\n\n### A b\n[05](05_routing.ipynb), $x < 1$")
    assert 'href="05_routing/seed0/notebook.html"' in linked and "<math" in linked


def test_code_is_marked_only_where_it_looks_different(tmp_path: Path) -> None:
    text = rendered(tmp_path)
    assert '<span class="s2">"two_dots"</span>' in text, "a string has a colour"
    assert 'class="n"' not in text and 'class="p"' not in text, "a name and a bracket have none"
    assert "run<" in text


def test_formulas_need_no_script(tmp_path: Path) -> None:
    text = rendered(tmp_path)
    inline, block = re.findall(r"<math[^>]*>", text)
    assert 'display="inline"' in inline and 'display="block"' in block
    assert "<mfrac>" in text and "$" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)


def test_figures_are_the_same_pictures_with_their_names(tmp_path: Path) -> None:
    shown = re.search(r'<img alt="two dots" src="data:image/webp;base64,([^"]+)"', rendered(tmp_path))
    assert shown
    picture = Image.open(io.BytesIO(base64.b64decode(shown[1])))
    assert picture.format == "WEBP" and picture.size == (40, 30)


def test_thin_lines_keep_their_colours() -> None:
    """In a picture of which lossy WebP would be an eighth smaller."""
    pixels = np.full((200, 300, 3), 255, np.uint8)
    pixels[100:] = np.random.default_rng(0).integers(0, 255, (100, 300, 1))
    image, written = Image.fromarray(pixels), io.BytesIO()
    for i in range(30):
        ImageDraw.Draw(image).line((0, 2 * i, 299, 100 - i), fill=("#0072B2", "#D55E00", "#009E73")[i % 3])
    image.save(written, "PNG")
    shown = Image.open(io.BytesIO(to_webp(written.getvalue())))
    assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(image))


def test_pieces_of_text_share_a_box(tmp_path: Path) -> None:
    boxes = re.findall(r"<pre>([^<]*)</pre>", re.sub(r'<div class="highlight.*?</div>', "", rendered(tmp_path)))
    assert "said &lt;this&gt;\nand that\n" in boxes


def page_with_sounds(folder: Path) -> tuple[str, int]:
    """A page with two players, and how many bytes IPython writes for one."""
    wave = np.sin(np.arange(16_000) / 16_000 * 2 * np.pi * 440) / 2
    player = Audio(wave, rate=16_000, normalize=False)._repr_html_()
    outputs = [new_output("display_data", {"text/html": player}), new_output("display_data", {"text/html": player})]
    nbformat.write(new_notebook(cells=[new_code_cell("Audio(wave)", outputs=outputs)]), folder / "executed.ipynb")
    return notebook_page(folder / "executed.ipynb"), len(player)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("wants Chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1200])
def test_players_can_be_seen(tmp_path: Path, chromium: Any, width: int) -> None:
    (tmp_path / "page.html").write_text(page_with_sounds(tmp_path)[0], encoding="utf-8")
    page = chromium.new_page(viewport={"width": width, "height": 800})
    page.goto((tmp_path / "page.html").as_uri())
    boxes = [player.bounding_box() for player in page.locator("audio").all()]
    page.close()
    assert len(boxes) == 2
    assert all(box is not None and box["height"] >= 30 and 200 <= box["width"] <= width for box in boxes), boxes


@pytest.mark.slow
@pytest.mark.usefixtures("series")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_page_fits_a_phone_and_its_links_lead_somewhere(tmp_path: Path, chromium: Any, width: int) -> None:
    text = notebook_page(sections(tmp_path), "10_content")
    for name in ("05_routing", "10_content", "99_scorecard"):
        (tmp_path / name / "seed0").mkdir(parents=True)
        (tmp_path / name / "seed0" / "notebook.html").write_text(text, encoding="utf-8")
    text = (project_root() / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
    (tmp_path / "glossary.html").write_text(glossary_page(text), encoding="utf-8")
    (tmp_path / "index.html").write_text("<p>index", encoding="utf-8")
    page, asked = chromium.new_page(viewport={"width": width, "height": 800}), []
    page.on("request", lambda request: asked.append(request.url))
    address = (tmp_path / "10_content" / "seed0" / "notebook.html").as_uri()
    page.goto(address)
    assert [url for url in asked if not url.startswith("data:")] == [address], "nothing is fetched"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no scrolling sideways"
    assert page.locator(".contents li").first.is_visible() == (width > 640), "on a phone contents are folded"
    assert page.locator("audio").is_visible() and not page.locator(".folded .highlight").first.is_visible()
    targets = page.eval_on_selector_all("a", "links => links.map(link => link.href)")
    for target in {*targets}:
        page.goto(target)
        place = target.partition("#")[2]
        assert place in ("", "its-arms") or page.locator(f'[id="{place}"]').count() == 1, target
    page.goto(address)
    page.emulate_media(media="print")
    shown = [page.locator(part).first.is_visible() for part in (".folded .highlight", "nav", ".contents")]
    page.close()
    assert shown == [True, False, False], "in print nothing is folded, and nothing is for clicking"


def test_sounds_stay_what_they_were(tmp_path: Path) -> None:
    page, size = page_with_sounds(tmp_path)
    sounds = re.findall(r'src="data:audio/mpeg;base64,([^"]+)"', page)
    assert len(sounds) == 2 and len(sounds[0]) < size / 4
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))
    strongest = np.abs(np.fft.rfft(heard)).argmax() * rate / len(heard)
    assert rate == 16_000 and abs(strongest - 440) < 5 and 0.9 < len(heard) / 16_000 < 1.2


def test_a_page_escapes_its_title_only() -> None:
    text = render_template("notebook.html.j2", title="a < b", top="<p>a</p>", highlight="p > a { color: red }")
    assert "<title>a &lt; b</title>" in text and "<p>a</p>" in text and "p > a { color: red }" in text


def slides_of(page: str) -> list[str]:
    return re.findall(r"<section>(.*?)</section>", page, re.S)


def test_slides_have_one_idea_each(tmp_path: Path) -> None:
    page = slides_page(notebook_page(sections(tmp_path), "10_content"))
    titles = [re.sub("<[^>]+>", "", re.findall(r"<h2>(.*?)</h2>", slide)[0]) for slide in slides_of(page)]
    assert titles[:3] == ["The title", "First, then", "Detail"] and titles[-1] == "Summary"
    first, _, detail, code, *rest = slides_of(page)
    assert "What is it?" in first
    assert "<math" in detail and "<figure><img" in detail, "a short text with the figure that follows"
    assert "save_figure" in code and "<figure>" not in code
    assert not any("line_15" in slide or "import" in slide or "seed" in slide for slide in rest), (
        "long code is left out"
    )
    assert sum("again." in slide for slide in rest) == 1 and '<ol start="2"><li>two</li></ol>' in page
    assert "… and 44 more lines" in page and page.count("<th>n</th>") == 2 and "… and 18 more rows" in page
    assert not re.search(r"<link|(src|href)=[\"\']?(http|//|\.|#)", page), "nothing is fetched, no link is dead"
    labelled = re.findall(r"<tr>(<th>.</th>)<td>row</td></tr>", page)
    assert labelled == ["<th>g</th>"] * 22, "a label of many rows stands in each, so that no column shifts"
    long = slides_page(notebook_page(sections(tmp_path)), code=True)
    assert "line_15" in long and "import" not in re.sub("<style.*?</style>", "", long, flags=re.S)


@pytest.mark.slow
def test_slides_fit_the_screen_and_turn(tmp_path: Path, chromium: Any) -> None:
    (tmp_path / "slides.html").write_text(slides_page(notebook_page(sections(tmp_path)), code=True), encoding="utf-8")
    page, asked = chromium.new_page(viewport={"width": 1280, "height": 720}), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "slides.html").as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [page.url]
    spare = "slides => slides.map(s => [s.clientHeight - s.scrollHeight, s.clientWidth - s.scrollWidth])"
    assert {(0, 0)} == {tuple(size) for size in page.eval_on_selector_all("section", spare)}, "no slide scrolls"
    size = "parts => Math.min(...parts.map(p => parseFloat(getComputedStyle(p).fontSize)))"
    assert page.eval_on_selector_all("p, li, h2, .dataframe td", size) >= 28
    assert page.eval_on_selector_all("pre", size) >= 20
    figure = page.locator("figure img").bounding_box()
    assert figure and figure["height"] > 200 and figure["width"] > 600
    shown = "Math.round(scrollY / innerHeight)"
    seen = []
    for key in ("ArrowRight", " ", "ArrowLeft", "End", "Home"):
        page.keyboard.press(key)
        page.wait_for_timeout(50)
        seen.append(page.evaluate(shown))
    last = page.locator("section").count() - 1
    page.close()
    assert seen == [1, 2, 1, last, 0]
