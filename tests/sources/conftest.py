"""Trees of empty files with real names: sources read names and tables only."""

import os

import pytest


@pytest.fixture
def plant(tmp_path):
    """Make empty files below a temporary folder and return it; `x@` is a link to missing content, as of DataLad."""

    def make(*paths):
        for path in paths:
            file = tmp_path / path.removesuffix("@")
            file.parent.mkdir(parents=True, exist_ok=True)
            if path.endswith("@"):
                os.symlink(".git/annex/objects/Xx/Yy/MD5E-s1--0/MD5E-s1--0", file)
            else:
                file.touch()
        return tmp_path

    return make


@pytest.fixture
def write(tmp_path):
    """Write a table: its name, then its lines."""

    def make(name, *lines, ending="\n", encoding="utf-8"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(line + ending for line in lines).encode(encoding))
        return path

    return make


@pytest.fixture
def reasons():
    """Return the problems of a cohort, or of tables, with all of some words; each is one line that ends in a point."""

    def find(found, *words):
        texts = [str(problem) for problem in found.problems]
        assert all(text.endswith(".") and "\n" not in text for text in texts)
        return [text for text in texts if all(str(word) in text for word in words)]

    return find
