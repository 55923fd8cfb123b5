"""Fine-tuning on a token dataset with `Trainer`: whole models, linear heads or adapters, with a learning-rate sweep.

    store = TokenDataset.load("STORE")
    splits = folds(**split_columns(store, "sex"))
    arguments = TabletTrainingArguments(num_train_epochs=20)
    tuned = [finetune_fold(store, split, "sex", f"my-model/{split.name}", arguments) for split in splits]

In each fold the training part is trained on, the validation part chooses epoch and learning rate, and the test part is
predicted once, at the end. A finished fold is not done again, and an interrupted one resumes from its last checkpoint.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tablet_hf.baselines.linear import LinearModel
from tablet_hf.datasets.splits import PARTS, Split, runs_in
from tablet_hf.datasets.tasks import Kind, Task, find_task
from tablet_hf.datasets.windows import EvaluationWindows, TrainingWindows
from tablet_hf.errors import InputError
from tablet_hf.evaluation.metrics import classification_metrics, regression_metrics
from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.modeling_tablet import TabletForSequenceClassification
from tablet_hf.training import checkpoints
from tablet_hf.training.arguments import TabletTrainingArguments
from tablet_hf.training.inference import predict_subjects, subject_metrics
from tablet_hf.training.trainer import make_trainer

__all__ = ["FinetunedFold", "finetune_fold", "read_fold"]

MODEL_FOLDER = "model"
RESULT_FILE = "fold.json"

SMALLER_IS_BETTER = ("loss", "mae", "mse")
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class FinetunedFold:
    """The result of fine-tuning in one fold.

    Attributes:
        name: name of the split.
        folder: folder of the model, for `from_pretrained`.
        task: what is predicted.
        learning_rate: the one that the validation part chose; None for a head.
        metric: metric by which it chose.
        validation: value of the metric by learning rate.
        predictions: predictions for the subjects of the test part.
        training_loss, validation_loss: pairs of epoch and loss, of the chosen model; empty for a head.
    """

    name: str
    folder: Path
    task: Task
    learning_rate: float | None
    metric: str
    validation: Mapping[str, float]
    predictions: Predictions
    training_loss: list[tuple[float, float]]
    validation_loss: list[tuple[float, float]]


def finetune_fold(
    store: Any,
    split: Split,
    label: str,
    out: str | Path,
    arguments: TabletTrainingArguments,
    *,
    init: str | Path | None = None,
    model: Mapping[str, Any] | None = None,
    kind: Kind | None = None,
    positive: Any = None,
    callbacks: Sequence[Any] = (),
) -> FinetunedFold:
    """Train on a split's training part to predict a label, and predict the subjects of its test part.

    Args:
        store: a `TokenDataset`.
        split: with subjects in all three parts.
        label: name of a phenotype.
        out: folder of this fold; `model/` and `fold.json` at the end.
        arguments: how to train; `output_dir` is not used.
        init: folder or Hub id of the starting weights; None starts from scratch.
        model: fields of `TabletConfig`, over those of `init`.
        kind, positive: see `find_task`.
        callbacks: further callbacks of `Trainer`.

    Raises:
        InputError: a label that cannot be predicted, weights that do not fit, a folder of another training, or FSDP.
    """
    from accelerate.utils import parse_flag_from_env

    out = Path(out)
    if arguments.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise InputError("FSDP is for pre-training only; fine-tune with torchrun or accelerate launch without FSDP.")
    if arguments.mode != "full" and init is None:
        raise InputError(f"mode {arguments.mode!r} needs trained weights; name a model (command line: --init).")
    runs = {part: runs_in(split, store.runs, part) for part in PARTS}
    all_runs = [run for part in PARTS for run in runs[part]]
    task = find_task(store, label, runs["train"], kind, positive, all_runs)
    work = _Fold(store, runs, task, out, arguments, init, model or {}, callbacks)
    if not (out / checkpoints.TRAINING_FILE).is_file():
        work.network()  # weights that cannot be loaded must not leave a folder that refuses the next try
    description = {
        "split": {part: split.subjects(part) for part in PARTS},
        "label": label,
        "classes": None if task.classes is None else [str(value) for value in task.classes],
        "init": None if init is None else str(init),
        "model": dict(model or {}),
    }
    description |= checkpoints.checksums([store.runs[run] for run in all_runs], label)
    checkpoints.check_same_training(out, description, arguments, RESULT_FILE)
    if (finished := read_fold(out)) is not None:
        return finished
    trainings = () if init is None else TrainingData.of_model(init)
    attempts = work.attempts()
    sign = -1 if work.metric in SMALLER_IS_BETTER else 1
    rate = max(attempts, key=lambda rate: np.nan_to_num(sign * attempts[rate].value, nan=-math.inf))
    chosen = attempts[rate]
    if math.isnan(chosen.value):
        raise InputError(f"{split.name}: the loss is not finite; choose a smaller learning rate and another folder.")
    result = FinetunedFold(
        split.name,
        out / MODEL_FOLDER,
        task,
        rate,
        work.metric,
        {"head" if rate is None else f"{rate:g}": attempt.value for rate, attempt in attempts.items()},
        predict_subjects(chosen.model, store, runs["test"], task, work.without_training, split.name),
        chosen.training_loss,
        chosen.validation_loss,
    )
    work.write(chosen.model, result, trainings)
    return result


def read_fold(out: str | Path) -> FinetunedFold | None:
    """Read the result of a finished fold from its folder; None where it is not finished."""
    path = Path(out) / RESULT_FILE
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    task = {name: tuple(value) if isinstance(value, list) else value for name, value in facts["task"].items()}
    facts |= {name: [tuple(pair) for pair in facts[name]] for name in ("training_loss", "validation_loss")}
    facts |= {"folder": Path(out) / facts["folder"], "task": Task(**task)}
    return FinetunedFold(**facts | {"predictions": Predictions.from_json(facts["predictions"])})


class _Attempt(NamedTuple):
    """A model trained with one learning rate, and its value of the metric."""

    model: Any
    value: float
    training_loss: Sequence[tuple[float, float]] = ()
    validation_loss: Sequence[tuple[float, float]] = ()


class _Fold:
    """The work of one fold."""

    def __init__(self, store, runs, task, out, arguments, init, fields, callbacks):
        self.store, self.runs, self.task, self.out = store, runs, task, out
        self.arguments, self.init, self.callbacks = arguments, init, callbacks
        self.fields = {"num_frames": arguments.window_frames} | dict(fields) | task.config_fields
        self.metric = arguments.metric_for_best_model
        frames, self.of_task = arguments.window_frames, {"label": task.label, "classes": task.classes}
        self.training = TrainingWindows(store, frames, runs["train"], **self.of_task, seed=arguments.seed)
        self.validation = EvaluationWindows(store, frames, runs["validation"], **self.of_task)
        self.check_metric()
        self.without_training = replace(arguments, output_dir=str(out / "work"), save_strategy="no", report_to=[])

    def check_metric(self) -> None:
        """Refuse a metric that does not exist, or that even perfect predictions do not have on the validation part."""
        labels = np.array(list(self.validation.labels.values()))
        if self.task.is_regression:
            metrics = regression_metrics(labels, labels)
        else:
            metrics = classification_metrics(labels, np.eye(len(self.task.classes))[labels])
        if self.metric not in ("loss", *metrics):
            raise InputError(f"metric {self.metric!r}: choose loss, {', '.join(metrics)}.")
        if self.metric != "loss" and math.isnan(metrics[self.metric]):
            raise InputError(
                f"metric {self.metric}: undefined on the validation part, where {self.task.label} lacks some of its "
                "values; choose by loss (command line: --metric loss), or draw another split."
            )

    def network(self) -> Any:
        from transformers import set_seed

        set_seed(self.arguments.seed)
        preprocessing = self.store.preprocessing
        return checkpoints.initial_model(TabletForSequenceClassification, self.init, self.fields, preprocessing)

    def attempts(self) -> dict[float | None, _Attempt]:
        """Train with each learning rate, or fit a head, whose learning rate is None."""
        if self.arguments.mode == "head":
            return {None: self.fit_head()}
        return {rate: self.train(rate) for rate in self.arguments.learning_rates or [self.arguments.learning_rate]}

    def train(self, learning_rate: float) -> _Attempt:
        """Train with one learning rate, and go back to the best epoch."""
        from transformers import EarlyStoppingCallback

        folder = self.out / "work" / f"lr-{learning_rate:g}"
        patience, checkpoint = self.arguments.patience, checkpoints.last_checkpoint(folder)
        network = self.network()
        arguments = replace(
            self.arguments,
            output_dir=str(folder),
            learning_rate=learning_rate,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,  # the best, and the last one to resume from
            load_best_model_at_end=True,
            greater_is_better=self.metric not in SMALLER_IS_BETTER,
            label_names=["labels"],
        )
        if checkpoint is not None and patience is not None:
            arguments.max_steps = _end_of_early_stopped(checkpoint, patience, arguments.max_steps)
        early_stopping = [] if patience is None else [EarlyStoppingCallback(patience)]
        trainer = make_trainer(
            _with_adapters(network, self.arguments.lora_rank) if self.arguments.mode == "lora" else network,
            arguments,
            self.training,
            self.validation,
            subject_metrics(self.validation, self.task),
            [*early_stopping, *self.callbacks],
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        history, best = trainer.state.log_history, trainer.state.best_metric
        return _Attempt(
            trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False),
            math.nan if best is None or math.isinf(best) else float(best),
            [(entry["epoch"], entry["loss"]) for entry in history if "loss" in entry],
            [(entry["epoch"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
        )

    def fit_head(self) -> _Attempt:
        """Fit the head as a linear model of the network's pooled states."""
        network = self.network().eval()
        windows = EvaluationWindows(self.store, self.arguments.window_frames, self.runs["train"], **self.of_task)
        states = make_trainer(_PooledStates(network), self.without_training).predict(windows).predictions
        targets = np.array([windows.labels[run] for run in windows.run_indices])
        linear = LinearModel(None if self.task.is_regression else len(self.task.classes), seed=self.arguments.seed)
        weight, bias = linear.fit(states, targets, windows.subjects).coefficients()
        if self.task.is_regression:
            weight, bias = weight / self.task.target_std, (bias - self.task.target_mean) / self.task.target_std
        with torch.no_grad():
            network.classifier.weight.copy_(torch.from_numpy(weight))
            network.classifier.bias.copy_(torch.from_numpy(bias))
        arguments = replace(self.without_training, label_names=["labels"])
        metrics = subject_metrics(self.validation, self.task)
        trainer = make_trainer(network, arguments, None, self.validation, metrics)
        return _Attempt(network, float(trainer.evaluate()[f"eval_{self.metric}"]))

    def write(self, model: Any, result: FinetunedFold, trainings: Sequence[TrainingData]) -> None:
        """Write model and result, after which checkpoints are not needed."""
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        parts = [[self.store.runs[run] for run in windows.runs] for windows in (self.training, self.validation)]
        this = TrainingData.of_runs(self.task.label, *parts, self.store.settings["is_restricted"], self.init)
        trainer = make_trainer(model, self.without_training)
        checkpoints.save_model(trainer, result.folder, self.store.preprocessing, [*trainings, this])
        if trainer.is_world_process_zero():
            facts = asdict(replace(result, folder=MODEL_FOLDER, predictions=None))
            checkpoints.write_result(self.out / RESULT_FILE, facts | {"predictions": result.predictions.to_json()})


