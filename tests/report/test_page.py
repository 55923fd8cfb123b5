"""A page holds everything it shows and lets nothing through unescaped."""

import base64
from html.parser import HTMLParser

from tablet_hf.report.page import Picture, Section, Table, write_page

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_is_one_file_that_needs_no_other(tmp_path):
    picture = tmp_path / "one.png"
    picture.write_bytes(PNG)
    section = Section(
        "Heads & <tails>",
        ["A paragraph."],
        Table(("name", "value"), [("a < b", "1")]),
        [Picture(picture, 'It says "so"')],
        "tablet-hf predict 'a b' c",
    )
    path = write_page(tmp_path / "index.html", "A <title>", [section])

    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    images = [attributes for tag, attributes in reader.seen if tag == "img"]
    assert images == [{"alt": 'It says "so"', "src": f"data:image/png;base64,{base64.b64encode(PNG).decode('ascii')}"}]
    assert {"Heads & <tails>", "A <title>", "a < b", "tablet-hf predict 'a b' c"} <= set(reader.text)
    assert not [attributes for tag, attributes in reader.seen if tag in ("script", "link")]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.html", "one.png"]
