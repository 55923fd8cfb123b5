"""HCP Young Adult: the four resting runs of each person, and both tables."""

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import find_scans

UNRESTRICTED = (
    "Subject,Release,Acquisition,Gender,Age,3T_Full_MR_Compl,PMAT24_A_CR",
    "100307,Q1,Q01,F,26-30,true,17",
    "100408,Q3,Q03,M,31-35,true,",
)
RESTRICTED = (
    "Subject,Age_in_Yrs,HasGT,ZygositySR,ZygosityGT,Family_ID,Mother_ID",
    "100307,27,TRUE,NotTwin, ,51488_81352,51488",
    "100408,33,TRUE,MZ,MZ,51730_81345,51730",
    "100610,27,TRUE,DZ,DZ,51852_81283,51852",
)


def folder(subject, run):
    return f"{subject}/MNINonLinear/Results/rfMRI_{run}"


def clean(subject, run, ending="_hp2000_clean"):
    return f"{folder(subject, run)}/rfMRI_{run}{ending}.nii.gz"


def test_four_runs_with_masks_and_both_tables(plant, write):
    runs = ("REST1_LR", "REST1_RL", "REST2_LR", "REST2_RL")
    root = plant(
        *(clean("100307", run) for run in runs),
        *(f"{folder('100307', run)}/brainmask_fs.2.nii.gz" for run in runs),
        clean("100408", "REST1_LR"),
    )
    tables = [write("unrestricted.csv", *UNRESTRICTED), write("RESTRICTED.csv", *RESTRICTED)]
    cohort = find_scans("hcp", root, phenotypes=tables)
    assert [record.key for record in cohort.records] == [
        "sub-100307_ses-REST1_task-rest_run-LR",
        "sub-100307_ses-REST1_task-rest_run-RL",
        "sub-100307_ses-REST2_task-rest_run-LR",
        "sub-100307_ses-REST2_task-rest_run-RL",
        "sub-100408_ses-REST1_task-rest_run-LR",
    ]
    first, last = cohort.records[0], cohort.records[-1]
    assert first.scan == root / clean("100307", "REST1_LR")
    assert first.mask == root / folder("100307", "REST1_LR") / "brainmask_fs.2.nii.gz"
    assert (first.repetition_time, first.dataset, first.family) == (0.72, "HCP-YA", "51488_81352")
    assert first.phenotypes == {
        "sex": "F",
        "age": 27,
        "Release": "Q1",
        "Acquisition": "Q01",
        "Gender": "F",
        "Age": "26-30",
        "3T_Full_MR_Compl": "true",
        "PMAT24_A_CR": 17,
        "Age_in_Yrs": 27,
        "HasGT": "TRUE",
        "ZygositySR": "NotTwin",
        "ZygosityGT": None,
        "Mother_ID": 51488,
    }
    assert (last.mask, last.phenotypes["PMAT24_A_CR"], last.phenotypes["sex"]) == (None, None, "M")
    assert cohort.is_restricted
    assert not cohort.problems


def test_without_the_restricted_table_families_are_not_known_and_that_is_told(plant, write, reasons):
    root = plant(clean("100307", "REST1_LR"))
    cohort = find_scans("hcp", root, phenotypes=[write("u.csv", *UNRESTRICTED)])
    assert cohort.records[0].phenotypes["age"] is None
    assert reasons(cohort, "no table gives Family_ID")
    cohort = find_scans("hcp", root)
    assert cohort.records[0].phenotypes == {}
    assert reasons(cohort, "no table gives Family_ID")


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [(None, "_hp2000_clean"), ("rfMRI_{run}.nii.gz", ""), ("rfMRI_{run}_hp2000_clean_rclean_tclean.nii.gz", None)],
)
def test_cleaned_runs_are_taken_unless_others_are_asked_for(plant, pattern, taken):
    newer = "_hp2000_clean_rclean_tclean"
    root = plant(*(clean("100307", "REST1_LR", ending) for ending in ("", "_hp2000_clean", newer, "_SBRef")))
    (record,) = find_scans("hcp", root, pattern=pattern).records
    assert record.scan == root / clean("100307", "REST1_LR", newer if taken is None else taken)


def test_the_newer_release_is_found_and_a_mixture_told(plant, reasons):
    newer = clean("100408", "REST1_LR", "_hp2000_clean_rclean_tclean")
    cohort = find_scans("hcp", plant(clean("100307", "REST1_LR"), newer))
    assert len(cohort.records) == 2
    assert reasons(cohort, "not all made alike")


def test_a_run_without_the_wanted_file_is_told(plant, reasons):
    root = plant(clean("100307", "REST1_LR"), clean("100307", "REST1_RL", ""), clean("100408", "REST1_LR") + "@")
    cohort = find_scans("hcp", root)
    assert [record.run for record in cohort.records] == ["LR"]
    assert reasons(cohort, "it holds no rfMRI_REST1_RL_hp2000_clean.nii.gz")
    assert reasons(cohort, "datalad get")
    with pytest.raises(InputError, match=r"no scan of HCP Young Adult.*it holds no rfMRI_REST1_LR\.ica"):
        find_scans("hcp", root, pattern="rfMRI_{run}.ica.nii.gz")


def test_other_scanners_and_other_studies_are_not_taken_for_hcp_young_adult(plant):
    root = plant(
        clean("100307", "REST1_LR"),
        clean("100307", "REST1_7T_PA"),
        clean("HCA6002236_V1_MR", "REST1_AP"),
        clean("HCA6002236", "REST1_LR"),
    )
    assert [record.key for record in find_scans("hcp", root).records] == ["sub-100307_ses-REST1_task-rest_run-LR"]


def test_sessions_and_patterns_are_checked(plant):
    root = plant(clean("100307", "REST1_LR"), clean("100307", "REST2_LR"))
    assert [record.session for record in find_scans("hcp", root, sessions=["REST2"]).records] == ["REST2"]
    with pytest.raises(InputError, match="no scan has ses-3; there are: ses-REST1, ses-REST2"):
        find_scans("hcp", root, sessions=["3"])
    with pytest.raises(InputError, match=r"lacks \{run\}"):
        find_scans("hcp", root, pattern="*.nii.gz")


def test_a_person_who_stands_twice_with_other_values_has_no_labels(plant, write, reasons):
    root = plant(clean("100307", "REST1_LR"))
    table = write("u.csv", "Subject,Gender,Family_ID", "100307,F,1_2", "100307,M,1_2")
    cohort = find_scans("hcp", root, phenotypes=[table])
    assert cohort.records[0].phenotypes == {"sex": None, "age": None, "Gender": None}
    assert reasons(cohort, "differ in Gender")
