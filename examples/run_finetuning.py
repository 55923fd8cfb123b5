"""Fine-tune TABLeT on a phenotype with the `Trainer` of transformers: a script to copy and change.

    tablet-hf dataset split STORE --label sex --out sex.csv
    python examples/run_finetuning.py --dataset STORE --splits sex.csv --label sex --output_dir my-model

All of `TrainingArguments` can be given, such as `--num_train_epochs 20 --learning_rate 1e-4 --bf16 True`, and
`torchrun --nproc_per_node 4 examples/run_finetuning.py ...` trains on four GPUs. `tablet-hf finetune` adds folds,
a sweep of learning rates, confidence intervals and baselines on the same subjects.
"""

import json
from dataclasses import dataclass, field

from transformers import HfArgumentParser, Trainer, TrainingArguments

from tablet_hf import TabletForSequenceClassification
from tablet_hf.datasets import (
    EpochCallback,
    EvaluationWindows,
    TabletCollator,
    TokenDataset,
    TrainingWindows,
    read_splits,
    runs_in,
)
from tablet_hf.datasets.tasks import find_task
from tablet_hf.hub.publishing import PublishCallback
from tablet_hf.training.checkpoints import initial_model
from tablet_hf.training.inference import subject_metrics


@dataclass
class Data:
    dataset: str = field(metadata={"help": "Folder or Hub id of a token dataset."})
    splits: str = field(metadata={"help": "CSV of tablet-hf dataset split."})
    label: str = field(metadata={"help": "Phenotype to predict: classes, or a number."})
    init: str | None = field(default=None, metadata={"help": "Folder or Hub id of a pre-trained model."})
    num_frames: int = field(default=256, metadata={"help": "Window length in frames."})
    config: str = field(default="{}", metadata={"help": 'TabletConfig fields as JSON, such as {"hidden_size": 128}.'})


def main() -> None:
    data, arguments = HfArgumentParser((Data, TrainingArguments)).parse_args_into_dataclasses()
    arguments.remove_unused_columns = False

    store = TokenDataset.load(data.dataset)
    split = read_splits(data.splits, runs=store.runs)[0]
    runs = {part: runs_in(split, store.runs, part) for part in ("train", "validation", "test")}
    task = find_task(store, data.label, runs["train"])
    training = TrainingWindows(store, data.num_frames, runs["train"], data.label, classes=task.classes)
    validation, test = (
        EvaluationWindows(store, data.num_frames, runs[part], data.label, classes=task.classes)
        for part in ("validation", "test")
    )

    fields = task.config_fields | {"num_frames": data.num_frames} | json.loads(data.config)
    model = initial_model(TabletForSequenceClassification, data.init, fields, store.preprocessing)
    # Saves the feature extractor and the training record. With --hub_model_id (and without --push_to_hub, which uploads
    # everything in the folder) it publishes the checkpoints.
    publish = PublishCallback(training, validation, arguments.hub_model_id)
    trainer = Trainer(
        model,
        arguments,
        TabletCollator(model.config.problem_type),
        training,
        validation,
        compute_metrics=subject_metrics(validation, task),
        callbacks=[EpochCallback(), publish],
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()

    trainer.compute_metrics = subject_metrics(test, task)
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    trainer.log_metrics("test", metrics)


if __name__ == "__main__":
    main()
