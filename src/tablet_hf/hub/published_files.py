"""The files of a repository: of a folder, what others need and what may be published."""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tablet_hf.datasets.export import PUBLISHED_PREPROCESSING, export_parquet, without_paths
from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import STORE_FILE, StoredRun
from tablet_hf.errors import InputError
from tablet_hf.files import saved_weights_checksum, write_json
from tablet_hf.hub.cards import CardFacts, read_evaluation, template_file
from tablet_hf.hub.files import read_json, weight_files
from tablet_hf.hub.privacy import holds_ages, publish_splits, published_classes, published_study
from tablet_hf.hub.sharing import is_shipped
from tablet_hf.hub.training_data import TrainingData

__all__ = ["kind_of", "published_training", "write_autoencoder", "write_model", "write_tokens"]

CARD, CONFIG, EXTRACTOR = "README.md", "config.json", "preprocessor_config.json"
# JSON in which no path can be.
PLAIN = re.compile(r'[\w\s.:,+"{}\[\]-]{0,2000}')


def kind_of(path: str | Path) -> str:
    """What a folder holds: "model", "autoencoder" or "dataset" (a store or its Parquet export).

    Raises:
        InputError: nothing that can be published.
    """
    folder = Path(path)
    if (folder / STORE_FILE).is_file():
        return "dataset"
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        if "_class_name" in config:
            return "autoencoder"
        if config.get("model_type") == "tablet":
            return "model"
        if "input_feature_size" in config:
            raise InputError(f"{path}: a checkpoint in the released layout; convert it first (tablet-hf convert).")
    raise InputError(f"{path}: not a folder of a TABLeT model, an autoencoder or a token dataset.")


def published_training(training: TrainingData) -> TrainingData:
    """A training of a model as it is published; a folder that it started from is named without its path."""
    start = training.started_from
    if start is not None and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", start):
        start = re.split(r"[/\\]", start.rstrip("/\\"))[-1]
    return replace(training, studies=tuple(map(published_study, training.studies)), started_from=start)


def write_model(
    path: Path, folder: Path, facts: CardFacts, evaluation: str | Path | None, with_code: bool
) -> CardFacts:
    """Write the files of a model, and complete the facts of its card.

    Raises:
        InputError: files that cannot be published, or figures of other weights.
    """
    from tablet_hf.convert_tablet_to_hf import converted_from
    from tablet_hf.hub.custom_code import write_custom_code

    config = _published_config(path)
    write_json(folder / CONFIG, config, indent=2)
    if (path / EXTRACTOR).is_file():
        made = without_paths(read_json(path / EXTRACTOR))
        write_json(folder / EXTRACTOR, {name: made[name] for name in PUBLISHED_PREPROCESSING if name in made}, indent=2)
    else:
        warnings.warn(f"{path}: no {EXTRACTOR}, so that others cannot tokenize scans for the model.", stacklevel=3)
    parameters = _copy_weights(path, folder, "model")
    source = None if facts.stages else converted_from(path)
    if facts.stages:
        TrainingData.write(folder, facts.stages)
    elif facts.store is None and source is None:
        warnings.warn(f"{path}: its training data are not recorded; name them with --dataset STORE.", stacklevel=3)
    if with_code:
        write_custom_code(folder)
    figures = None if evaluation is None else read_evaluation(evaluation)
    if figures is not None and figures.weights and saved_weights_checksum(path) not in figures.weights:
        raise InputError(f"{evaluation}: its figures are of other weights than those in {path}; evaluate this model.")
    if figures is not None and not (figures.weights and figures.is_held_out):
        doubt = "not known to be of held-out subjects and of these weights"
        warnings.warn(f"{evaluation}: {doubt}, so its figures are in the text of the card only.", stacklevel=3)
    return replace(
        facts, settings=config, parameters=parameters, converted_from=source, evaluation=figures, with_code=with_code
    )


