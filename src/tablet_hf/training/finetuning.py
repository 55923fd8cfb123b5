"""Fine-tuning on a token dataset with `Trainer`: folds, a sweep of learning rates, whole models, heads or adapters.

    store = TokenDataset.load("STORE")
    splits = folds(subject_ids(store.runs), [run.phenotypes["sex"] for run in store.runs])
    tuned = [finetune_fold(store, split, "sex", f"my-model/{split.name}", Settings()) for split in splits]

In each fold the training part is trained on, the validation part chooses when to stop and among learning rates, and
the test part is predicted once, at the end. What a folder holds already is not done again, and training that was
stopped goes on from its last checkpoint.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tablet_hf.baselines.linear import principal_axes
from tablet_hf.datasets.splits import PARTS, Split, runs_in
from tablet_hf.datasets.tasks import Kind, Task, find_task
from tablet_hf.datasets.windows import EvaluationWindows, TrainingWindows
from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.files import atomic_write
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.modeling_tablet import TabletForSequenceClassification
from tablet_hf.training.arguments import Settings, training_arguments
from tablet_hf.training.checkpoints import (
    TRAINING_FILE,
    agreed_checkpoint,
    checksums,
    initial_model,
    keep_to_one_training,
    save_model,
)
from tablet_hf.training.inference import predict_subjects, subject_metrics
from tablet_hf.training.trainer import make_trainer

__all__ = ["MODES", "FinetunedFold", "finetune_fold"]

Mode = Literal["full", "head", "lora"]
MODES = ("full", "head", "lora")

MODEL_FOLDER = "model"
RESULT_FILE = "fold.json"

SMALLER_IS_BETTER = ("loss", "mae", "mse")
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class FinetunedFold:
    """What fine-tuning gave in one fold.

    Attributes:
        name: of the split.
        folder: of the model, for `from_pretrained`.
        task: what was learned.
        learning_rate: the one that the validation part chose; None for a head.
        metric: by which it chose, and the value of each learning rate.
        validation: of `metric` by learning rate.
        predictions: for the subjects of the test part.
        training_loss, validation_loss: by epoch, of the model that was chosen; empty for a head.
        said: what had to be said of the weights it started from.
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
    said: list[str]


@dataclass(frozen=True)
class _Attempt:
    """Training with one learning rate."""

    model: Any
    value: float
    training_loss: list[tuple[float, float]]
    validation_loss: list[tuple[float, float]]


