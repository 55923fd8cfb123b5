"""UK Biobank: scans warped to MNI152, and tabular exports with their headings."""

import csv
import re

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import find_scans

FIELDS = ((31, 0), (21003, 0), (21003, 2), (21003, 3), (20016, 0), (20016, 2), (20016, 3), (54, 2), (54, 3))
RAW = ("eid", *(f"{field}-{visit}.0" for field, visit in FIELDS))
PLATFORM = ("eid", "p31", *(f"p{field}_i{visit}" for field, visit in FIELDS[1:]))
DIALECTS = {
    "raw": RAW,
    "R": tuple(f"f.{heading.replace('-', '.')}" for heading in RAW),
    "platform": PLATFORM,
    "platform tool": tuple(f"participant.{heading}" for heading in PLATFORM),
}
SUBJECTS = (
    ("1000012", "0", "55", "63", "66", "5", "7", "8", "11025", "11027"),
    ("1000023", "1", "50", "58", "-3", "4", "-1", "", "11026", ""),
    ("1000034", "1", "45", "52", "", "9", "10", "", "11025", ""),
)


def folder(eid, instance=2):
    return f"{eid}_20227_{instance}_0/fMRI/rfMRI.ica"


def warped(eid, instance=2):
    return f"{folder(eid, instance)}/reg_standard/filtered_func_data_clean.nii.gz"


def native(eid, instance=2):
    return f"{folder(eid, instance)}/filtered_func_data_clean.nii.gz"


def export(write, headings=RAW, subjects=SUBJECTS, name="ukb.csv"):
    return write(name, ",".join(f'"{heading}"' for heading in headings), *(",".join(row) for row in subjects))


class TestScans:
    def test_both_default_paths_and_the_mask_of_a_warped_run(self, plant):
        other = "1000023_20227_2_0_MNI.nii.gz"
        root = plant(warped("1000012"), f"{folder('1000012')}/reg_standard/mask.nii.gz", other)
        one, two = find_scans("ukb", root).records
        assert (one.scan, one.mask) == (root / warped("1000012"), (root / warped("1000012")).with_name("mask.nii.gz"))
        assert (two.scan, two.mask, two.phenotypes) == (root / other, None, {})

    def test_a_scan_that_was_not_warped_is_a_problem(self, plant, reasons):
        root = plant(native("1000012"), warped("1000012"), native("1000023"))
        cohort = find_scans("ukb", root)
        assert [record.subject for record in cohort.records] == ["1000012"]
        assert len(cohort.problems) == len(reasons(cohort, root / native("1000023"), "applywarp")) == 1

    def test_the_error_where_no_scan_was_warped_or_unpacked(self, plant):
        root = plant(f"native/{native('1000012')}", "zipped/1000012_20227_2_0.zip")
        for name, word in (("native", "applywarp"), ("zipped", "zip")):
            with pytest.raises(InputError, match=word):
                find_scans("ukb", root / name)

    @pytest.mark.parametrize(
        ("pattern", "path"),
        [
            ("{eid}/ses-{instance}/func/*_MNI152.nii.gz", "1000012/ses-2/func/rest_MNI152.nii.gz"),
            ("{eid}/{eid}_{instance}.nii.gz", "1000012/1000012_2.nii.gz"),
            ("[new] (a+b)/{instance}_{eid}.nii", "[new] (a+b)/2_1000012.nii"),
        ],
    )
    def test_a_pattern_finds_scans_in_other_folders(self, plant, pattern, path):
        root = plant(path, "1000012/1000013_2.nii.gz", "x/ses-y/func/rest_MNI152.nii.gz")
        (record,) = find_scans("ukb", root, pattern=pattern).records
        assert (record.subject, record.session, record.scan) == ("1000012", "2", root / path)

    @pytest.mark.parametrize("pattern", ["{eid}.nii.gz", "{instance}.nii", "/{eid}/{instance}"])
    def test_a_pattern_needs_subject_and_visit_below_the_root(self, plant, pattern):
        with pytest.raises(InputError, match=re.escape(repr(pattern))):
            find_scans("ukb", plant(warped("1000012")), pattern=pattern)

    @pytest.mark.parametrize("lines", [("1000012", "1000099"), ("eid", '"1000012"'), ("1000012,", "")])
    def test_withdrawn_subjects_are_left_out(self, plant, write, reasons, lines):
        root = plant(warped("1000012"), warped("1000012", 3), warped("1000023"))
        cohort = find_scans("ukb", root, withdrawn=write("w1_2024.csv", *lines))
        assert [record.subject for record in cohort.records] == ["1000023"]
        assert len(reasons(cohort, "subject 1000012", "withdrawn")) == 1

    def test_a_list_of_withdrawn_subjects_with_anything_else_is_an_error(self, plant, write):
        root = plant(warped("1000012"))
        for path in (write("all.csv", "1000012", "all of them"), write("name.csv", "name", "1000012"), "none.csv"):
            with pytest.raises(InputError, match=str(path)):
                find_scans("ukb", root, withdrawn=path)


