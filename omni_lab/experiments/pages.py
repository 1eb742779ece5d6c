"""Web pages of one file each: nothing is fetched, and they can be read on a phone and in print."""

from __future__ import annotations

import ast
import base64
import io
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import soundfile
from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image

from omni_lab.experiments.jobs import notebook_paths
from omni_lab.utils.env import project_root

TEMPLATES = Path(__file__).with_name("templates")
WAVE = re.compile(r'src="data:audio/wav;base64,([^"]+)" type="audio/wav"')  # how IPython writes an audio player
WIDGET = "application/vnd.jupyter.widget-view+json"
FIGURE = re.compile(r'save_figure\(.*?"(\w+?)_?(?:{\w+})?",?\s*\)', re.DOTALL)  # its name, if formatted the start of it
PAGE = re.compile(r"(?:[\w./-]*/)?(?:(GLOSSARY)\.md|(\d\d_\w+)\.ipynb)(#.*)?")  # what a page here stands for
FOLDED = {"parameters": "Parameters", "injected-parameters": "Parameters of this run"}  # by the tag of a cell


def render_template(name: str, **values: Any) -> str:
    """Fills in a file of templates/. In HTML values are escaped, except where the template says `safe`."""
    loader, escape = FileSystemLoader(TEMPLATES), select_autoescape(["html.j2"])
    environment = Environment(loader=loader, autoescape=escape, trim_blocks=True, keep_trailing_newline=True)
    return environment.get_template(name).render(values)


