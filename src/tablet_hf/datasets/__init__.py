"""Token datasets: sources of scans, the store of their tokens, splits, windows and batches."""

from typing import TYPE_CHECKING

from tablet_hf.exports import imported_on_demand

if TYPE_CHECKING:
    from .collator import TabletCollator
    from .export import export_parquet
    from .split_files import read_splits, write_splits
    from .splits import (
        Split,
        family_ids,
        folds,
        leave_one_site_out,
        runs_in,
        split_subjects,
        subject_ids,
    )
    from .store import TokenDataset
    from .store_files import StoredRun
    from .streaming import StreamedWindows
    from .windows import EpochCallback, EvaluationWindows, TrainingWindows, average_by, label_classes
    from .writer import TokenStoreWriter, merge_stores

_MODULE_OF = {
    "EpochCallback": "windows",
    "EvaluationWindows": "windows",
    "Split": "splits",
    "StoredRun": "store_files",
    "StreamedWindows": "streaming",
    "TabletCollator": "collator",
    "TokenDataset": "store",
    "TokenStoreWriter": "writer",
    "TrainingWindows": "windows",
    "average_by": "windows",
    "export_parquet": "export",
    "family_ids": "splits",
    "folds": "splits",
    "label_classes": "windows",
    "leave_one_site_out": "splits",
    "merge_stores": "writer",
    "read_splits": "split_files",
    "runs_in": "splits",
    "split_subjects": "splits",
    "subject_ids": "splits",
    "write_splits": "split_files",
}
__getattr__, __dir__ = imported_on_demand(__name__, _MODULE_OF)

__all__ = [
    "EpochCallback",
    "EvaluationWindows",
    "Split",
    "StoredRun",
    "StreamedWindows",
    "TabletCollator",
    "TokenDataset",
    "TokenStoreWriter",
    "TrainingWindows",
    "average_by",
    "export_parquet",
    "family_ids",
    "folds",
    "label_classes",
    "leave_one_site_out",
    "merge_stores",
    "read_splits",
    "runs_in",
    "split_subjects",
    "subject_ids",
    "write_splits",
]
