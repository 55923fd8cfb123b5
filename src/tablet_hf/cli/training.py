"""The commands that train and evaluate models on token datasets: `tablet-hf pretrain`, `finetune` and `evaluate`."""

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tablet_hf.cli.terminal import DeviceOption, choose_device, messages, output, printable, report_errors
from tablet_hf.errors import InputError
from tablet_hf.progress import Bars

FIELDS = {
    "window": "window_frames",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "warmup": "warmup_steps",
    "compile": "torch_compile",
    "metric": "metric_for_best_model",
}
"""Field of `TabletTrainingArguments` for each option of another name."""

OF_PRETRAINING = ("mask_ratio", "mask_strategy", "norm_target")

DatasetOption = Annotated[str, typer.Option("--dataset", help="Folder of a token dataset, or its Hub id.")]
OutOption = Annotated[Path, typer.Option("--out", help="Output folder; run the same command again to resume.")]
SizeOption = Annotated[str, typer.Option("--size", help="Model size without --init: published, small or tiny.")]
SetOption = Annotated[list[str], typer.Option("--set", help="TabletConfig field as NAME=VALUE (repeatable).")]
TrainingOption = Annotated[
    list[str],
    typer.Option(
        "--training", help="TrainingArguments field, such as gradient_accumulation_steps=4 or fsdp=true (repeatable)."
    ),
]
SplitsOption = Annotated[Path | None, typer.Option("--splits", help="Splits file written by tablet-hf dataset split.")]
FoldOption = Annotated[str | None, typer.Option("--fold", help="Column of the splits file (default: the first).")]
WindowOption = Annotated[int, typer.Option("--window", min=0, help="Window length in frames; 0 for whole runs.")]
EpochsOption = Annotated[float, typer.Option("--epochs", help="Epochs; one random window per run and epoch.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Windows per step and device.")]
RateOption = Annotated[float, typer.Option("--learning-rate", help="Peak learning rate.")]
WarmupOption = Annotated[float, typer.Option("--warmup", help="Warmup, as a fraction of all steps.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="Precision: auto, bf16, fp16 or fp32.")]
CheckpointingOption = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Recompute activations: slower, with a third of the memory.")
]
CompileOption = Annotated[bool, typer.Option("--compile", help="Compile the model: faster steps on a GPU.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Random seed of weights, windows and masks.")]
MaxStepsOption = Annotated[int, typer.Option("--max-steps", help="Optimiser steps (default: from --epochs).")]
StreamedOption = Annotated[bool, typer.Option("--streamed", help="Stream the dataset from a folder or the Hub.")]
RatioOption = Annotated[float, typer.Option("--mask-ratio", help="Fraction of tokens to mask.")]
StrategyOption = Annotated[str, typer.Option("--mask-strategy", help="Masking: random, frame or tube.")]
NormTargetOption = Annotated[bool, typer.Option("--norm-target", help="Standardise each target token.")]
LabelOption = Annotated[str, typer.Option("--label", help="Phenotype to predict.")]
FoldsOption = Annotated[int, typer.Option("--folds", min=2, help="Number of folds to draw without --splits.")]
OnlyOption = Annotated[list[str], typer.Option("--fold", help="Fold to train (repeatable; default: all).")]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="Task: classification or regression (default: from the label).")
]
PositiveOption = Annotated[
    str | None, typer.Option("--positive", help="Positive class (default: the second in sorted order).")
]
ModeOption = Annotated[
    str, typer.Option("--mode", help="What to train: full, head (linear probe) or lora; head and lora need --init.")
]
InitOption = Annotated[
    str | None,
    typer.Option("--init", help="Starting weights: folder or Hub id; finetune replaces {fold} by the fold."),
]
SweepOption = Annotated[str | None, typer.Option("--sweep", help="Learning rates to try, such as 1e-5,1e-4.")]
MetricOption = Annotated[str, typer.Option("--metric", help="Validation metric for model selection: loss, auroc, ...")]
PatienceOption = Annotated[
    int | None, typer.Option("--patience", min=1, help="Early-stopping patience in epochs (default: never stop early).")
]
ScansOption = Annotated[
    list[Path], typer.Option("--scans", help="Folder of the tokenized scans, for connectivity baselines (repeatable).")
]
AtlasOption = Annotated[Path | None, typer.Option("--atlas", help="Parcellation (default: clustered regions).")]


