"""The `Trainer` of transformers over windows of a token dataset."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from tablet_hf.datasets.collator import TabletCollator
from tablet_hf.datasets.windows import EpochCallback

__all__ = ["LogWithCheckpoints", "make_trainer"]


class LogWithCheckpoints(TrainerCallback):
    """A line of the log with every checkpoint, so that what is averaged in the next line does not begin before it.

    Trainer forgets the losses since the last line when it goes on from a checkpoint.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save


def make_trainer(
    model: Any,
    arguments: Any,
    training: Any = None,
    validation: Any = None,
    compute_metrics: Callable[[Any], dict[str, float]] | None = None,
    callbacks: Sequence[Any] = (),
    is_quiet: bool = False,
) -> Any:
    """A plain `Trainer` over windows, with what it needs to know of epochs and checkpoints.

    Args:
        model: one of `modeling_tablet`, or peft's wrapping of it.
        arguments: `training_arguments`.
        training, validation: datasets of windows.
        compute_metrics: see `Trainer`.
        callbacks: further ones.
        is_quiet: no bars and tables of `Trainer`, where somebody else says how far it is.
    """
    from transformers import Trainer

    trainer = Trainer(
        model,
        arguments,
        TabletCollator(model.config.problem_type),
        training,
        validation,
        compute_metrics=compute_metrics,
        callbacks=[EpochCallback(), LogWithCheckpoints(), *callbacks],
    )
    if is_quiet:
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
    return trainer
