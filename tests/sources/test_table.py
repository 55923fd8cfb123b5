"""A table of scans: for every dataset that has no source of its own."""

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import find_scans


def test_every_column(plant, write):
    root = plant("a/scan.nii.gz", "a/mask.nii.gz", "b.nii.gz")
    table = write(
        "scans.csv",
        "path,subject,session,run,task,mask,repetition_time,site,family,dataset,age,code",
        "a/scan.nii.gz,sub-0010042,ses-1,run-2,task-rest,a/mask.nii.gz,0.72,1,7,Mine,31,007",
        f"{root}/b.nii.gz,b,,,,n/a,,n/a,n/a,NA,n/a,x",
    )
    cohort = find_scans("table", table)
    one, two = cohort.records
    assert one.key == "Mine/sub-0010042_ses-1_task-rest_run-2"
    assert (one.scan, one.mask) == (root / "a/scan.nii.gz", root / "a/mask.nii.gz")
    assert (one.repetition_time, one.site, one.family) == (0.72, "1", "7")
    assert one.phenotypes == {"age": 31, "code": "007"}
    assert (two.key, two.scan, two.mask, two.repetition_time) == ("sub-b", root / "b.nii.gz", None, None)
    assert (two.site, two.family, two.dataset) == (None, None, None)
    assert two.phenotypes == {"age": None, "code": "x"}
    assert not cohort.problems
    assert not cohort.is_restricted


@pytest.mark.parametrize("heading", ["path", "scan", "File"])
@pytest.mark.parametrize(("name", "mark"), [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t")])
def test_names_of_the_column_of_paths(plant, write, heading, name, mark):
    plant("x.nii")
    (record,) = find_scans("table", write(name, f"subject{mark}{heading}", f"1{mark}x.nii", ending="\r\n")).records
    assert (record.subject, record.scan.name, record.phenotypes) == ("1", "x.nii", {})


def test_missing_labels_are_read_from_bids_names(plant, write):
    paths = [
        "sub-01_ses-a_task-rest_run-1_bold.nii.gz",
        "sub-01_ses-a_task-rest_run-2_bold.nii.gz",
        "sub-02/func/rest.nii.gz",
    ]
    plant(*paths)
    cohort = find_scans("table", write("t.csv", "path,task", f"{paths[0]},movie", f"{paths[1]},", f"{paths[2]},"))
    assert [record.key for record in cohort.records] == [
        "sub-01_ses-a_task-movie_run-1",
        "sub-01_ses-a_task-rest_run-2",
        "sub-02",
    ]


def test_rows_that_cannot_be_used_are_problems(plant, write, reasons):
    plant(*(f"{name}.nii" for name in "abcdeg"), "link.nii@")
    rows = ["a.nii,1,2", "b.nii,,2", ",3,2", "c.nii,4,two", "d.nii,5,0", "e.nii,6,-999", "none.nii,7,2"]
    table = write("t.csv", "path,subject,repetition_time", *rows, "link.nii,8,2", "g.nii,10,7_20")
    with pytest.warns(UserWarning, match=r"repetition_time \(-999\)"):
        cohort = find_scans("table", table)
    assert [(record.subject, record.repetition_time) for record in cohort.records] == [("1", 2.0), ("6", None)]
    for row, word in ((3, "subject"), (4, "path"), (5, "'two'"), (6, "'0'"), (10, "'7_20'")):
        assert reasons(cohort, f"{table}, row {row}:", word)
    assert reasons(cohort, "none.nii")
    assert reasons(cohort, "datalad get")
    assert len(cohort.problems) == 7


def test_a_german_spreadsheet(plant, write):
    plant("a.nii", "b.nii")
    table = write("t.csv", "path;subject;repetition_time;Alter", "a.nii;1;0,72;31,5", "b.nii;2;2;28", ending="\r\n")
    with pytest.warns(UserWarning, match="decimal .*repetition_time"):
        cohort = find_scans("table", table)
    found = [(record.repetition_time, record.phenotypes["Alter"]) for record in cohort.records]
    assert found == [(0.72, 31.5), (2, 28)]
    assert not cohort.problems


def test_one_table_of_several_datasets(plant, write):
    plant("a.nii", "b.nii", "c.nii")
    table = write("t.csv", "path,subject,dataset", "a.nii,01,A", "b.nii,01,B", "c.nii,01,")
    cohort = find_scans("table", table, dataset="Mine")
    names = {record.dataset: record.scan.name for record in cohort.records}
    assert names == {"A": "a.nii", "B": "b.nii", "Mine": "c.nii"}
    assert not cohort.problems


@pytest.mark.parametrize(
    ("lines", "word"),
    [(("subject,sex", "1,F"), "path"), (("path,sex",), "no scan"), ((), "empty"), (("path", "a.nii,1"), "row 2")],
)
def test_tables_that_list_no_scans_are_errors(write, lines, word):
    with pytest.raises(InputError, match=rf"t\.csv: .*{word}"):
        find_scans("table", write("t.csv", *lines))
