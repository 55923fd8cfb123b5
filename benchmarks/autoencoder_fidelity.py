"""
What survives a 2D autoencoder: of photographs it never saw, and of an fMRI scan, over space and over time.

    python benchmarks/autoencoder_fidelity.py natural-f32c32 --photographs DIR --scan SCAN.nii.gz
    python benchmarks/autoencoder_fidelity.py natural-f32c32 --photographs DIR --scan SCAN.nii.gz --card hub_cards

AUTOENCODER is a shipped name, a folder or a Hub id, or several of them. Beside each stands the same architecture with
random weights, as the floor.

- Photographs: the files of DIR named `held_out*`, their central 96 x 96 pixels, PSNR in dB, the mean over images.
- Scan: tokenized and decoded as the package does it (three axes, averaged), for both signals. PSNR inside the brain, on
  the values in [-1, 1] that the autoencoder sees; and the correlation over time of each voxel with its reconstruction,
  its median over the brain. Percent change is measured as such, and once more after going back to intensities.

With `--card FOLDER` the figures go into FOLDER/AUTOENCODER.json and, between their marks, into FOLDER/AUTOENCODER.md.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.train_autoencoder import Photographs, photograph_psnr
from tablet_hf import TabletFeatureExtractor
from tablet_hf.evaluation.fidelity import RunningFidelity, psnr
from tablet_hf.intensities import scale_intensity, undo_percent_change, unscale_intensity
from tablet_hf.slice_autoencoder import SHIPPED_WEIGHTS, SliceAutoencoder, load_autoencoder
from tablet_hf.volumes import BoldRun, open_run

IMAGE_SIZE = 96

# Key of the figures, what tables call it, unit, decimals, and the least it was meant to be.
MEASURES = [
    ("photographs_colour_psnr", "held-out photographs, colour: PSNR", "dB", 2, 22.5),
    ("photographs_grey_psnr", "held-out photographs, grey: PSNR", "dB", 2, None),
    ("intensity_psnr", "scan, intensity: PSNR in the brain", "dB", 2, 28.5),
    ("intensity_r", "scan, intensity: median temporal r", "", 3, 0.62),
    ("percent_change_psnr", "scan, percent change: PSNR in the brain", "dB", 2, None),
    ("percent_change_r", "scan, percent change: median temporal r", "", 3, None),
    ("percent_change_as_intensity_psnr", "scan, percent change, back to intensities: PSNR in the brain", "dB", 2, None),
    ("percent_change_as_intensity_r", "scan, percent change, back to intensities: median temporal r", "", 3, None),
]


def measure_photographs(model: torch.nn.Module, images: torch.Tensor) -> dict[str, float]:
    figures = photograph_psnr(model, images)
    return {f"photographs_{kind}_psnr": value for kind, value in figures.items()}


def measure_scan(autoencoder: SliceAutoencoder, run: BoldRun, device: torch.device) -> dict[str, float]:
    figures: dict[str, float] = {}
    scale, brain = run.intensity_scale(), torch.from_numpy(run.mask)
    intensities = torch.from_numpy(np.concatenate([volumes for _, volumes in run.scaled_blocks("intensity")]))

    def note(name: str, reference: torch.Tensor, estimate: torch.Tensor, where: torch.Tensor) -> None:
        figures[f"{name}_psnr"] = psnr(reference, estimate, peak=2, where=brain)
        fidelity = RunningFidelity(where)
        fidelity.add(reference, estimate)
        figures[f"{name}_r"] = float(fidelity.temporal_correlation().median())

    for signal in ("intensity", "percent_change"):
        extractor = TabletFeatureExtractor(signal=signal, volume_size=run.volume_size).to(device)
        extractor.slice_autoencoder = autoencoder
        tokenized = extractor.tokenize(run)
        decoded = extractor.decode(tokenized.tokens)
        if signal == "intensity":
            note(signal, intensities, decoded, brain)
            continue
        changes = torch.from_numpy(np.concatenate([volumes for _, volumes in run.scaled_blocks(signal)]))
        has_change = torch.from_numpy(run.has_change)
        note(signal, changes, decoded, has_change)
        mean = unscale_intensity(extractor.decode(tokenized.mean_tokens).numpy()[0], scale)
        back = scale_intensity(undo_percent_change(decoded.numpy(), mean), scale)
        note(f"{signal}_as_intensity", intensities, torch.from_numpy(back), has_change)
    return figures


def describe(name: str, autoencoder: SliceAutoencoder) -> dict:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        autoencoder.encode(torch.zeros(1, IMAGE_SIZE, IMAGE_SIZE))
    folder = SHIPPED_WEIGHTS / name if (SHIPPED_WEIGHTS / name).is_dir() else Path(name)
    encoder = sum(p.numel() for n, p in autoencoder.model.named_parameters() if n.startswith("encoder"))
    return {
        "class": type(autoencoder.model).__name__,
        "encoder_gflop_per_slice": counter.get_total_flops() / 1e9,
        "parameters": sum(p.numel() for p in autoencoder.model.parameters()),
        "encoder_parameters": encoder,
        "weights_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None,
    }


def evaluate(name: str, images: torch.Tensor, run: BoldRun, device: torch.device) -> dict:
    """All figures of one autoencoder, ready for JSON."""
    trained = load_autoencoder(name)
    facts = describe(name, trained)
    torch.manual_seed(0)
    random_weights = SliceAutoencoder(type(trained.model).from_config(trained.model.config), name="random weights")
    results = {}
    for kind, autoencoder in (("measured", trained), ("random_weights", random_weights)):
        results[kind] = measure_photographs(autoencoder.model, images)
        results[kind] |= measure_scan(autoencoder, run, device)
    return {
        "autoencoder": name,
        "revision": trained.revision,
        **facts,
        "photographs": len(images),
        "scan_frames": run.num_frames,
        "scan_voxels": int(run.mask.sum()),
        **results,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({platform.machine()})",
    }


def figures_table(result: dict) -> str:
    """The figures of `evaluate` as a Markdown table and a sentence on what fell short."""
    lines = ["| measure | this autoencoder | random weights | aim |", "|---|---|---|---|"]
    missed = []
    for key, label, unit, decimals, aim in MEASURES:
        value, floor = (f"{result[kind][key]:.{decimals}f} {unit}".strip() for kind in ("measured", "random_weights"))
        lines.append(f"| {label} | {value} | {floor} | {f'{aim:g} {unit}'.strip() if aim else ''} |")
        if aim and float(value.split()[0]) < aim:
            missed.append(f"{label} ({value} of {aim:g} {unit}".strip() + ")")
    size = f"{result['weights_bytes'] / 1e6:.1f} MB" if result["weights_bytes"] else "not a local file"
    lines += [
        "",
        f"Encoder: {result['encoder_gflop_per_slice']:.2f} GFLOP for a slice of 96 x 96 (2 for each multiply-add), "
        f"{result['encoder_parameters'] / 1e6:.1f} M of {result['parameters'] / 1e6:.1f} M parameters. "
        f"Weights: {size}, `{result['revision']}`.",
        "",
        f"Short of its aim: {'; '.join(missed)}." if missed else "Every aim was reached.",
    ]
    return "\n".join(lines)


def training_table(record: dict) -> str:
    """The stages of a training.json as a Markdown table, a row for each setting."""
    stages = record["stages"]
    columns = [stage["recipe"] for stage in stages]
    lines = [
        f"| | {' | '.join(f'stage {number}' for number in range(1, len(stages) + 1))} |",
        "|---" * (len(stages) + 1) + "|",
    ]
    for setting in dict.fromkeys(setting for column in columns for setting in column):
        values = [_written(column.get(setting)) for column in columns]
        lines.append(f"| {setting.replace('_', ' ')} | {' | '.join(values)} |")
    lines += [
        "",
        f"{record['training_photographs']:,} photographs to train on, {record['held_out_photographs']} held out, "
        f"on one {record['device']} with torch {record['torch']}.",
    ]
    return "\n".join(lines)


def _written(value) -> str:
    if isinstance(value, list):
        return " to ".join(map(_written, value))
    return "-" if value is None else f"{value:g}"


def refresh_card(folder: Path, result: dict) -> None:
    """Write the figures, and put them between the marks of the card beside them."""
    name = result["autoencoder"]
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    card = folder / f"{name}.md"
    if not card.exists():
        return
    text = card.read_text()
    record = json.loads((SHIPPED_WEIGHTS / name / "training.json").read_text())
    for mark, table in (("figures", figures_table(result)), ("training", training_table(record))):
        start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
        before, rest = text.split(start)
        _, after = rest.split(end)
        text = f"{before}{start}{table}\n{end}{after}"
    card.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("autoencoders", nargs="+", metavar="AUTOENCODER")
    parser.add_argument("--photographs", type=Path, required=True, help="folder with held_out* images")
    parser.add_argument("--scan", type=Path, required=True, help="4D NIfTI in MNI152 space")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--card", type=Path, help="folder of cards to bring up to date; for shipped names")
    arguments = parser.parse_args()

    held_out = sorted(arguments.photographs.glob("held_out*"))
    images = Photographs(held_out, "cpu").centre_crops()
    run = open_run(arguments.scan)
    print(f"{len(images)} photographs; {arguments.scan.name}: {run.num_frames} frames", flush=True)
    for name in arguments.autoencoders:
        started = time.monotonic()
        result = evaluate(name, images, run, torch.device(arguments.device))
        print(f"\n{name} ({time.monotonic() - started:.0f} s on {result['device']})\n\n{figures_table(result)}")
        if arguments.card:
            refresh_card(arguments.card, result)


if __name__ == "__main__":
    main()
