"""Fine-tuning a small TABLeT on tokens in memory with the `Trainer` of transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor, TokenizedRun
from tablet_hf.modeling_tablet import TabletForSequenceClassification
from tablet_hf.training.metrics import compute_binary_metrics, positive_probabilities

__all__ = ["FinetuneResult", "FinetuneSettings", "RunDataset", "collate_runs", "finetune", "small_config"]


@dataclass(frozen=True)
class FinetuneSettings:
    """How the small TABLeT is trained.

    Learning rate and epochs were chosen on the cohort of seed 10; what they give on cohorts of other seeds is measured
    by `benchmarks/demo_seeds.py`.

    Attributes:
        window_frames: frames of the random window that training draws from a run, anew each time.
    """

    hidden_size: int = 64
    num_layers: int = 2
    window_frames: int = 4
    epochs: int = 80
    batch_size: int = 8
    learning_rate: float = 5e-4
    weight_decay: float = 0.05


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned model and what it says of people that it did not learn from.

    Attributes:
        model: in evaluation mode.
        probabilities: `(held-out people,)`, of the positive class.
        train_loss, held_out_loss: `(epochs,)` mean losses at the end of each epoch; the second is looked at only.
    """

    model: TabletForSequenceClassification
    probabilities: np.ndarray
    train_loss: list[float]
    held_out_loss: list[float]


class RunDataset(Dataset):
    """Runs with a label each: `(frames, cells, features)` tokens, the repetition time in seconds, the label.

    Args:
        runs, labels: one label for each run.
        window_frames: random windows of so many frames are drawn with torch's generator; None gives whole runs.
    """

    def __init__(self, runs: Sequence[TokenizedRun], labels: Sequence[int], window_frames: int | None = None):
        if len(runs) != len(labels):
            raise ValueError(f"{len(runs)} runs and {len(labels)} labels do not match.")
        self.runs, self.labels, self.window_frames = runs, labels, window_frames

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        run = self.runs[index]
        tokens = run.tokens
        if self.window_frames is not None:
            start = int(torch.randint(max(1, len(tokens) - self.window_frames + 1), ()))
            tokens = tokens[start : start + self.window_frames]
        return {"input_values": tokens, "repetition_time": run.repetition_time, "labels": self.labels[index]}


def collate_runs(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack runs of equal length: nothing is padded, so no attention mask is needed."""
    return {
        "input_values": torch.stack([item["input_values"] for item in items]),
        "repetition_time": torch.tensor([item["repetition_time"] for item in items], dtype=torch.float32),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def small_config(extractor: TabletFeatureExtractor, groups: Sequence[str], settings: FinetuneSettings) -> TabletConfig:
    """A TABLeT of a few hundred thousand parameters that knows which extractor made its tokens."""
    return TabletConfig(
        token_size=extractor.token_size,
        grid_size=extractor.grid_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=4 * settings.hidden_size,
        hidden_act="gelu",
        problem_type="single_label_classification",
        id2label=dict(enumerate(groups)),
        label2id={group: label for label, group in enumerate(groups)},
        num_frames=settings.window_frames,
        autoencoder=extractor.autoencoder,
        autoencoder_revision=extractor.autoencoder_revision,
        signal=extractor.signal,
        scaling=extractor.scaling,
        volume_size=extractor.volume_size,
    )


def finetune(
    config: TabletConfig,
    train: tuple[Sequence[TokenizedRun], Sequence[int]],
    held_out: tuple[Sequence[TokenizedRun], Sequence[int]],
    settings: FinetuneSettings,
    folder: Path,
    device: str = "cpu",
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> FinetuneResult:
    """Train a model from scratch on some people and predict others.

    Args:
        config: of the model.
        train, held_out: runs and their labels; all runs of a side have the same number of frames.
        folder: where Trainer may write.
        device: "cpu", "cuda" or one GPU of several, such as "cuda:1".
        on_progress: is told steps done and steps in all.
    """
    torch.manual_seed(seed)
    model = TabletForSequenceClassification(config)
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # Trainer takes the current GPU
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=device == "cpu",
        seed=seed,
    )
    # Trainer would spread so small a model over all GPUs that it sees, and offers no setting against that.
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=RunDataset(*train, window_frames=settings.window_frames),
        eval_dataset=RunDataset(*held_out),
        data_collator=collate_runs,
        compute_metrics=compute_binary_metrics,
        callbacks=[_Steps(on_progress)] if on_progress is not None else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logits = trainer.predict(RunDataset(*held_out)).predictions
    history = trainer.state.log_history
    return FinetuneResult(
        model=model.eval(),
        probabilities=positive_probabilities(logits),
        train_loss=[entry["loss"] for entry in history if "loss" in entry],
        held_out_loss=[entry["eval_loss"] for entry in history if "eval_loss" in entry],
    )


class _Steps(TrainerCallback):
    """Passes Trainer's progress on."""

    def __init__(self, on_progress: Callable[[int, int], None]):
        self.on_progress = on_progress

    def on_step_end(self, args, state, control, **kwargs):
        self.on_progress(state.global_step, state.max_steps)
