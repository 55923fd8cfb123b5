"""A file under its own name is whole, or the one that was there before."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from tablet_hf.errors import InputError
from tablet_hf.files import (
    atomic_folder,
    atomic_write,
    checksum,
    file_checksum,
    file_identity,
    saved_weights_checksum,
    weights_checksum,
)


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_the_name_is_given_when_the_file_is_whole(tmp_path):
    path = tmp_path / "a.csv"
    with atomic_write(str(path)) as unfinished:
        assert unfinished.parent == tmp_path
        unfinished.write_text("half")
        assert not list(tmp_path.glob("a*"))
    assert path.read_text() == "half"
    assert names_in(tmp_path) == ["a.csv"]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_existing_file_and_nothing_else(tmp_path, failure):
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
def test_the_temporary_name_keeps_the_ending_and_is_hidden(tmp_path, name, ending):
    with atomic_write(tmp_path / name) as unfinished:
        unfinished.touch()
        assert unfinished.name.endswith(ending)
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


@pytest.mark.parametrize("is_there", [False, True])
def test_errors_name_the_file_that_was_asked_for(tmp_path, is_there):
    path = tmp_path / "folder" / "a.txt"
    if is_there:
        path.mkdir(parents=True)
    with pytest.raises(OSError, match="directory") as caught, atomic_write(path) as unfinished:
        unfinished.write_text("whole")
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_failure_leaves_the_existing_folder_and_nothing_else(tmp_path, failure, is_there):
    folder = tmp_path / "deep" / "model"
    if is_there:
        folder.mkdir(parents=True)
        (folder / "old").touch()

    def fail():
        with atomic_folder(folder) as unfinished:
            (unfinished / "half").touch()
            raise failure

    with pytest.raises(failure):
        fail()
    assert names_in(folder.parent) == (["model"] if is_there else [])
    assert not is_there or names_in(folder) == ["old"]


def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path, monkeypatch):
    folder, replace = tmp_path / "model", os.replace
    folder.mkdir()
    (folder / "old").touch()

    def power_cut(*_):
        raise RuntimeError("power cut")

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


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_in_a_folder_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "model") as unfinished:
            save_file({"a": torch.ones(2)}, unfinished / "model.safetensors")
            (unfinished / "config.json").touch()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(("model.safetensors", "config.json"), 0o666 & ~umask)


def test_checksums_of_weights_depend_on_names_shapes_and_values(tmp_path):
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    expected = weights_checksum(weights)
    assert weights_checksum(dict(reversed(weights.items()))) == expected
    others = [{"a": weights["a"], "c": weights["b"]}, weights | {"b": torch.tensor([1.0, 1.0001])}]
    others += [weights | {"a": weights["a"].view(3, 2)}, {"a": weights["a"]}]
    assert expected not in [weights_checksum(other) for other in others]
    for name, tensor in weights.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    assert saved_weights_checksum(tmp_path) == expected


def test_a_changed_file_has_another_identity_and_checksum(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(b"abc")
    before = file_identity(path)
    assert before["name"] == "a.nii"
    assert file_checksum(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    path.write_bytes(b"abcd")
    assert file_identity(path) != before
    with pytest.raises(InputError, match="there is no such file"):
        file_identity(tmp_path / "b.nii")
    assert checksum({"a": 1, "b": [2]}) == checksum({"b": [2], "a": 1}) != checksum({"a": 1, "b": [3]})
