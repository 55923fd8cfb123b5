"""A table of scans: for every dataset that no other source knows."""

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import find_scans


def test_every_column(plant, write):
    root = plant("a/scan.nii.gz", "a/mask.nii.gz", "b.nii.gz")
    table = write(
        "scans.csv",
        "path,subject,session,run,task,mask,repetition_time,site,family,dataset,age,code",
        "a/scan.nii.gz,sub-0010042,ses-1,run-2,task-rest,a/mask.nii.gz,0.72,1,7,Mine,31,007",
        f"{root}/b.nii.gz,b,,,,,,,,,n/a,x",
    )
    cohort = find_scans("table", table)
    one, two = cohort.records
    assert one.key == "sub-0010042_ses-1_task-rest_run-2"
    assert (one.scan, one.mask) == (root / "a/scan.nii.gz", root / "a/mask.nii.gz")
    assert (one.repetition_time, one.site, one.family, one.dataset) == (0.72, "1", "7", "Mine")
    assert one.phenotypes == {"age": 31, "code": "007"}
    assert (two.subject, two.scan, two.mask, two.repetition_time) == ("b", root / "b.nii.gz", None, None)
    assert (two.session, two.run, two.task, two.site) == (None, None, None, None)
    assert two.phenotypes == {"age": None, "code": "x"}
    assert cohort.is_all_used
    assert not cohort.is_restricted


@pytest.mark.parametrize("heading", ["path", "scan", "File"])
@pytest.mark.parametrize(("name", "mark"), [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t")])
def test_names_of_the_column_of_paths(plant, write, heading, name, mark):
    plant("x.nii")
    (record,) = find_scans("table", write(name, f"subject{mark}{heading}", f"1{mark}x.nii", ending="\r\n")).records
    assert (record.subject, record.scan.name, record.phenotypes) == ("1", "x.nii", {})


def test_what_the_table_does_not_say_is_read_from_bids_names(plant, write):
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


def test_rows_that_cannot_be_used_are_told_by_line(plant, write, reasons):
    plant(*(f"{name}.nii" for name in "abcdefg"), "link.nii@")
    table = write(
        "t.csv",
        "path,subject,repetition_time",
        "a.nii,1,2",
        "b.nii,,2",
        ",3,2",
        "c.nii,4,two",
        "d.nii,5,0",
        "e.nii,6,-999",
        "none.nii,7,2",
        "link.nii,8,2",
        "f.nii,9,2,more",
        "g.nii,10,7_20",
    )
    cohort = find_scans("table", table)
    assert [(record.subject, record.repetition_time) for record in cohort.records] == [("1", 2.0), ("6", None)]
    assert reasons(cohort, f"{table}, line 3: neither it nor the name b.nii tells the subject")
    assert reasons(cohort, f"{table}, line 4: it gives no path")
    assert reasons(cohort, f"{table}, line 5: its repetition_time 'two' is not a number of seconds")
    assert reasons(cohort, f"{table}, line 6: its repetition_time '0'")
    assert reasons(cohort, "there is no such file")
    assert reasons(cohort, "datalad get")
    assert reasons(cohort, f"{table}, line 10: 4 cells")
    assert reasons(cohort, f"{table}, line 11: its repetition_time '7_20'")
    assert reasons(cohort, "taken for missing values, by column: repetition_time 1 (-999)")
    assert len(cohort.problems) == 9


def test_one_scan_twice_and_two_scans_of_one_name(plant, write, reasons):
    plant("a.nii", "b.nii", "c.nii")
    table = write("t.csv", "path,subject,sex", "a.nii,1,F", "a.nii,1,F", "b.nii,2,F", "c.nii,2,M")
    cohort = find_scans("table", table)
    assert [record.subject for record in cohort.records] == ["1"]
    assert len(reasons(cohort, "would all be called sub-2")) == 2


def test_one_table_of_several_datasets(plant, write):
    plant("a.nii", "b.nii", "c.nii")
    table = write("t.csv", "path,subject,dataset", "a.nii,01,A", "b.nii,01,B", "c.nii,01,")
    cohort = find_scans("table", table, dataset="Mine")
    assert {record.dataset: record.scan.name for record in cohort.records} == {
        "A": "a.nii",
        "B": "b.nii",
        "Mine": "c.nii",
    }
    assert not cohort.problems


@pytest.mark.parametrize(
    ("lines", "said"),
    [(("subject,sex", "1,F"), "no column is called path"), (("path,sex",), "lists no scan"), ((), "is empty")],
)
def test_tables_that_list_no_scans_are_refused(write, lines, said):
    with pytest.raises(InputError, match=said):
        find_scans("table", write("t.csv", *lines))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="this is a folder; give a CSV or TSV file"):
        find_scans("table", tmp_path)
