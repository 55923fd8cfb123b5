"""What the files of tokens are called, and what is refused that is none."""

import itertools
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from tablet_hf import InputError
from tablet_hf.cli.__main__ import app
from tablet_hf.datasets.token_files import (
    FORMAT,
    TokenFolder,
    load_tokens,
    read_record,
    token_file_name,
    token_file_names,
)
from tablet_hf.feature_extraction_tablet import TokenizedRun
from tablet_hf.files import source_identity

RESULTS = "MNINonLinear/Results"


def names(*scans):
    return [name.removesuffix("_tokens.safetensors") for name in token_file_names([Path(scan) for scan in scans])]


def test_a_scan_is_called_as_it_was():
    assert names("/data/sub-01/func/sub-01_bold.nii.gz", "/data/sub-02/func/sub-02_bold.nii") == [
        "sub-01_bold",
        "sub-02_bold",
    ]
    assert names() == []


def test_hcp_runs_of_two_subjects():
    runs = [
        f"/hcp/{subject}/{RESULTS}/rfMRI_{run}/rfMRI_{run}_hp2000_clean.nii.gz"
        for subject, run in itertools.product(("100307", "100408"), ("REST1_LR", "REST1_RL"))
    ]
    assert names(*runs) == [
        "100307_rfMRI_REST1_LR_hp2000_clean",
        "100307_rfMRI_REST1_RL_hp2000_clean",
        "100408_rfMRI_REST1_LR_hp2000_clean",
        "100408_rfMRI_REST1_RL_hp2000_clean",
    ]


def test_only_namesakes_are_told_apart_and_only_by_what_is_needed():
    assert names("/d/a/x/rest.nii", "/d/a/y/rest.nii", "/d/b/x/rest.nii", "/d/a/x/task.nii") == [
        "a_x_rest",
        "a_y_rest",
        "b_x_rest",
        "task",
    ]
    assert names("/d/a/x/rest.nii", "/d/b/y/rest.nii") == ["a_rest", "b_rest"]
    assert names("/d/rest.nii", "/d/a/rest.nii") == ["rest", "a_rest"]


def test_the_same_scan_twice_is_no_namesake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names(tmp_path / "rest.nii", "rest.nii", f"../{tmp_path.name}/rest.nii") == ["rest"] * 3
    assert names("a/rest.nii", "b/rest.nii", tmp_path / "a" / "rest.nii") == ["a_rest", "b_rest", "a_rest"]


def test_links_are_called_as_they_are_and_not_as_their_targets(tmp_path):
    """As in a DataLad dataset, where two scans of one content are one object."""
    (tmp_path / "MD5E-1234.nii.gz").touch()
    for subject in ("a", "b"):
        (tmp_path / subject).mkdir()
        (tmp_path / subject / "rest.nii.gz").symlink_to(tmp_path / "MD5E-1234.nii.gz")
    assert names(*tmp_path.glob("?/rest.nii.gz")) in (["a_rest", "b_rest"], ["b_rest", "a_rest"])


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4).map(tuple), unique=True, max_size=12), st.randoms())
def test_all_names_differ_and_the_order_does_not_matter(folders, random):
    scans = [Path(os.sep, *parts, "rest.nii.gz") for parts in folders]
    given_names = dict(zip(scans, token_file_names(scans), strict=True))
    assert len(set(given_names.values())) == len(scans)
    assert all(name.endswith(token_file_name(scan)) for scan, name in given_names.items())
    random.shuffle(scans)
    assert dict(zip(scans, token_file_names(scans), strict=True)) == given_names


