"""The registry: sources by name, options that a source does not know, nothing imported before it is asked for."""

import re
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import SOURCES, find_scans

ALL_OPTIONS = {
    "phenotypes": None,
    "tasks": None,
    "sessions": [],
    "space": None,
    "pattern": None,
    "withdrawn": None,
    "dataset": None,
    "keep_failed_quality": False,
}


def test_the_sources_by_name():
    assert set(SOURCES) == {"adhd200", "bids", "hbn", "hcp", "table", "ukb"}
    with pytest.raises(InputError, match="no source 'fmriprep'; choose one of adhd200, bids"):
        find_scans("fmriprep", ".")


@pytest.mark.parametrize("source", SOURCES)
def test_a_missing_root_is_one_sentence_whatever_options_were_not_set(source, tmp_path):
    for find in (lambda root: find_scans(source, root, **ALL_OPTIONS), SOURCES[source]):
        with pytest.raises(InputError) as caught:
            find(str(tmp_path / "none"))
        assert str(caught.value).startswith(str(tmp_path / "none"))
        assert str(caught.value).endswith(".")


@pytest.mark.parametrize("source", sorted(set(SOURCES) - {"table"}))
def test_an_empty_root_is_one_sentence_with_the_layout_expected(source, tmp_path):
    with pytest.raises(InputError, match=r"no scan of .* was found; expected is, for one, \S*\.nii\.gz"):
        find_scans(source, tmp_path)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (
            "bids",
            {"withdrawn": "w.csv"},
            "bids does not know --withdrawn, it takes --phenotypes, --task, --session, --space, --dataset;",
        ),
        ("adhd200", {"pattern": "x"}, "adhd200 does not know --pattern"),
        ("hcp", {"keep_failed_quality": True}, "hcp does not know --keep-failed-quality"),
        ("ukb", {"tasks": ["rest"]}, "ukb does not know --task,"),
        ("hbn", {"pattern": "x"}, "hbn does not know --pattern"),
        ("table", {"space": "MNI"}, "table does not know --space, it takes --dataset"),
    ],
)
def test_an_option_that_a_source_does_not_know_is_named(source, options, said, tmp_path):
    with pytest.raises(InputError, match=said):
        find_scans(source, tmp_path, **options)


def test_nothing_heavy_is_imported_before_a_source_is_asked():
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
    taken = {
        source: {
            typed.get(option, "--" + option.replace("_", "-"))
            for option in signature(import_module(f"tablet_hf.sources.{source}").find).parameters
            if option != "root"
        }
        for source in SOURCES
    }
    assert documented == taken
