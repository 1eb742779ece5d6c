"""Executed notebooks as pages that fetch nothing."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
from IPython.display import Audio
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image, ImageDraw

from omni_lab.experiments.pages import WIDGET, notebook_page, render_template, to_webp

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


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="wants Chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_players_can_be_seen(tmp_path: Path, width: int) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "page.html").write_text(page_with_sounds(tmp_path)[0], encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "page.html").as_uri())
        boxes = [player.bounding_box() for player in page.locator("audio").all()]
        browser.close()
    assert len(boxes) == 2
    assert all(box is not None and box["height"] >= 30 and 200 <= box["width"] <= width for box in boxes), boxes


def test_sounds_stay_what_they_were(tmp_path: Path) -> None:
    page, size = page_with_sounds(tmp_path)
    sounds = re.findall(r'src="data:audio/mpeg;base64,([^"]+)"', page)
    assert len(sounds) == 2 and len(sounds[0]) < size / 4
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))
    strongest = np.abs(np.fft.rfft(heard)).argmax() * rate / len(heard)
    assert rate == 16_000 and abs(strongest - 440) < 5 and 0.9 < len(heard) / 16_000 < 1.2


def test_a_page_escapes_its_title_only() -> None:
    text = render_template("notebook.html.j2", title="a < b", body="<p>a</p>", highlight="p > a { color: red }")
    assert "<title>a &lt; b</title>" in text and "<p>a</p>" in text and "p > a { color: red }" in text
