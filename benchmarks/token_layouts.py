"""
Ways of keeping the tokens of a run in Arrow and Parquet, and what each costs to write, to read and to store.

    python benchmarks/token_layouts.py [--frames 490] [--runs 2] [--folder DIR]

Layouts: a row for each frame (`Array2D`), a row for each block of frames (`Array3D`), and a row for each block as
plain bytes. Each is written as Arrow (memory-mapped when read) and as Parquet (read whole, as a stream from the Hub
reads it). A window of 256 frames at a random place is read through the `datasets` library, and straight from the Arrow
buffers; a plain copy of as many bytes stands beside it. Files are in the page cache.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CELLS, FEATURES = 27, 3072
WINDOW = 256
REPEATS = 15


def median_ms(action, repeats: int = REPEATS) -> float:
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def rows_of(layout: str, tokens: np.ndarray, block: int) -> tuple[datasets.Features, list]:
    if layout == "row per frame":
        return datasets.Features({"tokens": datasets.Array2D((CELLS, FEATURES), "float16")}), list(tokens)
    blocks = [tokens[start : start + block] for start in range(0, len(tokens), block)]
    if layout == "row per block":
        return datasets.Features({"tokens": datasets.Array3D((None, CELLS, FEATURES), "float16")}), blocks
    return datasets.Features({"tokens": datasets.Value("binary")}), [part.tobytes() for part in blocks]


def window_from_buffers(table: pa.Table, layout: str, block: int, start: int, out: np.ndarray) -> None:
    """Copies frames start .. start + WINDOW into `out` from the buffers that the file is mapped to."""
    rows = 1 if layout == "row per frame" else block
    column = table["tokens"]
    frame, place = start, 0
    while place < WINDOW:
        row, inside = divmod(frame, rows)
        chunk, offset = chunk_of(column, row)
        if layout == "bytes per block":
            values = np.frombuffer(chunk[offset].as_buffer(), np.float16).reshape(-1, CELLS, FEATURES)[inside:]
        else:
            flat = chunk.storage[offset:] if layout == "row per frame" else chunk.storage[offset : offset + 1]
            while not pa.types.is_float16(flat.type):
                flat = flat.flatten()
            values = flat.to_numpy(zero_copy_only=True).reshape(-1, CELLS, FEATURES)[inside:]
        take = min(len(values), WINDOW - place)
        out[place : place + take] = values[:take]
        frame, place = frame + take, place + take


def chunk_of(column: pa.ChunkedArray, row: int) -> tuple[pa.Array, int]:
    for chunk in column.chunks:
        if row < len(chunk):
            return chunk, row
        row -= len(chunk)
    raise IndexError(row)


def measure(layout: str, block: int, tokens: np.ndarray, folder: Path) -> dict[str, float]:
    features, rows = rows_of(layout, tokens, block)
    generator = np.random.default_rng(0)
    figures = {}
    started = time.perf_counter()
    writer_batch = block if layout == "row per frame" else 1
    made = datasets.Dataset.from_generator(
        lambda: ({"tokens": row} for row in rows),
        features=features,
        writer_batch_size=writer_batch,
        cache_dir=str(folder / "cache"),
    )
    made.save_to_disk(folder / "arrow")
    figures["write Arrow, ms"] = 1000 * (time.perf_counter() - started)
    loaded = datasets.load_from_disk(str(folder / "arrow"))
    out = np.empty((WINDOW, CELLS, FEATURES), np.float16)
    figures["window by datasets, ms"] = median_ms(
        lambda: window_by_datasets(loaded, layout, block, int(generator.integers(len(tokens) - WINDOW)))
    )
    figures["window by buffer, ms"] = median_ms(
        lambda: window_from_buffers(
            loaded.data.table, layout, block, int(generator.integers(len(tokens) - WINDOW)), out
        )
    )
    window_from_buffers(loaded.data.table, layout, block, 100, out)
    assert np.array_equal(out, tokens[100 : 100 + WINDOW])
    started = time.perf_counter()
    pq.write_table(made.data.table, folder / "tokens.parquet", compression="zstd", use_dictionary=False,
                   row_group_size=writer_batch)  # fmt: skip
    figures["write Parquet, ms"] = 1000 * (time.perf_counter() - started)
    figures["read Parquet, ms"] = median_ms(lambda: pq.read_table(folder / "tokens.parquet"), 5)
    figures["Arrow, bytes a frame"] = sum(f.stat().st_size for f in (folder / "arrow").iterdir()) / len(tokens)
    figures["Parquet, bytes a frame"] = (folder / "tokens.parquet").stat().st_size / len(tokens)
    return figures


def window_by_datasets(loaded: datasets.Dataset, layout: str, block: int, start: int) -> np.ndarray:
    if layout == "row per frame":
        return loaded.with_format("numpy", dtype=np.float16)[start : start + WINDOW]["tokens"]
    first, last = start // block, (start + WINDOW - 1) // block + 1
    if layout == "row per block":
        parts = loaded.with_format("numpy", dtype=np.float16)[first:last]["tokens"]
    else:
        parts = [np.frombuffer(part, np.float16).reshape(-1, CELLS, FEATURES) for part in loaded[first:last]["tokens"]]
    return np.concatenate(list(parts))[start - first * block :][:WINDOW]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=490)
    parser.add_argument("--blocks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    # Latents of a natural-image autoencoder are near normal; random ones compress no better than real ones.
    tokens = (
        np.random.default_rng(0).standard_normal((arguments.frames, CELLS, FEATURES), np.float32).astype(np.float16)
    )
    print(f"{platform.platform()}, {os.cpu_count()} cores; datasets {datasets.__version__}, pyarrow {pa.__version__}")
    print(f"a run of {arguments.frames} frames, {tokens.nbytes / 1e6:.0f} MB as float16; window {WINDOW} frames")
    source, target = np.ascontiguousarray(tokens[:WINDOW]), np.empty((WINDOW, CELLS, FEATURES), np.float16)
    print(f"plain copy of a window: {median_ms(lambda: np.copyto(target, source)):.1f} ms")
    cases = [("row per frame", 64)]
    cases += [(layout, block) for layout in ("row per block", "bytes per block") for block in arguments.blocks]
    for layout, block in cases:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            figures = measure(layout, block, tokens, Path(folder))
        name = layout if layout == "row per frame" else f"{layout} of {block}"
        print(f"{name:24}" + "  ".join(f"{key} {value:,.0f}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
