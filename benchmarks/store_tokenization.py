"""
From scans on disk to a finished token store: how fast, in how much memory, and how true the tokens are.

    python benchmarks/store_tokenization.py SCAN                          # one GPU: the paper's autoencoder shape
    python benchmarks/store_tokenization.py SCAN --device cpu --threads 2  # a laptop: the shipped autoencoder
    accelerate launch --num_processes 2 benchmarks/store_tokenization.py SCAN --folder DIR   # two GPUs

`SCAN` is a 4D NIfTI in MNI152 space, a real one, since noise compresses otherwise. It is copied to `--copies` people,
each of `--frames` frames. A first small store warms up and holds the compilation. On one GPU a plain loop then does the
same as the code released with arXiv:2604.03619 does: float32 inputs (its convolutions in TF32, torch's default), eager,
batches of 1,600 slices, all 288 slices of a volume, and one .npy for each frame and axis. The tokens of the store are
compared with those of a float32 encoder without TF32: overall, and against their standard deviation over time.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import diffusers
import nibabel
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from dcae_scan import DCAE_F32C32
from diffusers import AutoencoderDC

from tablet_hf import TabletFeatureExtractor
from tablet_hf.datasets import TokenDataset, TokenStoreWriter
from tablet_hf.datasets.tokenization import share_records, tokenize_scans
from tablet_hf.slice_autoencoder import DEFAULT_AUTOENCODER
from tablet_hf.sources import find_scans
from tablet_hf.tokens import latents_to_tokens, volumes_to_slices
from tablet_hf.volumes import open_run

PLAIN_BATCH = 1600


def write_people(scan: Path, folder: Path, copies: int, frames: int | None) -> None:
    """A BIDS folder of `copies` people with that scan, its frames repeated until there are as many as asked for."""
    image = nibabel.load(scan)
    if frames is None or frames == image.shape[3]:
        first = scan
    else:
        raw = np.asarray(image.dataobj.get_unscaled())
        longer = nibabel.Nifti1Image(np.take(raw, np.arange(frames) % raw.shape[3], axis=3), None, image.header)
        longer.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
        first = folder / "longer.nii.gz"
        folder.mkdir(parents=True, exist_ok=True)
        nibabel.save(longer, first)
    step = float(image.header.get_zooms()[3])
    for number in range(copies):
        person = folder / "bids" / f"sub-{number:03}" / "func"
        person.mkdir(parents=True)
        stem = f"sub-{number:03}_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold"
        shutil.copyfile(first, person / f"{stem}.nii.gz")
        (person / f"{stem}.json").write_text(json.dumps({"RepetitionTime": step if 0.1 < step < 20 else 2.0}))


def make_extractor(autoencoder: str, device: str, dtype: torch.dtype) -> TabletFeatureExtractor:
    """The extractor with its autoencoder loaded: a shipped one, or for "dcae" the paper's shape with random weights."""
    if autoencoder == "dcae":
        torch.manual_seed(0)
        extractor = TabletFeatureExtractor()
        extractor.slice_autoencoder = AutoencoderDC(**DCAE_F32C32)
    else:
        extractor = TabletFeatureExtractor(autoencoder)
        extractor.slice_autoencoder  # noqa: B018
    return extractor.to(device, dtype)


def write_store(records: list, extractor: TabletFeatureExtractor, folder: Path) -> float:
    """Seconds from the first file to the finished store, by the slowest process."""
    device = extractor.device
    with share_records(records, cpu=device.type == "cpu") as (share, state):
        writer = TokenStoreWriter(folder, extractor.to_dict())
        state.wait_for_everyone()
        started = time.perf_counter()
        outcome = tokenize_scans(share, extractor, writer)
        outcomes = gather_object([outcome])
        if state.is_main_process:
            writer.finish()
        seconds = time.perf_counter() - started
        failed = [problem for one in outcomes for problem in one.failed]
        assert not failed, failed
    return seconds


@torch.inference_mode()
def plain_loop(records: list, extractor: TabletFeatureExtractor, folder: Path) -> tuple[float, int]:
    """Seconds and frames of the plain loop; `extractor` is in float32, and only its diffusers model is used."""
    model, device = extractor.slice_autoencoder.model.to(memory_format=torch.contiguous_format), extractor.device
    count, started = 0, time.perf_counter()
    for record in records:
        run = open_run(record.scan)
        frames, waiting = 0, []
        out = folder / record.subject
        out.mkdir(parents=True)
        blocks = [torch.from_numpy(volumes) for _, volumes in run.scaled_blocks("intensity", "max", None, 8)]
        slices = torch.cat([volumes_to_slices(volumes).flatten(0, 2) for volumes in blocks])
        for batch in slices.split(PLAIN_BATCH):
            images = batch[:, None].expand(-1, 3, -1, -1).to(device)
            waiting.append(model.encode(images).latent.cpu())
        for latents in torch.cat(waiting).unflatten(0, (-1, 3, 96)):
            for axis in range(3):
                np.save(out / f"{frames:04}_{axis}.npy", latents[axis].numpy())
            frames += 1
        count += frames
    return time.perf_counter() - started, count


