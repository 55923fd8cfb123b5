"""A file under its own name is whole, or the one that was there before."""

import stat
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tablet_hf.cli import write_csv
from tablet_hf.demo.results import Split, write_results
from tablet_hf.feature_extraction_tablet import TokenizedRun
from tablet_hf.files import written_whole
from tablet_hf.report.page import write_page
from tablet_hf.token_files import save_tokens


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_the_name_is_given_when_the_file_is_whole(tmp_path):
    path = tmp_path / "a.csv"
    with written_whole(str(path)) as unfinished:
        assert unfinished.parent == tmp_path
        unfinished.write_text("half")
        assert not path.exists()
        assert not list(tmp_path.glob("a*"))
    assert path.read_text() == "half"
    assert names_in(tmp_path) == ["a.csv"]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "a.csv"
    path.write_text("old")

    def fail():
        with written_whole(path) as unfinished:
            unfinished.write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert names_in(tmp_path) == ["a.csv"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "ending"), [("a_bold.nii.gz", ".nii.gz"), ("v1.2_a.nii", ".nii"), ("x_tokens.safetensors", ".safetensors")]
)
def test_the_temporary_name_keeps_the_ending_but_is_no_such_file_to_others(tmp_path, name, ending):
    with written_whole(tmp_path / name) as unfinished:
        unfinished.touch()
        assert unfinished.name.endswith(ending)
        assert len(unfinished.name) < 50
        assert unfinished.name.startswith(".")
        assert not list(tmp_path.glob("*_*"))


def test_several_may_write_the_same_file_at_once(tmp_path):
    path = tmp_path / "a.txt"

    def write(number):
        with written_whole(path) as unfinished:
            unfinished.write_text(str(number) * 100_000)

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(write, [1, 2, 3, 4] * 10))
    assert len(path.read_text()) == 100_000
    assert len(set(path.read_text())) == 1
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("there", [False, True])
def test_errors_name_the_file_that_was_asked_for(tmp_path, there):
    path = tmp_path / "folder" / "a.txt"
    if there:
        path.mkdir(parents=True)
    with pytest.raises(OSError, match="directory") as caught, written_whole(path) as unfinished:
        unfinished.write_text("whole")
    assert caught.value.filename == str(path)


def save_no_tokens(path):
    run = TokenizedRun(torch.zeros(1, 1, 3), np.zeros(1, np.int64), 1.0, 1.0, None, 0.0, "a")
    save_tokens(run, {}, path)


def save_no_results(path):
    split = Split(np.array([], int), np.array([], int))
    write_results(SimpleNamespace(out=path.parent, people=[], split=split, chance=0.5, methods={}, seconds={}), 0)


WRITERS = {
    "predictions.csv": lambda path: write_csv([{"a": 1}], path),
    "a_tokens.safetensors": save_no_tokens,
    "index.html": lambda path: write_page(path, "title", []),
    "results.json": save_no_results,
}


@pytest.mark.parametrize("name", WRITERS)
def test_all_that_is_written_is_written_so(tmp_path, monkeypatch, name):
    """While the last step is missing, the old content stands."""
    path = tmp_path / name
    path.write_text("old")

    def power_cut(*_):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            WRITERS[name](path)
    assert path.read_text() == "old"
    WRITERS[name](path)
    assert path.read_bytes()[:3] != b"old"
    assert names_in(tmp_path) == [name]
