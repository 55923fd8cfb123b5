"""Training as a process of its own, which may be one of several or come to a sudden end."""

import contextlib
import multiprocessing
import os
import time

from transformers import TrainerCallback

from tablet_hf.datasets import TokenDataset, read_splits
from tablet_hf.training.arguments import Settings
from tablet_hf.training.finetuning import finetune_fold
from tablet_hf.training.pretraining import pretrain

SETTINGS = Settings(window_frames=12, epochs=6, batch_size=8, learning_rate=3e-3, log_steps=2, device="cpu")
RATES = (1e-2, 3e-3)


class Told(TrainerCallback):
    """Sends the number of each step, and waits some seconds after it."""

    def __init__(self, connection, seconds):
        self.connection, self.seconds = connection, seconds

    def on_step_end(self, args, state, control, **kwargs):
        self.connection.send(state.global_step)
        time.sleep(self.seconds)


def start(train, store, splits, out, sizes, *options):
    """Begin to train, and give the process and what tells its steps.

    The process need not import for seconds: it is a copy of one that has done so.

    Args:
        train: `pretrain_here` or `finetune_here`.
        store, splits, out: folder, file and folder.
        sizes: fields of `TabletConfig`.
        options: seconds to wait after each step, and variables that a launcher such as torchrun sets.
    """
    context = multiprocessing.get_context("forkserver")
    libraries = ["tensorboardX", "transformers.trainer"]
    ours = ["tablet_hf.datasets.store", "tablet_hf.training.pretraining", "tablet_hf.training.finetuning"]
    context.set_forkserver_preload([*ours, *libraries])
    steps, sending = context.Pipe(duplex=False)
    process = context.Process(target=train, args=(store, splits, out, sizes, sending, *options))
    process.start()
    sending.close()
    return process, steps


def ended(process, out):
    """The exit code of a process that has ended; fails with what it wrote where that is late."""
    process.join(timeout=300)
    assert process.exitcode is not None, out.with_suffix(".txt").read_text()
    return process.exitcode


def pretrain_here(store, splits, out, sizes, connection, seconds=0.0, environment=None):
    with _noted(out, environment):
        callbacks = [Told(connection, seconds)]
        split = read_splits(splits)[0]
        pretrain(TokenDataset.load(store), out, SETTINGS, split=split, model=sizes, evaluations=4, callbacks=callbacks)


def finetune_here(store, splits, out, sizes, connection, seconds=0.0, environment=None):
    """Of two learning rates, with early stopping where there is nothing to find."""
    with _noted(out, environment):
        callbacks = [Told(connection, seconds)]
        split = read_splits(splits)[0]
        options = {"model": sizes, "learning_rates": RATES, "patience": 2, "callbacks": callbacks}
        finetune_fold(TokenDataset.load(store), split, "kind", out, SETTINGS, **options)


@contextlib.contextmanager
def _noted(out, environment):
    """Output goes to a file beside the folder."""
    os.environ.update(environment or {})
    with (
        out.with_suffix(".txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield
