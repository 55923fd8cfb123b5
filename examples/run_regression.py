"""Fine-tune TABLeT to predict a number, such as age, with the `Trainer` of transformers: a script to copy and change.

    tablet-hf dataset split STORE --label age --out age.csv
    python examples/run_regression.py --dataset STORE --splits age.csv --label age --output_dir my-model

As `run_classification.py`, whose first lines say what else can be given. Targets are standardised by the mean and the
standard deviation of the training part, which the model keeps, so that it predicts in years, points, ...
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser, Trainer, TrainingArguments

from tablet_hf import TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification
from tablet_hf.datasets import (
    EpochCallback,
    EvaluationWindows,
    TabletCollator,
    TokenDataset,
    TrainingWindows,
    average_by,
    read_splits,
    runs_in,
)
from tablet_hf.datasets.tasks import find_task
from tablet_hf.evaluation.metrics import metrics_for, regression_metrics
from tablet_hf.hub.publishing import PublishCallback


@dataclass
class Data:
    dataset: str = field(metadata={"help": "Folder of a token dataset, or its Hub id."})
    splits: str = field(metadata={"help": "CSV of tablet-hf dataset split."})
    label: str = field(metadata={"help": "The phenotype to predict."})
    init: str | None = field(default=None, metadata={"help": "A pre-trained model to start from."})
    num_frames: int = field(default=256, metadata={"help": "Of a window."})
    hidden_size: int = field(default=896, metadata={"help": "Of a model from scratch."})
    num_hidden_layers: int = 12
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    intermediate_size: int = 4864


def main() -> None:
    parser = HfArgumentParser((Data, TrainingArguments))
    data, arguments = parser.parse_args_into_dataclasses()
    arguments.remove_unused_columns = False

    store = TokenDataset.load(data.dataset)
    split = read_splits(data.splits, runs=store.runs)[0]
    runs = {part: runs_in(split, store.runs, part) for part in ("train", "validation", "test")}
    task = find_task(store, data.label, runs["train"], kind="regression")

    made = {name: store.preprocessing.get(name) for name in TabletConfig.token_geometry + TabletConfig.token_provenance}
    fields = made | task.config_fields | {"num_frames": data.num_frames}
    if data.init is not None:
        model = TabletForSequenceClassification.from_pretrained(data.init, **fields)
    else:
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        model = TabletForSequenceClassification(TabletConfig(**fields, **{name: getattr(data, name) for name in sizes}))

    training = TrainingWindows(store, data.num_frames, runs["train"], data.label)
    validation = EvaluationWindows(store, data.num_frames, runs["validation"], data.label)
    test = EvaluationWindows(store, data.num_frames, runs["test"], data.label)
    # With --hub_model_id (and without --push_to_hub, which uploads everything) checkpoints are published.
    callbacks = [EpochCallback(), PublishCallback(training, validation, arguments.hub_model_id)]
    trainer = Trainer(
        model,
        arguments,
        TabletCollator(model.config.problem_type),
        training,
        validation,
        compute_metrics=metrics_for(model.config),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():  # how scans become the tokens that it knows, for `tablet-hf predict`
        TabletFeatureExtractor.from_dict(store.preprocessing).save_pretrained(arguments.output_dir)

    # A subject is the mean of his or her windows.
    values = trainer.predict(test).predictions
    people, means = average_by(values, test.subjects)
    labels = dict(zip(test.subjects, (test.labels[run] for run in test.run_indices), strict=True))
    metrics = regression_metrics([labels[person] for person in people], means[:, 0])
    if trainer.is_world_process_zero():
        print(f"{len(people)} people held out: " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


if __name__ == "__main__":
    main()
