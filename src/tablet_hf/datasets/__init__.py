"""Token datasets: the store of tokens, splits, windows and batches."""

# ruff: noqa: F401  (names for type checkers; at run time they are imported on demand)

from typing import TYPE_CHECKING

from tablet_hf.exports import imported_on_demand

if TYPE_CHECKING:
    from .collator import TabletCollator
    from .export import export_parquet
    from .split_files import read_splits, write_splits
    from .splits import Split, family_ids, folds, leave_one_site_out, random_splits, runs_in, split_columns, subject_ids
    from .store import TokenDataset
    from .store_files import StoredRun
    from .streaming import StreamedWindows
    from .windows import EpochCallback, EvaluationWindows, TrainingWindows, average_by, label_classes
    from .writer import TokenStoreWriter, merge_stores

_NAMES_IN = {
    "collator": ("TabletCollator",),
    "export": ("export_parquet",),
    "split_files": ("read_splits", "write_splits"),
    "splits": (
        "Split",
        "family_ids",
        "folds",
        "leave_one_site_out",
        "random_splits",
        "runs_in",
        "split_columns",
        "subject_ids",
    ),
    "store": ("TokenDataset",),
    "store_files": ("StoredRun",),
    "streaming": ("StreamedWindows",),
    "windows": ("EpochCallback", "EvaluationWindows", "TrainingWindows", "average_by", "label_classes"),
    "writer": ("TokenStoreWriter", "merge_stores"),
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}
__getattr__, __dir__ = imported_on_demand(__name__, _MODULE_OF)

__all__ = sorted(_MODULE_OF)
