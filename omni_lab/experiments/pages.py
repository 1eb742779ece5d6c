"""Pages that need nothing but a browser: one file each, nothing fetched, readable on a phone and in print."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import nbformat
import soundfile
from latex2mathml.converter import convert as to_mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments.formatters import HtmlFormatter

WAVE = re.compile(r'src="data:audio/wav;base64,([^"]+)" type="audio/wav"')  # as IPython writes a player
WIDGET = "application/vnd.jupyter.widget-view+json"


def html_page(title: str, body: str, style: str = "") -> str:
    """A whole HTML document around `body`, which must be HTML already; `title` need not."""
    return PAGE.format(title=html.escape(title), body=body, style=style)


def notebook_page(executed: Path) -> str:
    """An executed notebook: text, code, outputs. Formulas become MathML, figures WebP, sounds MP3, a fraction of what
    they were; marks on code that no style sheet speaks of are left out."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)  # a panel's state: of no use without a kernel
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                named = re.search(r'save_figure\(\w+, "(\w+)"', cell.source)
                picture = base64.b64encode(to_webp(base64.b64decode(data["image/png"]))).decode()
                name = named[1].replace("_", " ") if named else "figure"
                output["data"] = {"text/html": f'<img alt="{name}" src="data:image/webp;base64,{picture}">'}
            elif WIDGET in data:
                output["data"] = {"text/html": "<p><em>Alive in JupyterLab only.</em></p>"}
            elif "text/html" in data:
                data["text/html"] = WAVE.sub(_smaller, data["text/html"])
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    renderer = _Renderer(escape=False, exclude_anchor_links=True)
    exporter.register_filter("markdown2html", MarkdownWithMath(renderer=renderer).render)
    body, _ = exporter.from_notebook_node(notebook)
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ") if notebook.cells else executed.stem
    style = HtmlFormatter().get_style_defs(".highlight")
    return html_page(title, _plainer(body, {*re.findall(r"\.highlight \.(\w+)", style)} - {"w"}), style + NOTEBOOK)


def _plainer(body: str, styled: set[str]) -> str:
    """Without the spans that look like the text around: about a tenth of a page."""
    return re.sub(r'<span class="(\w+)">([^<]*)</span>', lambda m: m[0] if m[1] in styled else m[2], body)


def to_mp3(wave: bytes) -> bytes:
    """The same sound as MP3, about a tenth of the bytes of its WAV."""
    written = io.BytesIO()
    soundfile.write(written, *soundfile.read(io.BytesIO(wave)), format="MP3")
    return written.getvalue()


def _smaller(found: re.Match[str]) -> str:
    sound = base64.b64encode(to_mp3(base64.b64decode(found[1]))).decode()
    return f'src="data:audio/mpeg;base64,{sound}" type="audio/mpeg"'


def to_webp(png: bytes) -> bytes:
    """The same picture as WebP, without loss if that is smaller."""
    picture, found = Image.open(io.BytesIO(png)).convert("RGB"), []
    for options in ({"quality": 80}, {"lossless": True}):
        written = io.BytesIO()
        picture.save(written, "WEBP", method=6, **options)
        found.append(written.getvalue())
    return min(found, key=len)


class _Renderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return str(to_mathml(body))

    def block_math(self, body: str) -> str:
        return str(to_mathml(body, display="block"))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; text-align: left; font-size: .9rem; }}
td, th {{ padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }}
@media (max-width: 40rem) {{ body {{ margin: 1rem auto; }} }}
@media print {{ body {{ max-width: none; font-size: 11px; }} a {{ color: inherit; }} }}
{style}
</style></head><body>{body}
</body></html>
"""
NOTEBOOK = """
body { max-width: 60rem; }
img, svg, audio, video { max-width: 100%; height: auto; }
pre { overflow-x: auto; padding: .6rem .8rem; margin: .4rem 0; font-size: .85rem; line-height: 1.4; }
.highlight { background: #f5f7f9; }
.output pre { padding: .2rem .8rem; border-left: 3px solid #0072B2; }
.output_area, .text_cell_render { overflow-x: auto; }
table { margin: .5rem 0; border: 0; } td, th { border-width: 0 0 1px; }
math[display="block"] { margin: .8rem 0; overflow-x: auto; }
@media print { .highlight pre, .output pre { white-space: pre-wrap; } .output_area, img { break-inside: avoid; } }
"""
