"""Where training starts from, its own last checkpoint, a model's weights, or nothing, and where it ends: a model."""

import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError, not_on_hub
from tablet_hf.files import atomic_folder, atomic_write, checksum
from tablet_hf.hub.files import check_model_name
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.training.arguments import process_state

__all__ = [
    "TRAINING_FILE",
    "agreed_checkpoint",
    "checksums",
    "initial_model",
    "keep_to_one_training",
    "last_checkpoint",
    "save_model",
    "training_subjects",
]

# Trainer writes it after all else of a checkpoint.
LAST_FILE = "trainer_state.json"
TRAINING_FILE = "training.json"
DIFFERENCES = {"tokens": "on other tokens", "labels": "with other labels of the same people"}
"""What is said where checksums differ, which tell no one anything."""


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of `Trainer` in a folder; those that a killed process left half-written are deleted.

    Trainer itself takes the newest folder, whole or not.

    Raises:
        InputError: the newest was written to its end, but one of its files was damaged since.
    """
    checkpoints = [path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    whole = []
    for path in checkpoints:
        try:
            json.loads((path / LAST_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
        else:
            whole.append(path)
    newest = max(whole, key=lambda path: int(path.name.split("-")[-1]), default=None)
    if newest is not None and (damaged := _damaged_file(newest)) is not None:
        raise InputError(
            f"{damaged}: this part of a checkpoint is damaged, as a power cut or a full disk leaves it; delete "
            f"{newest} to go on from the checkpoint before, or from the beginning where there is none."
        )
    return newest


def _damaged_file(checkpoint: Path) -> Path | None:
    """The first file that has lost its beginning or its end; what is between is not looked at."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(checkpoint.iterdir()):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
                return path
        except (OSError, SafetensorError):
            return path
    return None


def agreed_checkpoint(folder: str | Path) -> Path | None:
    """`last_checkpoint` as the main process finds it, for all processes."""
    from accelerate.utils import broadcast_object_list

    state = process_state()
    if state.num_processes == 1:
        return last_checkpoint(folder)
    found = [last_checkpoint(folder) if state.is_main_process else None]
    broadcast_object_list(found)
    return found[0]


