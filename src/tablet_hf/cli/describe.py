"""What a scan, a model, an autoencoder or a file of tokens holds, as facts to be printed: {name: value}."""

import json
import warnings
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.hub.files import count_parameters, fetch, weight_files
from tablet_hf.hub.training_data import TrainingData

MASK_SOURCES = {
    "given": "the one given",
    "bids": "the BIDS brain mask beside the scan",
    "nonzero": "voxels that are not zero",
    "epi": "EPI mask of the mean image",
}


def describe(
    name: str,
    mask: Path | None = None,
    repetition_time: float | None = None,
    check_space: bool = True,
    add_mean: Path | None = None,
) -> dict[str, Any]:
    """Facts about whatever `name` is: a shipped autoencoder, a file of tokens, a scan, or the folder or Hub id of a
    model or an autoencoder.

    Raises:
        InputError: it cannot be read as what it seems to be.
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
        raise InputError(f"{name}: it is a token dataset; tablet-hf dataset describe tells what is in it.")
    if path.is_dir() or not (path.exists() or name.endswith((".nii", ".nii.gz"))):
        config = read_config(name)
        return describe_autoencoder(name) if "_class_name" in config else describe_model(name, config)
    return describe_scan(path, mask, repetition_time, check_space, add_mean)


def describe_scan(
    path: Path,
    mask: Path | None = None,
    repetition_time: float | None = None,
    check_space: bool = True,
    add_mean: Path | None = None,
) -> dict[str, Any]:
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
        "way to the 2 mm cube": "resampled" if run.is_resampled else "moved by whole voxels, not interpolated",
        "brain mask": f"{MASK_SOURCES[run.mask_source]}, {np.count_nonzero(run.mask) * 8e-6:.2f} litres on the cube",
        "largest intensity": f"{run.maximum:g}",
        "tokens (f32c32)": f"{run.num_frames} x 27 x 3072, {run.num_frames * 27 * 3072 * 2 / 2**20:.0f} MiB in float16",
    }


def read_config(name: str) -> dict[str, Any]:
    """What the config.json of a folder or a Hub id holds; with a "_class_name" it is that of an autoencoder."""
    path = fetch(name, "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: it is not readable as JSON ({error}); save or fetch it again.") from error
    if not isinstance(config, dict) or not {"_class_name", "model_type"} & config.keys():
        raise InputError(
            f"{path}: it names neither a model nor an autoencoder; a checkpoint of the code released with the paper "
            "has to be converted first (tablet-hf convert)."
        )
    return config


def describe_model(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    from huggingface_hub.errors import StrictDataclassError

    from tablet_hf import TabletConfig
    from tablet_hf.hub.loading import unusable

    if settings.get("model_type") != "tablet":
        raise InputError(f"{name}: it is a model of type {settings.get('model_type')!r}, not a TABLeT.")
    try:
        config = TabletConfig.from_dict(settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise unusable(name, "its config.json cannot be used", error) from error
    parameters = sum(map(count_parameters, weight_files(name)))
    facts = {
        "model": name,
        "class": ", ".join(config.architectures or ["not recorded"]),
        "parameters": f"{parameters:,}",
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size}, {config.num_attention_heads} heads "
        f"({config.num_key_value_heads} key/value)",
        "positions": config.position_embedding_type,
        "tokens": f"{config.num_cells} x {config.token_size} a frame",
        "autoencoder": f"{config.autoencoder or 'not recorded'} {config.autoencoder_revision or ''}".strip(),
        "signal, scaling": f"{config.signal or 'not recorded'}, {config.scaling or 'not recorded'}",
        "window": f"{config.num_frames} frames" if config.num_frames else "not recorded",
    }
    if "TabletForSequenceClassification" in (config.architectures or []):
        facts["predicts"] = f"{', '.join(config.id2label.values())} ({config.problem_type or 'problem_type not set'})"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it could not be asked for matters to who trains from it
        trainings = TrainingData.of_model(name)
    if trainings:
        start = [] if trainings[0].started_from is None else [f"what {trainings[0].started_from} did, not recorded"]
        facts["learnt from"] = ", then ".join([*start, *map(str, trainings)])
    return facts


def describe_autoencoder(name: str) -> dict[str, Any]:
    from tablet_hf import TabletFeatureExtractor

    extractor = TabletFeatureExtractor(name)
    model = extractor.slice_autoencoder.model
    size = extractor.token_size // (3 * (extractor.volume_size // extractor.grid_size))
    return {
        "autoencoder": name,
        "class": type(model).__name__,
        "revision": extractor.autoencoder_revision,
        "compression": f"f{extractor.volume_size // extractor.grid_size}c{size}",
        "parameters": f"{sum(weight.numel() for weight in model.parameters()):,}",
        "tokens": f"{extractor.grid_size**3} x {extractor.token_size} a frame",
    }


def describe_tokens(path: Path) -> dict[str, Any]:
    from tablet_hf.datasets.token_files import load_tokens

    run, record = load_tokens(path)
    source = record.get("source")
    return {
        "tokens": path,
        "shape": f"{' x '.join(map(str, run.tokens.shape))} {str(run.tokens.dtype).removeprefix('torch.')}",
        "frames": f"{run.frames[0]} to {run.frames[-1]}",
        "repetition time": f"{run.repetition_time:g} s",
        "clipped": f"{100 * run.clipped_share:.2f}% of the brain's values",
        "made from": source.get("path", "not recorded") if isinstance(source, dict) else "not recorded",
        "made by": json.dumps({name: value for name, value in record.items() if name not in ("source", "options")}),
    }
