"""Healthy Brain Network as fMRIPrep derivatives: BIDS with the films distinguished.

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
"""Task -> the label `movie`."""

SITE_SESSION = "HBNsite"


def find(
    root: Path,
    *,
    phenotypes: Sequence[Path] | None = None,
    tasks: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    space: str | None = None,
) -> Cohort:
    """Find the runs of HBN; options and errors as for `bids.find`.

    Returns:
        Besides what `bids.find` gives: the label `movie`, "DM" or "TP", None for other tasks; the site out of the
        session's name where no table gives one. Images and `participants.tsv` are open, assessments come under an
        agreement not to pass them on: where `phenotypes` names tables, the cohort is restricted.
    """
    cohort = bids.find(root, phenotypes=phenotypes, tasks=tasks, sessions=sessions, space=space)
    records = [
        replace(
            record,
            dataset="HBN",
            site=record.site or _site(record.session),
            phenotypes={**record.phenotypes, "movie": MOVIES.get(record.task)},
        )
        for record in cohort.records
    ]
    return replace(cohort, records=tuple(records), is_restricted=bool(phenotypes))


def _site(session: str | None) -> str | None:
    return session.removeprefix(SITE_SESSION) if session and session.startswith(SITE_SESSION) else None
