"""UK Biobank: scans that were warped to MNI152, and tabular exports in their three dialects."""

import re

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import find_scans

RAW = (
    "eid",
    "31-0.0",
    "21003-0.0",
    "21003-2.0",
    "21003-3.0",
    "20016-0.0",
    "20016-2.0",
    "20016-3.0",
    "54-2.0",
    "54-3.0",
)
R = tuple("f." + heading.replace("-", ".") for heading in RAW)
PLATFORM = (
    "eid",
    "p31",
    "p21003_i0",
    "p21003_i2",
    "p21003_i3",
    "p20016_i0",
    "p20016_i2",
    "p20016_i3",
    "p54_i2",
    "p54_i3",
)
DIALECTS = {
    "raw": RAW,
    "R": ("f.eid", *R[1:]),
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


@pytest.mark.parametrize("dialect", DIALECTS)
def test_labels_are_those_of_the_visit_of_the_scan(plant, write, dialect):
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


def test_both_documented_paths_and_the_mask_of_a_warped_run(plant):
    root = plant(warped("1000012"), f"{folder('1000012')}/reg_standard/mask.nii.gz", "1000023_20227_2_0_MNI.nii.gz")
    one, two = find_scans("ukb", root).records
    assert (one.scan, one.mask) == (root / warped("1000012"), (root / warped("1000012")).with_name("mask.nii.gz"))
    assert (two.scan, two.mask, two.phenotypes) == (root / "1000023_20227_2_0_MNI.nii.gz", None, {})


def test_a_scan_that_was_not_warped_is_a_problem(plant, reasons):
    root = plant(native("1000012"), warped("1000012"), native("1000023"))
    cohort = find_scans("ukb", root)
    assert [record.subject for record in cohort.records] == ["1000012"]
    assert len(cohort.problems) == len(reasons(cohort, root / native("1000023"), "applywarp")) == 1


def test_the_error_where_no_scan_was_warped_or_unpacked(plant):
    root = plant(f"native/{native('1000012')}", "zipped/1000012_20227_2_0.zip")
    with pytest.raises(InputError, match=r"reg_standard.*applywarp"):
        find_scans("ukb", root / "native")
    with pytest.raises(InputError, match="zip"):
        find_scans("ukb", root / "zipped")


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("{eid}/ses-{instance}/func/*_MNI152.nii.gz", "1000012/ses-2/func/rest_MNI152.nii.gz"),
        ("{eid}/{eid}_{instance}.nii.gz", "1000012/1000012_2.nii.gz"),
        ("[new] (a+b)/{instance}_{eid}.nii", "[new] (a+b)/2_1000012.nii"),
    ],
)
def test_a_pattern_finds_scans_in_other_folders(plant, pattern, path):
    root = plant(path, "1000012/1000013_2.nii.gz", "x/ses-y/func/rest_MNI152.nii.gz")
    (record,) = find_scans("ukb", root, pattern=pattern).records
    assert (record.subject, record.session, record.scan) == ("1000012", "2", root / path)


@pytest.mark.parametrize(
    "pattern", ["{eid}.nii.gz", "{instance}.nii", "/{eid}/{instance}"], ids=["no visit", "no subject", "absolute"]
)
def test_a_pattern_needs_subject_and_visit(plant, pattern):
    with pytest.raises(InputError, match=re.escape(repr(pattern))):
        find_scans("ukb", plant(warped("1000012")), pattern=pattern)


@pytest.mark.parametrize("lines", [("1000012", "1000099"), ("eid", '"1000012"'), ("1000012,", "")])
def test_withdrawn_subjects_are_left_out(plant, write, reasons, lines):
    root = plant(warped("1000012"), warped("1000012", 3), warped("1000023"))
    cohort = find_scans("ukb", root, withdrawn=write("w1_2024.csv", *lines))
    assert [record.subject for record in cohort.records] == ["1000023"]
    assert len(reasons(cohort, "subject 1000012", "withdrawn")) == 1