@report_errors
def pretrain(
    context: typer.Context,
    dataset: DatasetOption,
    out: OutOption,
    splits: SplitsOption = None,
    fold: FoldOption = None,
    streamed: StreamedOption = False,
    init: InitOption = None,
    size: SizeOption = "published",
    fields: SetOption = [],  # noqa: B006  (typer reads it)
    mask_ratio: RatioOption = 0.5,
    mask_strategy: StrategyOption = "random",
    norm_target: NormTargetOption = False,
    window: WindowOption = 256,
    epochs: EpochsOption = 40,
    max_steps: MaxStepsOption = -1,
    batch_size: BatchOption = 4,
    learning_rate: RateOption = 1e-4,
    warmup: WarmupOption = 0.05,
    precision: PrecisionOption = "auto",
    gradient_checkpointing: CheckpointingOption = False,
    compile: CompileOption = False,
    training: TrainingOption = [],  # noqa: B006
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Pre-train on a token dataset by masked token modeling."""
    config, arguments = _config_fields(context), _training_arguments(context)
    from tablet_hf.datasets import StreamedWindows, TokenDataset
    from tablet_hf.training.pretraining import pretrain as run
    from tablet_hf.training.pretraining_page import write_pretraining_page
    from tablet_hf.training.trainer import ReportProgress

    if streamed and window == 0:
        raise InputError("--window 0: streamed windows need a length.")
    store = StreamedWindows(dataset, window, seed=seed) if streamed else TokenDataset.load(dataset)
    split = _split(splits, store.all_runs if streamed else store.runs, fold)
    report = ReportProgress(_Bar("pre-training", "steps"))
    result = run(store, out, arguments, split=split, init=init, model=config, callbacks=[report])
    if arguments.process_index:
        return
    page = write_pretraining_page(out, result, None if streamed else store, split, arguments)
    if result.validation_loss:
        (_, first), (_, last) = result.validation_loss[0], result.validation_loss[-1]
        output.print(
            f"validation loss {first:.4g} before, {last:.4g} after; "
            f"{result.mean_predictor_loss:.4g} for predicting each cell's mean"
        )
    output.print(printable(result.folder))
    messages.print(f"Report: {printable(page)}")


@report_errors
def finetune(
    context: typer.Context,
    dataset: DatasetOption,
    label: LabelOption,
    out: OutOption,
    splits: SplitsOption = None,
    folds: FoldsOption = 5,
    fold: OnlyOption = [],  # noqa: B006
    task: TaskOption = None,
    positive: PositiveOption = None,
    mode: ModeOption = "full",
    init: InitOption = None,
    size: SizeOption = "published",
    fields: SetOption = [],  # noqa: B006
    sweep: SweepOption = None,
    metric: MetricOption = "loss",
    patience: PatienceOption = None,
    window: WindowOption = 256,
    epochs: EpochsOption = 20,
    batch_size: BatchOption = 4,
    learning_rate: RateOption = 1e-4,
    warmup: WarmupOption = 0.0,
    precision: PrecisionOption = "auto",
    gradient_checkpointing: CheckpointingOption = False,
    compile: CompileOption = False,
    training: TrainingOption = [],  # noqa: B006
    scans: ScansOption = [],  # noqa: B006
    atlas: AtlasOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Fine-tune to predict a phenotype, in folds, and compare with functional connectivity and simpler baselines."""
    config, arguments = _config_fields(context), _training_arguments(context)
    if splits is not None and context.get_parameter_source("folds").name == "COMMANDLINE":
        raise InputError(f"--folds {folds}: the folds are those of {splits}; leave out --folds, or --splits.")
    from tablet_hf.datasets import TokenDataset, read_splits
    from tablet_hf.training.experiments import finetune as run
    from tablet_hf.training.trainer import ReportProgress

    store = TokenDataset.load(dataset)
    results = run(
        store,
        folds if splits is None else read_splits(splits, runs=store.runs),
        label,
        out,
        arguments,
        only=fold,
        scans=scans,
        atlas=atlas,
        on_fold=_show_fold if arguments.process_index == 0 else None,
        on_progress=_Bar("baselines", "frames"),
        init=init,
        model=config,
        kind=task,
        positive=positive,
        callbacks=[ReportProgress(_Bar("fine-tuning", "steps"))],
    )
    if results is not None:
        _show_results(results, out)
        if fold:
            messages.print("These are the results of --fold alone; run the command without it to combine all folds.")


@report_errors
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a fine-tuned model.", show_default=False)],
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option("--out", help="Output folder for results.json, predictions.csv and index.html.")],
    splits: SplitsOption = None,
    fold: FoldOption = None,
    part: Annotated[str, typer.Option("--part", help="Part to evaluate: train, validation or test.")] = "test",
    label: Annotated[
        str | None, typer.Option("--label", help="Phenotype to compare with (default: recorded in the model).")
    ] = None,
    window: Annotated[
        int, typer.Option("--window", min=0, help="Window length in frames; 0 for that of the model.")
    ] = 0,
    batch_size: BatchOption = 4,
    precision: PrecisionOption = "auto",
    scans: ScansOption = [],  # noqa: B006
    atlas: AtlasOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Evaluate a fine-tuned model per subject, with confidence intervals, and compare with baselines."""
    if part not in ("train", "validation", "test"):
        raise InputError(f"--part {part}: choose train, validation or test.")
    arguments = _training_arguments(context)
    from tablet_hf.datasets import TokenDataset
    from tablet_hf.hub.loading import load_model
    from tablet_hf.training.checkpoints import training_subjects
    from tablet_hf.training.experiments import evaluate as run

    store = TokenDataset.load(dataset)
    results = run(
        load_model(model),
        store,
        _split(splits, store.runs, fold, part),
        out,
        arguments,
        part=part,
        label=label,
        scans=scans,
        atlas=atlas,
        about={"model": Path(model).name if Path(model).is_dir() else model},
        training_data=training_subjects(model),
        on_progress=_Bar("baselines", "frames"),
    )
    if results is not None:
        _show_results(results, out)


def _training_arguments(context: typer.Context) -> Any:
    """Make `TabletTrainingArguments` of the options of a command that are named like fields of them."""
    import torch

    from tablet_hf.training.arguments import TabletTrainingArguments

    # What Trainer itself would push has not passed the checks of tablet-hf push.
    fields = TabletTrainingArguments.__dataclass_fields__
    free = [name for name in fields if not name.startswith(("hub_", "push_to_hub"))]
    given = {FIELDS.get(name, name): value for name, value in context.params.items() if value is not None}
    given = {name: value for name, value in given.items() if name in free}
    given |= _assignments("--training", context.params.get("training", ()), free)
    given["per_device_eval_batch_size"] = given["per_device_train_batch_size"]
    given["window_frames"] = given["window_frames"] or None
    if (sweep := context.params.get("sweep")) is not None:
        try:
            given["learning_rates"] = tuple(map(float, sweep.split(",")))
        except ValueError as error:
            raise InputError(f"--sweep {sweep}: give numbers separated by commas, such as 1e-5,1e-4.") from error
    device = choose_device(context.params["device"])
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # Trainer uses the current GPU
    given |= {"output_dir": str(context.params["out"]), "use_cpu": device == "cpu", "disable_tqdm": True}
    try:
        return TabletTrainingArguments(**given)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"--training: {' '.join(str(error).split())}") from error


def _config_fields(context: typer.Context) -> dict[str, Any]:
    """Return fields of `TabletConfig` from --size, --set and the options of pre-training."""
    from tablet_hf.configuration_tablet import TabletConfig
    from tablet_hf.training.arguments import SIZES
    from tablet_hf.training.checkpoints import OF_TASK

    size, init = context.params["size"], context.params["init"]
    if size not in SIZES:
        raise InputError(f"--size {size}: choose {', '.join(SIZES)}.")
    if init is not None and size != "published":
        raise InputError(f"--size {size}: the size is that of {init}; leave out --size, or --init.")
    decided = {*TabletConfig.token_geometry, *TabletConfig.token_provenance, *OF_TASK, *OF_PRETRAINING, "num_frames"}
    given = _assignments("--set", context.params["fields"], TabletConfig.__dataclass_fields__.keys() - decided)
    given |= {name: context.params[name] for name in OF_PRETRAINING if name in context.params}
    return (SIZES[size] if init is None else {}) | given


def _assignments(option: str, texts: Sequence[str], free: Collection[str]) -> dict[str, Any]:
    """Return the values of options such as --set NAME=VALUE, each as JSON or as text."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in free:
            raise InputError(
                f"{option} {text}: give NAME=VALUE, with a field that the data and other options leave open."
            )
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def _split(path: Path | None, runs: Sequence[Any], name: str | None, part: str = "test") -> Any:
    from tablet_hf.datasets import read_splits

    if path is None:
        if name is not None or part != "test":  # all subjects would be used, those of the test part too
            raise InputError(f"{'--part' if name is None else '--fold'}: give a splits file as well (--splits).")
        return None
    splits = {split.name: split for split in read_splits(path, runs=runs)}
    if name is not None and name not in splits:
        raise InputError(f"{path}: no column {name!r}; it has {', '.join(splits)}.")
    return splits[name or next(iter(splits))]


