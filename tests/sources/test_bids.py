"""fMRIPrep derivatives: which runs are found, which version of each is taken, and which tables are read."""

import json

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import find_scans

SPACE = "space-MNI152NLin2009cAsym_res-2"


def bold(labels, space=SPACE, ending=".nii.gz", kind="desc-preproc_bold"):
    """Path of a run below the derivatives: "sub-01_ses-1_task-rest" -> sub-01/ses-1/func/sub-01_ses-1_task-rest_..."""
    folders = "/".join(part for part in labels.split("_") if part.startswith(("sub-", "ses-")))
    return f"{folders}/func/{labels}_{space + '_' if space else ''}{kind}{ending}"


def mask(labels, space=SPACE):
    return bold(labels, space, kind="desc-brain_mask")


def keys(cohort):
    return [record.key for record in cohort.records]


class TestRuns:
    def test_runs_masks_and_phenotypes(self, plant, write):
        root = plant(bold("sub-01_task-rest"), mask("sub-01_task-rest"), bold("sub-02_task-rest"))
        header = "participant_id\tage\tsex\tsite\tfamily_id"
        write("participants.tsv", header, "sub-01\t31\tF\tA\t7", "sub-02\tn/a\tM\tB\t8")
        cohort = find_scans("bids", root)
        one, two = cohort.records
        assert (one.subject, one.task, one.session, one.run, one.repetition_time) == ("01", "rest", None, None, None)
        assert (one.scan, one.mask) == (root / bold("sub-01_task-rest"), root / mask("sub-01_task-rest"))
        assert (one.site, one.family, one.phenotypes) == ("A", "7", {"age": 31, "sex": "F"})
        assert (two.mask, two.site, two.phenotypes) == (None, "B", {"age": None, "sex": "M"})
        assert not cohort.problems
        assert not cohort.is_restricted

    def test_the_real_derivatives_are_found(self, real_data):
        (record,) = find_scans("bids", real_data("bold")).records
        assert (record.subject, record.task, record.mask is not None) == ("01", "localizer", True)

    def test_other_entities_are_part_of_the_run(self, plant):
        labels = ("run-1", "run-2", "acq-AP_run-1", "dir-LR", "rec-x_echo-2")
        root = plant(*(bold(f"sub-01_task-rest_{each}") for each in labels))
        runs = {record.run for record in find_scans("bids", root).records}
        assert runs == {"1", "2", "1+acqAP", "dirLR", "recx+echo2"}

    def test_tasks_and_sessions_are_selected(self, plant, reasons):
        root = plant(*(bold(f"sub-01_ses-{ses}_task-{task}") for ses in "ab" for task in ("rest", "movie", "faces")))
        assert keys(find_scans("bids", root, tasks=["rest", "task-movie"], sessions=["ses-b"])) == [
            "sub-01_ses-b_task-movie",
            "sub-01_ses-b_task-rest",
        ]
        cohort = find_scans("bids", root, tasks=["rest", "fases"])
        assert len(cohort.records) == 2
        assert reasons(cohort, "task-fases")

    def test_links_without_content_are_not_replaced_by_another_version(self, plant, reasons):
        root = plant(
            bold("sub-01_task-rest") + "@",
            bold("sub-01_task-rest", "space-MNI152NLin2009cAsym"),
            bold("sub-02_task-rest"),
            mask("sub-02_task-rest") + "@",
        )
        cohort = find_scans("bids", root)
        assert keys(cohort) == []
        assert len(reasons(cohort, "datalad get")) == 2

    def test_a_run_that_exists_compressed_and_uncompressed_is_a_problem(self, plant, reasons):
        paths = [bold("sub-01_task-rest"), bold("sub-01_task-rest", ending=".nii")]
        cohort = find_scans("bids", plant(*paths, bold("sub-02_task-rest", ending=".nii")))
        assert keys(cohort) == ["sub-02_task-rest"]
        assert len(reasons(cohort, "key sub-01_task-rest")) == 2

    def test_a_name_that_contradicts_its_folder_is_a_problem(self, plant, reasons):
        root = plant(
            "sub-01/func/sub-02_task-rest_space-MNI152Lin_desc-preproc_bold.nii.gz",
            "sub-03/ses-a/func/sub-03_ses-b_task-rest_space-MNI152Lin_desc-preproc_bold.nii.gz",
            "sub-05/func/task-rest_space-MNI152Lin_desc-preproc_bold.nii.gz",
            "sub-/func/sub-_task-rest_space-MNI152Lin_desc-preproc_bold.nii.gz",
            bold("sub-04_ses-a_task-rest"),
        )
        cohort = find_scans("bids", root)
        assert [record.subject for record in cohort.records] == ["04"]
        for file, word in (("sub-02_task-rest", "sub-01"), ("sub-03_ses-b", "ses-a"), ("func/task-rest", "sub-05")):
            assert reasons(cohort, file, word)

    def test_a_root_with_the_characters_of_a_pattern_in_its_name(self, plant):
        root = plant(f"[a]*?/{bold('sub-01_task-rest')}") / "[a]*?"
        assert keys(find_scans("bids", root)) == ["sub-01_task-rest"]

    @pytest.mark.parametrize("folder", ["fmriprep", "derivatives/fmriprep"])
    def test_the_error_for_a_folder_too_high_up_names_the_right_one(self, plant, folder):
        root = plant(f"{folder}/{bold('sub-01_task-rest')}")
        with pytest.raises(InputError) as caught:
            find_scans("bids", root)
        assert f"{root / folder};" in str(caught.value)


