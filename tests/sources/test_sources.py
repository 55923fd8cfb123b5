"""Sources by name, their options, and what importing them costs."""

import re
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import SOURCES, find_scans


def test_the_sources_by_name():
    assert set(SOURCES) == {"adhd200", "bids", "hbn", "hcp", "table", "ukb"}
    with pytest.raises(InputError, match=r"'fmriprep'.* adhd200, bids"):
        find_scans("fmriprep", ".")


@pytest.mark.parametrize("source", SOURCES)
def test_the_error_for_a_missing_root_is_a_sentence(source, tmp_path):
    with pytest.raises(InputError) as caught:
        find_scans(source, str(tmp_path / "none"))
    assert str(caught.value).startswith(str(tmp_path / "none"))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("source", sorted(set(SOURCES) - {"table"}))
def test_the_error_for_an_empty_root_shows_the_layout(source, tmp_path):
    with pytest.raises(InputError, match=r"such as \S*\.nii\.gz"):
        find_scans(source, tmp_path)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("bids", {"withdrawn": "w"}, "bids .* --withdrawn; .* --phenotypes, --task, --session, --space, --dataset"),
        ("hcp", {"keep_failed_quality": True}, "hcp .* --keep-failed-quality"),
        ("ukb", {"tasks": ["rest"]}, "ukb .* --task;"),
        ("table", {"space": "MNI"}, "table .* --space; .* --dataset"),
    ],
)
def test_an_option_of_another_source_is_an_error(source, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        find_scans(source, tmp_path, **options)


def test_nothing_heavy_is_imported_before_a_source_is_used():
    code = (
        "import sys, tablet_hf.sources as sources;"
        "own = tuple(f'{sources.__name__}.{source}' for source in sources.SOURCES);"
        "print(*(name for name in sys.modules if name.startswith(('nilearn', 'pandas', *own))))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_documented_options_are_those_of_the_sources():
    page = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\(#\1\) \|[^|]*\| (?:`([^`]*)`)? ?\|", page, re.MULTILINE)
    documented = {source: set(options.split()) for source, options in rows}
    typed = {"tasks": "--task", "sessions": "--session"}
    for source in SOURCES:
        _, *options = signature(import_module(f"tablet_hf.sources.{source}").find).parameters
        assert documented[source] == {typed.get(each, "--" + each.replace("_", "-")) for each in options}
