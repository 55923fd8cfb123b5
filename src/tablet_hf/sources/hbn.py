"""Healthy Brain Network as fMRIPrep derivatives: BIDS with movies as a label.

Tasks are movieDM ("Despicable Me"), movieTP ("The Present"), rest and peer; sessions are the scanners, such as
`ses-HBNsiteRU` (Alexander et al. 2017, Scientific Data 4:170181).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tablet_hf.sources import bids
from tablet_hf.sources.records import Cohort

__all__ = ["find"]

MOVIES = {"movieDM": "DM", "movieTP": "TP"}


def find(
    root: Path,
    *,
    phenotypes: Sequence[Path] | None = None,
    tasks: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    space: str | None = None,
) -> Cohort:
    """Find the runs of HBN; arguments and errors as for `bids.find`.

    Returns:
        Cohort as of `bids.find`, with the phenotype `movie` ("DM", "TP" or None), and the site from the session where
        no table has one. Assessments may not be shared, so a cohort with `phenotypes` is restricted.
    """
    cohort = bids.find(root, phenotypes=phenotypes, tasks=tasks, sessions=sessions, space=space, dataset="HBN")
    records = []
    for record in cohort.records:
        _, _, scanner = (record.session or "").partition("HBNsite")
        with_movie = {**record.phenotypes, "movie": MOVIES.get(record.task)}
        records.append(replace(record, site=record.site or scanner or None, phenotypes=with_movie))
    return replace(cohort, records=tuple(records), is_restricted=bool(phenotypes))
