"""What the files of tokens are called."""

import itertools
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tablet_hf.token_files import token_file_name, token_file_names

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
