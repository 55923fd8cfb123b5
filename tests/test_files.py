"""A file under its own name is whole, or the one that was there before."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tablet_hf.cli.prediction_table import PredictionTable
from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.datasets.token_files import save_tokens
from tablet_hf.demo.results import Split, write_results
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor, TokenizedRun
from tablet_hf.files import atomic_folder, atomic_write, saved_weights_checksum, weights_checksum
from tablet_hf.hub.conversion import save_model
from tablet_hf.modeling_tablet import TabletModel
from tablet_hf.report.page import write_page
from tablet_hf.report.pictures import results_figure, save_figure
from tablet_hf.training.arguments import Settings, training_arguments
from tablet_hf.training.checkpoints import save_model as save_trained_model
from tablet_hf.training.trainer import make_trainer


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_the_name_is_given_when_the_file_is_whole(tmp_path):
    path = tmp_path / "a.csv"
    with atomic_write(str(path)) as unfinished:
        assert unfinished.parent == tmp_path
        unfinished.write_text("half")
        assert not path.exists()
        assert not list(tmp_path.glob("a*"))
    assert path.read_text() == "half"
    assert names_in(tmp_path) == ["a.csv"]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_came_meanwhile_is_not_replaced_unasked(tmp_path, monkeypatch, has_links):
    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as exFAT says

    if not has_links:
        monkeypatch.setattr(os, "link", link)
    path = tmp_path / "a.csv"
    with atomic_write(path, replace=False) as unfinished:
        unfinished.write_text("first")
    with pytest.raises(FileExistsError) as caught, atomic_write(path, replace=False) as unfinished:
        unfinished.write_text("second")
    assert caught.value.filename == str(path)
    assert path.read_text() == "first"
    assert names_in(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "a.csv"
    path.write_text("old")

    def fail():
        with atomic_write(path) as unfinished:
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
    with atomic_write(tmp_path / name) as unfinished:
        unfinished.touch()
        assert unfinished.name.endswith(ending)
        assert len(unfinished.name) < 50
        assert unfinished.name.startswith(".")
        assert not list(tmp_path.glob("*_*"))


def test_several_may_write_the_same_file_at_once(tmp_path):
    path = tmp_path / "a.txt"

    def write(number):
        with atomic_write(path) as unfinished:
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
    with pytest.raises(OSError, match="directory") as caught, atomic_write(path) as unfinished:
        unfinished.write_text("whole")
    assert caught.value.filename == str(path)


def save_no_tokens(path):
    run = TokenizedRun(torch.zeros(1, 1, 3), np.zeros(1, np.int64), 1.0, 1.0, None, 0.0, "a")
    save_tokens(run, {}, path)


def save_no_results(path):
    split = Split(np.array([], int), np.array([], int))
    write_results(SimpleNamespace(out=path.parent, people=[], split=split, chance=0.5, methods={}, seconds={}), 0)


WRITERS = {
    "predictions.csv": lambda path: PredictionTable(path, "model").add(Path("scan.nii.gz"), {"prediction": 1}),
    "a_tokens.safetensors": save_no_tokens,
    "index.html": lambda path: write_page(path, "title", []),
    "results.json": save_no_results,
    "results.png": lambda path: save_figure(results_figure({"ours": 0.8}, {"ours": (0.6, 0.9)}, 0.5, "Results"), path),
}


def power_cut(*_):
    raise RuntimeError("power cut")


@pytest.mark.parametrize("name", WRITERS)
def test_all_that_is_written_is_written_so(tmp_path, monkeypatch, name):
    """While the last step is missing, the old content stands."""
    path = tmp_path / name
    old = "scan,model,prediction\n" if name == "predictions.csv" else "old"
    path.write_text(old)

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            WRITERS[name](path)
    assert path.read_text() == old
    WRITERS[name](path)
    assert path.read_bytes()[:3] != b"old"
    assert [left for left in names_in(tmp_path) if not left.endswith(".lock")] == [name]


# --- folders


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path, failure):
    folder = tmp_path / "deep" / "model"

    def fail():
        with atomic_folder(folder) as unfinished:
            (unfinished / "half").touch()
            raise failure

    with pytest.raises(failure):
        fail()
    assert names_in(folder.parent) == []
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(failure):
        fail()
    assert names_in(folder.parent) == ["model"]
    assert names_in(folder) == ["old"]


def test_a_folder_whose_successor_cannot_take_its_place_comes_back(tmp_path, monkeypatch):
    folder, replace = tmp_path / "model", os.replace
    folder.mkdir()
    (folder / "old").touch()

    def once(source, destination):
        monkeypatch.setattr("os.replace", power_cut)
        replace(source, destination)

    monkeypatch.setattr("os.replace", once)
    with pytest.raises(RuntimeError, match="power cut"), atomic_folder(folder) as unfinished:
        (unfinished / "new").touch()
    assert names_in(tmp_path) == ["model"]
    assert names_in(folder) == ["old"]


def test_what_a_killed_process_left_is_deleted(tmp_path):
    code = "import os, sys; from tablet_hf.files import atomic_folder as write\n"
    code += "with write(sys.argv[1]) as unfinished: (unfinished / 'half').touch(); os.kill(os.getpid(), 9)"
    folder = tmp_path / "model"
    assert subprocess.run([sys.executable, "-c", code, folder]).returncode == -9
    assert len(names_in(tmp_path)) == 1
    with atomic_folder(folder):
        pass
    assert names_in(tmp_path) == ["model"]
    assert names_in(folder) == []


def save_converted(folder):
    save_model(small_model(), folder, "last.pth")


def save_trained(folder):
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(Settings(device="cpu"), scratch, report_to=[])
        save_trained_model(make_trainer(small_model(), arguments), folder, TabletFeatureExtractor().to_dict(), [])


def small_model():
    sizes = {"token_size": 12, "grid_size": 2, "hidden_size": 32, "intermediate_size": 16}
    return TabletModel(TabletConfig(**sizes, num_hidden_layers=1, num_attention_heads=4))


@pytest.mark.parametrize("save", [save_converted, save_trained])
def test_every_model_is_written_so(tmp_path, monkeypatch, save):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            save(folder)
    assert names_in(folder) == ["config.json"]
    assert (folder / "config.json").read_text() == "old"
    save(folder)
    assert {"config.json", "model.safetensors"} <= set(names_in(folder))
    assert (folder / "config.json").read_text() != "old"
    assert names_in(tmp_path) == ["model"]


@pytest.mark.parametrize("save", [save_converted, save_trained])
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_of_a_model_follow_the_umask(tmp_path, save, umask):
    before = os.umask(umask)
    try:
        save(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert "model.safetensors" in modes


def test_checksums_tell_weights_by_name_and_number(tmp_path):
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    known = weights_checksum(weights)
    assert weights_checksum(dict(reversed(weights.items()))) == known
    others = [{"a": weights["a"], "c": weights["b"]}, weights | {"b": torch.tensor([1.0, 1.0001])}]
    others += [weights | {"a": weights["a"].view(3, 2)}, {"a": weights["a"]}]
    assert known not in [weights_checksum(other) for other in others]
    for name, tensor in weights.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    assert saved_weights_checksum(tmp_path) == known
