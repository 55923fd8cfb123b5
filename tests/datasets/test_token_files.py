"""Token files come back as they were written; damaged and other files are refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tablet_hf import InputError
from tablet_hf.datasets.token_files import FORMAT, load_tokens, read_record, save_tokens, token_file_name
from tablet_hf.feature_extraction_tablet import TokenizedRun

TENSORS = {"tokens": torch.zeros(3, 8, 12).half(), "frames": torch.arange(3)}
METADATA = {"format": FORMAT, "record": {}, "repetition_time": 2.0, "intensity_scale": 900, "clipped_share": 0.0}


@pytest.fixture
def write(tmp_path):
    """A function that writes a file with some tensors and metadata (as JSON text) replaced or, if None, left out."""

    def write(tensors, metadata):
        path = tmp_path / "sub-01_tokens.safetensors"
        tensors = {name: value for name, value in (TENSORS | tensors).items() if value is not None}
        texts = {name: json.dumps(value) for name, value in METADATA.items()} | metadata
        save_file(tensors, path, {name: value for name, value in texts.items() if value is not None})
        return path

    return write


@pytest.mark.parametrize("has_mean", [True, False])
def test_a_run_comes_back_as_it_was(tmp_path, has_mean):
    torch.manual_seed(0)
    mean = torch.randn(1, 8, 12) if has_mean else None
    run = TokenizedRun(torch.randn(3, 8, 12), np.array([1, 3, 5]), 1.44, 812.5, mean, 0.25, "scan.nii")
    path, record = tmp_path / "a_tokens.safetensors", {"signal": "intensity", "source": {"path": "scan.nii"}}
    save_tokens(run, record, path)
    found, recorded = load_tokens(path)
    assert torch.equal(found.tokens, run.tokens.half())
    assert (found.mean_tokens is None) if mean is None else torch.equal(found.mean_tokens, mean.half())
    assert found.frames.tolist() == [1, 3, 5]
    assert (found.repetition_time, found.intensity_scale, found.clipped_share) == (1.44, 812.5, 0.25)
    assert recorded == read_record(path) == record


@pytest.mark.parametrize("name", ["sub-01_bold.nii.gz", "sub-01_bold.nii"])
def test_the_name_is_that_of_the_scan(tmp_path, name):
    assert token_file_name(tmp_path / name) == "sub-01_bold_tokens.safetensors"


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({}, {"record": "{"}),
        ({}, {"record": "[" * 100_000}),
        ({}, {"record": "[1]"}),
        ({}, {"record": None}),
        ({}, {"format": '"other"'}),
        ({}, {"format": "pt"}),
        ({}, {"repetition_time": "NaN"}),
        ({}, {"repetition_time": '"2"'}),
        ({}, {"repetition_time": "0"}),
        ({}, {"repetition_time": None}),
        ({}, {"intensity_scale": "Infinity"}),
        ({}, {"intensity_scale": "-1"}),
        ({}, {"intensity_scale": "1" + "0" * 400}),
        ({}, {"clipped_share": "null"}),
        ({}, {"clipped_share": "true"}),
        ({"tokens": None}, {}),
        ({"frames": None}, {}),
        ({"frames": torch.arange(3)[:, None]}, {}),
        ({"frames": torch.tensor(3)}, {}),
        ({"frames": torch.zeros(3).bfloat16()}, {}),
        ({"frames": torch.arange(2)}, {}),
        ({"tokens": torch.zeros(3, 8).half()}, {}),
        ({"tokens": torch.zeros(3, 8, 12).int()}, {}),
        ({"tokens": torch.zeros(3, 8, 12).to(torch.float8_e4m3fn)}, {}),
        ({"tokens": torch.zeros(0, 8, 12), "frames": torch.arange(0)}, {}),
        ({"tokens": torch.full((3, 8, 12), torch.nan)}, {}),
        ({"mean_tokens": torch.zeros(8, 12)}, {}),
        ({"mean_tokens": torch.full((1, 8, 12), torch.inf)}, {}),
    ],
)
def test_malformed_files_are_refused(write, tensors, metadata):
    path = write(tensors, metadata)
    with pytest.raises(InputError, match=r"_tokens\.safetensors: .*tokenize the scan again") as caught:
        load_tokens(path)
    assert len(str(caught.value)) < 200 + len(str(path))


@pytest.mark.parametrize("content", [None, b"", b"half a fi", "cut"])
def test_missing_and_damaged_files_are_refused(write, tmp_path, content):
    path = write({}, {})
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[:-100] if content == "cut" else content)
    for read in (load_tokens, read_record):
        with pytest.raises(InputError, match=r"_tokens\.safetensors"):
            read(path)
