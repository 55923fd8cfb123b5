"""
What `tablet-hf demo` finds and how long it takes, over several seeds: each draws its own cohort, split and weights.

    python benchmarks/demo_seeds.py [--seeds 0 1 2] [--out FOLDER]

Run it on an otherwise idle machine, since it is the clock that is read. Cohorts are made anew in FOLDER (temporary
by default). The demo's learning rate and epochs were chosen on the cohort of seed 10, so leave that one out.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import torch
import transformers

from tablet_hf.demo import run_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in arguments.seeds:
            started = time.perf_counter()
            result = run_demo((arguments.out or Path(scratch)) / f"seed-{seed}", arguments.device, seed)
            seconds = time.perf_counter() - started
            stages = ", ".join(f"{name} {value:.0f}" for name, value in result.seconds.items())
            lines += [f"seed {seed}: {seconds:.0f} s ({stages}); chance {result.chance:.2f}"]
            for name, method in result.methods.items():
                low, high = method.interval
                lines += [
                    f"  {name:42} accuracy {method.metrics['accuracy']:.2f} ({low:.2f} to {high:.2f}, "
                    f"p = {method.accuracy_p:.4f}), AUROC {method.metrics['auroc']:.2f} (p = {method.auroc_p:.4f})"
                ]
    print(f"\n{platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, on {arguments.device}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
