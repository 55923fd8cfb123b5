"""ADHD-200: the layouts of its pipelines and the dialects of its tables."""

import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources import find_scans

HEADINGS = (
    "ScanDir ID,Site,Gender,Age,Handedness,DX,Secondary Dx ,ADHD Measure,ADHD Index,Inattentive,Hyper/Impulsive,"
    "IQ Measure,Verbal IQ,Performance IQ,Full2 IQ,Full4 IQ,Med Status,QC_Rest_1,QC_Rest_2,QC_Rest_3,QC_Rest_4,"
    "QC_Anatomical_1,QC_Anatomical_2"
)
ROWS = (
    "10042,5,1,9.43,0.65,3,Simple phobias,2,-999,66,50,1,98,87,-999,92,1,1,0,N/A,N/A,1,N/A",
    "1127915,5,0,11.82,0.49,0,,2,47,44,49,1,124,128,-999,129,1,0,1,N/A,N/A,1,N/A",
)


def athena(site, number, run=1, session=1, steps="w"):
    return f"{site}/{number}/{steps}mrda{number}_session_{session}_rest_{run}.nii.gz"


def test_athena_with_the_table_of_a_site(plant, write):
    root = plant(athena("NYU", "0010042"), athena("NYU", "1127915", 2), "NYU/0010042/wssd0010042_session_1_anat.nii.gz")
    write("NYU/NYU_phenotypic.csv", HEADINGS, *ROWS, ending="\r\n")
    cohort = find_scans("adhd200", root)
    one, two = cohort.records
    assert one.key == "ADHD-200/sub-0010042_ses-1_task-rest_run-1"
    assert two.key == "ADHD-200/sub-1127915_ses-1_task-rest_run-2"
    assert (one.site, one.repetition_time, one.mask) == ("NYU", None, None)
    expected = {"adhd": 1, "sex": "M", "age": 9.43, "DX": 3, "ADHD Index": None, "Full4 IQ": 92, "QC_Rest_3": None}
    assert {name: one.phenotypes[name] for name in expected} == expected
    assert one.phenotypes["Secondary Dx"] == "Simple phobias"
    assert (two.phenotypes["adhd"], two.phenotypes["sex"], two.phenotypes["DX"]) == (0, "F", 0)
    assert not cohort.problems
    assert not cohort.is_restricted


def test_runs_that_failed_quality_control_are_left_out_by_default(plant, write, reasons):
    root = plant(*(athena("NYU", who, run) for who in ("0010042", "1127915") for run in (1, 2)))
    write("NYU_phenotypic.csv", HEADINGS, *ROWS)
    cohort = find_scans("adhd200", root)
    assert [(record.subject, record.run) for record in cohort.records] == [("0010042", "1"), ("1127915", "2")]
    assert reasons(cohort, "0010042_session_1_rest_2.nii.gz", "QC_Rest_2")
    assert reasons(cohort, "1127915_session_1_rest_1.nii.gz", "QC_Rest_1")
    cohort = find_scans("adhd200", root, keep_failed_quality=True)
    assert (len(cohort.records), cohort.problems) == (4, ())


@pytest.mark.parametrize(
    ("path", "column", "is_left_out"),
    [
        (athena("NYU", "0010042"), "QC_Athena", True),
        (athena("NYU", "0010042"), "QC_NIAK", False),
        ("NYU/fmri_X0010042_session_1_run1.nii.gz", "QC_NIAK", True),
        (athena("NYU", "0010042", session=2), "QC_S2_Rest_1", True),
        (athena("NYU", "0010042", session=2), "QC_Rest_1", False),
        (athena("NYU", "0010042", session=2), "QC_S1_Rest_1", False),
    ],
)
def test_quality_control_is_read_for_the_run_that_it_is_about(plant, write, path, column, is_left_out):
    root = plant(path)
    write("x_phenotypic.csv", f"ScanDir ID,{column}", "10042,0")
    assert (find_scans("adhd200", root).records == ()) == is_left_out


