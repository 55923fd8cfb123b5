"""
How much of functional connectivity is left when courses come from decoded tokens instead of the scan.

    python benchmarks/decoded_connectivity.py STORE SCANS ATLAS [--runs 1] [--device cpu]

For each run, over regions: the correlation of the decoded course with the scan's; and over pairs of regions, that of
Fisher's z. Decoded are axial slices, as the baselines do it, and all slices of all axes, as `decode` does it; the times
are those of decoding.
"""

import argparse
import platform
import time

import numpy as np
import torch

from tablet_hf import TabletFeatureExtractor
from tablet_hf.baselines.connectivity import Regions, atlas_regions, fisher_z, region_means, standardised
from tablet_hf.baselines.features import RegionTimeSeries, match_scans
from tablet_hf.datasets import TokenDataset
from tablet_hf.grid import grid_affine


def from_all_axes(store: TokenDataset, run: int, regions: Regions, extractor: TabletFeatureExtractor) -> np.ndarray:
    size = store.geometry.volume_size
    labels = regions.on_grid((size,) * 3, grid_affine(size))
    frames = (extractor.decode(frame)[0].numpy() for frame in store.window(run).split(1))
    return region_means(frames, labels, len(regions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("scans")
    parser.add_argument("atlas")
    parser.add_argument("--runs", type=int, default=1, help="how many of the store's first runs")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    store, regions = TokenDataset.load(arguments.store), atlas_regions(arguments.atlas)
    read = RegionTimeSeries(store, match_scans(store, arguments.scans))
    decoded = RegionTimeSeries(store, None, arguments.device)
    extractor = TabletFeatureExtractor.from_dict(store.preprocessing)
    extractor.to(arguments.device, torch.float16 if arguments.device.startswith("cuda") else torch.float32)
    _ = extractor.slice_autoencoder
    print(f"{platform.platform()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.device}")
    for run in range(arguments.runs):
        known = store.runs[run]
        print(f"{known.key}: {known.num_frames} frames, {len(regions)} regions")
        of_scan = read.of(run, regions)
        for name, courses_of in (
            ("axial slices", lambda run=run: decoded.of(run, regions)),
            ("all slices", lambda run=run: from_all_axes(store, run, regions, extractor)),
        ):
            started = time.perf_counter()
            courses = courses_of()
            seconds = time.perf_counter() - started
            with np.errstate(invalid="ignore"):
                r = (standardised(of_scan) * standardised(courses)).sum(0) / (len(courses) - 1)
            z, z_of_scan = fisher_z(courses), fisher_z(of_scan)
            known_pairs = np.isfinite(z) & np.isfinite(z_of_scan)
            agreement = np.corrcoef(z[known_pairs], z_of_scan[known_pairs])[0, 1]
            print(
                f"  {name:14} courses r {np.nanmedian(r):.4f} (median; least {np.nanmin(r):.4f}), connections r "
                f"{agreement:.4f}, {seconds:.1f} s"
            )


if __name__ == "__main__":
    main()
