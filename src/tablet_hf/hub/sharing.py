"""Who may publish what: the conditions of sharing, decided by the terms of the data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.slice_autoencoder import SHIPPED_WEIGHTS

__all__ = ["Sharing", "decide", "is_shipped"]

OPEN_STUDIES = frozenset({"ADHD-200"})
"""Studies that are open to everyone. HBN is not one of them: its phenotypes have terms that its scans do not have."""
RESTRICTED_STUDY = re.compile(
    r"(?<![a-z])(?:hcp|human ?connectome|ukb|uk[ _-]?biobank|(?:abcd|adni)(?![a-z]))", re.IGNORECASE
)


@dataclass(frozen=True)
class Sharing:
    """Conditions of publishing.

    Attributes:
        is_private: whether the repository is visible to its owner only.
        is_gated: whether access has to be requested; None gates what is restricted.
        is_restricted: whether the terms of the data forbid sharing subject data, if that is not recorded.
        right_to_share: legal basis for sharing restricted data, printed on the card.
        license: identifier of the Hub; tokens without one are under the terms of their source.
    """

    is_private: bool = True
    is_gated: bool | None = None
    is_restricted: bool | None = None
    right_to_share: str | None = None
    license: str | None = None


def is_shipped(path: Path) -> bool:
    """Whether a folder is an autoencoder of this package."""
    return path.resolve().parent == SHIPPED_WEIGHTS.resolve()


def decide(path: str | Path, kind: str, sharing: Sharing, data: Sequence[TrainingData]) -> Sharing:
    """Decide `is_restricted` and `is_gated`: as marked, as stated, or by the names of the studies, in this order.

    One training on restricted data makes a model restricted for good. Unknown stays None: scans of a table or of BIDS
    can be of any study, and so can the data of the first weights.

    Args:
        path: folder to publish.
        kind: "model", "autoencoder" or "dataset".
        sharing: the conditions as stated.
        data: trainings of a model, the first one first, or the data of a store.

    Raises:
        InputError: restricted data without a right, restricted tokens in public, or data of unknown terms in public.
    """
    is_restricted, right = sharing.is_restricted, sharing.right_to_share
    if any(stage.is_restricted for stage in data):
        if is_restricted is False:
            raise InputError(f"{path}: its data are marked as restricted; leave out --source-open.")
        is_restricted = True
    elif is_restricted is None and is_shipped(Path(path)):
        is_restricted = False
    elif is_restricted is None and data:
        if any(RESTRICTED_STUDY.search(name) for stage in data for name in stage.studies):
            is_restricted = True
        elif data[0].started_from is None and all(set(stage.studies or [""]) <= OPEN_STUDIES for stage in data):
            is_restricted = False
    if right is not None and len(right.split()) < 3:
        raise InputError("--i-have-the-right-to-share: give a sentence for the card that names your agreement.")
    if is_restricted and right is None:
        raise InputError(
            f"{path}: the terms of its data forbid sharing (as for HCP and UK Biobank); if you have the right to, "
            'state it with --i-have-the-right-to-share "...".'
        )
    if is_restricted and not sharing.is_private and kind == "dataset":
        raise InputError(f"{path}: restricted tokens are never public: scans can be decoded; leave out --public.")
    if is_restricted is None and not sharing.is_private and (right is None or kind == "dataset"):
        raise InputError(
            f"{path}: whether the terms of its data allow sharing is not recorded; give --source-open or "
            "--source-restricted, or leave out --public."
        )
    is_gated = bool(is_restricted) if sharing.is_gated is None else sharing.is_gated
    return replace(sharing, is_restricted=is_restricted, is_gated=is_gated)
