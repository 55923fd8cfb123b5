"""HCP Young Adult: the four resting runs of each subject, and both tables."""

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
NEWER = "_hp2000_clean_rclean_tclean"


def folder(subject, run):
    return f"{subject}/MNINonLinear/Results/rfMRI_{run}"


def clean(subject, run, ending="_hp2000_clean"):
    return f"{folder(subject, run)}/rfMRI_{run}{ending}.nii.gz"


def keys(cohort):
    return [record.key for record in cohort.records]


def test_four_runs_with_masks_and_both_tables(plant, write):
    runs = ("REST1_LR", "REST1_RL", "REST2_LR", "REST2_RL")
    masks = [f"{folder('100307', run)}/brainmask_fs.2.nii.gz" for run in runs]
    root = plant(*(clean("100307", run) for run in runs), *masks, clean("100408", "REST1_LR"))
    tables = [write("unrestricted.csv", *UNRESTRICTED), write("RESTRICTED.csv", *RESTRICTED)]
    cohort = find_scans("hcp", root, phenotypes=tables)
    expected = [("100307", *run.split("_")) for run in runs] + [("100408", "REST1", "LR")]
    assert keys(cohort) == [f"HCP-YA/sub-{who}_ses-{session}_task-rest_run-{run}" for who, session, run in expected]
    first, last = cohort.records[0], cohort.records[-1]
    assert (first.scan, first.mask) == (root / clean("100307", "REST1_LR"), root / masks[0])
    assert (first.repetition_time, first.family) == (0.72, "51488_81352")
    unrestricted = {"Release": "Q1", "Acquisition": "Q01", "Gender": "F", "Age": "26-30", "3T_Full_MR_Compl": "true"}
    restricted = {"Age_in_Yrs": 27, "HasGT": "TRUE", "ZygositySR": "NotTwin", "ZygosityGT": None, "Mother_ID": 51488}
    assert first.phenotypes == {"sex": "F", "age": 27, "PMAT24_A_CR": 17, **unrestricted, **restricted}
    assert (last.mask, last.phenotypes["PMAT24_A_CR"], last.phenotypes["sex"]) == (None, None, "M")
    assert cohort.is_restricted
    assert not cohort.problems


def test_without_the_restricted_table_families_are_unknown(plant, write):
    root = plant(clean("100307", "REST1_LR"))
    with pytest.warns(UserWarning, match="Family_ID"):
        cohort = find_scans("hcp", root, phenotypes=[write("u.csv", *UNRESTRICTED)])
    assert cohort.records[0].phenotypes["sex"] == "F"
    assert "age" not in cohort.records[0].phenotypes
    with pytest.warns(UserWarning, match="Family_ID"):
        assert find_scans("hcp", root).records[0].phenotypes == {}


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [(None, "_hp2000_clean"), ("rfMRI_{run}.nii.gz", ""), (f"rfMRI_{{run}}{NEWER}.nii.gz", NEWER)],
)
def test_cleaned_runs_are_taken_unless_a_pattern_is_given(plant, pattern, taken):
    root = plant(*(clean("100307", "REST1_LR", ending) for ending in ("", "_hp2000_clean", NEWER, "_SBRef")))
    (record,) = find_scans("hcp", root, pattern=pattern).records
    assert record.scan == root / clean("100307", "REST1_LR", taken)


def test_the_newer_release_is_found_and_a_mixture_warned_of(plant):
    root = plant(clean("100307", "REST1_LR"), clean("100408", "REST1_LR", NEWER))
    with pytest.warns(UserWarning, match="mixed"):
        assert len(find_scans("hcp", root).records) == 2


def test_a_run_without_the_wanted_file_is_a_problem(plant, reasons):
    root = plant(clean("100307", "REST1_LR"), clean("100307", "REST1_RL", ""), clean("100408", "REST1_LR") + "@")
    cohort = find_scans("hcp", root)
    assert [record.run for record in cohort.records] == ["LR"]
    assert reasons(cohort, "rfMRI_REST1_RL_hp2000_clean.nii.gz")
    assert reasons(cohort, "datalad get")
    with pytest.raises(InputError, match=r"rfMRI_REST1_LR\.ica\.nii"):
        find_scans("hcp", root, pattern="rfMRI_{run}.ica.nii.gz")


def test_other_scanners_and_other_hcp_studies_are_left_out(plant):
    others = [("100307", "REST1_7T_PA"), ("HCA6002236_V1_MR", "REST1_AP"), ("HCA6002236", "REST1_LR")]
    root = plant(clean("100307", "REST1_LR"), *(clean(*other) for other in others))
    assert keys(find_scans("hcp", root)) == ["HCP-YA/sub-100307_ses-REST1_task-rest_run-LR"]


def test_sessions_are_selected_and_patterns_checked(plant):
    root = plant(clean("100307", "REST1_LR"), clean("100307", "REST2_LR"))
    assert [record.session for record in find_scans("hcp", root, sessions=["REST2"]).records] == ["REST2"]
    for options, word in (({"sessions": ["3"]}, "ses-3"), ({"pattern": "*.nii.gz"}, r"\{run\}")):
        with pytest.raises(InputError, match=word):
            find_scans("hcp", root, **options)
