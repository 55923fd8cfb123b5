"""
How long one scan takes on a CPU, from a .nii.gz file to a prediction, process start included, stage by stage.

    python benchmarks/scan_to_prediction.py                     # on a made scan of nilearn's MNI152 template
    python benchmarks/scan_to_prediction.py SCAN.nii.gz --frames 28 --frames 64 --threads 2

The autoencoder is the one that ships with the package; the model is the full-size network (129.5 million parameters)
with random weights, loaded from a folder as a trained one would be. Where more frames are asked for than the scan has,
they are repeated from the first. Each length runs in a process of its own, whose peak memory is printed. Beside the
seconds on the clock stand those that the cores worked for it, which other programs on the machine hardly change.
"""

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

FULL_SIZE_PARAMETERS = 129_515_393


def make_template_scan(path: Path, num_frames: int) -> None:
    """Write a run of nilearn's MNI152 template (2 mm, TR 2 s, int16), each frame under 1% of other smooth noise."""
    from nilearn.datasets import load_mni152_template
    from scipy.ndimage import gaussian_filter

    template = load_mni152_template(resolution=2)
    anatomy = template.get_fdata(dtype=np.float32)
    anatomy *= 10_000 / anatomy.max()
    generator = np.random.default_rng(0)
    frames = np.empty((*anatomy.shape, num_frames), dtype=np.int16, order="F")
    for index in range(num_frames):
        noise = gaussian_filter(generator.standard_normal(anatomy.shape, dtype=np.float32), 2)
        frames[..., index] = anatomy * (1 + 0.01 * noise / noise.std())
    write_scan(path, frames, template.affine, repetition_time=2.0)


def repeat_frames(scan: Path, path: Path, num_frames: int) -> None:
    """Write a run of so many frames of a scan, and put its brain mask beside, where it has one."""
    import nibabel

    from tablet_hf.scans import find_brain_mask_file
    from tablet_hf.volumes import open_run

    run = open_run(scan)
    frames = np.asarray(nibabel.load(scan).dataobj)
    write_scan(path, frames[..., np.arange(num_frames) % run.num_frames], run.source_affine, run.repetition_time)
    if mask := find_brain_mask_file(scan):
        shutil.copy(mask, path.parent)


def write_scan(path: Path, frames: np.ndarray, affine: np.ndarray, repetition_time: float) -> None:
    import nibabel

    image = nibabel.Nifti1Image(frames, affine)
    image.set_sform(affine, code=4)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], repetition_time))
    nibabel.save(image, path)


def save_model(folder: Path) -> None:
    import torch

    from tablet_hf import TabletConfig, TabletForSequenceClassification

    torch.manual_seed(0)
    config = TabletConfig(num_labels=1, problem_type="multi_label_classification")
    model = TabletForSequenceClassification(config)
    assert model.num_parameters() == FULL_SIZE_PARAMETERS, model.num_parameters()
    model.save_pretrained(folder)


def measure(scan: str, model_folder: str, threads: int, started: float) -> None:
    """Predict for one scan and print what each stage took; `started` is when this process was asked for."""
    marks = [("", started, 0.0)]

    def mark(stage: str) -> None:
        marks.append((stage, time.time(), time.process_time()))

    import torch

    torch.set_num_threads(threads)
    from tablet_hf import TabletFeatureExtractor, TabletForSequenceClassification
    from tablet_hf.volumes import open_run

    mark("start of the process and imports")
    run = open_run(scan)
    run.survey()
    mark("open and survey the scan")
    extractor = TabletFeatureExtractor()
    _ = extractor.slice_autoencoder
    mark("load the autoencoder")
    tokens = extractor.tokenize(run).tokens
    mark("encode")
    model = TabletForSequenceClassification.from_pretrained(model_folder).eval()
    mark("load the model")
    with torch.inference_mode():
        logits = model(tokens[None], repetition_time=torch.tensor([run.repetition_time])).logits
    mark("model")

    print(f"{len(tokens)} frames -> tokens {tuple(tokens.shape)} -> logit {logits.item():+.4f}")
    for (_, before, cpu_before), (stage, after, cpu_after) in pairwise(marks):
        rate = f"   {len(tokens) / (after - before):.2f} frames/s" if stage == "encode" else ""
        print(f"  {stage:34s} {after - before:6.1f} s   {cpu_after - cpu_before:6.1f} core-seconds{rate}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes on Linux
    total, cpu_total = marks[-1][1] - started, marks[-1][2]
    print(f"  {'file to prediction':34s} {total:6.1f} s   {cpu_total:6.1f} core-seconds   peak memory {peak:.2f} GiB")


def describe_machine(threads: int) -> None:
    import diffusers
    import torch
    import transformers

    names = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    print(f"machine: {names[0] if names else platform.machine()}, {os.cpu_count()} cores, {threads} threads used")
    load = os.getloadavg()[0]
    print(f"load before: {load:.2f} (other programs' share of these cores makes the figures worse)")
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"diffusers {diffusers.__version__}",
        flush=True,
    )


def _cpu_lines() -> list[str]:
    information = Path("/proc/cpuinfo")
    return information.read_text().splitlines() if information.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", nargs="?", type=Path, help="4D NIfTI in MNI152 space; made if left out")
    parser.add_argument("--frames", type=int, action="append", help="length of the run, may be repeated (28 and 64)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", nargs=3, metavar=("SCAN", "MODEL", "STARTED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        scan, model, started = arguments.measure
        return measure(scan, model, arguments.threads, float(started))

    describe_machine(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        save_model(model)
        for num_frames in arguments.frames or [28, 64]:
            folder = Path(scratch) / f"{num_frames}-frames"
            folder.mkdir()
            scan = folder / (arguments.scan.name if arguments.scan else "template_bold.nii.gz")
            if arguments.scan:
                repeat_frames(arguments.scan, scan, num_frames)
            else:
                make_template_scan(scan, num_frames)
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--measure", scan, model]
            environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
            subprocess.run([*command, str(time.time())], check=True, env=environment)


if __name__ == "__main__":
    main()