@torch.inference_mode()
def exact_tokens(scan: Path, extractor: TabletFeatureExtractor) -> torch.Tensor:
    """Tokens by a float32 encoder, every slice of every frame, without TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    tokens = []
    for _, volumes in open_run(scan).scaled_blocks("intensity", "max", None, 1):
        slices = volumes_to_slices(torch.from_numpy(volumes)).flatten(0, 2)
        latents = extractor.slice_autoencoder.model.encode(slices[:, None].expand(-1, 3, -1, -1).to(extractor.device))
        tokens.append(latents_to_tokens(latents.latent.unflatten(0, (1, 3, 96))).double().cpu())
    return torch.cat(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--copies", type=int, default=12)
    parser.add_argument("--frames", type=int, help="of each copy; as many as the scan has by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--autoencoder", help="dcae (random weights), or a name; dcae on a GPU, else the shipped one")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--plain-scans", type=int, default=4, help="that the plain loop takes, of the copies")
    parser.add_argument("--only-store", action="store_true", help="no plain loop and no errors")
    parser.add_argument(
        "--folder", type=Path, help="where to write, and remove it afterwards; by default the temporary folder"
    )
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")
    state = PartialState(cpu=not on_gpu)
    device = str(state.device) if on_gpu else "cpu"
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    def say(*parts) -> None:
        if state.is_main_process:
            print(*parts, flush=True)

    name = arguments.autoencoder or ("dcae" if on_gpu else DEFAULT_AUTOENCODER)
    machine = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    say(f"{platform.platform()}, {os.cpu_count()} cores, {state.num_processes} x {machine}, torch {torch.__version__}")
    say(f"diffusers {diffusers.__version__}, nibabel {nibabel.__version__}; autoencoder {name}")
    if state.num_processes > 1 and arguments.folder is None:
        parser.error("several processes need one --folder")
    folder = Path(tempfile.mkdtemp(dir=arguments.folder)) if state.num_processes == 1 else arguments.folder / "scratch"
    if state.is_main_process:
        write_people(arguments.scan, folder, arguments.copies, arguments.frames)
    state.wait_for_everyone()
    records = find_scans("bids", folder / "bids").records
    frames = nibabel.load(records[0].scan).shape[3] * len(records)
    extractor = make_extractor(name, device, torch.float16 if on_gpu else torch.float32)
    say(f"{len(records)} scans, {frames} frames")
    if on_gpu:
        warm = write_store(records[: 2 * state.num_processes], extractor, folder / "warm")
        say(f"first store of two scans a GPU, compilation included: {warm:.0f} s")
        torch.cuda.reset_peak_memory_stats()
    rates = []
    for number in range(arguments.rounds):
        rates.append(frames / write_store(records, extractor, folder / f"store-{number}"))
        say(f"store: {rates[-1]:.2f} volumes/s from .nii.gz to the finished store")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    say(f"peak memory of process {state.process_index}: {peak:.2f} GB")
    if on_gpu:
        say(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    if not arguments.only_store and state.num_processes == 1:
        exact_extractor = make_extractor(name, device, torch.float32)
        compare(records, exact_extractor, folder, statistics.median(rates), arguments.plain_scans)
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder)


def compare(records: list, extractor: TabletFeatureExtractor, folder: Path, rate: float, plain_scans: int) -> None:
    """`extractor` is in float32; the store in `folder` was written at `rate` volumes/s."""
    plain_loop(records[:1], extractor, folder / "plain-warm")
    seconds, count = plain_loop(records[:plain_scans], extractor, folder / "plain")
    print(
        f"plain loop: {count / seconds:.2f} volumes/s over {count} frames; the store is {rate * seconds / count:.2f}x"
    )
    exact = exact_tokens(records[0].scan, extractor)
    stored = TokenDataset.load(folder / "store-0").window(0).double()
    error, sd_over_time = (stored - exact).norm(), (exact - exact.mean(0)).norm()
    print(
        f"stored tokens against float32: {100 * error / exact.norm():.3f}% of the tokens, "
        f"{100 * error / sd_over_time:.2f}% of their standard deviation over time"
    )


if __name__ == "__main__":
    main()
