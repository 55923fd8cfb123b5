"""Fine-tuning a small TABLeT on the demo's token dataset, with what `tablet_hf.training` is made of.

Unlike a fold of `tablet_hf.training.finetuning` it has no validation part: nothing is chosen, and training runs to its
end, while the loss of the subjects held out is looked at.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, set_seed

from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.tasks import find_task
from tablet_hf.datasets.windows import EvaluationWindows, TrainingWindows
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.modeling_tablet import TabletForSequenceClassification
from tablet_hf.training.arguments import Settings, training_arguments
from tablet_hf.training.checkpoints import initial_model, save_model
from tablet_hf.training.inference import predict_subjects
from tablet_hf.training.trainer import make_trainer

__all__ = ["MODEL", "TRAINING", "FinetuneResult", "finetune"]


MODEL: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "hidden_act": "gelu",
}
"""Fields of its `TabletConfig`: a few hundred thousand parameters."""

TRAINING = Settings(
    window_frames=4,
    epochs=80,
    batch_size=8,
    learning_rate=5e-4,
    warmup=0.1,
    weight_decay=0.05,
    precision="fp32",
)
"""Learning rate and epochs were chosen on the cohort of seed 10; what they give on cohorts of other seeds is measured
by `benchmarks/demo_seeds.py`."""


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned model and what it says of subjects that it did not train on.

    Attributes:
        model: in evaluation mode.
        probabilities: `(held-out runs,)`, of the positive class.
        train_loss, held_out_loss: `(epochs,)` mean losses at the end of each epoch; the second is looked at only.
    """

    model: TabletForSequenceClassification
    probabilities: np.ndarray
    train_loss: list[float]
    held_out_loss: list[float]


def finetune(
    store: TokenDataset,
    label: str,
    positive: str,
    train: Sequence[int],
    held_out: Sequence[int],
    model: Mapping[str, Any],
    settings: Settings,
    folder: Path,
    scratch: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> FinetuneResult:
    """Train a model from scratch on some runs and predict others; one run a subject.

    Args:
        store: of the tokens.
        label: a phenotype of two classes, of which `positive` is one.
        train, held_out: places in `store.runs`.
        model: fields of `TabletConfig`.
        settings: how to train.
        folder: for the model and the settings of its feature extractor, from which `tablet-hf predict` reads both.
        scratch: where Trainer may write.
        on_progress: is reported steps done and steps in all.
    """
    task = find_task(store, label, train, "classification", positive)
    # Of two logits, so that a prediction tells the probability of either class.
    fields = {"problem_type": "single_label_classification", "id2label": dict(enumerate(task.classes))}
    fields |= {"label2id": {name: number for number, name in enumerate(task.classes)}, "target_name": label}
    fields |= {"num_frames": settings.window_frames} | dict(model)
    set_seed(settings.seed)
    network, _ = initial_model(TabletForSequenceClassification, None, fields, store.preprocessing)
    windows = {"label": label, "classes": task.classes}
    by_epoch = {"eval_strategy": "epoch", "logging_strategy": "epoch", "logging_first_step": False}
    never = {"save_strategy": "no", "report_to": "none"}
    trainer = make_trainer(
        network,
        training_arguments(settings, scratch, label_names=["labels"], **by_epoch, **never),
        TrainingWindows(store, settings.window_frames, train, seed=settings.seed, **windows),
        EvaluationWindows(store, settings.window_frames, held_out, **windows),
        callbacks=[] if on_progress is None else [_Steps(on_progress)],
        is_quiet=True,
    )
    trainer.train()
    history = trainer.state.log_history
    arguments = training_arguments(settings, scratch, eval_strategy="no", **never)
    predictions = predict_subjects(network, store, held_out, task, arguments)
    learnt = [store.runs[run] for run in train]
    record = TrainingData.of_runs(label, learnt, [], store.settings["is_restricted"])
    save_model(trainer, folder, store.preprocessing, [record])
    return FinetuneResult(
        model=network.eval(),
        probabilities=predictions.outputs[:, 1],
        train_loss=[entry["loss"] for entry in history if "loss" in entry],
        held_out_loss=[entry["eval_loss"] for entry in history if "eval_loss" in entry],
    )


class _Steps(TrainerCallback):
    """Passes Trainer's progress on."""

    def __init__(self, on_progress: Callable[[int, int], None]):
        self.on_progress = on_progress

    def on_step_end(self, args, state, control, **kwargs):
        self.on_progress(state.global_step, state.max_steps)
