"""Pre-train TABLeT by masked token modeling with the `Trainer` of transformers: a script to copy and change.

    python examples/run_masked_token_modeling.py --dataset STORE --output_dir pretrained --num_train_epochs 40

All of `TrainingArguments` can be given. With `--splits` it trains on the training part of the first split and evaluates
on its validation part. `tablet-hf pretrain` also streams, resumes, and draws pictures.
"""

import json
from dataclasses import dataclass, field

from transformers import HfArgumentParser, Trainer, TrainingArguments

from tablet_hf import TabletForMaskedTokenModeling
from tablet_hf.datasets import (
    EpochCallback,
    EvaluationWindows,
    TabletCollator,
    TokenDataset,
    TrainingWindows,
    read_splits,
    runs_in,
)
from tablet_hf.hub.publishing import PublishCallback
from tablet_hf.training.checkpoints import initial_model
from tablet_hf.training.pretraining import MaskedWindows


@dataclass
class Data:
    dataset: str = field(metadata={"help": "Folder or Hub id of a token dataset."})
    splits: str | None = field(default=None, metadata={"help": "CSV of tablet-hf dataset split."})
    num_frames: int = field(default=256, metadata={"help": "Window length in frames."})
    config: str = field(default="{}", metadata={"help": 'Fields of TabletConfig as JSON, such as {"mask_ratio": 0.6}.'})


def main() -> None:
    data, arguments = HfArgumentParser((Data, TrainingArguments)).parse_args_into_dataclasses()
    arguments.remove_unused_columns = False
    arguments.prediction_loss_only = True

    store = TokenDataset.load(data.dataset)
    fields = {"num_frames": data.num_frames} | json.loads(data.config)
    model = initial_model(TabletForMaskedTokenModeling, None, fields, store.preprocessing)
    runs, validation = None, None
    if data.splits is not None:
        split = read_splits(data.splits, runs=store.runs)[0]
        runs = runs_in(split, store.runs, "train")
        held_out = EvaluationWindows(store, data.num_frames, runs_in(split, store.runs, "validation"))
        validation = MaskedWindows(held_out, model.config)
    training = TrainingWindows(store, data.num_frames, runs)

    # Saves the feature extractor and the training record. With --hub_model_id (and without --push_to_hub, which uploads
    # everything in the folder) it publishes the checkpoints.
    publish = PublishCallback(training, validation, arguments.hub_model_id)
    trainer = Trainer(model, arguments, TabletCollator(), training, validation, callbacks=[EpochCallback(), publish])
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()
    if validation is not None:
        trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