def keep_to_one_training(
    folder: str | Path, described: Mapping[str, Any], carried_out: Mapping[str, Any], result_file: str
) -> None:
    """Note in `training.json` what is trained in a folder, or make sure that it is this.

    Args:
        folder: made if need be.
        described: all that decides what comes out, as JSON has it.
        carried_out: see `Settings`; of a training that has come to its end it may differ.
        result_file: whose name in the folder says that it has.

    Raises:
        InputError: another training was begun there; the sentence names the first difference.
    """
    path = Path(folder) / TRAINING_FILE
    described = json.loads(json.dumps(dict(described) | {"carried_out": dict(carried_out)}))
    with process_state().main_process_first():
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as unfinished:
                unfinished.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
            return
        try:
            found = _flat(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise InputError(f"{path}: it is no JSON; delete {folder}, or choose another --out.") from error
    if (Path(folder) / result_file).is_file():
        described.pop("carried_out")
    for name, value in _flat(described).items():
        if found.get(name) != value:
            what = "of other people" if isinstance(value, list) else f"with {name} {found.get(name)!r}, not {value!r},"
            what = DIFFERENCES.get(name, what)
            way_out = f"go on with {name} {found.get(name)}, " if name in carried_out else ""
            raise InputError(
                f"{folder}: a training {what} was begun there; {way_out}choose another --out, or delete it."
            )


def checksums(runs: Iterable[Any], label: str | None = None) -> dict[str, str]:
    """What tells the tokens of some runs, and their labels, from others; for `keep_to_one_training`.

    Args:
        runs: of a store, in any order.
        label: a phenotype's name; None for tokens alone.
    """
    runs = sorted(runs, key=lambda run: run.key)
    facts = {"tokens": [(run.key, run.sha256) for run in runs]}
    if label is not None:
        facts["labels"] = [(run.key, str(run.phenotypes.get(label))) for run in runs]
    return {name: checksum(values) for name, values in facts.items()}


def training_subjects(model: str | Path) -> set[str]:
    """The subjects that a model was trained on or chosen by, where the folder of its training tells; else no one.

    Args:
        model: a folder that `pretrain` or `finetune_fold` made, or any other, or a Hub id.
    """
    try:
        split = json.loads((Path(model).resolve().parent / TRAINING_FILE).read_text(encoding="utf-8"))["split"]
        return {*split["train"], *split["validation"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _flat(described: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in described.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def save_model(trainer: Any, folder: Path, preprocessing: Mapping[str, Any], trainings: Sequence[TrainingData]) -> None:
    """Write the trained model, and next to it how its tokens are made and what it trained on; all processes call it.

    Args:
        trainer: whose model it is; its main process writes.
        folder: replaced as a whole.
        preprocessing: see `TabletFeatureExtractor.to_dict`.
        trainings: this one after those of the weights it started from; empty for a model that has learned nothing.
    """
    scratch = Path(trainer.args.output_dir) / "finished"
    trainer.save_model(str(scratch))
    if trainer.is_world_process_zero():
        with atomic_folder(folder) as unfinished:
            for pattern in ("config.json", "*.safetensors", "*.safetensors.index.json"):
                for path in scratch.glob(pattern):
                    shutil.copy2(path, unfinished / path.name)
            record = json.dumps(dict(preprocessing), indent=2)
            (unfinished / "preprocessor_config.json").write_text(record + "\n", encoding="utf-8")
            if trainings:
                TrainingData.write(unfinished, trainings)
        shutil.rmtree(scratch)


def initial_model(
    model_class: Any, init: str | Path | None, fields: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """A model to train, from scratch or from another one's weights, and what is to be said of it, in sentences.

    Args:
        model_class: a class of `modeling_tablet`.
        init: folder or Hub id of a model, fine-tuned or pre-trained, in the layout of the released code too; or None.
        fields: of its `TabletConfig`, over those of `init`.
        preprocessing: of the tokens that it will train on, see `TabletFeatureExtractor.to_dict`.

    Raises:
        InputError: no model is there, or it reads tokens of another shape.
    """
    from safetensors import SafetensorError

    from tablet_hf.configuration_tablet import ReleasedLayoutError, TabletConfig
    from tablet_hf.convert_tablet_to_hf import PUBLISHED_TOKEN_SIZE, convert_in_memory
    from tablet_hf.modeling_tablet import TabletForSequenceClassification

    made = {name: preprocessing.get(name) for name in (*TabletConfig.token_geometry, *TabletConfig.token_provenance)}
    made = {name: value for name, value in made.items() if value is not None}
    if init is None:
        return model_class(_config(made | dict(fields))), []
    check_model_name(init)
    weights = None
    try:
        try:
            config = TabletConfig.from_pretrained(str(init))
        except ReleasedLayoutError:
            # How many cells a frame has is reported by the size of published tokens, and of others by nothing.
            names = () if made.get("token_size") == PUBLISHED_TOKEN_SIZE else ("grid_size",)
            told_by_tokens = {name: made[name] for name in names if name in made}
            with_classifier = issubclass(model_class, TabletForSequenceClassification)
            config, weights, _ = convert_in_memory(model_class, with_classifier, str(init), **told_by_tokens)
        if config.model_type != TabletConfig.model_type:
            raise InputError(f"{init}: it holds no TABLeT; give the folder or Hub id of one.")
        config.check_tokens_compatible(preprocessing)
        config = _config(_without_task(config.to_dict()) | made | dict(fields))
        model, info = model_class.from_pretrained(
            None if weights else str(init),
            config=config,
            state_dict=weights,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
        )
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if told := not_on_hub(error, str(init), "model"):
            raise told from error
        raise InputError(f"{init}: no training can start from it; {' '.join(str(error).split())}") from error
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    backbone = [key for key in missing if key.startswith("tablet.") and "mask_token" not in key]
    if backbone:
        raise InputError(
            f"{init}: {len(backbone)} of the weights that its config.json asks for are missing, first {backbone[0]}; "
            "copy or download it again."
        )
    said = []
    if mismatched:
        key, found, expected = mismatched[0]
        said.append(
            f"{init}: {len(mismatched)} of its weights have another shape and start anew, first {key} with "
            f"{tuple(found)} instead of {tuple(expected)}."
        )
    if missing:
        said.append(f"{init}: it has no {', '.join(missing)}, which start anew.")
    if unused := sorted(key for key in info["unexpected_keys"] if not key.startswith("tablet.")):
        said.append(f"{init}: its {', '.join(unused)} are of another task and are not used.")
    return model, said


def _config(fields: Mapping[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    from tablet_hf.configuration_tablet import TabletConfig

    try:
        return TabletConfig(**fields)
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"no model can be made so: {reason.split('Error: ')[-1]}") from error


def _without_task(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields without what it predicts."""
    of_task = ("problem_type", "num_labels", "id2label", "label2id", "target_mean", "target_std", "positive_weight")
    of_task += ("class_weights", "negative_label", "target_name", "architectures", "model_type", "transformers_version")
    return {name: value for name, value in fields.items() if name not in of_task}
