"""From what was found to what can be used: nothing is dropped without a problem, and keys are unique."""

from tablet_hf.sources import ScanRecord
from tablet_hf.sources.cohort import find_files, make_cohort


def subjects(cohort):
    return [record.subject for record in cohort.records]


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
    for name in ("none", "folder"):
        assert reasons(cohort, f"{name}.nii.gz", "no such file")


def test_patterns_find_links_without_target_below_any_root(plant):
    root = plant("[1]/a/x.nii@", "[1]/b/y.nii", "1/a/x.nii") / "[1]"
    assert find_files(root, "*/x.nii") == [root / "a" / "x.nii"]
    assert find_files(root, "*/?.nii") == [root / "a" / "x.nii", root / "b" / "y.nii"]
