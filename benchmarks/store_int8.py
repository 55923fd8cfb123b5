"""
What int8 loses of a real scan's tokens, and what motion in one frame costs the others.

    python benchmarks/store_int8.py SCAN [--autoencoder natural-f32c32]

The tokens of `SCAN` are stored as int8 in two ways: in steps of each feature over the whole run, and in steps of each
feature times a factor of each frame, as stores have them. Errors are those of what is read, in float16, relative to
what changes over time: of the whole run, of its median and of its worst frame. Then the cells of one frame are shifted,
and both are measured again. Last, windows of 256 frames are read both ways, in turns, and copied.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import torch

from tablet_hf import TabletFeatureExtractor
from tablet_hf.datasets.run_files import StoredTokens, quantise
from tablet_hf.slice_autoencoder import DEFAULT_AUTOENCODER


def by_features(tokens: torch.Tensor) -> StoredTokens:
    """One step a feature, by its largest deviation in any frame."""
    mean = tokens.mean(0).half()
    deviations = tokens - mean.float()
    step = (deviations.abs().amax((0, 1)) / 127 * (1 + 2**-10)).clamp_min(2**-24).half()
    return StoredTokens((deviations / step.float()).round().clamp(-127, 127).to(torch.int8), mean, step)


def errors(stored: StoredTokens, tokens: torch.Tensor) -> str:
    off = stored.widen().float() - tokens
    temporal = tokens - tokens.mean(0)
    by_frame = off.flatten(1).norm(dim=1) / temporal.flatten(1).norm(dim=1)
    return (
        f"{off.norm() / temporal.norm():.2%} of the run's temporal deviation, {by_frame.median():.2%} of the median "
        f"frame's, {by_frame.max():.2%} of the worst one's"
    )


def milliseconds(cells: int, features: int, repeats: int = 60, window: int = 256) -> dict[str, list[float]]:
    """Times of reading a window at a random position in memory, each way in turns; shortest first."""
    frames = 4 * window
    values = torch.randint(-127, 128, (frames, cells, features), dtype=torch.int8)
    mean, step = torch.randn(cells, features).half(), torch.rand(features).half()
    ways = {
        "plain copy": StoredTokens(torch.randn(frames, cells, features).half()),
        "steps of features": StoredTokens(values, mean, step),
        "and factor of frame": StoredTokens(values, mean, step, torch.rand(frames) + 0.5),
    }
    out, times = torch.empty(window, cells, features, dtype=torch.float16), {name: [] for name in ways}
    for _ in range(repeats):
        start = int(torch.randint(frames - window, ()))
        for name, stored in ways.items():
            began = time.perf_counter()
            stored[start : start + window].widen(out)
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: sorted(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--autoencoder", default=DEFAULT_AUTOENCODER)
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, torch {torch.__version__}, {arguments.autoencoder}")
    tokens = TabletFeatureExtractor(arguments.autoencoder).tokenize(arguments.scan).tokens.float()
    moved = tokens.clone()
    moved[len(tokens) // 4] = tokens[len(tokens) // 4].roll(5, dims=0)
    for name, values in (("as it is", tokens), ("one frame moved", moved)):
        print(f"{arguments.scan.name}, {len(values)} frames, {name}")
        print(f"  float16:             {errors(StoredTokens(values.half()), values)}")
        print(f"  steps of features:   {errors(by_features(values), values)}")
        print(f"  and factor of frame: {errors(quantise(values)[0], values)}")
    for name, times in milliseconds(*tokens.shape[1:]).items():
        print(f"window of 256 frames, {name}: fastest {times[0]:.1f} ms, median {times[len(times) // 2]:.1f} ms")


if __name__ == "__main__":
    main()
