"""A `Trainer` whose pushes while it trains go through the same door as all others.

    arguments = TrainingArguments("out", push_to_hub=True, hub_model_id="lab/sex", save_strategy="epoch", ...)
    PublishingTrainer(model, arguments, TabletCollator(...), train_dataset=windows, store=store).train()

The library's own sends whatever is in the output folder: pickled settings with the access token in them if it was
given there, logs with the machine's name, lists of subjects, and a card with empty results.
"""

import json
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import FEATURE_EXTRACTOR_NAME

from tablet_hf.datasets.streaming import StreamedWindows
from tablet_hf.errors import InputError
from tablet_hf.hub.privacy import check_may_be_published
from tablet_hf.hub.publishing import Published, Sharing, check_may_write, check_repo, prepare, publish, restriction_of
from tablet_hf.hub.training_data import TRAINING_DATA_FILE, UNNAMED, TrainingData

__all__ = ["PublishingTrainer"]


class PublishingTrainer(Trainer):
    """`Trainer` with `push_to_hub=True`: configuration, weights, feature extractor and card are sent, and nothing else
    but `training_data.json`, which is next to all weights that it saves.

    Pushes run in a thread of their own, the last one at the end of training in the open. A push that fails while it
    trains is reported in a warning, and training goes on; the next one sends everything.

    Args:
        store: the `TokenDataset` that is trained on, for the card and for names that must not be sent; by default that
            of the windows.
        sharing: the conditions; by default private as `hub_private_repo` says (private where it says nothing).
        others: of `Trainer`.

    Raises:
        InputError: `hub_strategy` asks for checkpoints, which are pickles; no name of a repository, or the conditions
            forbid it.
    """

    def __init__(self, *args: Any, store: Any = None, sharing: Sharing | None = None, **kwargs: Any):
        arguments = kwargs.get("args", args[1] if len(args) > 1 else None)
        windows = kwargs.get("train_dataset", args[3] if len(args) > 3 else None)
        self._store = store if store is not None else getattr(windows, "store", None)
        self._trainings: tuple[TrainingData, ...] = ()
        is_private = True
        self._token = None
        if arguments is not None:
            is_private = arguments.hub_private_repo is not False
            # Trainer pickles its arguments into every folder that it saves.
            self._token, arguments.hub_token = arguments.hub_token, None
        self._sharing = sharing or Sharing(is_private=is_private)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="push")
        self._pushing: Future | None = None
        super().__init__(*args, **kwargs)

    def _set_trainings(self) -> None:
        """All trainings of the model, from the record next to the weights that it started from and from its windows."""
        if self._trainings:
            return
        started_from = self.model.name_or_path or None
        before = () if started_from is None else TrainingData.of_model(started_from)
        task = getattr(self.model.config, "target_name", None) or "masked token modeling"
        learnt, is_restricted = self._runs_of(self.train_dataset)
        chosen_by, _ = self._runs_of(self.eval_dataset)
        this = TrainingData.of_runs(task, learnt, chosen_by, is_restricted, started_from)
        self._trainings = (*before, this if learnt else replace(this, studies=(UNNAMED,)))

    def _runs_of(self, windows: Any) -> tuple[list[Any], bool]:
        """The runs that windows are cut from, and whether they are restricted; of other data nothing is known."""
        if (store := getattr(windows, "store", None)) is not None:
            return [store.runs[place] for place in windows.runs], bool(store.settings["is_restricted"])
        if isinstance(windows, StreamedWindows):
            return list(windows.runs.values()), bool(windows.settings["is_restricted"])
        if windows is self.train_dataset and self._store is not None:
            return list(self._store.runs), bool(self._store.settings["is_restricted"])
        return [], False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        self._set_trainings()
        if self.is_world_process_zero():
            TrainingData.write(output_dir or self.args.output_dir, self._trainings)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make sure that the pushes will be allowed, before hours of training; the repository is made by the first."""
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise InputError(
                f"hub_strategy={self.args.hub_strategy.value!r}: checkpoints hold pickles, which are never sent; "
                "choose 'every_save' or 'end'."
            )
        if self.args.hub_model_id is None:
            raise InputError("push_to_hub: name the repository with hub_model_id='owner/name'.")
        check_repo(self.args.hub_model_id)
        self._set_trainings()
        repo, sharing = self.args.hub_model_id, self._sharing
        is_restricted = restriction_of(repo, sharing, self._store, self._trainings)
        check_may_be_published(repo, "model", is_restricted, sharing.is_private, sharing.right_to_share)
        if self.is_world_process_zero():
            check_may_write(repo, self._token)
        self.hub_model_id, self.push_in_progress = self.args.hub_model_id, None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the card is made of what is known when it is sent."""

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Published | None:
        """Send the model as it is now; all processes call it, the main one sends."""
        if self.hub_model_id is None:
            self.init_hf_repo()
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        return self._send(Path(self.args.output_dir), commit_message, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self._pushing is not None and not self._pushing.done() and not self.args.hub_always_push:
            return
        self._tell_failure()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # A copy, since older checkpoints are deleted while it is sent.
        scratch = Path(tempfile.mkdtemp(prefix=".push-", dir=self.args.output_dir))
        self._gather(Path(checkpoint_folder), scratch / "model")
        message = f"Training in progress, step {self.state.global_step}"
        self._pushing = self._thread.submit(self._send_and_delete, scratch, message)

    def _send_and_delete(self, scratch: Path, message: str) -> Published:
        try:
            return self._send(scratch / "model", message)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _finish_current_push(self) -> None:
        if self._pushing is not None:
            self._pushing.exception()  # waits
            self._tell_failure()

    def _tell_failure(self) -> None:
        import warnings

        if self._pushing is not None and self._pushing.done() and (error := self._pushing.exception()):
            self._pushing = None
            if not isinstance(error, InputError):
                raise error
            warnings.warn(f"A push while training did not go through: {error}", stacklevel=2)

    def _gather(self, source: Path, folder: Path) -> None:
        """Copy the model's files of a folder that Trainer wrote, and put the extractor next to them."""
        folder.mkdir(parents=True)
        for pattern in ("config.json", TRAINING_DATA_FILE, "*.safetensors", "*.safetensors.index.json"):
            for path in source.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        if (source / FEATURE_EXTRACTOR_NAME).is_file():
            shutil.copyfile(source / FEATURE_EXTRACTOR_NAME, folder / FEATURE_EXTRACTOR_NAME)
        elif self._store is not None:
            record = json.dumps(dict(self._store.preprocessing), indent=2)
            (folder / FEATURE_EXTRACTOR_NAME).write_text(record + "\n", encoding="utf-8")

    def _send(
        self, source: Path, message: str | None, token: str | None = None, revision: str | None = None
    ) -> Published:
        token = token or self._token
        with tempfile.TemporaryDirectory(prefix=".push-", dir=self.args.output_dir) as scratch:
            self._gather(source, Path(scratch) / "model")
            prepared = prepare(
                Path(scratch) / "model",
                Path(scratch) / "to-be-sent",
                self.hub_model_id,
                self._sharing,
                dataset=self._store,
                token=token,
            )
            return publish(
                prepared,
                self.hub_model_id,
                revision=revision or self.args.hub_revision,
                message=message,
                token=token,
            )
