"""One HTML file that holds everything it shows, so that it can be mailed, moved and opened without a network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from tablet_hf.files import atomic_write

__all__ = ["Picture", "Section", "Table", "write_page"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .35rem .8rem; border-bottom: 1px solid #ddd; }
th { text-align: left; } td { font-variant-numeric: tabular-nums; }
pre { background: #f4f4f4; padding: .7rem 1rem; overflow-x: auto; }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG file and what it shows, in words."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """Plain text, row by row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of a page: paragraphs, then a table, pictures and a command to type."""

    heading: str
    paragraphs: Sequence[str] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = field(default_factory=tuple)
    command: str | None = None


def write_page(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page; everything is escaped, and pictures are embedded."""
    body = "\n".join(_section(section) for section in sections)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{body}\n</body>\n</html>\n"
    )
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
    if section.table is not None:
        parts.append(_table(section.table))
    parts += [_picture(picture) for picture in section.pictures]
    if section.command is not None:
        parts.append(f"<pre>{escape(section.command)}</pre>")
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _table(table: Table) -> str:
    rows = [("th", table.header), *(("td", row) for row in table.rows)]
    lines = ["<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>" for tag, cells in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    caption = escape(picture.caption)
    return (
        f'<figure>\n<img alt="{escape(picture.caption, quote=True)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )
