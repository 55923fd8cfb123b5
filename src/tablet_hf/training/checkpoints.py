"""Where training starts from, its last checkpoint, a model's weights, or nothing, and the model it ends with."""

import json
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError, not_on_hub
from tablet_hf.files import atomic_folder, checksum, write_json
from tablet_hf.hub.files import check_model_name
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.training.arguments import TabletTrainingArguments, process_state

__all__ = ["check_same_training", "initial_model", "last_checkpoint", "save_model", "training_subjects"]

TRAINING_FILE = "training.json"
DECIDING = ("window_frames", "num_train_epochs", "max_steps", "per_device_train_batch_size", "warmup_steps")
DECIDING += ("gradient_accumulation_steps", "learning_rate", "weight_decay", "seed", "logging_steps", "save_steps")
DECIDING += ("mode", "lora_rank", "learning_rates", "patience", "metric_for_best_model")
"""Settings that decide what training gives, except for rounding."""

OF_TASK = ("problem_type", "num_labels", "id2label", "label2id", "target_mean", "target_std", "positive_weight")
OF_TASK += ("class_weights", "negative_label", "target_name", "architectures", "model_type", "transformers_version")


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest complete checkpoint in a folder, on all processes; incomplete ones are deleted.

    Trainer writes `trainer_state.json` after everything else, and would itself resume from the newest folder, complete
    or not.
    """
    from accelerate.utils import broadcast_object_list
    from transformers.trainer import TRAINER_STATE_NAME

    complete: dict[int, Path] = {}
    if process_state().is_main_process:
        for path in Path(folder).glob("checkpoint-[0-9]*"):
            try:
                json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
                complete[int(path.name.split("-")[-1])] = path
            except (OSError, ValueError):
                shutil.rmtree(path, ignore_errors=True)
    found = [complete[max(complete)] if complete else None]
    broadcast_object_list(found)
    return found[0]


def check_same_training(
    folder: str | Path, description: Mapping[str, Any], arguments: TabletTrainingArguments, result_file: str
) -> None:
    """Record in `training.json` what is trained in a folder, or check that it is the same training.

    Args:
        folder: made if it does not exist.
        description: everything that decides the result besides `arguments`, JSON-able.
        arguments: see `TabletTrainingArguments`.
        result_file: file in the folder of a finished training, which may then have run on another machine.

    Raises:
        InputError: another training was begun there.
    """
    folder = Path(folder)
    machine = {"processes": process_state().num_processes, "precision": arguments.precision}
    settings = {name: getattr(arguments, name) for name in DECIDING}
    description = json.loads(json.dumps({"settings": settings, **description, "carried_out": machine}))
    path = folder / TRAINING_FILE
    with process_state().main_process_first():
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, description, indent=1)
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found = found["settings"] | found | found["carried_out"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged; delete {folder}, or choose another output folder.") from error
    is_finished = (folder / result_file).is_file()
    for name, value in (description["settings"] | description | ({} if is_finished else machine)).items():
        if name not in ("settings", "carried_out") and found.get(name) != value:
            short = f" ({found.get(name)}, not {value})" if len(f"{found.get(name)}{value}") < 60 else ""
            raise InputError(
                f"{folder}: another training was begun there, with another {name}{short}; go on with that, choose "
                "another output folder, or delete it."
            )


def checksums(runs: Iterable[Any], label: str | None = None) -> dict[str, str]:
    """Return checksums of the tokens of some runs, and of their labels, for `check_same_training`."""
    runs = sorted(runs, key=lambda run: run.key)
    facts = {"tokens": [(run.key, run.sha256) for run in runs]}
    if label is not None:
        facts["labels"] = [(run.key, str(run.phenotypes.get(label))) for run in runs]
    return {name: checksum(values) for name, values in facts.items()}


def training_subjects(model: str | Path) -> set[str]:
    """Return the subjects a model was trained on or chosen by; empty for a Hub id or a folder without the record."""
    try:
        split = json.loads((Path(model).resolve().parent / TRAINING_FILE).read_text(encoding="utf-8"))["split"]
        return {*split["train"], *split["validation"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def save_model(trainer: Any, folder: Path, preprocessing: Mapping[str, Any], trainings: Sequence[TrainingData]) -> None:
    """Write a trained model with its preprocessing and the record of its training data; all processes call it.

    Args:
        trainer: trainer of the model; its main process writes.
        folder: replaced as a whole.
        preprocessing: see `TabletFeatureExtractor.to_dict`.
        trainings: this training after those of the weights it started from.
    """
    scratch = Path(trainer.args.output_dir) / "finished"
    trainer.save_model(str(scratch))
    if trainer.is_world_process_zero():
        with atomic_folder(folder) as unfinished:
            for pattern in ("config.json", "*.safetensors", "*.safetensors.index.json"):
                for path in scratch.glob(pattern):
                    shutil.copy2(path, unfinished / path.name)
            write_json(unfinished / "preprocessor_config.json", dict(preprocessing), indent=2)
            TrainingData.write(unfinished, trainings)
        shutil.rmtree(scratch)


def write_result(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the result of a finished training as JSON, and delete the checkpoints in its folder."""
    write_json(path, facts, indent=1, default=lambda number: number.item())  # numpy's numbers
    for checkpoint in path.parent.rglob("checkpoint-[0-9]*"):
        shutil.rmtree(checkpoint)


