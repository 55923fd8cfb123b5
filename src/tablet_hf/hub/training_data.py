"""What data a model was trained on: studies and counts, in a record next to its weights that is published with them.

stages = TrainingData.read("pretrained/model")      # () if there is no record
stages[-1].studies, stages[-1].num_subjects         # ("ADHD-200",), 112
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError, counted
from tablet_hf.files import write_json
from tablet_hf.hub.files import fetch

__all__ = ["TRAINING_DATA_FILE", "TrainingData"]

TRAINING_DATA_FILE = "training_data.json"
UNNAMED = "a study without a name"


@dataclass(frozen=True)
class TrainingData:
    """One training of a model. The trainings of the weights that it started from have records of their own before it.

    Attributes:
        task: "masked token modeling", or the phenotype that is predicted.
        studies: names as in the sources, such as "ADHD-200"; `UNNAMED` for scans of a study without a name, next to
            others that have one.
        num_subjects: number of subjects trained on; 0 if it is not known.
        num_validation_subjects: number of subjects that the model was selected by.
        num_runs, num_frames: numbers of runs and frames trained on.
        is_restricted: whether the data were marked as restricted, see `TokenStoreWriter`.
        started_from: Hub id, or the name of a folder without its path; None for new weights.
    """

    task: str
    studies: tuple[str, ...]
    num_subjects: int
    num_validation_subjects: int
    num_runs: int
    num_frames: int
    is_restricted: bool
    started_from: str | None = None

    def __str__(self) -> str:
        studies = f" of {', '.join(self.studies)}" if self.studies else ""
        subjects = counted(self.num_subjects, "subject")
        return f"{self.task} ({subjects}{studies}{', restricted' if self.is_restricted else ''})"

    @classmethod
    def of_runs(
        cls,
        task: str,
        training: Iterable[Any],
        validation: Iterable[Any],
        is_restricted: bool,
        started_from: str | Path | None = None,
    ) -> "TrainingData":
        """The record of a training on runs of a store, that started from the model in a folder or of a Hub id."""
        training = list(training)
        studies = {run.dataset or UNNAMED for run in training}
        if started_from is not None:
            is_folder = Path(started_from).exists()
            started_from = Path(started_from).resolve().name if is_folder else str(started_from)
        return cls(
            task,
            () if studies == {UNNAMED} else tuple(sorted(studies)),
            len({(run.dataset, run.subject) for run in training}),
            len({(run.dataset, run.subject) for run in validation}),
            len(training),
            sum(run.num_frames for run in training),
            bool(is_restricted),
            started_from,
        )

    @classmethod
    def read(cls, folder: str | Path) -> tuple["TrainingData", ...]:
        """The trainings of the model in a folder, the first one first; empty if there is no record.

        Raises:
            InputError: the record cannot be read.
        """
        path = Path(folder) / TRAINING_DATA_FILE
        if not path.is_file():
            return ()
        kinds: dict[str, Any] = {field.name: int if field.name.startswith("num_") else str for field in fields(cls)}
        kinds |= {"studies": list, "is_restricted": bool, "started_from": str | None}
        try:
            stages = []
            for stage in json.loads(path.read_text(encoding="utf-8"))["stages"]:
                values = {name: stage[name] for name in kinds}
                is_right = all(isinstance(value, kinds[name]) for name, value in values.items())
                counts = [value for name, value in values.items() if kinds[name] is int]
                if not is_right or min(counts) < 0 or not all(isinstance(name, str) for name in values["studies"]):
                    raise ValueError
                stages.append(cls(**values | {"studies": tuple(values["studies"])}))
            return tuple(stages)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a record of training data; copy it again from the trained model.") from error

    @classmethod
    def of_model(cls, name: str | Path) -> tuple["TrainingData", ...]:
        """The trainings of a model by its folder or Hub id; empty if there is no record.

        They are empty, with a warning, if the Hub cannot be reached and the record is not in the cache.

        Raises:
            InputError: the record cannot be read.
        """
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            path = fetch(name, TRAINING_DATA_FILE)
        except InputError as error:
            if isinstance(error.__cause__, LocalEntryNotFoundError):
                warnings.warn(f"{name}: no {TRAINING_DATA_FILE} in the cache, and no way to the Hub.", stacklevel=2)
            return ()
        return cls.read(path.parent)

    @staticmethod
    def write(folder: str | Path, stages: Sequence["TrainingData"]) -> None:
        """Write the record of trainings, the first one first, into the folder of a model."""
        record = {"stages": [asdict(stage) for stage in stages]}
        write_json(Path(folder) / TRAINING_DATA_FILE, record, indent=1)
