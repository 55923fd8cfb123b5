"""fMRIPrep derivatives: which runs are found, which version of each is taken, what is known of the people."""

import json

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import find_scans
from tablet_hf.sources.bids import read_entities

SPACE = "space-MNI152NLin2009cAsym_res-2"


def bold(labels, space=SPACE, ending=".nii.gz", kind="desc-preproc_bold"):
    """Path of a run below the derivatives: "sub-01_ses-1_task-rest" -> sub-01/ses-1/func/sub-01_ses-1_task-rest_..."""
    folders = "/".join(part for part in labels.split("_") if part.startswith(("sub-", "ses-")))
    return f"{folders}/func/{labels}_{space + '_' if space else ''}{kind}{ending}"


def mask(labels, space=SPACE):
    return bold(labels, space, kind="desc-brain_mask")


def keys(cohort):
    return [record.key for record in cohort.records]


def test_runs_masks_and_people(plant, write, reasons):
    root = plant(bold("sub-01_task-rest"), mask("sub-01_task-rest"), bold("sub-02_task-rest"))
    write(
        "participants.tsv", "participant_id\tage\tsex\tsite\tfamily_id", "sub-01\t31\tF\tA\t7", "sub-02\tn/a\tM\tB\t8"
    )
    cohort = find_scans("bids", root)
    one, two = cohort.records
    assert (one.subject, one.task, one.session, one.run, one.repetition_time) == ("01", "rest", None, None, None)
    assert (one.scan, one.mask) == (root / bold("sub-01_task-rest"), root / mask("sub-01_task-rest"))
    assert (one.site, one.family, one.phenotypes) == ("A", "7", {"age": 31, "sex": "F"})
    assert (two.mask, two.site, two.phenotypes) == (None, "B", {"age": None, "sex": "M"})
    (note,) = cohort.problems
    assert note.is_note
    assert note.why == "cells that were taken for missing values, by column: age 1 (n/a)."
    assert not cohort.is_restricted


def test_the_real_derivatives_are_found(real_data):
    (record,) = find_scans("bids", real_data("bold")).records
    assert (record.subject, record.task, record.mask is not None) == ("01", "localizer", True)


def test_sessions_are_found_beside_people_without_them(plant):
    root = plant(bold("sub-01_ses-a_task-rest"), bold("sub-01_ses-b_task-rest"), bold("sub-02_task-rest"))
    assert keys(find_scans("bids", root)) == [
        "sub-01_ses-a_task-rest",
        "sub-01_ses-b_task-rest",
        "sub-02_task-rest",
    ]


def test_what_tells_runs_apart_goes_into_the_run(plant):
    root = plant(
        bold("sub-01_task-rest_run-1"),
        bold("sub-01_task-rest_run-2"),
        bold("sub-01_task-rest_acq-AP_run-1"),
        bold("sub-01_task-rest_dir-LR"),
        bold("sub-01_task-rest_rec-x_echo-2"),
    )
    runs = {record.run for record in find_scans("bids", root).records}
    assert runs == {"1", "2", "1+acqAP", "dirLR", "recx+echo2"}


@pytest.mark.parametrize(
    ("spaces", "taken"),
    [
        (["MNI152NLin2009cAsym", "MNI152NLin2009cAsym_res-1", "MNI152NLin2009cAsym_res-2"], 2),
        (["MNI152NLin2009cAsym", "MNI152NLin2009cAsym_res-1"], 1),
        (["MNI152NLin2009cAsym_res-3", "MNI152NLin2009cAsym"], 1),
        (["MNI152NLin2009cAsym_res-2", "MNI152NLin6Asym_res-2"], 1),
        (["MNI152NLin6Asym", "MNI152NLin2009cAsym_res-02"], 1),
        (["MNI152Lin_res-2", "MNI152NLin2009cAsym_res-2"], 1),
        (["T1w", "MNIPediatricAsym_cohort-1_res-2", "MNI152NLin2009cAsym"], 2),
    ],
)
def test_one_version_of_a_run_is_taken_in_the_order_that_is_documented(plant, spaces, taken):
    paths = [bold("sub-01_task-rest", f"space-{space}") for space in spaces]
    root = plant(*paths, *(mask("sub-01_task-rest", f"space-{space}") for space in spaces))
    (record,) = find_scans("bids", root).records
    assert record.scan == root / paths[taken]
    assert spaces[taken] in record.mask.name