def notebook_page(executed: Path, name: str = "") -> str:
    """An executed notebook as a page. Formulas become MathML, which needs no script. To save bytes, images become WebP,
    audio becomes MP3, and code loses the marks that the style sheet does not use.

    name: of the notebook. With it the page, at <notebook>/<run>/notebook.html, links the index and its neighbours."""
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from traitlets.config import Config

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)  # the state of a panel is useless without a kernel
    _fold_cells(notebook)
    for cell in notebook.cells:
        _save_bytes(cell)
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    headings = _set_up(renderer, "../../")
    exporter = HTMLExporter(
        config=Config(CoalesceStreamsPreprocessor={"enabled": True}),  # what is printed piece by piece, in one box
        raw_template=(TEMPLATES / "cells.html.j2").read_text(encoding="utf-8"),
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    exporter.register_filter("markdown2html", MarkdownWithMath(renderer=renderer).render)
    body, _ = exporter.from_notebook_node(notebook)
    style = highlight_style()
    styled = {*re.findall(r"\.highlight \.(\w+)", style)} - {"w"}
    # spans that look like the text around them are about a tenth of a page
    body = re.sub(r'<span class="(\w+)">([^<]*)</span>', lambda m: m[0] if m[1] in styled else m[2], body)
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ") if notebook.cells else executed.stem
    series = [path.stem for path in notebook_paths()]
    place = series.index(name) if name in series else len(series)
    near: dict[str, Any] = {"glossary": (project_root() / "notebooks" / "GLOSSARY.md").exists()}
    near |= {"previous": series[place - 1] if 0 < place < len(series) else "", "next": "".join(series[place + 1 :][:1])}
    return _render_page(title, body, headings, highlight=style, root="../../" if name else "", **near)


@cache
def glossary_page(text: str) -> str:
    """The glossary, in Markdown, as a page beside an index page."""
    import mistune  # importing nbconvert takes a second

    renderer = mistune.HTMLRenderer(escape=False)
    headings = _set_up(renderer, "")
    body = mistune.create_markdown(renderer=renderer, plugins=["table", "url", "math"])(text)
    return _render_page("Glossary", str(body), headings, root="./")


def _render_page(title: str, body: str, headings: list[tuple[int, str, str]], **links: Any) -> str:
    """With contents behind the first cell, or before the first entry."""
    top, rest, *_ = [*re.split(r'(?!\A)(?=<div class="cell |<h3 )', body.strip(), maxsplit=1), ""]
    contents = [heading for heading in headings if heading[0] in (2, 3)]
    return render_template("notebook.html.j2", title=title, top=top, rest=rest, contents=contents, **links)


def highlight_style() -> str:
    """The style sheet of marked code."""
    from pygments.formatters import HtmlFormatter

    return str(HtmlFormatter().get_style_defs(".highlight"))


def only_imports(code: str) -> bool:
    """Whether code does nothing but import."""
    try:
        statements = ast.parse(code).body
    except SyntaxError:  # a magic of IPython
        return False
    return bool(statements) and all(isinstance(s, ast.Import | ast.ImportFrom) for s in statements)


def _fold_cells(notebook: Any) -> None:
    """Gives cells of imports, joined, and of parameters `metadata.fold`, the line that stands for the folded cell."""
    kept: list[Any] = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and only_imports(cell.source):
            if kept and kept[-1].metadata.get("fold") == "Imports":
                kept[-1].source += f"\n{cell.source}"
                kept[-1].outputs += cell.outputs
                continue
            cell.metadata["fold"] = "Imports"
        for tag in FOLDED.keys() & {*cell.metadata.get("tags", [])}:
            lines = [line.partition("  #")[0] for line in cell.source.splitlines() if " = " in line]
            cell.metadata["fold"] = f"{FOLDED[tag]}: {', '.join(lines)}"
        kept.append(cell)
    notebook.cells = kept


def _save_bytes(cell: Any) -> None:
    """Replaces the images and sounds of a cell's outputs by smaller ones. A figure that is saved gets its name."""
    names = [name.replace("_", " ") for name in FIGURE.findall(cell.source)]
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            image = base64.b64encode(to_webp(base64.b64decode(data["image/png"]))).decode()
            name = names.pop(0) if len(names) > 1 else "".join(names) or "figure"
            output["data"] = {"text/html": f'<img alt="{name}" src="data:image/webp;base64,{image}">'}
        elif WIDGET in data:
            output["data"] = {"text/html": "<p><em>Alive in JupyterLab only.</em></p>"}
        elif "text/html" in data:
            data["text/html"] = WAVE.sub(_mp3_source, data["text/html"])


def _set_up(renderer: Any, root: str) -> list[tuple[int, str, str]]:
    """Lets a renderer of Markdown write formulas as MathML, and returns the list to which it will add level, id and
    text of each heading.

    root: from the page to the index page. Links to notebooks and to the glossary lead to their pages there; other links
        to files of the project, from where the page may lie, lead nowhere and become text.
    """
    from latex2mathml.converter import convert as to_mathml

    headings: list[tuple[int, str, str]] = []
    write_link = renderer.link

    def heading(text: str, level: int, **_: Any) -> str:
        base = re.sub(r"[^\w -]", "", re.sub(r"<[^>]*>|&\w+;", "", text).lower()).replace(" ", "-")  # as GitHub does
        taken = sum(re.sub(r"-\d+$", "", h[1]) == base for h in headings)
        headings.append((level, f"{base}-{taken}" if taken else base, text))
        return f'<h{level} id="{headings[-1][1]}">{text}</h{level}>\n'

    def link(text: str, url: str, title: str | None = None) -> str:
        if found := PAGE.fullmatch(url):
            page = "glossary.html" if found[1] else f"{found[2]}/seed0/notebook.html"
            url = f"{root}{page}{found[3] or ''}"
        elif not re.match(r"#|\w+:", url):
            return text
        return str(write_link(text, url, title))

    def formula(text: str, display: str = "inline") -> str:
        return str(to_mathml(text.replace("{aligned}", "{align*}"), display=display))  # the name that it knows

    renderer.heading, renderer.link = heading, link
    renderer.inline_math, renderer.block_math = formula, partial(formula, display="block")
    return headings


def _mp3_source(wav: re.Match[str]) -> str:
    written = io.BytesIO()
    soundfile.write(written, *soundfile.read(io.BytesIO(base64.b64decode(wav[1]))), format="MP3")
    return f'src="data:audio/mpeg;base64,{base64.b64encode(written.getvalue()).decode()}" type="audio/mpeg"'


def thumbnail(source: str, *, width: int = 440) -> str:
    """The address of a picture that holds the picture itself ("data:image/..."), shrunk to `width` pixels."""
    _, _, encoded = source.partition("base64,")
    image, written = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"), io.BytesIO()
    image.thumbnail((width, width))
    image.save(written, "WEBP", method=6, quality=75)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"


def to_webp(png: bytes) -> bytes:
    """PNG to WebP: lossless where that is at most a quarter larger than a good lossy one, as of drawings; else, as of
    photographs, at quality 80. Lossy WebP halves the resolution of colour, at any quality, so thin lines pale."""
    image = Image.open(io.BytesIO(png)).convert("RGB")

    def encode(**options: Any) -> bytes:
        written = io.BytesIO()
        image.save(written, "WEBP", method=6, **options)
        return written.getvalue()

    lossless = encode(lossless=True)
    return lossless if len(lossless) <= 1.25 * len(encode(quality=90)) else encode(quality=80)
