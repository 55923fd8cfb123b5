"""Trees of real file names, whose files hold nothing: sources look at names and tables only."""

import os

import pytest


@pytest.fixture
def plant(tmp_path):
    """A function that makes empty files below a temporary folder and gives that folder.

    A path that ends in `@` becomes a link to content that is not there, as DataLad leaves it.
    """

    def make(*paths):
        for path in paths:
            place = tmp_path / path.removesuffix("@")
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.endswith("@"):
                os.symlink(".git/annex/objects/Xx/Yy/MD5E-s1--0/MD5E-s1--0", place)
            else:
                place.touch()
        return tmp_path

    return make


@pytest.fixture
def write(tmp_path):
    """A function that writes a table: its name, then its lines."""

    def make(name, *lines, ending="\n", encoding="utf-8"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(line + ending for line in lines).encode(encoding))
        return path

    return make


@pytest.fixture
def reasons():
    """A function that gives the problems of a cohort whose text holds a word, as texts, each one a sentence."""

    def find(cohort, word):
        texts = [str(problem) for problem in cohort.problems]
        for text in texts:
            assert text.endswith(".")
            assert "\n" not in text
        return [text for text in texts if word in text]

    return find
