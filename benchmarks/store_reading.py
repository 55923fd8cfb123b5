"""
How a token store is read: random windows against a plain copy of as many bytes, its size, and how fast it opens.

    python benchmarks/store_reading.py [--frames 490] [--runs 4] [--small-runs 1000] [--folder DIR]

Runs of `--frames` frames of random tokens of the paper's shape are written as float16 and as int8; windows of 256
frames at random places are then read into given memory, and as new tensors. Files are in the page cache. The plain copy
goes from one place of memory to another, between different places each time. Opening is measured on a store of many
short runs, since what it reads is a table with a line for each.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow
import torch

from tablet_hf.datasets import TokenDataset, TokenStoreWriter
from tablet_hf.sources import ScanRecord

WINDOW = 256
PREPROCESSING = {
    "autoencoder": "random numbers",
    "signal": "intensity",
    "scaling": "max",
    "volume_size": 96,
    "token_size": 3072,
    "grid_size": 3,
}


def median_ms(actions: list) -> float:
    times = []
    for action in actions:
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def write_store(folder: Path, runs: int, frames: int, dtype: str) -> tuple[TokenDataset, float]:
    writer = TokenStoreWriter(folder, PREPROCESSING, dtype)
    anatomy, seconds = torch.randn(27, 3072), 0.0
    for number in range(runs):
        tokens = anatomy + 0.02 * torch.randn(frames, 27, 3072)
        started = time.perf_counter()
        writer.write(ScanRecord(f"{number:05}", folder, phenotypes={"age": number % 80}), tokens, 0.735, {})
        seconds += time.perf_counter() - started
    return writer.finish(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=490)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--small-runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"{platform.platform()}, {os.cpu_count()} cores, torch {torch.__version__}, pyarrow {pyarrow.__version__}")

    source = torch.randn(4 * WINDOW, 27, 3072).half()
    out = torch.empty(WINDOW, 27, 3072, dtype=torch.float16)
    starts = torch.randint(3 * WINDOW, (arguments.repeats,)).tolist()
    copy = median_ms([lambda start=start: out.copy_(source[start : start + WINDOW]) for start in starts])
    copy_new = median_ms([lambda start=start: source[start : start + WINDOW].clone() for start in starts])
    print(
        f"plain copy of {out.nbytes / 1e6:.1f} MB: {copy:.1f} ms into given memory, {copy_new:.1f} ms into new memory"
    )
    for dtype in ("float16", "int8"):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            store, seconds = write_store(Path(folder) / "store", arguments.runs, arguments.frames, dtype)
            size = store.runs[0].num_bytes
            places = [
                (int(torch.randint(arguments.runs, ())), int(torch.randint(arguments.frames - WINDOW + 1, ())))
                for _ in range(arguments.repeats)
            ]
            for run in range(arguments.runs):
                store.window(run)
            into = median_ms(
                [lambda place=place, store=store: store.window(*place, WINDOW, out=out) for place in places]
            )
            new = median_ms([lambda place=place, store=store: store.window(*place, WINDOW) for place in places])
            frames = arguments.runs * arguments.frames
            print(
                f"{dtype}: {size / arguments.frames:,.0f} bytes a frame ({size / 1e6:.2f} MB a run of "
                f"{arguments.frames}), written at {frames / seconds:,.0f} frames/s; window into given memory "
                f"{into:.1f} ms ({into / copy:.2f} x the copy), as a new tensor {new:.1f} ms ({new / copy_new:.2f} x)"
            )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_store(Path(folder) / "store", arguments.small_runs, 2, "float16")
        opening = median_ms([lambda: TokenDataset.load(Path(folder) / "store")] * 5)
        (Path(folder) / "store" / "runs.parquet").unlink()
        without = median_ms([lambda: TokenDataset.load(Path(folder) / "store")] * 3)
        print(
            f"opening a store of {arguments.small_runs:,} runs: {opening:.0f} ms; without its table: {without:.0f} ms"
        )


if __name__ == "__main__":
    main()