class TestPhenotypes:
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_phenotypes_are_those_of_the_visit_of_the_scan(self, plant, write, dialect):
        root = plant(warped("1000012"), warped("1000012", 3), warped("1000023"))
        cohort = find_scans("ukb", root, phenotypes=[export(write, DIALECTS[dialect])])
        assert [(r.key, r.site, r.phenotypes) for r in cohort.records] == [
            ("UKB/sub-1000012_ses-2_task-rest", "11025", {"sex": "F", "p31": 0, "age": 63, "fluid_intelligence": 7}),
            ("UKB/sub-1000012_ses-3_task-rest", "11027", {"sex": "F", "p31": 0, "age": 66, "fluid_intelligence": 8}),
            ("UKB/sub-1000023_ses-2_task-rest", "11026", {"sex": "M", "p31": 1, "age": 58, "fluid_intelligence": None}),
        ]
        assert {record.repetition_time for record in cohort.records} == {0.735}
        assert cohort.is_restricted
        assert not cohort.problems

    def test_columns_that_are_not_fields_are_phenotypes_and_other_fields_are_not(self, plant, write):
        table = write("a.csv", "eid,p31,p31_i0_a1,p20127_i0,neuroticism,family", "1000012,Female,0,3,4.5,f7")
        (record,) = find_scans("ukb", plant(warped("1000012")), phenotypes=[table]).records
        named = {"sex": "F", "p31": "Female", "age": None, "fluid_intelligence": None}
        assert (record.phenotypes, record.family) == ({**named, "neuroticism": 4.5}, "f7")

    def test_missing_columns_and_subjects_of_an_export_are_warned_of(self, plant, write):
        root = plant(warped("1000012"), warped("1000045", 3))
        table = export(write, RAW[:4], [row[:4] for row in SUBJECTS])
        columns = "p20016_i2, p54_i2, p21003_i3, p20016_i3, p54_i3"
        with pytest.warns(UserWarning, match=columns), pytest.warns(UserWarning, match="subject 1000045"):
            cohort = find_scans("ukb", root, phenotypes=[table])
        assert [record.phenotypes["age"] for record in cohort.records] == [63, None]
        assert not cohort.problems  # the other subjects of the study need not have a scan here

    def test_an_export_may_have_tens_of_thousands_of_columns(self, plant, write):
        # These headings are longer than the largest field of Python's csv module.
        others = [f"{field}-{instance}.0" for field in range(30000, 35000) for instance in range(4)]
        table = export(write, [*RAW, *others], [[*row, *["1"] * len(others)] for row in SUBJECTS])
        assert table.read_text().index("\n") > csv.field_size_limit()
        (record,) = find_scans("ukb", plant(warped("1000012")), phenotypes=[table]).records
        assert record.phenotypes == {"sex": "F", "p31": 0, "age": 63, "fluid_intelligence": 7}
