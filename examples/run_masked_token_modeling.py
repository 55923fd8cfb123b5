"""Pre-train TABLeT by masked token modeling, with the `Trainer` of transformers: a script to copy and change.

    python examples/run_masked_token_modeling.py --dataset STORE --output_dir pretrained --num_train_epochs 40

All of `TrainingArguments` can be given as well. With `--splits` its training part is trained on and its validation
part evaluates (add `--eval_strategy epoch`). `tablet-hf pretrain` also streams, goes on where it was stopped, and draws
pictures.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser, Trainer, TrainingArguments

from tablet_hf import TabletConfig, TabletForMaskedTokenModeling
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
from tablet_hf.training.pretraining import MaskedWindows


@dataclass
class Data:
    dataset: str = field(metadata={"help": "Folder of a token dataset, or its Hub id."})
    splits: str | None = field(default=None, metadata={"help": "CSV of tablet-hf dataset split."})
    num_frames: int = field(default=256, metadata={"help": "Of a window."})
    mask_ratio: float = 0.5
    mask_strategy: str = field(default="random", metadata={"help": "random, frame or tube."})
    norm_target: bool = False
    hidden_size: int = 896
    num_hidden_layers: int = 12
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    intermediate_size: int = 4864


def main() -> None:
    parser = HfArgumentParser((Data, TrainingArguments))
    data, arguments = parser.parse_args_into_dataclasses()
    arguments.remove_unused_columns = False
    arguments.prediction_loss_only = True

    store = TokenDataset.load(data.dataset)
    split = None if data.splits is None else read_splits(data.splits, runs=store.runs)[0]
    runs = None if split is None else runs_in(split, store.runs, "train")
    training = TrainingWindows(store, data.num_frames, runs)

    made = {name: store.preprocessing.get(name) for name in TabletConfig.token_geometry + TabletConfig.token_provenance}
    of_model = {name: value for name, value in vars(data).items() if name in TabletConfig.__dataclass_fields__}
    model = TabletForMaskedTokenModeling(TabletConfig(**made, **of_model))
    validation = None
    if split is not None:
        held_out = runs_in(split, store.runs, "validation")
        validation = MaskedWindows(EvaluationWindows(store, data.num_frames, held_out), model.config)

    # With --hub_model_id (and without --push_to_hub, which uploads everything) checkpoints are published.
    callbacks = [EpochCallback(), PublishCallback(training, validation, arguments.hub_model_id)]
    trainer = Trainer(model, arguments, TabletCollator(), training, validation, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()
    if validation is not None:
        print(f"loss on held-out people: {trainer.evaluate()['eval_loss']:.4g}")


if __name__ == "__main__":
    main()