@pytest.mark.parametrize(
    ("steps", "taken"), [(["w", "sfnw", "snw"], "w"), (["sfnw", "snw"], "snw"), (["sfnw"], "sfnw")]
)
def test_the_file_with_the_fewest_steps_is_taken(plant, steps, taken):
    root = plant(*(athena("NYU", "0010042", steps=each) for each in steps), "NYU/0010042/wmean_mrda0010042.nii.gz")
    (record,) = find_scans("adhd200", root).records
    assert record.scan == root / athena("NYU", "0010042", steps=taken)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("0010042/wmrda0010042_session_1_rest_1.nii.gz", "sub-0010042_ses-1_task-rest_run-1"),
        ("NYU_athena/NYU_preproc/10042/wmrda10042_session_1_rest_2.nii.gz", "sub-0010042_ses-1_task-rest_run-2"),
        ("fmri_X0010042_session_1_run1.nii.gz", "sub-0010042_ses-1_task-rest_run-1"),
        ("NYU/fmri_X_0010042_session_2_run1.nii", "sub-0010042_ses-2_task-rest_run-1"),
        ("data/0010042/0010042_rest_tshift_RPI_voreg_mni.nii.gz", "sub-0010042_task-rest"),
    ],
)
def test_layouts(plant, write, path, key):
    root = plant(path)
    write("all_phenotypic.csv", "ID,DX", "10042,1")
    (record,) = find_scans("adhd200", root).records
    assert (record.key, record.scan, record.phenotypes["adhd"]) == (f"ADHD-200/{key}", root / path, 1)


def test_the_folder_that_nilearn_makes(plant, write):
    plant(*(f"adhd/data/{who}/{who}_rest_tshift_RPI_voreg_mni.nii.gz" for who in ("0010042", "1019436")))
    lines = (
        '"","Subject","RestScan","site","data_set","age","sex","full_2_iq","tdc","adhd"',
        '"1",10042,"rest_1","NYU","all",9.5,"M",NA,0,1',
        '"2",1019436,"rest_1","KKI","all",10,"F",110,1,0',
    )
    root = write("adhd/ADHD200_40subs_motion_parameters_and_phenotypics.csv", *lines).parent
    one, two = find_scans("adhd200", root).records
    assert (one.site, one.phenotypes["adhd"], one.phenotypes["sex"], one.phenotypes["age"]) == ("NYU", 1, "M", 9.5)
    assert (two.site, two.phenotypes["adhd"], two.phenotypes["sex"], two.phenotypes["full_2_iq"]) == (
        "KKI",
        0,
        "F",
        110,
    )


@pytest.mark.parametrize("heading", ["ScanDir ID", "ScanDirID", "Participant", "ID", "Subject"])
def test_dialects_of_the_column_of_subjects(plant, write, heading):
    root = plant(athena("NYU", "0010042"))
    table = write("t.csv", f"{heading},DX", "10042,0")
    (record,) = find_scans("adhd200", root, phenotypes=[table]).records
    assert record.phenotypes == {"adhd": 0, "DX": 0}


def test_a_pending_diagnosis_is_missing_until_another_table_gives_it(plant, write):
    root = plant(athena("NYU", "0010042"))
    pending = write("TestRelease_phenotypic.csv", "ID,Site,DX", "10042,5,pending")
    released = write("allSubs_testSet_phenotypic_dx.csv", "ID,Site,DX", "10042,5,2")
    for tables, expected in (([pending], (None, None)), ([pending, released], (1, 2))):
        (record,) = find_scans("adhd200", root, phenotypes=tables).records
        assert (record.phenotypes["adhd"], record.phenotypes["DX"]) == expected


@pytest.mark.parametrize(
    ("folder", "cell", "site"),
    [
        ("Peking_2", None, "Peking"),
        ("KKI_athena", None, "KKI"),
        ("x", None, None),
        ("x", "1", "Peking"),
        ("KKI", "8", "WashU"),
        ("x", "9", "9"),
        ("x", "Peking_3", "Peking"),
        ("x", "Elsewhere", "Elsewhere"),
    ],
)
def test_sites(plant, write, folder, cell, site):
    root = plant(athena(folder, "0010042"))
    table = write("t.csv", "ID,Site", f"10042,{cell}") if cell else write("t.csv", "ID,DX", "10042,1")
    assert find_scans("adhd200", root, phenotypes=[table]).records[0].site == site


def test_what_is_missing_is_a_warning_or_a_problem(plant, write, reasons):
    root = plant(athena("NYU", "0010042"), athena("NYU", "0010999", steps="sfnw"))
    with pytest.warns(UserWarning, match="phenotypic table"), pytest.warns(UserWarning, match=r"w \(1\), sfnw \(1\)"):
        cohort = find_scans("adhd200", root)
    assert [record.phenotypes for record in cohort.records] == [{}, {}]
    write("NYU_phenotypic.csv", HEADINGS, *ROWS)
    with pytest.warns(UserWarning, match="subject 0010999"):
        cohort = find_scans("adhd200", root)
    assert len(cohort.problems) == len(reasons(cohort, "subject 1127915")) == 1


def test_two_pipelines_are_an_error(plant):
    root = plant(athena("NYU", "0010042"), "niak/fmri_X1127915_session_1_run1.nii.gz")
    with pytest.raises(InputError, match="Athena and NIAK"):
        find_scans("adhd200", root)