@pytest.mark.parametrize("lines", [("1000012", "all of them"), ("name", "1000012")])
def test_a_list_of_withdrawn_subjects_with_anything_else_is_an_error(plant, write, lines):
    with pytest.raises(InputError, match=r"w\.csv.*eid"):
        find_scans("ukb", plant(warped("1000012")), withdrawn=write("w.csv", *lines))
    with pytest.raises(InputError, match=r"none\.csv"):
        find_scans("ukb", plant(), withdrawn="none.csv")


def test_instances_are_chosen(plant):
    root = plant(warped("1000012"), warped("1000012", 3))
    assert [record.session for record in find_scans("ukb", root, sessions=["3"]).records] == ["3"]
    with pytest.raises(InputError, match=r"ses-0; .*ses-2, ses-3"):
        find_scans("ukb", root, sessions=["0"])


def test_columns_that_are_not_fields_are_phenotypes_and_other_fields_are_not(plant, write):
    table = write("a.csv", "eid,p31,p20127_i0,neuroticism,family", "1000012,Female,3,4.5,f7")
    (record,) = find_scans("ukb", plant(warped("1000012")), phenotypes=[table]).records
    assert record.phenotypes == {
        "sex": "F",
        "p31": "Female",
        "age": None,
        "fluid_intelligence": None,
        "neuroticism": 4.5,
    }
    assert record.family == "f7"


def test_missing_columns_and_subjects_of_an_export_are_warned_of(plant, write):
    root = plant(warped("1000012"), warped("1000045", 3))
    table = export(write, RAW[:4], [row[:4] for row in SUBJECTS])
    columns = "p20016_i2, p54_i2, p21003_i3, p20016_i3, p54_i3"
    with pytest.warns(UserWarning, match=columns), pytest.warns(UserWarning, match="subject 1000045"):
        cohort = find_scans("ukb", root, phenotypes=[table])
    assert [record.phenotypes["age"] for record in cohort.records] == [63, None]
    assert not cohort.problems  # the other subjects of the study need not have a scan here


def test_several_exports_are_joined(plant, write):
    tables = [
        export(write, ("eid", "31-0.0"), [("1000012", "1")], "a.csv"),
        export(write, ("f.eid", "f.21003.2.0"), [("1000012", "70")], "b.csv"),
    ]
    (record,) = find_scans("ukb", plant(warped("1000012")), phenotypes=tables).records
    assert (record.phenotypes["sex"], record.phenotypes["age"]) == ("M", 70)


@pytest.mark.parametrize(
    ("headings", "sex"),
    [
        ("20016-2.0,p31,p54_i3_a0", "F"),
        ("20016-2.0,participant.p31,53-2.0", "F"),
        ("20016-2.0,31-0.1,53-2.0", None),
        ("20016-2.0,f.31.0.0,54-2.0", "F"),
    ],
)
def test_array_indices_and_other_fields_are_not_read(plant, write, headings, sex):
    table = write("a.csv", f"participant.eid,{headings}", "1000012,7,0,11025")
    (record,) = find_scans("ukb", plant(warped("1000012")), phenotypes=[table]).records
    assert record.phenotypes == {"sex": sex, "p31": sex and 0, "age": None, "fluid_intelligence": 7}
    assert record.site == ("11025" if "54-2" in headings else None)


def test_an_export_with_tens_of_thousands_of_columns(plant, write):
    others = [f"{field}-{instance}.0" for field in range(30000, 35000) for instance in range(4)]
    table = export(write, [*RAW, *others], [[*row, *["1"] * len(others)] for row in SUBJECTS])
    (record,) = find_scans("ukb", plant(warped("1000012")), phenotypes=[table]).records
    assert record.phenotypes == {"sex": "F", "p31": 0, "age": 63, "fluid_intelligence": 7}