class TestSpaces:
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
    def test_one_version_of_a_run_is_taken_in_the_documented_order(self, plant, spaces, taken):
        paths = [bold("sub-01_task-rest", f"space-{space}") for space in spaces]
        root = plant(*paths, *(mask("sub-01_task-rest", f"space-{space}") for space in spaces))
        (record,) = find_scans("bids", root).records
        assert record.scan == root / paths[taken]
        assert spaces[taken] in record.mask.name

    @pytest.mark.parametrize(
        ("option", "taken"),
        [
            ("MNI152NLin6Asym", "MNI152NLin6Asym_res-02"),
            ("MNI152NLin2009cAsym", "MNI152NLin2009cAsym_res-1"),
            ("MNI152NLin6Asym:res-1", "MNI152NLin6Asym_res-1"),
            ("MNI152NLin6Asym:res-2", "MNI152NLin6Asym_res-02"),
            ("MNI152NLin2009cAsym:res-native", "MNI152NLin2009cAsym"),
            ("MNIColin27", "MNIColin27"),
        ],
    )
    def test_the_space_can_be_chosen_as_in_fmriprep(self, plant, option, taken):
        spaces = ["MNI152NLin6Asym_res-02", "MNI152NLin6Asym_res-1", "MNI152NLin2009cAsym_res-1", "MNI152NLin2009cAsym"]
        root = plant(*(bold("sub-01_task-rest", f"space-{space}") for space in [*spaces, "MNIColin27"]))
        (record,) = find_scans("bids", root, space=option).records
        assert record.scan == root / bold("sub-01_task-rest", f"space-{taken}")

    @pytest.mark.parametrize("space", ["T1w", "fsaverage:res-2"])
    def test_spaces_that_are_no_templates_are_errors(self, plant, space):
        with pytest.raises(InputError, match=space):
            find_scans("bids", plant(bold("sub-01_task-rest")), space=space)

    def test_a_run_without_an_mni_version_is_a_problem(self, plant, reasons):
        root = plant(bold("sub-01_task-rest"), bold("sub-02_task-rest", "space-T1w"), bold("sub-02_task-rest", ""))
        cohort = find_scans("bids", root)
        assert keys(cohort) == ["sub-01_task-rest"]
        assert reasons(cohort, "sub-02_task-rest", "T1w:res-native")

    def test_a_cohort_in_two_spaces_is_warned_of(self, plant):
        root = plant(bold("sub-01_task-rest"), bold("sub-02_task-rest", "space-MNI152NLin6Asym_res-2"))
        with pytest.warns(UserWarning, match="MNI152NLin2009cAsym:res-2 .1., MNI152NLin6Asym:res-2 .1.*--space"):
            assert len(find_scans("bids", root).records) == 2


