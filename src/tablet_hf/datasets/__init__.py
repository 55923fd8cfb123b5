"""Token datasets: sources of scans, the store of their tokens, splits, windows and batches."""

from tablet_hf.datasets.records import Cohort, Problem, ScanRecord
from tablet_hf.datasets.store import StoredRun, TokenDataset, TokenStoreWriter

__all__ = ["Cohort", "Problem", "ScanRecord", "StoredRun", "TokenDataset", "TokenStoreWriter"]
