"""Healthy Brain Network: what it adds to BIDS."""

from tablet_hf.sources import find_scans

NAME = "sub-{0}/ses-{1}/func/sub-{0}_ses-{1}_task-{2}_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz"


def test_movies_are_phenotypes_and_scanners_are_sites(plant, write):
    root = plant(
        NAME.format("NDARAA306NT2", "HBNsiteRU", "movieDM"),
        NAME.format("NDARAA306NT2", "HBNsiteRU", "movieTP"),
        NAME.format("NDARAA306NT2", "HBNsiteRU", "rest"),
        NAME.format("NDARAB055BPR", "HBNsiteCBIC", "movieDM"),
    )
    write("participants.tsv", "participant_id\tAge\tsite", "sub-NDARAA306NT2\t21.2\tn/a", "sub-NDARAB055BPR\t9.3\tSI")
    cohort = find_scans("hbn", root)
    found = [(r.task, r.site, r.phenotypes["movie"], r.phenotypes["Age"], r.dataset) for r in cohort.records]
    assert found == [
        ("movieDM", "RU", "DM", 21.2, "HBN"),
        ("movieTP", "RU", "TP", 21.2, "HBN"),
        ("rest", "RU", None, 21.2, "HBN"),
        ("movieDM", "SI", "DM", 9.3, "HBN"),
    ]
    assert not cohort.problems
    assert not cohort.is_restricted


def test_tables_of_assessments_make_a_cohort_restricted(plant, write):
    root = plant(*(NAME.format("NDARAA306NT2", "HBNsiteRU", task) for task in ("movieDM", "rest")))
    table = write("loris.csv", "participant_id,CBCL", "NDARAA306NT2,55")
    cohort = find_scans("hbn", root, phenotypes=[table], tasks=["movieDM"])
    assert cohort.is_restricted
    assert [record.phenotypes for record in cohort.records] == [{"CBCL": 55, "movie": "DM"}]
