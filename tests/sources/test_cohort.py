"""From what was found to what can be used: nothing is dropped without a problem, and keys are unique."""

import warnings

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import Problem, ScanRecord
from tablet_hf.sources.cohort import find_files, make_cohort, select_labels, warn_if_mixed


def subjects(cohort):
    return [record.subject for record in cohort.records]


def test_records_are_sorted_by_key(plant):
    root = plant("a.nii", "b.nii", "c.nii")
    records = [ScanRecord(subject, root / f"{name}.nii") for subject, name in (("2", "a"), ("10", "b"), ("1", "c"))]
    cohort = make_cohort(records, [Problem("x", "y.")], is_restricted=True)
    assert subjects(cohort) == ["1", "10", "2"]
    assert (cohort.problems, cohort.is_restricted) == ((Problem("x", "y."),), True)


def test_scans_with_one_key_are_all_left_out(plant, reasons):
    root = plant("a.nii", "b.nii", "c.nii")
    cohort = make_cohort([ScanRecord(s, root / f"{n}.nii") for s, n in (("A1", "a"), ("A1", "b"), ("A2", "c"))])
    assert subjects(cohort) == ["A2"]
    assert len(reasons(cohort, "key sub-A1")) == 2


def test_an_identical_record_counts_once_and_a_file_is_one_scan(plant, reasons):
    root = plant("a.nii", "b.nii")
    listed = [("1", root / "a.nii"), ("2", root / "x" / ".." / "a.nii"), ("3", root / "b.nii"), ("3", root / "b.nii")]
    cohort = make_cohort(ScanRecord(*each) for each in listed)
    assert subjects(cohort) == ["3"]
    assert len(cohort.problems) == len(reasons(cohort, "a.nii", "sub-1 and sub-2")) == 2


def test_scans_and_masks_without_content_are_problems(plant, reasons):
    root = plant("a.nii.gz@", "b.nii.gz", "b_mask.nii.gz@", "d.nii.gz")
    (root / "c.nii.gz").write_text("/annex/objects/MD5E-s5031--5cce8b.nii.gz\n")
    (root / "folder.nii.gz").mkdir()
    masks = {"a": None, "b": root / "b_mask.nii.gz", "c": None, "d": None, "none": None, "folder": None}
    cohort = make_cohort(ScanRecord(name, root / f"{name}.nii.gz", mask) for name, mask in masks.items())
    assert subjects(cohort) == ["d"]
    assert len(cohort.problems) == 5
    for name in ("a", "b_mask", "c"):
        assert reasons(cohort, f"`datalad get {root / name}.nii.gz`")
    assert reasons(cohort, "none.nii.gz", "not exist")
    assert reasons(cohort, "folder.nii.gz", "folder")


def test_patterns_find_links_without_target_below_any_root(plant):
    root = plant("[1]/a/x.nii@", "[1]/b/y.nii", "1/a/x.nii") / "[1]"
    assert find_files(root, "*/x.nii") == [root / "a" / "x.nii"]
    assert find_files(root, "*/?.nii") == [root / "a" / "x.nii", root / "b" / "y.nii"]


def test_labels_are_selected_with_or_without_prefix(tmp_path, reasons):
    records = [ScanRecord("1", tmp_path, task=task) for task in ("rest", "faces", None)]
    assert select_labels(tmp_path, records, "task", ["task-rest"]) == (records[:1], [])
    assert select_labels(tmp_path, records, "task", None) == (records, [])
    selected, (problem,) = select_labels(tmp_path, records, "task", ["rest", "moive"])
    assert selected == records[:1]
    assert "task-moive" in problem.why
    with pytest.raises(InputError, match="ses-3"):
        select_labels(tmp_path, records, "session", ["3"])


def test_scans_preprocessed_in_two_ways_are_warned_of(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_mixed(tmp_path, ["a", "a"], "--x")
    with pytest.warns(UserWarning, match=r"a \(2\), b \(1\).*--x"):
        warn_if_mixed(tmp_path, ["a", "b", "a"], "--x")