def _show_fold(fold: Any) -> None:
    rate = "" if fold.learning_rate is None else f", learning rate {fold.learning_rate:g}"
    messages.print(printable(f"{fold.name}: {fold.task} ({fold.task.reason}){rate}. {fold.folder}"))


def _show_results(results: Mapping[str, Any], out: Path) -> None:
    """Print warnings, and a line per method: its metrics with intervals, and how far the first is ahead."""
    import pandas as pd

    for sentence in results["warnings"]:
        warnings.warn(sentence, stacklevel=2)
    heading = f"{results['label']}, {results['num_subjects']} subjects, mean and 95% interval over subjects"
    output.print(printable(heading))
    main, first = results["main_metric"], next(iter(results["methods"]))
    rows = {
        method: {name: _estimate(estimate) for name, estimate in found["metrics"].items()}
        for method, found in results["methods"].items()
    }
    for compared in results["comparisons"]:
        p_value = "" if compared["p_value"] is None else f", p = {compared['p_value']:.2g}"
        rows[compared["second"]][f"{first} ahead in {main}"] = _estimate(compared["metrics"][main], "+") + p_value
    output.print(printable(pd.DataFrame.from_dict(rows, orient="index").fillna("").to_string()))
    messages.print(f"Report: {printable(out / 'index.html')}")


def _estimate(found: Mapping[str, Any], sign: str = "") -> str:
    value, low, high = (found[name] for name in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{value:{sign}.3g}" if low is None else f"{value:{sign}.3g} ({low:{sign}.3g} to {high:{sign}.3g})"


class _Bar:
    """One progress bar at a time, which is made by the first call and removed by the last one."""

    def __init__(self, name: str, unit: str):
        self.name, self.unit, self.bars = name, unit, None

    def __call__(self, done: int, total: int, text: str = "") -> None:
        if self.bars is None and done >= total:
            return
        if self.bars is None:
            self.bars = Bars(*Bars.get_default_columns(), console=messages, unit=self.unit)
            self.bars.start()
            self.task = self.bars.add_task(self.name, total=total)
        self.bars.update(self.task, completed=done, description=f"{self.name} {text}".rstrip())
        if done >= total:
            self.bars.stop()
            self.bars = None