@pytest.mark.parametrize(
    ("option", "taken"),
    [
        ("MNI152NLin6Asym", "MNI152NLin6Asym_res-2"),
        ("MNI152NLin2009cAsym", "MNI152NLin2009cAsym_res-1"),
        ("MNI152NLin6Asym:res-1", "MNI152NLin6Asym_res-1"),
        ("MNI152NLin6Asym:res-01", "MNI152NLin6Asym_res-1"),
        ("MNI152NLin6Asym:res-2mm", "MNI152NLin6Asym_res-2"),
        ("MNI152NLin6Asym_res-1", "MNI152NLin6Asym_res-1"),
        ("space-MNI152NLin6Asym_res-02", "MNI152NLin6Asym_res-2"),
        ("MNI152NLin2009cAsym:res-native", "MNI152NLin2009cAsym"),
        ("space-MNIColin27", "MNIColin27"),
    ],
)
def test_the_space_can_be_chosen_as_in_fmriprep(plant, option, taken):
    spaces = ["MNI152NLin6Asym_res-2", "MNI152NLin6Asym_res-1", "MNI152NLin2009cAsym_res-1", "MNI152NLin2009cAsym"]
    root = plant(*(bold("sub-01_task-rest", f"space-{space}") for space in [*spaces, "MNIColin27"]))
    (record,) = find_scans("bids", root, space=option).records
    assert record.scan == root / bold("sub-01_task-rest", f"space-{taken}")


@pytest.mark.parametrize("written", ["res-2", "res-02", "res-2mm"])
@pytest.mark.parametrize("asked", ["res-2", "res-02", "res-2mm", "2"])
def test_a_resolution_is_the_same_however_it_is_written(plant, written, asked):
    root = plant(bold("sub-01_task-rest", f"space-MNI152NLin6Asym_{written}"))
    assert keys(find_scans("bids", root, space=f"MNI152NLin6Asym:{asked}")) == ["sub-01_task-rest"]


@pytest.mark.parametrize("space", ["MNI152NLin6Asym:", "MNI152NLin6Asym_den-2", "MNIPediatricAsym:cohort-1"])
def test_a_space_with_parts_that_are_not_known_is_told(plant, space):
    with pytest.raises(InputError, match=r"has a part .*; write it as in MNI152NLin2009cAsym or"):
        find_scans("bids", plant(bold("sub-01_task-rest")), space=space)


def test_a_native_space_cannot_be_chosen(plant):
    with pytest.raises(InputError, match="T1w is not an MNI152 space"):
        find_scans("bids", plant(bold("sub-01_task-rest")), space="T1w")


def test_a_run_without_an_mni_version_is_told(plant, reasons):
    root = plant(bold("sub-01_task-rest"), bold("sub-02_task-rest", "space-T1w"), bold("sub-02_task-rest", ""))
    cohort = find_scans("bids", root)
    assert keys(cohort) == ["sub-01_task-rest"]
    assert reasons(cohort, "this run is there in T1w, native, not in an MNI152 space")


def test_a_cohort_in_two_spaces_is_told(plant, reasons):
    root = plant(bold("sub-01_task-rest"), bold("sub-02_task-rest", "space-MNI152NLin6Asym_res-2"))
    cohort = find_scans("bids", root)
    assert len(cohort.records) == 2
    assert reasons(cohort, "MNI152NLin2009cAsym:res-2 (1), MNI152NLin6Asym:res-2 (1); choose one kind with space=")


def test_tasks_and_sessions_are_chosen(plant, reasons):
    root = plant(*(bold(f"sub-01_ses-{ses}_task-{task}") for ses in "ab" for task in ("rest", "movie", "faces")))
    assert keys(find_scans("bids", root, tasks=["rest", "task-movie"], sessions=["ses-b"])) == [
        "sub-01_ses-b_task-movie",
        "sub-01_ses-b_task-rest",
    ]
    cohort = find_scans("bids", root, tasks=["rest", "fases"])
    assert len(cohort.records) == 2
    assert reasons(cohort, "no scan has task-fases; there are: task-faces, task-movie, task-rest")
    with pytest.raises(InputError, match="no scan has ses-c"):
        find_scans("bids", root, sessions=["c"])


def test_links_without_content_are_told_and_never_replaced_by_another_version(plant, reasons):
    root = plant(
        bold("sub-01_task-rest") + "@",
        bold("sub-01_task-rest", "space-MNI152NLin2009cAsym"),
        bold("sub-02_task-rest"),
        mask("sub-02_task-rest") + "@",
    )
    cohort = find_scans("bids", root)
    assert keys(cohort) == []
    assert len(reasons(cohort, "datalad get")) == 2


