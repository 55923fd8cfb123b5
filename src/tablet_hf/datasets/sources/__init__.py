"""Where scans come from: one small module for each layout of folders and tables, all of them giving `ScanRecord`s."""