class TestTokenFolder:
    """Scans `s1/rest.nii.gz`, `s2/rest.nii.gz`, ... of a cohort that grows."""

    RUN = TokenizedRun(torch.zeros(1, 8, 12), torch.arange(1).numpy(), 2.0, 900.0, None, 0.0, "rest")

    @pytest.fixture
    def scans(self, tmp_path):
        scans = [tmp_path / f"s{number}" / "rest.nii.gz" for number in range(8)]
        for size, scan in enumerate(scans):
            scan.parent.mkdir()
            scan.write_bytes(bytes(size))
        (tmp_path / "out").mkdir()
        return scans

    def save(self, folder, *scans, overwrite=False):
        """As one command would: the names of the files that hold the tokens of the scans, in their order."""
        tokens = TokenFolder(folder, scans)
        return [tokens.save(self.RUN, record_of(scan), scan, overwrite).name.split("_tokens")[0] for scan in scans]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_scan_keeps_its_file_in_other_company(self, scans, tmp_path, overwrite):
        out = tmp_path / "out"
        assert self.save(out, scans[1], overwrite=overwrite) == ["rest"]
        assert self.save(out, scans[1], scans[2], overwrite=overwrite) == ["rest", "s2_rest"]
        assert self.save(out, scans[2], overwrite=overwrite) == ["s2_rest"]
        assert self.save(out, scans[3], overwrite=overwrite) == ["s3_rest"]
        assert self.save(out, *scans[:4], overwrite=overwrite) == ["s0_rest", "rest", "s2_rest", "s3_rest"]
        assert len(list(out.iterdir())) == 4
        paths = [read_record(path)["source"]["path"] for path in sorted(out.iterdir())]
        assert paths == [str(scans[number]) for number in (1, 0, 2, 3)]

    def test_what_was_made_otherwise_is_found_and_not_made_a_second_time(self, scans, tmp_path):
        self.save(tmp_path / "out", scans[1])
        tokens = TokenFolder(tmp_path / "out", scans)
        with pytest.raises(InputError, match=r"rest_tokens.safetensors: it holds tokens made otherwise.*--overwrite"):
            tokens.finished(scans[1], record_of(scans[1]) | {"signal": "percent_change"})
        assert tokens.finished(scans[2], record_of(scans[2])) is None

    def test_a_longer_name_that_is_taken_too(self, scans, tmp_path):
        out, far = tmp_path / "out", tmp_path / "far" / "s2" / "rest.nii.gz"
        far.parent.mkdir(parents=True)
        far.touch()
        assert self.save(out, *scans[1:3]) == ["s1_rest", "s2_rest"]
        assert self.save(out, scans[0]) == ["rest"]
        (name,) = self.save(out, far)
        assert name.startswith("far_")
        assert [read_record(path)["source"]["path"] for path in out.glob("far_*")] == [str(far)]

    def test_no_name_is_left(self, scans, tmp_path):
        plain = scans[1].with_suffix("")
        plain.touch()
        self.save(tmp_path / "out", scans[1])
        with pytest.raises(InputError, match=f"{plain}: .* as {scans[1]} did; tokenize them into different folders"):
            self.save(tmp_path / "out", plain, overwrite=True)

    def test_a_cohort_that_was_moved_is_not_made_a_second_time(self, scans, tmp_path):
        self.save(tmp_path / "out", scans[1])
        moved = Path(shutil.move(scans[1].parent, tmp_path / "moved")) / scans[1].name
        with pytest.raises(InputError, match="made otherwise"):
            self.save(tmp_path / "out", moved)
        assert self.save(tmp_path / "out", moved, overwrite=True) == ["rest"]

    def test_links_to_one_content_have_a_file_each(self, scans, tmp_path):
        """As in a DataLad dataset."""
        for scan in scans[1:3]:
            scan.unlink()
            scan.symlink_to(scans[0])
        assert self.save(tmp_path / "out", scans[1]) == ["rest"]
        for _ in range(2):
            assert self.save(tmp_path / "out", *scans[1:3]) == ["rest", "s2_rest"]

    def test_a_file_that_cannot_be_read_is_replaced_only_if_asked(self, scans, tmp_path):
        path = tmp_path / "out" / "rest_tokens.safetensors"
        path.write_text("half a fi")
        with pytest.raises(InputError, match="not a whole safetensors file"):
            self.save(tmp_path / "out", scans[1])
        assert path.read_text() == "half a fi"
        assert self.save(tmp_path / "out", scans[1], overwrite=True) == ["rest"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_commands_that_run_at_once_take_nothing_from_each_other(self, scans, tmp_path, overwrite):
        commands = [TokenFolder(tmp_path / "out", [scan]) for scan in scans]
        with ThreadPoolExecutor(len(scans)) as workers:
            saved = workers.map(
                lambda command, scan: command.save(self.RUN, record_of(scan), scan, overwrite), commands, scans
            )
        assert [read_record(path)["source"] for path in saved] == [source_identity(scan) for scan in scans]
        assert len(list((tmp_path / "out").iterdir())) == len(scans)

    def test_a_scan_that_another_command_finished_meanwhile(self, scans, tmp_path):
        slow = TokenFolder(tmp_path / "out", [scans[1]])
        assert slow.finished(scans[1], record_of(scans[1])) is None
        assert self.save(tmp_path / "out", *scans[1:3]) == ["s1_rest", "s2_rest"]
        assert slow.save(self.RUN, record_of(scans[1]), scans[1]).name == "s1_rest_tokens.safetensors"
        assert len(list((tmp_path / "out").iterdir())) == 2


def record_of(scan):
    return {"signal": "intensity", "source": source_identity(scan)}


TENSORS = {"tokens": torch.zeros(3, 8, 12).half(), "frames": torch.arange(3)}
METADATA = {"format": FORMAT, "record": {}, "repetition_time": 2.0, "intensity_scale": 900, "clipped_share": 0.0}


@pytest.fixture
def write(tmp_path):
    def write(tensors, metadata):
        path = tmp_path / "sub-01_tokens.safetensors"
        tensors = {name: value for name, value in (TENSORS | tensors).items() if value is not None}
        written = {name: json.dumps(value) for name, value in METADATA.items()} | metadata
        save_file(tensors, path, {name: value for name, value in written.items() if value is not None})
        return path

    return write


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({}, {"record": "{"}, "its record is not readable as JSON"),
        ({}, {"record": "[" * 100_000}, "its record is not readable as JSON"),
        ({}, {"record": "[1]"}, r"its record is \[1\]"),
        ({}, {"record": "null"}, "its record is None"),
        ({}, {"repetition_time": "two"}, "its repetition_time is not readable as JSON"),
        ({}, {"repetition_time": "NaN"}, "its repetition_time is nan"),
        ({}, {"repetition_time": '"2"'}, "its repetition_time is '2'"),
        ({}, {"repetition_time": "0"}, "its repetition time is 0"),
        ({}, {"repetition_time": None}, "hold no repetition_time"),
        ({}, {"intensity_scale": "Infinity"}, "its intensity_scale is inf"),
        ({}, {"intensity_scale": "-1"}, "its intensity scale -1"),
        ({}, {"intensity_scale": "1" + "0" * 400}, "its intensity_scale is 10"),
        ({}, {"clipped_share": "null"}, "its clipped_share is None"),
        ({}, {"clipped_share": "true"}, "its clipped_share is True"),
        ({"tokens": None}, {}, "it holds no tokens"),
        ({"frames": None}, {}, "it holds no frames"),
        ({"frames": torch.arange(3)[:, None]}, {}, r"its frames have the shape \(3, 1\)"),
        ({"frames": torch.tensor(3)}, {}, r"its frames have the shape \(\)"),
        ({"frames": torch.zeros(3).bfloat16()}, {}, "are torch.bfloat16"),
        ({"frames": torch.arange(2)}, {}, r"\(3, 8, 12\), not \(frames, cells, features\) of its 2 frames"),
        ({"tokens": torch.zeros(3, 8).half()}, {}, r"\(3, 8\), not \(frames, cells, features\)"),
        ({"tokens": torch.zeros(3, 8, 12).int()}, {}, "its tokens are torch.int32"),
        ({"tokens": torch.zeros(3, 8, 12).to(torch.float8_e4m3fn)}, {}, "its tokens are torch.float8"),
        ({"tokens": torch.zeros(0, 8, 12), "frames": torch.arange(0)}, {}, "so there are none"),
        ({"tokens": torch.zeros(3, 0, 12)}, {}, "so there are none"),
        ({"tokens": torch.full((3, 8, 12), torch.nan)}, {}, "its tokens hold numbers that are not finite"),
        ({"mean_tokens": torch.zeros(8, 12)}, {}, r"its mean tokens have the shape \(8, 12\)"),
        ({"mean_tokens": torch.full((1, 8, 12), torch.inf)}, {}, "its mean tokens hold"),
    ],
)
def test_malformed_files_are_refused_in_a_sentence(write, tensors, metadata, said):
    path = write(tensors, metadata)
    with pytest.raises(InputError, match=f"_tokens.safetensors: .*{said}.*tokenize the scan again"):
        load_tokens(path)
    if "record" in metadata:
        with pytest.raises(InputError, match=said):
            read_record(path)
    result = CliRunner().invoke(app, ["info", str(path)])
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {path}: ")


@pytest.mark.parametrize("source", [None, "scan.nii", {}, {"path": "scan.nii"}])
def test_well_formed_files_are_read(write, source):
    path = write({"mean_tokens": torch.zeros(1, 8, 12)}, {"record": json.dumps({"source": source})})
    run, record = load_tokens(path)
    assert (run.tokens.shape, run.frames.tolist(), run.intensity_scale) == ((3, 8, 12), [0, 1, 2], 900)
    assert record == read_record(path) == {"source": source}
    result = CliRunner().invoke(app, ["info", str(path)])
    assert result.exit_code == 0, result.output
    assert "3 x 8 x 12 float16" in result.output