def test_a_run_that_is_there_compressed_and_not_is_told(plant, reasons):
    root = plant(
        bold("sub-01_task-rest"), bold("sub-01_task-rest", ending=".nii"), bold("sub-02_task-rest", ending=".nii")
    )
    cohort = find_scans("bids", root)
    assert keys(cohort) == ["sub-02_task-rest"]
    assert len(reasons(cohort, "2 scans would all be called sub-01_task-rest")) == 2


def test_a_name_that_contradicts_its_folder_is_told(plant, reasons):
    root = plant(
        "sub-01/func/sub-02_task-rest_space-MNI152Lin_desc-preproc_bold.nii.gz",
        "sub-03/ses-a/func/sub-03_ses-b_task-rest_space-MNI152Lin_desc-preproc_bold.nii.gz",
        bold("sub-04_ses-a_task-rest"),
    )
    cohort = find_scans("bids", root)
    assert [record.subject for record in cohort.records] == ["04"]
    assert reasons(cohort, "contradicts its folder sub-01")
    assert reasons(cohort, "contradicts its folder ses-a")


def test_labels_with_hyphens_stay_apart(plant):
    root = plant(bold("sub-A-01_task-rest"), bold("sub-A-02_task-rest"))
    assert [record.subject for record in find_scans("bids", root).records] == ["A-01", "A-02"]


def test_a_root_with_the_signs_of_a_pattern_in_its_name(plant):
    root = plant(f"[a]*?/{bold('sub-01_task-rest')}") / "[a]*?"
    assert keys(find_scans("bids", root)) == ["sub-01_task-rest"]


def test_entities_of_a_file_name(tmp_path):
    name = "sub-01_ses-pre_task-rest_run-02_space-T1w_desc-preproc_bold.nii.gz"
    assert read_entities(tmp_path / name) == {
        "sub": "01",
        "ses": "pre",
        "task": "rest",
        "run": "02",
        "space": "T1w",
        "desc": "preproc",
    }
    assert read_entities(tmp_path / "scan.nii.gz") == {}


def test_people_without_a_scan_and_scans_without_a_row_are_told(plant, write, reasons):
    root = plant(bold("sub-01_task-rest"), bold("sub-02_task-rest"))
    write("participants.tsv", "participant_id\tage", "sub-01\t31", "sub-03\t40")
    cohort = find_scans("bids", root)
    assert [record.phenotypes for record in cohort.records] == [{"age": 31}, {"age": None}]
    assert reasons(cohort, "subject 02: no row")
    assert reasons(cohort, "subject 03: the phenotype tables name it, but no run")
    assert [problem.is_note for problem in cohort.problems] == [False, True]
    assert not cohort.is_all_used


@pytest.mark.parametrize("place", ["derivatives/fmriprep", "derivatives", ".", "rawdata", "sourcedata/raw"])
def test_the_table_is_found_in_above_or_beside_the_derivatives(plant, write, place):
    root = plant(f"derivatives/fmriprep/{bold('sub-01_task-rest')}") / "derivatives" / "fmriprep"
    write(f"{place}/participants.tsv", "participant_id\tage", "sub-01\t31")
    (record,) = find_scans("bids", root).records
    assert record.phenotypes == {"age": 31}


@pytest.mark.parametrize("link", ["../../elsewhere/raw", "file://{}/elsewhere/raw"])
def test_the_table_is_found_through_the_link_of_the_derivatives(plant, write, link):
    folder = plant(f"a/b/{bold('sub-01_task-rest')}")
    description = {"DatasetLinks": {"raw": link.format(folder), "templateflow": "https://templateflow.org"}}
    write("a/b/dataset_description.json", json.dumps(description))
    write("elsewhere/raw/participants.tsv", "participant_id\tage", "sub-01\t31")
    (record,) = find_scans("bids", folder / "a" / "b").records
    assert record.phenotypes == {"age": 31}


FMRIPREP = {"GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1.1"}]}


