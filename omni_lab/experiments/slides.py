"""Slides from a notebook's page: one idea each, in one file that fetches nothing."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from omni_lab.experiments.pages import FOLDED, highlight_style, only_imports, render_template

LINES, WIDTH = 15, 90  # of text on a slide, and characters in a line of it
CODE_LINES, CODE_WIDTH = 18, 95  # the same of code and of what is printed, in smaller letters
LONGEST_CODE = 15  # lines
PIECES = 2  # of a long output


@dataclass
class Slide:
    """Blocks of HTML that share a slide. lines: how many lines of text they take."""

    title: str
    blocks: list[str] = field(default_factory=list)
    lines: float = 0.0


def slides_page(page: str, *, code: bool = False) -> str:
    """Slides from the text of a notebook's page. A text shares its slide with the figure or output that follows it, if
    they fit; the code comes after that.

    code: with all code; otherwise cells of more than 15 lines are left out, and what comes before the first section.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, "html.parser")
    for link in soup.find_all("a", href=True):
        if not str(link["href"]).startswith("http"):  # to a part or a neighbour of the page
            link.unwrap()
    slides = [Slide("")]
    for cell in soup.select("div.cell"):
        if cell.select(".text_cell_render"):
            slides.append(Slide(slides[-1].title))
            for block, lines in _text(cell):
                if lines == 0:  # a heading
                    slides.append(Slide(block))
                else:
                    _add(slides, block, lines)
        elif code or cell.find_previous("h2"):
            slides += _show_cell(cell, slides, code=code)
    title = soup.title.get_text() if soup.title else ""
    shown = [slide for slide in slides if slide.blocks]
    return render_template("slides.html.j2", title=title, slides=shown, highlight=highlight_style())


def _add(slides: list[Slide], block: str, lines: float) -> None:
    """Adds a block to the last slide, or to a new one with the same title if it does not fit."""
    if slides[-1].blocks and slides[-1].lines + lines > LINES:
        slides.append(Slide(slides[-1].title))
    slides[-1].blocks.append(block)
    slides[-1].lines += lines


def _show_cell(cell: Any, slides: list[Slide], *, code: bool) -> list[Slide]:
    """Adds the outputs of a code cell; returns slides of its code, and an empty one, so that what follows is apart."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    for output in cell.select(".output_subarea"):
        for block, lines in _output(output):
            _add(slides, block, lines)
    title, written = slides[-1].title, cell.select_one(".highlight")
    lines = written.get_text().strip("\n").split("\n") if written else []
    hidden = any(f"celltag_{tag}" in cell["class"] for tag in FOLDED) or only_imports("\n".join(lines))
    if hidden or (len(lines) > LONGEST_CODE and not code):
        return [Slide(title)]
    parts = _pieces(lines, [_height(line, CODE_WIDTH) for line in lines], CODE_LINES, len(lines))
    shown = [highlight("\n".join(part), PythonLexer(stripnl=False), HtmlFormatter()) for part, _, _ in parts]
    return [*(Slide(title, [part], LINES) for part in shown), Slide(title)]


def _text(cell: Any) -> Iterator[tuple[str, float]]:
    """The blocks of a text with their lines, headings with 0. Each item of a list is a block, so lists can break."""
    for block in cell.select_one(".text_cell_render").find_all(True, recursive=False):
        if block.name in ("h1", "h2", "h3", "h4"):
            yield block.decode_contents(), 0
        elif block.name in ("ul", "ol"):
            for number, item in enumerate(block.find_all("li", recursive=False), start=int(block.get("start", 1))):
                start = f' start="{number}"' if block.name == "ol" else ""
                yield f"<{block.name}{start}>{item}</{block.name}>", _prose(item)
        elif block.name == "table":
            yield from _table(block)
        elif block.select('math[display="block"]'):
            yield str(block), 3 + 1.5 * len(block.select("mtr"))
        else:
            yield str(block), _prose(block)


def _output(output: Any) -> Iterator[tuple[str, float]]:
    """The blocks of an output with their lines: pictures whole, long texts and tables in pieces."""
    from PIL import Image

    if picture := output.find("img"):
        width, height = Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))).size
        yield f"<figure>{picture}</figure>", min(9.0, max(4.0, 30 * height / width))
    elif table := output.find("table"):
        yield from _table(table)
    elif pre := output.find("pre"):
        lines = pre.get_text().strip("\n").split("\n")
        heights = [_height(line, CODE_WIDTH) for line in lines]
        for part, height, left in _pieces(lines, heights, CODE_LINES):
            text = html.escape("\n".join([*part, f"… and {left} more lines"] if left else part))
            yield f"<pre>{text}</pre>", height * (LINES - 1) / CODE_LINES + 0.5
    elif not output.find("progress"):
        yield str(output), 2.0 if output.find("audio") else _prose(output)


def _table(table: Any) -> Iterator[tuple[str, float]]:
    """A table in pieces of as many rows as a slide holds, each with its head; a wide one in smaller letters."""
    rows = table.find_all("tr") or [""]
    for place, row in enumerate(rows):
        for column, cell in enumerate(row.find_all(["td", "th"]) if row else []):
            for below in rows[
                place + 1 : place + int(cell.attrs.pop("rowspan", 1))
            ]:  # or columns would shift in pieces
                below.find_all(["td", "th"])[column].insert_before(copy(cell))
    texts = [" | ".join(cell.get_text() for cell in row.find_all(["td", "th"])) for row in rows[1:]]
    wide = max(map(len, texts), default=0) > WIDTH - 20
    heights = [_height(text, CODE_WIDTH if wide else WIDTH) for text in texts]
    heights = [height if height == 1 else round(1.5 * height) for height in heights]  # cells break before they are full
    for part, height, left in _pieces(rows[1:], heights, LINES - 4):
        kind = " ".join([*table.get("class", []), *["wide"][: int(wide)]])
        more = f"<p>… and {left} more rows</p>" if left else ""
        yield f'<table class="{kind}">{rows[0]}{"".join(map(str, part))}</table>{more}', 1.1 * (height + 1)


def _pieces(
    lines: Sequence[Any], heights: Sequence[int], most: int, pieces: int = PIECES
) -> Iterator[tuple[Sequence[Any], int, int]]:
    """The first pieces of many lines, none higher than `most`: lines, height, and how many the last leaves out."""
    start = 0
    for number in range(pieces):
        stop = start + 1
        while stop < len(lines) and sum(heights[start : stop + 1]) <= most:
            stop += 1
        yield lines[start:stop], sum(heights[start:stop]), len(lines) - stop if number == pieces - 1 else 0
        start = stop
        if start >= len(lines):
            return


def _height(line: str, width: int) -> int:
    return max(1, math.ceil(len(line) / width))


def _prose(block: Any) -> float:
    return _height(" ".join(block.get_text().split()), WIDTH) + 0.4