def finetune_fold(
    store: Any,
    split: Split,
    label: str,
    out: str | Path,
    settings: Settings,
    *,
    init: str | Path | None = None,
    model: Mapping[str, Any] | None = None,
    mode: Mode = "full",
    learning_rates: Sequence[float] | None = None,
    metric: str | None = None,
    patience: int | None = None,
    kind: Kind | None = None,
    positive: Any = None,
    lora_rank: int = 8,
    callbacks: Sequence[Any] = (),
    is_quiet: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> FinetunedFold:
    """Learn a label from the subjects of a split's training part, and predict those of its test part.

    Args:
        store: a `TokenDataset`.
        split: with subjects in all three parts.
        label: a phenotype's name.
        out: folder of this fold; `model/` and `fold.json` at the end.
        settings: how to train.
        init: folder or Hub id of weights to start from; None starts from scratch.
        model: fields of `TabletConfig`, over those of `init`.
        mode: "full" trains all weights; "lora" low-rank adapters of all linear layers (peft), merged at the end;
            "head" fits a linear model on what the network says as it is, which is computed once.
        learning_rates: to choose from; None for that of the settings alone, and for a head.
        metric: of subjects of the validation part, by which is chosen: "loss", or a name of
            `tablet_hf.evaluation.metrics`. The default is the loss: of few subjects AUROC and accuracy have few values,
            and the first epoch of several alike would be taken, in which the model has hardly begun.
        patience: epochs without a better metric after which training stops; None never stops early. A head has none.
        kind, positive: see `find_task`.
        lora_rank: of the adapters.
        callbacks, is_quiet: see `make_trainer`.
        on_note: is reported what had to be decided.

    Raises:
        InputError: a label that cannot be learned, weights that do not fit, a folder of another training, or FSDP,
        whose
            shares of a model nothing puts together again for its predictions.
    """
    from accelerate.utils import parse_flag_from_env

    out = Path(out)
    if settings.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise InputError(
            "weights are shared out (FSDP) in pre-training alone; fine-tune with the whole model on each GPU, by "
            "torchrun or accelerate launch without FSDP."
        )
    if mode not in MODES:
        raise InputError(f"mode {mode!r}: choose {', '.join(MODES)}.")
    if mode in ("head", "lora") and init is None:
        raise InputError(f"mode {mode!r} needs a trained network; name one with init (command line: --init).")
    if mode == "head" and (learning_rates is not None or patience is not None):
        what = "rates to choose from (command line: --sweep)" if learning_rates is not None else "patience"
        raise InputError(f"mode 'head' computes its linear model at once, without steps; leave {what} out.")
    if empty := [part for part in PARTS if not split.counts[part]]:
        raise InputError(
            f"{split.name}: nobody stands in its {empty[0]} part; fine-tuning learns from train, chooses by validation "
            "and judges by test, so draw a split with all three (command line: tablet-hf dataset split)."
        )
    runs = {part: runs_in(split, store.runs, part) for part in PARTS}
    everybody = [run for part in PARTS for run in runs[part]]
    task = find_task(store, label, runs["train"], kind, positive, everybody)
    metric = _checked_metric(metric, task)
    training = _description(settings, split, task, init, model, mode, learning_rates, metric, patience, lora_rank)
    training |= checksums([store.runs[run] for run in everybody], label)

    def note(sentence: str) -> None:
        if on_note is not None:
            on_note(sentence)

    fields = {"num_frames": settings.window_frames} | dict(model or {}) | task.config_fields
    work = _Fold(store, runs, task, out, settings, init, fields, metric, patience, lora_rank, callbacks, is_quiet)
    if not _is_defined(metric, work.validation, task):
        raise InputError(
            f"{split.name}: {metric} is not defined on its validation part, where {label} does not take every value "
            "that it needs; choose by the loss (command line: --metric loss), or draw another split."
        )
    if not (out / TRAINING_FILE).is_file():
        work.network()  # what cannot be loaded shall leave no folder that refuses the next try
    keep_to_one_training(out, training, settings.carried_out, RESULT_FILE)
    if (done := read_fold(out)) is not None:
        return done

    note(f"{split.name}: {task}; {task.reason}.")
    trainings = () if init is None else TrainingData.of_model(init)
    if mode == "head":
        attempts = {None: work.fit_head()}
    else:
        rates = list(learning_rates or [settings.learning_rate])
        attempts = {rate: work.attempt(rate, mode) for rate in rates}
    for sentence in work.said:
        note(sentence)

    worst_first = (lambda attempt: -attempt.value) if metric in SMALLER_IS_BETTER else (lambda attempt: attempt.value)
    if all(math.isnan(attempt.value) for attempt in attempts.values()):
        raise InputError(
            f"{split.name}: the loss was no finite number; choose a smaller --learning-rate or another --precision, "
            "and another --out."
        )
    rate = max(attempts, key=lambda rate: _known(worst_first(attempts[rate])))
    chosen = attempts[rate]
    arguments = training_arguments(settings, out / "work", eval_strategy="no", save_strategy="no")
    predictions = predict_subjects(
        chosen.model,
        store,
        runs["test"],
        task,
        arguments,
        settings.window_frames,
        split.name,
    )
    result = FinetunedFold(
        split.name,
        out / MODEL_FOLDER,
        task,
        rate,
        metric,
        {"head" if rate is None else f"{rate:g}": attempt.value for rate, attempt in attempts.items()},
        predictions,
        chosen.training_loss,
        chosen.validation_loss,
        work.said,
    )
    work.finish(chosen.model, result, [*trainings, work.record()])
    return result


def read_fold(out: str | Path) -> FinetunedFold | None:
    """What a fold that has come to its end left in a folder."""
    path = Path(out) / RESULT_FILE
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    task = facts["task"]
    for name in ("classes", "class_weights"):
        task[name] = None if task[name] is None else tuple(task[name])
    curves = {name: [tuple(pair) for pair in facts[name]] for name in ("training_loss", "validation_loss")}
    value = {"folder": Path(out) / facts["folder"], "task": Task(**task)}
    return FinetunedFold(**facts | curves | value | {"predictions": Predictions.from_json(facts["predictions"])})


class _Fold:
    """One fold under way."""

    def __init__(
        self, store, runs, task, out, settings, init, fields, metric, patience, lora_rank, callbacks, is_quiet
    ):
        self.store, self.task, self.out = store, task, out
        self.settings, self.init, self.fields, self.metric = settings, init, fields, metric
        self.patience, self.lora_rank, self.callbacks, self.is_quiet = patience, lora_rank, callbacks, is_quiet
        self.said: list[str] = []
        frames, classes = settings.window_frames, task.classes
        self.training = TrainingWindows(store, frames, runs["train"], task.label, classes=classes, seed=settings.seed)
        self.validation = EvaluationWindows(store, frames, runs["validation"], task.label, classes=classes)

    def attempt(self, learning_rate: float, mode: Mode) -> _Attempt:
        """Train with one learning rate, and go back to the epoch that the validation part likes best."""
        from transformers.trainer import TRAINER_STATE_NAME
        from transformers.trainer_callback import TrainerState

        folder = self.out / "work" / f"lr-{learning_rate:g}"
        network = self.network()
        if mode == "lora":
            network = self.adapted(network)
        stopping = [] if self.patience is None else [_stopping(self.patience)]
        checkpoint = agreed_checkpoint(folder)
        settings = replace(self.settings, learning_rate=learning_rate, save_steps=None)
        if checkpoint is not None and self.patience is not None:
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            if _num_without_better(state) >= self.patience:
                settings = replace(settings, max_steps=state.global_step)  # there it was stopped
        arguments = training_arguments(
            settings,
            folder,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,  # the best and the last one, from which it goes on; one would be the best alone
            load_best_model_at_end=True,
            metric_for_best_model=self.metric,
            greater_is_better=self.metric not in SMALLER_IS_BETTER,
            label_names=["labels"],
        )
        trainer = make_trainer(
            network,
            arguments,
            self.training,
            self.validation,
            subject_metrics(self.validation, self.task),
            [*stopping, *self.callbacks],
            self.is_quiet,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        history = trainer.state.log_history
        best = trainer.state.best_metric
        return _Attempt(
            trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False),
            math.nan if best is None or math.isinf(best) else float(best),
            [(entry["epoch"], entry["loss"]) for entry in history if "loss" in entry],
            [(entry["epoch"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
        )

    def fit_head(self) -> _Attempt:
        """Fit the head's weights on the pooled states of the network, each window's computed once."""
        network = self.network().eval()
        learnt = EvaluationWindows(
            self.store,
            self.settings.window_frames,
            self.training.runs,
            self.task.label,
            classes=self.task.classes,
        )
        states, labels, people = self.pooled_states(network, learnt, "training")
        weight, bias = linear_head(states, labels, people, self.task, self.settings.seed)
        with torch.no_grad():
            network.classifier.weight.copy_(torch.from_numpy(weight))
            network.classifier.bias.copy_(torch.from_numpy(bias))
        states, labels, _ = self.pooled_states(network, self.validation, "validation")
        logits = states @ weight.T + bias
        loss = network.classification_loss(torch.from_numpy(logits), torch.from_numpy(labels))
        if self.task.is_regression:
            logits = logits * self.task.target_std + self.task.target_mean
        judged = subject_metrics(self.validation, self.task)(_Evaluated(logits)) | {"loss": float(loss)}
        return _Attempt(network, judged[self.metric], [], [])

    def pooled_states(
        self, network: Any, windows: EvaluationWindows, part: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the head reads of each window `(windows, hidden_size)`, its label, and whose it is."""
        arguments = training_arguments(self.settings, self.out / "work", eval_strategy="no", save_strategy="no")
        path = self.out / "work" / f"states-{part}.npy"
        if path.is_file():
            states = np.load(path)
        else:
            trainer = make_trainer(_PooledStates(network), arguments, is_quiet=True)
            states = trainer.predict(windows).predictions.astype(np.float64)
            if trainer.is_world_process_zero():
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as unfinished:
                    np.save(unfinished, states)
        labels = np.array([windows.labels[run] for run in windows.run_indices])
        return states, labels, np.array(windows.subjects)

    def network(self) -> Any:
        from transformers import set_seed

        set_seed(self.settings.seed)
        network, said = initial_model(TabletForSequenceClassification, self.init, self.fields, self.store.preprocessing)
        self.said = said
        return network

    def adapted(self, network: Any) -> Any:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise InputError("mode 'lora' needs peft; pip install peft, or tablet-hf[train].") from error
        targets = [name for name, _ in network.named_modules() if name.split(".")[-1] in LORA_MODULES]
        return get_peft_model(
            network,
            LoraConfig(
                r=self.lora_rank,
                lora_alpha=2 * self.lora_rank,
                lora_dropout=0.0,
                target_modules=targets,
                modules_to_save=["classifier"],
            ),
        )

    def record(self) -> TrainingData:
        """Whose labels decide what comes out."""
        learnt, chosen_by = ([self.store.runs[run] for run in part.runs] for part in (self.training, self.validation))
        return TrainingData.of_runs(self.task.label, learnt, chosen_by, self.store.settings["is_restricted"], self.init)

    def finish(self, model: Any, result: FinetunedFold, trainings: Sequence[TrainingData]) -> None:
        """Write model and result; after that checkpoints are not needed any more."""
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        arguments = training_arguments(self.settings, self.out / "work", eval_strategy="no", save_strategy="no")
        trainer = make_trainer(model, arguments, is_quiet=True)
        save_model(trainer, self.out / MODEL_FOLDER, self.store.preprocessing, trainings)
        if trainer.is_world_process_zero():
            facts = asdict(replace(result, folder=MODEL_FOLDER, predictions=None))
            facts["predictions"] = result.predictions.to_json()
            with atomic_write(self.out / RESULT_FILE) as unfinished:
                unfinished.write_text(json.dumps(_plain(facts), indent=1) + "\n", encoding="utf-8")
            for path in (self.out / "work").glob("lr-*/checkpoint-*"):
                shutil.rmtree(path)


class _PooledStates(torch.nn.Module):
    """A network that says what its head would read."""

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


@dataclass(frozen=True)
class _Evaluated:
    """What `compute_metrics` reads of Trainer's predictions."""

    predictions: np.ndarray


def linear_head(
    states: np.ndarray, labels: np.ndarray, people: np.ndarray, task: Task, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(labels, features)` and biases `(labels,)`, float32, of the best linear model on states of windows.

    Logistic regression with balanced classes, or ridge regression of the standardised target. States are standardised
    and the penalty is chosen by five-fold cross-validation over subjects, and both are folded into the weights.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold

    mean, std = states.mean(0), states.std(0)
    std = np.where(std > 1e-8 * max(1e-30, float(std.max())), std, np.inf)
    axes = principal_axes(*states.shape, seed)
    features = axes.fit_transform((states - mean) / std)
    num_folds = min(5, len(set(people)))
    penalties = np.logspace(-5, 1, 7)
    if task.is_regression:
        targets = (labels - task.target_mean) / task.target_std
        search = GridSearchCV(Ridge(), {"alpha": 1 / penalties}, cv=GroupKFold(num_folds))
    else:
        targets = labels
        fewest = min(len(set(people[labels == label])) for label in set(labels))
        parts = StratifiedGroupKFold(max(2, min(num_folds, fewest)), shuffle=True, random_state=seed)
        model = LogisticRegression(max_iter=5000, class_weight="balanced")
        search = GridSearchCV(model, {"C": penalties}, scoring="neg_log_loss", cv=parts)
    search.fit(features, targets, groups=people)
    best = search.best_estimator_
    weight = np.atleast_2d(best.coef_) @ axes.components_
    bias = np.atleast_1d(best.intercept_) - weight @ axes.mean_
    weight = weight / std
    bias = bias - weight @ mean
    return weight.astype(np.float32), bias.astype(np.float32)


# --- parts


def _stopping(patience: int) -> Any:
    """Early stopping that goes on counting where training was interrupted; that of transformers begins again."""
    from transformers import EarlyStoppingCallback

    class StopsEarly(EarlyStoppingCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_train_begin(args, state, control, **kwargs)
            self.early_stopping_patience_counter = _num_without_better(state)

    return StopsEarly(patience)


def _num_without_better(state: Any) -> int:
    """How many evaluations there were since the best one."""
    evaluated = {entry["step"] for entry in state.log_history if "eval_loss" in entry}
    return sum(step > (state.best_global_step or 0) for step in evaluated)


def _is_defined(metric: str, windows: EvaluationWindows, task: Task) -> bool:
    """Whether at least a perfect answer has this metric on the subjects of some windows."""
    if metric == "loss":
        return True
    labels = np.array([windows.labels[run] for run in windows.run_indices])
    if task.is_regression:
        perfect = labels[:, None]
    elif task.is_binary:
        perfect = 20.0 * labels[:, None] - 10
    else:
        perfect = 20.0 * np.eye(len(task.classes))[labels]
    return not math.isnan(subject_metrics(windows, task)(_Evaluated(perfect))[metric])


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _checked_metric(metric: str | None, task: Task) -> str:
    from tablet_hf.evaluation.metrics import classification_metrics, regression_metrics

    if metric is None:
        return "loss"
    if task.is_regression:
        known = regression_metrics(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    else:
        places = np.arange(len(task.classes))
        known = classification_metrics(places, np.eye(len(places)))
    if metric not in ("loss", *known):
        raise InputError(f"metric {metric!r}: {task.label} is judged by loss, {', '.join(known)}.")
    return metric


def _plain(value: Any) -> Any:
    """numpy's numbers, which classes may be, as JSON has them."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _description(settings, split, task, init, model, mode, learning_rates, metric, patience, lora_rank) -> dict:
    """All that decides what comes out."""
    return {
        "settings": settings.deciding,
        "split": {part: split.subjects(part) for part in ("train", "validation", "test")},
        "label": task.label,
        "classes": None if task.classes is None else [str(value) for value in task.classes],
        "init": None if init is None else str(init),
        "model": dict(model or {}),
        "mode": mode,
        "learning_rates": None if learning_rates is None else list(learning_rates),
        "metric": metric,
        "patience": patience,
        "lora_rank": lora_rank if mode == "lora" else None,
    }
