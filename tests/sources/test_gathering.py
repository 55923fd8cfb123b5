"""From what was found to what can be used: nothing vanishes without a word, and no two scans have one name."""

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources.cohort import Layout, check_labels, files_like, gather, mixture
from tablet_hf.sources.records import Problem, ScanRecord


def test_records_are_sorted_by_key(plant):
    root = plant("a.nii", "b.nii", "c.nii")
    records = [ScanRecord(subject, root / f"{name}.nii") for subject, name in (("2", "a"), ("10", "b"), ("1", "c"))]
    cohort = gather(records, [Problem("x", "y.")], is_restricted=True)
    assert [record.subject for record in cohort.records] == ["1", "10", "2"]
    assert (cohort.problems, cohort.is_restricted) == ((Problem("x", "y."),), True)


def test_scans_of_one_name_are_all_left_out(plant, reasons):
    root = plant("a.nii", "b.nii", "c.nii")
    cohort = gather([ScanRecord(s, root / f"{n}.nii") for s, n in (("A1", "a"), ("A1", "b"), ("A2", "c"))])
    assert [record.subject for record in cohort.records] == ["A2"]
    assert len(reasons(cohort, "would all be called sub-A1, so none is taken; say what tells them apart")) == 2


@pytest.mark.parametrize("labels", [("A-1", "A1"), ("ö", "ä"), ("d-1", "d1"), ("Jörg Schön", "Jrg Schn")])
def test_labels_that_differ_in_other_signs_than_letters_are_two_people(plant, labels):
    root = plant("a.nii", "b.nii")
    cohort = gather(ScanRecord(label, root / f"{name}.nii") for label, name in zip(labels, "ab", strict=True))
    assert {record.subject for record in cohort.records} == set(labels)
    assert not cohort.problems


def test_people_of_the_same_label_in_two_datasets_are_both_taken(plant, reasons):
    root = plant("a.nii", "b.nii", "c.nii")
    names = {"a": "ABIDE", "b": "HCP-YA", "c": None}
    cohort = gather(ScanRecord("01", root / f"{file}.nii", dataset=dataset) for file, dataset in names.items())
    assert [record.dataset for record in cohort.records] == ["ABIDE", "HCP-YA", None]
    assert not cohort.problems


def test_the_same_record_twice_counts_once(plant):
    root = plant("a.nii")
    cohort = gather([ScanRecord("1", root / "a.nii"), ScanRecord("1", root / "a.nii")])
    assert len(cohort.records) == 1
    assert not cohort.problems


def test_one_file_is_not_two_people(plant, reasons):
    root = plant("a.nii", "b.nii")
    listed = [("1", root / "a.nii"), ("2", root / "x" / ".." / "a.nii"), ("3", root / "b.nii")]
    cohort = gather([ScanRecord(*each) for each in listed])
    assert [record.subject for record in cohort.records] == ["3"]
    assert reasons(cohort, "listed as sub-1 and sub-2")


def test_scans_and_masks_that_are_not_here_are_told(plant, reasons):
    root = plant("a.nii.gz@", "b.nii.gz", "b_mask.nii.gz@", "d.nii.gz")
    (root / "c.nii.gz").write_text("/annex/objects/MD5E-s5031--5cce8b.nii.gz\n")
    (root / "folder.nii.gz").mkdir()
    named = {"a": None, "b": "b_mask", "c": None, "d": None, "none": None, "folder": None}
    cohort = gather(
        ScanRecord(name, root / f"{name}.nii.gz", mask and root / f"{mask}.nii.gz") for name, mask in named.items()
    )
    assert [record.subject for record in cohort.records] == ["d"]
    assert len(cohort.problems) == 5
    for name in ("a", "b_mask", "c"):
        assert reasons(cohort, f"`datalad get {root / name}.nii.gz`")
    assert reasons(cohort, "none.nii.gz: there is no such file")
    assert reasons(cohort, "folder.nii.gz: this is a folder")


def test_patterns_find_links_without_target_and_take_the_root_as_it_is(plant):
    root = plant("[1]/a/x.nii@", "[1]/b/y.nii", "1/a/x.nii") / "[1]"
    assert files_like(root, "*/x.nii") == [root / "a" / "x.nii"]
    assert files_like(root, "*/?.nii") == [root / "a" / "x.nii", root / "b" / "y.nii"]


def test_a_root_that_is_no_folder_is_told_with_an_example(plant):
    root = plant("file")
    layout = Layout("Example data", "01/scan.nii.gz")
    assert layout.folder(root) == root
    for name, said in (("file", "this is a file"), ("none", "there is no such folder")):
        with pytest.raises(InputError, match=f"{said}; give the folder of Example data, with 01/scan.nii.gz in it"):
            layout.folder(root / name)


def test_labels_that_are_not_there_are_told(tmp_path):
    assert check_labels(tmp_path, "task", ["task-rest"], ["rest", "faces", None]) == ({"rest"}, [])
    labels, problems = check_labels(tmp_path, "task", ["rest", "moive"], ["rest", "movie"])
    assert labels == {"rest", "moive"}
    assert [problem.why for problem in problems] == ["no scan has task-moive; there are: task-movie, task-rest."]
    with pytest.raises(InputError, match="no scan has ses-3; there are: none"):
        check_labels(tmp_path, "ses", ["3"], [None])


def test_scans_made_differently_are_told(tmp_path):
    assert mixture(tmp_path, ["a", "a"], "--x") == []
    (problem,) = mixture(tmp_path, ["a", "b", "a"], "--x")
    assert problem.why == "the scans were not all made alike: a (2), b (1); choose one kind with --x."