@pytest.mark.parametrize(
    ("own", "raw", "name"),
    [
        ({"Name": "My study"}, {"Name": "Raw"}, "My study"),
        ({"Name": "fMRIPrep - fMRI PREProcessing workflow"}, {"Name": " Raw "}, "Raw"),
        ({"Name": "fMRIPrep outputs", **FMRIPREP}, {"Name": "Raw"}, "Raw"),
        ({"Name": "XCP-D: a pipeline", "GeneratedBy": [{"Name": "xcp-d"}]}, {"Name": "Raw"}, "Raw"),
        ({"Name": "NiBabies", "PipelineDescription": {"Name": "nibabies"}}, None, None),
        ({"Name": ""}, {"Name": "TODO: name of the dataset"}, None),
        ({"Name": 7, "GeneratedBy": "me"}, ["no description"], None),
        (None, {"Name": "Raw"}, "Raw"),
        (None, None, None),
    ],
)
def test_a_study_is_called_what_its_description_says_and_not_after_a_pipeline(plant, write, own, raw, name):
    folder = plant(f"raw/derivatives/fmriprep/{bold('sub-01_task-rest')}")
    for place, description in (("raw/derivatives/fmriprep", own), ("raw", raw)):
        if description is not None:
            write(f"{place}/dataset_description.json", json.dumps(description))
    root = folder / "raw/derivatives/fmriprep"
    assert [record.dataset for record in find_scans("bids", root).records] == [name]
    assert [record.dataset for record in find_scans("bids", root, dataset="Given").records] == ["Given"]


def test_a_study_is_called_what_the_raw_dataset_says_that_is_linked_to(plant, write):
    folder = plant(f"a/b/{bold('sub-01_task-rest')}")
    write("a/b/dataset_description.json", json.dumps({"Name": "fMRIPrep", "DatasetLinks": {"raw": "../../c"}}))
    write("c/dataset_description.json", json.dumps({"Name": "Linked"}))
    assert find_scans("bids", folder / "a/b").records[0].dataset == "Linked"


def test_a_dataset_without_a_table_has_no_labels_and_is_told(plant, reasons):
    root = plant(f"a/b/{bold('sub-01_task-rest')}") / "a" / "b"
    cohort = find_scans("bids", root)
    assert [record.phenotypes for record in cohort.records] == [{}]
    assert reasons(cohort, "no participants.tsv")
    assert cohort.is_all_used


def test_tables_by_option_take_the_place_of_participants_tsv(plant, write):
    root = plant(bold("sub-01_task-rest"))
    write("participants.tsv", "participant_id\tage", "sub-01\t31")
    tables = [write("a.csv", "Subject;iq", "01;100"), write("b.tsv", "participant_id\tdx", "sub-01\t1")]
    (record,) = find_scans("bids", root, phenotypes=tables).records
    assert record.phenotypes == {"iq": 100, "dx": 1}


def test_tables_of_sessions_are_joined(plant, write, reasons):
    folder = plant(
        *(f"derivatives/fmriprep/{bold(f'sub-{who}_task-rest')}" for who in ("01_ses-a", "01_ses-b", "02_ses-a"))
    )
    write("participants.tsv", "participant_id\tage\tsex", "sub-01\t10\tF", "sub-02\t12\tM")
    write("sub-01/sub-01_sessions.tsv", "session_id\tage\tweight", "ses-a\t10.1\t30", "ses-b\tn/a\t33.5")
    cohort = find_scans("bids", folder / "derivatives" / "fmriprep")
    assert [record.phenotypes for record in cohort.records] == [
        {"age": 10.1, "sex": "F", "weight": 30},
        {"age": None, "sex": "F", "weight": 33.5},
        {"age": 12, "sex": "M", "weight": None},
    ]
    assert cohort.is_all_used


def test_sex_and_age_have_the_names_that_all_sources_use(plant, write):
    root = plant(bold("sub-01_task-rest"))
    write("participants.tsv", "participant_id\tGender\tAge", "sub-01\tfemale\t31")
    assert find_scans("bids", root).records[0].phenotypes == {"sex": "F", "age": 31, "Gender": "female", "Age": 31}
    table = write("t.csv", f"path,Gender,Age\n{bold('sub-01_task-rest')},female,31")
    assert find_scans("table", table).records[0].phenotypes == {"sex": "F", "age": 31, "Gender": "female", "Age": 31}


def test_a_table_with_a_row_for_each_session(plant, write, reasons):
    root = plant(*(bold(f"sub-01_ses-{session}_task-rest") for session in "abc"))
    write("participants.tsv", "participant_id\tsession_id\tage", "sub-01\tses-a\t10", "sub-01\tses-b\t12")
    cohort = find_scans("bids", root)
    assert [record.phenotypes["age"] for record in cohort.records] == [10, 12, None]
    assert reasons(cohort, "subject 01, session c: no row")


@pytest.mark.parametrize("folder", ["fmriprep", "derivatives/fmriprep"])
def test_a_folder_too_high_up_is_told_where_to_look(plant, folder):
    root = plant(f"{folder}/{bold('sub-01_task-rest')}")
    with pytest.raises(InputError) as caught:
        find_scans("bids", root)
    assert str(caught.value).endswith(f"There are people in {root / folder}; give that folder.")
