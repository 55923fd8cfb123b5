"""Training in a process of its own, which may be one of several or be killed."""

import contextlib
import multiprocessing
import os
import time

from transformers import TrainerCallback

SETTINGS = {"window_frames": 12, "num_train_epochs": 6, "per_device_train_batch_size": 8, "learning_rate": 3e-3}
SETTINGS |= {"logging_steps": 2, "use_cpu": True}


class SendSteps(TrainerCallback):
    """Sends the number of each step, and waits some seconds after it."""

    def __init__(self, connection, seconds):
        self.connection, self.seconds = connection, seconds

    def on_step_end(self, args, state, control, **kwargs):
        self.connection.send(state.global_step)
        time.sleep(self.seconds)


def start(train, store, splits, out, sizes, *options):
    """Start a training; return its process and the connection that receives its steps.

    The process is a copy of one that has imported the libraries.

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
    """Return the exit code of a process; fail with its output where it takes too long."""
    process.join(timeout=300)
    assert process.exitcode is not None, out.with_suffix(".txt").read_text()
    return process.exitcode


def pretrain_here(store, splits, out, sizes, connection, seconds=0.0, environment=None):
    with _training(store, splits, out, environment) as (given, arguments):
        from tablet_hf.training.pretraining import pretrain

        arguments.eval_steps = 0.25
        store, split = given
        pretrain(store, out, arguments, split=split, model=sizes, callbacks=[SendSteps(connection, seconds)])


def finetune_here(store, splits, out, sizes, connection, seconds=0.0, environment=None):
    """Fine-tune with two learning rates and early stopping, on a label without any effect."""
    with _training(store, splits, out, environment, learning_rates=(1e-2, 3e-3), patience=2) as (given, arguments):
        from tablet_hf.training.finetuning import finetune_fold

        callbacks = [SendSteps(connection, seconds)]
        finetune_fold(*given, "kind", out, arguments, model=sizes, callbacks=callbacks)


@contextlib.contextmanager
def _training(store, splits, out, environment, **more):
    """Write output to a file next to the folder; give store and split, and the arguments."""
    os.environ.update(environment or {})
    with (
        out.with_suffix(".txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        from tablet_hf.datasets import TokenDataset, read_splits
        from tablet_hf.training.arguments import TabletTrainingArguments

        arguments = TabletTrainingArguments(str(out), **SETTINGS, **more)
        yield (TokenDataset.load(store), read_splits(splits)[0]), arguments
