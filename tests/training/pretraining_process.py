"""Pre-training as a process of its own, which may be one of several or come to a sudden end."""

import contextlib
import os
import time

from transformers import TrainerCallback

from tablet_hf.datasets import TokenDataset, read_splits
from tablet_hf.training.arguments import Settings
from tablet_hf.training.pretraining import pretrain

SETTINGS = Settings(window_frames=12, epochs=6, batch_size=8, learning_rate=3e-3, log_steps=2, device="cpu")


class Told(TrainerCallback):
    """Sends the number of each step, and waits some seconds after it."""

    def __init__(self, connection, seconds):
        self.connection, self.seconds = connection, seconds

    def on_step_end(self, args, state, control, **kwargs):
        self.connection.send(state.global_step)
        time.sleep(self.seconds)


def pretrain_here(store, splits, out, sizes, connection, seconds=0.0, environment=None):
    """Pre-train to the end, with output to a file beside the folder.

    Args:
        store, splits, out: folder, file and folder.
        sizes: fields of `TabletConfig`.
        connection, seconds: see `Told`.
        environment: variables that a launcher such as torchrun sets.
    """
    os.environ.update(environment or {})
    with (
        out.with_suffix(".txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        split = read_splits(splits)[0]
        callbacks = [Told(connection, seconds)]
        pretrain(TokenDataset.load(store), out, SETTINGS, split=split, model=sizes, evaluations=4, callbacks=callbacks)
