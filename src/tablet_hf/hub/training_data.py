"""What data a model trained on: a record next to its weights, which goes wherever they go.

    stages = TrainingData.read("pretrained/model")      # () where there is no record
    stages[-1].studies, stages[-1].subjects             # ("ADHD-200",), 112

It holds studies and counts, and no one's name. Whether a model may be passed on depends on it.
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write
from tablet_hf.hub.files import fetch

__all__ = ["TRAINING_DATA_FILE", "TrainingData"]

TRAINING_DATA_FILE = "training_data.json"
UNNAMED = "a study that was not named"


@dataclass(frozen=True)
class TrainingData:
    """One training of a model; the trainings before it, of the weights that it started from, have records before it.

    Attributes:
        task: "masked token modeling", or the phenotype that was learned.
        studies: as sources name them, such as "ADHD-200"; scans of a table or of BIDS may have none, and stand as
            `UNNAMED` next to others that have one.
        people: how many were trained on; 0 where it is not known.
        people_chosen_by: how many evaluated when to stop, and at which learning rate.
        runs, frames: how many of the subjects trained on.
        is_restricted: whether their tokens were marked as such, see `TokenStoreWriter`.
        started_from: Hub id, or a folder's name without where it is; None for new weights.
    """

    task: str
    studies: tuple[str, ...]
    people: int
    people_chosen_by: int
    runs: int
    frames: int
    is_restricted: bool
    started_from: str | None = None

    def __str__(self) -> str:
        studies = f" of {', '.join(self.studies)}" if self.studies else ""
        people = "1 person" if self.people == 1 else f"{self.people:,} people"
        return f"{self.task} ({people}{studies}{', restricted' if self.is_restricted else ''})"

    @classmethod
    def of_runs(
        cls,
        task: str,
        learnt: Iterable[Any],
        chosen_by: Iterable[Any],
        is_restricted: bool,
        started_from: str | Path | None = None,
    ) -> "TrainingData":
        """Of a store's runs.

        Args:
            task: see above.
            learnt: runs of the training part.
            chosen_by: runs of the validation part.
            is_restricted: `store.settings["is_restricted"]`.
            started_from: folder or Hub id.
        """
        learnt = list(learnt)
        studies = {run.dataset or UNNAMED for run in learnt}
        if started_from is not None:
            is_folder = Path(started_from).exists()
            started_from = Path(started_from).resolve().name if is_folder else str(started_from)
        return cls(
            task,
            () if studies == {UNNAMED} else tuple(sorted(studies)),
            len({(run.dataset, run.subject) for run in learnt}),
            len({(run.dataset, run.subject) for run in chosen_by}),
            len(learnt),
            sum(run.num_frames for run in learnt),
            bool(is_restricted),
            started_from,
        )

    @classmethod
    def read(cls, folder: str | Path) -> tuple["TrainingData", ...]:
        """The trainings of the model in a folder, the first one first; none where nothing is recorded.

        Raises:
            InputError: the record cannot be read.
        """
        path = Path(folder) / TRAINING_DATA_FILE
        if not path.is_file():
            return ()
        names = {field.name for field in fields(cls)}
        try:
            stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
            stages = [{name: value for name, value in stage.items() if name in names} for stage in stages]
            stages = tuple(cls(**stage | {"studies": tuple(stage["studies"])}) for stage in stages)
            if not all(stage._is_of_its_types() for stage in stages):
                raise ValueError
            return stages
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: it does not say what a model learnt from; copy it again from where the model was trained."
            ) from error

    @classmethod
    def of_model(cls, name: str | Path) -> tuple["TrainingData", ...]:
        """The trainings of a model by its folder or Hub id; none where nothing is recorded.

        Nor where the Hub cannot be asked and the record was not downloaded before, which a warning says: what is
        trained from there counts as of unknown data then.

        Raises:
            InputError: the record cannot be read.
        """
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            path = fetch(name, TRAINING_DATA_FILE)
        except InputError as error:
            is_cut_off = isinstance(error.__cause__, LocalEntryNotFoundError)
            if is_cut_off and try_to_load_from_cache(str(name), TRAINING_DATA_FILE) is not _CACHED_NO_EXIST:
                warnings.warn(
                    f"{name}: the Hub cannot be asked what it learnt from, so that is not recorded with what is "
                    f"trained from it; download {TRAINING_DATA_FILE} of it first, where there is one.",
                    stacklevel=2,
                )
            return ()
        return cls.read(path.parent)

    def _is_of_its_types(self) -> bool:
        """Whether what was read from a file, which may be anybody's, holds what it should."""
        texts = [self.task, *self.studies, *([] if self.started_from is None else [self.started_from])]
        counts = (self.people, self.people_chosen_by, self.runs, self.frames)
        are_counts = all(type(count) is int and count >= 0 for count in counts)
        return all(isinstance(text, str) for text in texts) and are_counts and isinstance(self.is_restricted, bool)

    @staticmethod
    def write(folder: str | Path, stages: Sequence["TrainingData"]) -> None:
        """Put the record of some trainings, the first one first, into a model's folder."""
        with atomic_write(Path(folder) / TRAINING_DATA_FILE) as unfinished:
            record = {"stages": [asdict(stage) for stage in stages]}
            unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
