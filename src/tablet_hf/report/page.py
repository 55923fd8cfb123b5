"""Write one HTML file that holds everything it shows, so that it can be mailed, moved and opened without a network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tablet_hf.files import atomic_write

__all__ = ["Picture", "Section", "Table", "write_page"]

TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .35rem .8rem; border-bottom: 1px solid #ddd; }
th { text-align: left; } td { font-variant-numeric: tabular-nums; }
pre { background: #f4f4f4; padding: .7rem 1rem; overflow-x: auto; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section in sections %}
<section>
<h2>{{ section.heading }}</h2>
{% for paragraph in section.paragraphs %}<p>{{ paragraph }}</p>
{% endfor %}
{% if section.table %}<table>
<tr>{% for cell in section.table.header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in section.table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
{% for picture in section.pictures %}<figure>
<img alt="{{ picture.caption }}" src="data:image/png;base64,{{ picture.path | embedded }}">
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{% endfor %}
{% if section.command %}<pre>{{ section.command }}</pre>{% endif %}
</section>
{% endfor %}
</body>
</html>
"""


@dataclass(frozen=True)
class Picture:
    """A PNG file and its caption."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """Cells of text or numbers, row by row."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Section:
    """A part of a page: paragraphs, then a table, pictures and a command to type."""

    heading: str
    paragraphs: Sequence[str] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    command: str | None = None


def write_page(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page, with all text escaped and all pictures embedded, and return its path."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters["embedded"] = lambda png: base64.b64encode(Path(png).read_bytes()).decode("ascii")
    page = environment.from_string(TEMPLATE).render(title=title, sections=sections)
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path
