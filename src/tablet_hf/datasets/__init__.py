"""Token datasets: sources of scans, the store of their tokens, splits, windows and batches."""