class _PooledStates(torch.nn.Module):
    """A network whose logits are what its head would read."""

    def __init__(self, network: Any):
        super().__init__()
        self.network, self.config = network, network.config

    def forward(self, input_values=None, attention_mask=None, repetition_time=None, labels=None):
        outputs = self.network.tablet(
            input_values,
            attention_mask=attention_mask,
            repetition_time=repetition_time,
            cls_only=self.network.can_leave_out_states(),
        )
        return {"loss": outputs.pooler_output.new_zeros(()), "logits": outputs.pooler_output.float()}


def _with_adapters(network: Any, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError("mode 'lora' needs peft; pip install peft, or tablet-hf[train].") from error
    targets = [name for name, _ in network.named_modules() if name.split(".")[-1] in LORA_MODULES]
    adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, modules_to_save=["classifier"])
    return get_peft_model(network, adapters)


def _end_of_early_stopped(checkpoint: Path, patience: int, max_steps: int) -> int:
    """Return the last step of a training that had stopped early, which Trainer would otherwise go on with."""
    from transformers import EarlyStoppingCallback, TrainerState
    from transformers.trainer import TRAINER_STATE_NAME

    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    stopping = state.stateful_callbacks[EarlyStoppingCallback.__name__]
    return state.global_step if stopping["attributes"]["early_stopping_patience_counter"] >= patience else max_steps
