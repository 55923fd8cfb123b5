"""The `Trainer` of transformers over windows of a token dataset."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback

from tablet_hf.datasets.collator import TabletCollator
from tablet_hf.datasets.windows import EpochCallback

__all__ = ["LogWithCheckpoints", "ReportProgress", "make_trainer"]


class LogWithCheckpoints(TrainerCallback):
    """Logs with every checkpoint, so that the next mean of losses does not begin before it.

    Trainer forgets the losses since the last log when it resumes from a checkpoint.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


class ReportProgress(TrainerCallback):
    """Calls `on_progress(step, number of steps, text)` after each step, with the last loss as text."""

    def __init__(self, on_progress: Callable[[int, int, str], None]):
        self.on_progress, self.text = on_progress, ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.text = f"loss {float(logs['loss']):.4g}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.on_progress(state.global_step, state.max_steps, self.text)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step < state.max_steps:  # stopped early
            self.on_progress(state.max_steps, state.max_steps, self.text)


def make_trainer(
    model: Any,
    arguments: Any,
    training: Any = None,
    validation: Any = None,
    compute_metrics: Callable[[Any], dict[str, float]] | None = None,
    callbacks: Sequence[Any] = (),
) -> Trainer:
    """Make a plain `Trainer` over windows, with the callbacks and the collator that these need.

    With `disable_tqdm` among the arguments nothing is printed.
    """
    trainer = Trainer(
        model,
        arguments,
        TabletCollator(model.config.problem_type),
        training,
        validation,
        compute_metrics=compute_metrics,
        callbacks=[EpochCallback(), LogWithCheckpoints(), *callbacks],
    )
    if arguments.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    return trainer