def _published_config(path: Path) -> dict[str, Any]:
    """The configuration of a model: only what a `TabletConfig` has, without paths, and sites numbered.

    Raises:
        InputError: not the configuration of a TABLeT, or class names that may not be published.
    """
    from huggingface_hub.errors import StrictDataclassError

    from tablet_hf.configuration_tablet import TabletConfig

    settings = read_json(path / CONFIG)
    try:
        TabletConfig.from_dict(dict(settings))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"{path / CONFIG}: not the configuration of a TABLeT; save the model again.") from error
    fields = TabletConfig().to_dict().keys() - {
        "_name_or_path",
        "target_name",
        "negative_label",
        "id2label",
        "label2id",
    }
    config = {
        name: value
        for name, value in without_paths(settings).items()
        if name in fields
        if name.startswith("autoencoder") or PLAIN.fullmatch(json.dumps(value))
    }
    if config.get("autoencoder") != settings.get("autoencoder"):
        warnings.warn(f"{path}: its autoencoder is a local folder; publish it too.", stacklevel=4)
    label, negative = settings.get("target_name"), settings.get("negative_label")
    classes = {key: str(name) for key, name in (settings.get("id2label") or {}).items()}
    names = sorted({*classes.values(), *([str(negative)] if negative else [])})
    published = dict(zip(names, published_classes(label or "label", names), strict=True))
    if label:
        config["target_name"] = label
    if negative:
        config["negative_label"] = published[str(negative)]
    if classes:
        config["id2label"] = {key: published[name] for key, name in classes.items()}
        config["label2id"] = {published[name]: int(key) for key, name in classes.items()}
    return config


def _copy_weights(path: Path, folder: Path, stem: str) -> int:
    """Write the tensors of safetensors files, and nothing else that the files hold; returns how many numbers.

    Raises:
        InputError: no such files, or an index that names files elsewhere.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors = {}
    for file in weight_files(path, stem):
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: not a safetensors file; save the model with save_pretrained.") from error
    save_torch_state_dict(tensors, folder, filename_pattern=f"{stem}{{suffix}}.safetensors")
    return sum(tensor.numel() for tensor in tensors.values())


def write_autoencoder(path: Path, folder: Path, facts: CardFacts) -> CardFacts:
    """Write the files of an autoencoder, and complete the facts of its card; one of this package brings its own card.

    Raises:
        InputError: files that cannot be published, or another licence than that of this package.
    """
    import inspect

    import diffusers

    from tablet_hf.slice_autoencoder import weights_fingerprint

    config = read_json(path / CONFIG)
    network = getattr(diffusers, str(config["_class_name"]), None)
    if not isinstance(network, type):
        raise InputError(f"{path / CONFIG}: diffusers has no class of this name; save the autoencoder again.")
    fields = {"_class_name", "_diffusers_version", *inspect.signature(network.__init__).parameters}
    config = {name: value for name, value in config.items() if name in fields}
    write_json(folder / CONFIG, config, indent=2)
    parameters = _copy_weights(path, folder, "diffusion_pytorch_model")
    if is_shipped(path):
        if facts.sharing.license not in (None, "apache-2.0"):
            raise InputError(f"--license {facts.sharing.license}: {path.name} is under apache-2.0; leave it out.")
        (folder / CARD).write_bytes(template_file(f"{path.resolve().name}.md").read_bytes())
        (folder / "training.json").write_bytes((path / "training.json").read_bytes())
    return replace(facts, settings=config, parameters=parameters, rows={"weights": weights_fingerprint(path)})


def write_tokens(
    store: TokenDataset,
    runs: Sequence[StoredRun],
    folder: Path,
    facts: CardFacts,
    on_progress: Callable[[int, int], None] | None,
) -> CardFacts:
    """Write the published runs of a store and their splits, and complete the facts of its card."""
    export_parquet(store, folder, on_progress=on_progress, published=runs)
    publish_splits(store, runs, folder)
    frames, seconds = {run.num_frames for run in runs}, sorted({f"{run.repetition_time:.4g} s" for run in runs})
    years = " (in whole years, 90 for 90 and over)"
    phenotypes = [f"`{name}`{years * holds_ages(name)}" for name in runs[0].phenotypes]
    phenotypes += ["families"] * any(run.family is not None for run in runs)
    rows = {
        "frames per run": f"{min(frames)} to {max(frames)}",
        "repetition time": ", ".join(seconds[:6]) + ", ..." * bool(seconds[6:]),
        "tokens": f"{store.geometry.num_cells} of {store.geometry.token_size:,} numbers per frame, {store.dtype}",
        "phenotypes": ", ".join(phenotypes) or "none",
    }
    return replace(facts, settings=without_paths(store.preprocessing), rows=rows)
