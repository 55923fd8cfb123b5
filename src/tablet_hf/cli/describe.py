"""Facts about a scan, a model, an autoencoder or a token file, {name: value}, as `tablet-hf info` prints them."""

import json
import warnings
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.hub.files import count_parameters, fetch, read_json, weight_files
from tablet_hf.hub.training_data import TrainingData

MASK_SOURCES = {
    "given": "given",
    "bids": "BIDS brain mask next to the scan",
    "nonzero": "non-zero voxels",
    "epi": "EPI mask of the mean image",
}


def describe(name: str, **scan_options: Any) -> dict[str, Any]:
    """Describe an autoencoder, a token file, a scan, or the folder or Hub id of a model or an autoencoder.

    Args:
        scan_options: of `describe_scan`.

    Raises:
        InputError: it cannot be read.
    """
    from tablet_hf.datasets.store_files import STORE_FILE
    from tablet_hf.datasets.token_files import SUFFIX
    from tablet_hf.slice_autoencoder import shipped_autoencoders

    path = Path(name)
    if name in shipped_autoencoders():
        return describe_autoencoder(name)
    if name.endswith(SUFFIX):
        return describe_tokens(path)
    if (path / STORE_FILE).is_file():
        raise InputError(f"{name}: it is a token dataset; use tablet-hf dataset describe.")
    if path.is_file() or name.endswith((".nii", ".nii.gz")):
        return describe_scan(path, **scan_options)
    config = read_json(fetch(name, "config.json"))
    return describe_autoencoder(name) if "_class_name" in config else describe_model(name, config)


def describe_scan(
    path: Path,
    mask: Path | None = None,
    repetition_time: float | None = None,
    check_space: bool = True,
    add_mean: Path | None = None,
) -> dict[str, Any]:
    """Describe a scan and how it is placed on the model's grid."""
    import numpy as np

    from tablet_hf.volumes import open_run

    run = open_run(path, mask, repetition_time, add_mean=add_mean, check_space=check_space)
    run.survey()
    voxel = np.linalg.norm(run.source_affine[:3, :3], axis=0)
    return {
        "scan": path,
        "frames": run.num_frames,
        "repetition time": f"{run.repetition_time:g} s ({run.num_frames * run.repetition_time / 60:.1f} min)",
        "grid": f"{' x '.join(map(str, run.source_shape))} voxels of {' x '.join(f'{edge:.3g}' for edge in voxel)} mm",
        "placement on the 2 mm grid": "resampled" if run.is_resampled else "shifted by whole voxels",
        "brain mask": f"{MASK_SOURCES[run.mask_source]}, {np.count_nonzero(run.mask) * 8e-6:.2f} litres on the grid",
        "largest intensity": f"{run.maximum:g}",
        "tokens (f32c32)": f"{run.num_frames} x 27 x 3072, {run.num_frames * 27 * 3072 * 2 / 2**20:.0f} MiB in float16",
    }


def describe_model(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Describe a model by the content of its config.json."""
    from huggingface_hub.errors import StrictDataclassError

    from tablet_hf import TabletConfig
    from tablet_hf.hub.loading import unusable

    if settings.get("model_type") != "tablet":
        kind = settings.get("model_type")
        raise InputError(f"{name}: model type {kind!r}, not tablet; a released checkpoint needs tablet-hf convert.")
    try:
        config = TabletConfig.from_dict(settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise unusable(name, "its config.json cannot be used", error) from error
    architectures = config.architectures or ["unknown"]
    facts = {
        "model": name,
        "class": ", ".join(architectures),
        "parameters": f"{sum(map(count_parameters, weight_files(name))):,}",
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size}, {config.num_attention_heads} heads "
        f"({config.num_key_value_heads} key/value)",
        "positions": config.position_embedding_type,
        "tokens": f"{config.num_cells} x {config.token_size} a frame",
        "autoencoder": f"{config.autoencoder or 'unknown'} {config.autoencoder_revision or ''}".strip(),
        "signal, scaling": f"{config.signal or 'unknown'}, {config.scaling or 'unknown'}",
        "window": f"{config.num_frames} frames" if config.num_frames else "unknown",
    }
    if "TabletForSequenceClassification" in architectures:
        facts["predicts"] = f"{', '.join(config.id2label.values())} ({config.problem_type or 'unknown problem type'})"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a record that cannot be fetched matters for training, not here
        trainings = TrainingData.of_model(name)
    if trainings:
        start = [] if trainings[0].started_from is None else [f"{trainings[0].started_from} (not recorded)"]
        facts["trained on"] = ", then ".join([*start, *map(str, trainings)])
    return facts


def describe_autoencoder(name: str) -> dict[str, Any]:
    """Describe an autoencoder and the tokens that it gives."""
    from tablet_hf import TabletFeatureExtractor

    extractor = TabletFeatureExtractor(name)
    model = extractor.slice_autoencoder.model
    factor = extractor.volume_size // extractor.grid_size
    return {
        "autoencoder": name,
        "class": type(model).__name__,
        "revision": extractor.autoencoder_revision,
        "compression": f"f{factor}c{extractor.token_size // (3 * factor)}",
        "parameters": f"{sum(weight.numel() for weight in model.parameters()):,}",
        "tokens": f"{extractor.grid_size**3} x {extractor.token_size} a frame",
    }


def describe_tokens(path: Path) -> dict[str, Any]:
    """Describe a token file."""
    from tablet_hf.datasets.token_files import load_tokens

    run, record = load_tokens(path)
    source = record.get("source")
    settings = {name: value for name, value in record.items() if name not in ("source", "options")}
    return {
        "tokens": path,
        "shape": f"{' x '.join(map(str, run.tokens.shape))} {str(run.tokens.dtype).removeprefix('torch.')}",
        "frames": f"{run.frames[0]} to {run.frames[-1]}",
        "repetition time": f"{run.repetition_time:g} s",
        "clipped": f"{100 * run.clipped_share:.2f}% of brain values",
        "source": source.get("path", "unknown") if isinstance(source, dict) else "unknown",
        "settings": json.dumps(settings),
    }