class TestTables:
    def test_subjects_without_a_scan_are_problems_and_scans_without_a_row_warnings(self, plant, write, reasons):
        root = plant(bold("sub-01_task-rest"), bold("sub-02_task-rest"))
        write("participants.tsv", "participant_id\tage", "sub-01\t31", "sub-03\t40")
        with pytest.warns(UserWarning, match="subject 02"):
            cohort = find_scans("bids", root)
        assert [record.phenotypes for record in cohort.records] == [{"age": 31}, {"age": None}]
        assert len(cohort.problems) == len(reasons(cohort, "subject 03")) == 1

    @pytest.mark.parametrize("folder", ["derivatives/fmriprep", "derivatives", ".", "rawdata", "sourcedata/raw"])
    def test_participants_are_found_in_above_or_next_to_the_derivatives(self, plant, write, folder):
        root = plant(f"derivatives/fmriprep/{bold('sub-01_task-rest')}") / "derivatives" / "fmriprep"
        write(f"{folder}/participants.tsv", "participant_id\tage", "sub-01\t31")
        (record,) = find_scans("bids", root).records
        assert record.phenotypes == {"age": 31}

    def test_given_tables_replace_participants_tsv(self, plant, write):
        root = plant(bold("sub-01_task-rest"))
        write("participants.tsv", "participant_id\tage", "sub-01\t31")
        tables = [write("a.csv", "Subject;iq", "01;100"), write("b.tsv", "participant_id\tdx", "sub-01\t1")]
        (record,) = find_scans("bids", root, phenotypes=tables).records
        assert record.phenotypes == {"iq": 100, "dx": 1}

    def test_tables_of_sessions_are_joined(self, plant, write):
        names = ("01_ses-a", "01_ses-b", "02_ses-a")
        folder = plant(*(f"derivatives/fmriprep/{bold(f'sub-{name}_task-rest')}" for name in names))
        write("participants.tsv", "participant_id\tage\tsex", "sub-01\t10\tF", "sub-02\t12\tM")
        write("sub-01/sub-01_sessions.tsv", "session_id\tage\tweight", "ses-a\t10.1\t30", "ses-b\tn/a\t33.5")
        cohort = find_scans("bids", folder / "derivatives" / "fmriprep")
        assert [record.phenotypes for record in cohort.records] == [
            {"age": 10.1, "sex": "F", "weight": 30},
            {"age": None, "sex": "F", "weight": 33.5},
            {"age": 12, "sex": "M", "weight": None},
        ]
        assert not cohort.problems

    def test_a_table_with_a_row_per_session(self, plant, write):
        root = plant(*(bold(f"sub-01_ses-{session}_task-rest") for session in "abc"))
        write("participants.tsv", "participant_id\tsession_id\tage", "sub-01\tses-a\t10", "sub-01\tses-b\t12")
        with pytest.warns(UserWarning, match=r"subject 01 \(session c\)"):
            cohort = find_scans("bids", root)
        assert [record.phenotypes["age"] for record in cohort.records] == [10, 12, None]

    @pytest.mark.parametrize(
        ("own", "raw", "name"),
        [
            ({"Name": "My study"}, {"Name": "Raw"}, "My study"),
            ({"Name": "fMRIPrep - fMRI PREProcessing workflow"}, {"Name": " Raw "}, "Raw"),
            ({"Name": "XCP-D: a pipeline", "GeneratedBy": [{"Name": "xcp-d"}]}, {"Name": "Raw"}, "Raw"),
            ({"Name": ""}, {"Name": "TODO: name of the dataset"}, None),
            ({"Name": 7, "GeneratedBy": "me"}, ["no description"], None),
            (None, {"Name": "Raw"}, "Raw"),
            (None, None, None),
        ],
    )
    def test_the_study_has_the_name_of_its_description_and_not_of_a_pipeline(self, plant, write, own, raw, name):
        folder = plant(f"raw/derivatives/fmriprep/{bold('sub-01_task-rest')}")
        for path, description in (("raw/derivatives/fmriprep", own), ("raw", raw)):
            if description is not None:
                write(f"{path}/dataset_description.json", json.dumps(description))
        root = folder / "raw/derivatives/fmriprep"
        assert [record.dataset for record in find_scans("bids", root).records] == [name]
        assert [record.dataset for record in find_scans("bids", root, dataset="Given").records] == ["Given"]
