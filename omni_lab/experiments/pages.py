"""Web pages of one file each: nothing is fetched, and they can be read on a phone and in print."""

from __future__ import annotations

import base64
import io
import re
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image

WAVE = re.compile(r'src="data:audio/wav;base64,([^"]+)" type="audio/wav"')  # how IPython writes an audio player
WIDGET = "application/vnd.jupyter.widget-view+json"


def render_template(name: str, **values: Any) -> str:
    """Fills in a file of templates/. In HTML values are escaped, except where the template says `safe`."""
    loader, escape = FileSystemLoader(Path(__file__).with_name("templates")), select_autoescape(["html.j2"])
    environment = Environment(loader=loader, autoescape=escape, trim_blocks=True, keep_trailing_newline=True)
    return environment.get_template(name).render(values)


def notebook_page(executed: Path) -> str:
    """An executed notebook as a page. Formulas become MathML, which needs no script. To save bytes, images become WebP,
    audio becomes MP3, and code loses the marks that the style sheet does not use."""
    import nbformat
    from latex2mathml.converter import convert as to_mathml
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)  # the state of a panel is useless without a kernel
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                found = re.search(r'save_figure\(\w+, "(\w+)"', cell.source)
                image = base64.b64encode(to_webp(base64.b64decode(data["image/png"]))).decode()
                name = found[1].replace("_", " ") if found else "figure"
                output["data"] = {"text/html": f'<img alt="{name}" src="data:image/webp;base64,{image}">'}
            elif WIDGET in data:
                output["data"] = {"text/html": "<p><em>Alive in JupyterLab only.</em></p>"}
            elif "text/html" in data:
                data["text/html"] = WAVE.sub(_mp3_source, data["text/html"])
    renderer: Any = IPythonRenderer(escape=False, exclude_anchor_links=True)
    renderer.inline_math, renderer.block_math = to_mathml, partial(to_mathml, display="block")
    streams = Config(CoalesceStreamsPreprocessor={"enabled": True})  # what is printed piece by piece, in one box
    exporter = HTMLExporter(
        config=streams, template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    exporter.register_filter("markdown2html", MarkdownWithMath(renderer=renderer).render)
    body, _ = exporter.from_notebook_node(notebook)
    style = HtmlFormatter().get_style_defs(".highlight")
    styled = {*re.findall(r"\.highlight \.(\w+)", style)} - {"w"}
    # spans that look like the text around them are about a tenth of a page
    body = re.sub(r'<span class="(\w+)">([^<]*)</span>', lambda m: m[0] if m[1] in styled else m[2], body)
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ") if notebook.cells else executed.stem
    return render_template("notebook.html.j2", title=title, body=body, highlight=style)


def _mp3_source(wav: re.Match[str]) -> str:
    written = io.BytesIO()
    soundfile.write(written, *soundfile.read(io.BytesIO(base64.b64decode(wav[1]))), format="MP3")
    return f'src="data:audio/mpeg;base64,{base64.b64encode(written.getvalue()).decode()}" type="audio/mpeg"'


def to_webp(png: bytes) -> bytes:
    """PNG to WebP: lossless, unless that is half as large again. Lossy WebP halves the resolution of colour, at any
    quality, so thin lines pale."""
    image, lossy, lossless = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO(), io.BytesIO()
    image.save(lossy, "WEBP", method=6, quality=90)
    image.save(lossless, "WEBP", method=6, lossless=True)
    return (lossless if len(lossless.getvalue()) <= 1.5 * len(lossy.getvalue()) else lossy).getvalue()