def initial_model(
    model_class: Any, init: str | Path | None, fields: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> Any:
    """Make a model to train, from scratch or from another model's weights.

    Args:
        model_class: a class of `modeling_tablet`.
        init: folder or Hub id of a fine-tuned or pre-trained model, also in the layout of the released code; or None.
        fields: fields of its `TabletConfig`, over those of `init`.
        preprocessing: how the tokens it trains on were made, see `TabletFeatureExtractor.to_dict`.

    Raises:
        InputError: there is no model, or it reads tokens of another shape.
    """
    from safetensors import SafetensorError

    from tablet_hf.configuration_tablet import TabletConfig
    from tablet_hf.convert_tablet_to_hf import OPTIONAL_WEIGHTS

    names = (*TabletConfig.token_geometry, *TabletConfig.token_provenance)
    tokens = {name: preprocessing[name] for name in names if preprocessing.get(name) is not None}
    if init is None:
        return model_class(_config(tokens | dict(fields)))
    check_model_name(init)
    try:
        # The released code does not record the number of cells, which is that of the tokens to train on.
        is_released = "model_type" not in TabletConfig.get_config_dict(str(init))[0]
        cells = {"grid_size": tokens["grid_size"]} if is_released and "grid_size" in tokens else {}
        config = TabletConfig.from_pretrained(str(init), **cells)
        if config.model_type != TabletConfig.model_type:
            raise InputError(f"{init}: not a TABLeT model; give the folder or Hub id of one.")
        config.check_tokens_compatible(preprocessing, str(init))
        of_backbone = {name: value for name, value in config.to_dict().items() if name not in OF_TASK}
        model, info = model_class.from_pretrained(
            str(init),
            config=_config(of_backbone | tokens | dict(fields)),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
        )
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if reason := not_on_hub(error, str(init), "model"):
            raise reason from error
        raise InputError(f"{init}: training cannot start from it; {' '.join(str(error).split())}") from error
    differing = sorted(info["missing_keys"] | info["unexpected_keys"])
    if backbone := [key for key in differing if not OPTIONAL_WEIGHTS.fullmatch(key)]:
        raise InputError(f"{init}: its weights are not those of the configuration, first {backbone[0]}; copy it again.")
    if mismatched := sorted(info["mismatched_keys"]):
        key, found, expected = mismatched[0]
        warnings.warn(
            f"{init}: {len(mismatched)} weights have another shape and are initialised at random, first {key} "
            f"({tuple(found)} instead of {tuple(expected)}).",
            stacklevel=2,
        )
    return model


def _config(fields: Mapping[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    from tablet_hf.configuration_tablet import TabletConfig

    try:
        return TabletConfig(**fields)
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"model configuration: {reason.split('Error: ')[-1]}") from error
