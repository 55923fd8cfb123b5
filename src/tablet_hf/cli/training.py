"""The commands that train and evaluate models on token datasets: `tablet-hf pretrain`, `finetune` and `evaluate`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from tablet_hf.cli.terminal import DeviceOption, choose_device, messages, one_sentence, output
from tablet_hf.errors import InputError
from tablet_hf.progress import Bars

OF_LABEL = ("problem_type", "target_mean", "target_std", "positive_weight", "class_weights", "negative_label")
OF_LABEL += ("target_name", "num_labels", "id2label", "label2id")
OPTIONS_OF_FIELDS = {
    "num_frames": "--window decides it",
    "mask_ratio": "--mask-ratio of pretrain decides it",
    "mask_strategy": "--mask-strategy of pretrain decides it",
    "norm_target": "--norm-target of pretrain decides it",
}
"""Fields of `TabletConfig` that --set would set in vain, and what sets them."""

DatasetOption = Annotated[str, typer.Option("--dataset", help="Folder of a token dataset, or its Hub id.")]
OutOption = Annotated[Path, typer.Option("--out", help="Output folder; run the same command again to resume.")]
InitOption = Annotated[
    str | None,
    typer.Option(
        "--init", help="Folder or Hub id of the starting weights; finetune replaces {fold} by the name of the fold."
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", help="Model size without --init: published (default), small or tiny."),
]
SetOption = Annotated[
    list[str], typer.Option("--set", help="TabletConfig field, such as pooling_type=variability (repeatable).")
]
SplitsOption = Annotated[Path | None, typer.Option("--splits", help="Splits file written by tablet-hf dataset split.")]
WindowOption = Annotated[int, typer.Option("--window", min=0, help="Window length in frames; 0 for whole runs.")]
EpochsOption = Annotated[float, typer.Option("--epochs", help="Epochs; one random window per run and epoch.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Windows per step and device.")]
AccumulateOption = Annotated[int, typer.Option("--accumulate", min=1, help="Gradient accumulation steps.")]
RateOption = Annotated[float, typer.Option("--learning-rate", help="Peak learning rate.")]
WarmupOption = Annotated[float, typer.Option("--warmup", help="Warmup, as a fraction of all steps.")]
DecayOption = Annotated[float, typer.Option("--weight-decay", help="AdamW weight decay.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="Precision: auto, bf16, fp16 or fp32.")]
CheckpointingOption = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Recompute activations: slower, with a third of the memory.")
]
CompileOption = Annotated[bool, typer.Option("--compile", help="Compile the model: faster steps on a GPU.")]
FsdpOption = Annotated[bool, typer.Option("--fsdp", help="Shard the weights over several GPUs (FSDP2).")]
SeedOption = Annotated[int, typer.Option("--seed", help="Random seed of weights, windows and masks.")]
ScansOption = Annotated[
    list[Path], typer.Option("--scans", help="Folder of the tokenized scans, for connectivity baselines (repeatable).")
]
AtlasOption = Annotated[
    Path | None, typer.Option("--atlas", help="Parcellation for connectivity (default: clustered regions).")
]


@one_sentence
def pretrain(
    context: typer.Context,
    dataset: DatasetOption,
    out: OutOption,
    splits: SplitsOption = None,
    fold: Annotated[str | None, typer.Option("--fold", help="Column of the splits file (default: the first).")] = None,
    streamed: Annotated[bool, typer.Option("--streamed", help="Stream the dataset from a folder or the Hub.")] = False,
    init: InitOption = None,
    size: SizeOption = None,
    set_fields: SetOption = [],  # noqa: B006  (typer reads it)
    mask_ratio: Annotated[float, typer.Option("--mask-ratio", help="Fraction of tokens to mask.")] = 0.5,
    mask_strategy: Annotated[
        str, typer.Option("--mask-strategy", help="Masking strategy: random, frame or tube.")
    ] = "random",
    norm_target: Annotated[bool, typer.Option("--norm-target", help="Standardise each target token.")] = False,
    window_frames: WindowOption = 256,
    epochs: EpochsOption = 40,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", min=1, help="Number of optimiser steps (default: from --epochs).")
    ] = None,
    batch_size: BatchOption = 4,
    accumulate: AccumulateOption = 1,
    learning_rate: RateOption = 1e-4,
    warmup: WarmupOption = 0.05,
    weight_decay: DecayOption = 0.01,
    precision: PrecisionOption = "auto",
    gradient_checkpointing: CheckpointingOption = False,
    compile: CompileOption = False,
    fsdp: FsdpOption = False,
    save_steps: Annotated[
        int | None, typer.Option("--save-steps", min=1, help="Steps between checkpoints (default: one per epoch).")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Number of processes that read streamed data.")] = 0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Pre-train on a token dataset by masked token modeling."""
    fields = _fields(size, init, set_fields)
    fields |= {"mask_ratio": mask_ratio, "mask_strategy": mask_strategy, "norm_target": norm_target}
    from tablet_hf.training.pretraining import pretrain as run
    from tablet_hf.training.pretraining_page import write_pretraining_page

    _check_alone(splits, fold)
    settings = _settings(context)
    store, split = _open(dataset, streamed, settings), None
    if splits is not None:
        split = _chosen(_read_splits(splits, store, streamed), fold, splits)
    result = run(
        store,
        out,
        settings,
        split=split,
        init=init,
        model=fields,
        callbacks=[_bars("pre-training")],
        is_quiet=True,
        on_note=_note,
    )
    if not _is_main_process():
        return
    page = write_pretraining_page(out, result, None if streamed else store, split, settings)
    if result.validation_loss:
        last, first = result.validation_loss[-1][1], result.validation_loss[0][1]
        output.print(
            f"validation loss {first:.4g} before, {last:.4g} after; naming each cell's mean reaches "
            f"{result.mean_predictor_loss:.4g}"
        )
    output.print(escape(str(result.folder)))
    messages.print(f"Pictures: {escape(str(page))}")


@one_sentence
def finetune(
    context: typer.Context,
    dataset: DatasetOption,
    label: Annotated[str, typer.Option("--label", help="Phenotype to predict.")],
    out: OutOption,
    splits: SplitsOption = None,
    folds: Annotated[
        int | None, typer.Option("--folds", min=1, help="Number of folds to draw without --splits (default: 4).")
    ] = None,
    fold: Annotated[list[str], typer.Option("--fold", help="Fold to train (repeatable).")] = [],  # noqa: B006
    task: Annotated[
        str | None, typer.Option("--task", help="Task: classification or regression (default: from the label).")
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option("--positive", help="Positive class for binary labels (default: the second in sorted order)."),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="What to train: full, head (linear probe) or lora; head and lora need --init.")
    ] = "full",
    lora_rank: Annotated[int, typer.Option("--lora-rank", min=1, help="LoRA rank.")] = 8,
    init: InitOption = None,
    size: SizeOption = None,
    set_fields: SetOption = [],  # noqa: B006
    sweep: Annotated[
        str | None, typer.Option("--sweep", help="Learning rates to try, such as 1e-6,1e-5,1e-4,1e-3.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="Validation metric for model selection: loss, auroc, mae, ... (default: loss)."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", min=1, help="Early-stopping patience, in epochs (default: never stop early)."),
    ] = None,
    window_frames: WindowOption = 256,
    epochs: EpochsOption = 20,
    batch_size: BatchOption = 4,
    accumulate: AccumulateOption = 1,
    learning_rate: RateOption = 1e-4,
    warmup: WarmupOption = 0.0,
    weight_decay: DecayOption = 0.01,
    precision: PrecisionOption = "auto",
    gradient_checkpointing: CheckpointingOption = False,
    compile: CompileOption = False,
    scans: ScansOption = [],  # noqa: B006
    atlas: AtlasOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Fine-tune to predict a phenotype, in folds, and compare with functional connectivity and simpler baselines."""
    fields = _fields(size, init, set_fields)
    rates = _rates(sweep)
    if splits is not None and folds is not None:
        raise InputError(f"--folds {folds}: {splits} says which folds there are; leave --folds out, or --splits.")
    from tablet_hf.training.experiments import finetune as run

    settings = _settings(context)
    store = _open(dataset, False, settings)
    chosen = _read_splits(splits, store) if splits is not None else _drawn(store, label, folds or 4, seed, out)
    num_folds = len(chosen)
    if fold:
        chosen = [_chosen(chosen, name, splits or out / "splits.csv") for name in dict.fromkeys(fold)]
    results = run(
        store,
        chosen,
        label,
        out,
        settings,
        scans=scans or None,
        atlas=atlas,
        on_fold=_tell_fold,
        on_note=_note,
        init=init,
        model=fields,
        mode=mode,
        learning_rates=rates,
        metric=metric,
        patience=patience,
        kind=task,
        positive=positive,
        lora_rank=lora_rank,
        callbacks=[_bars("fine-tuning")],
        is_quiet=True,
    )
    _tell_results(results, out)
    if len(chosen) < num_folds:
        _note(
            f"The results in {out} are those of {', '.join(split.name for split in chosen)}; the same words without "
            "--fold put all folds together, and train none that is done."
        )


@one_sentence
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a fine-tuned model.", show_default=False)],
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option("--out", help="Output folder for results.json, predictions.csv and index.html.")],
    splits: SplitsOption = None,
    fold: Annotated[str | None, typer.Option("--fold", help="Column of the splits file (default: the first).")] = None,
    part: Annotated[str, typer.Option("--part", help="Part to evaluate: train, validation or test.")] = "test",
    label: Annotated[
        str | None, typer.Option("--label", help="Phenotype to compare with (default: recorded in the model).")
    ] = None,
    window_frames: Annotated[
        int | None, typer.Option("--window", min=1, help="Window length in frames (default: that of the model).")
    ] = None,
    batch_size: BatchOption = 4,
    precision: PrecisionOption = "auto",
    scans: ScansOption = [],  # noqa: B006
    atlas: AtlasOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Evaluate a fine-tuned model per subject, with confidence intervals, and compare with baselines."""
    from tablet_hf.hub.loading import load_model
    from tablet_hf.training.checkpoints import training_subjects
    from tablet_hf.training.experiments import evaluate as run

    if part not in ("train", "validation", "test"):
        raise InputError(f"--part {part}: choose train, validation or test.")
    _check_alone(splits, fold, part)
    settings = _settings(context)
    network = load_model(model)
    store = _open(dataset, False, settings)
    split = None if splits is None else _chosen(_read_splits(splits, store), fold, splits)
    results = run(
        network,
        store,
        split,
        out,
        part=part,
        label=label,
        settings=settings,
        scans=scans or None,
        atlas=atlas,
        about={"model": Path(model).name if Path(model).is_dir() else model},
        training_data=training_subjects(model),
        on_note=_note,
    )
    _tell_results(results, out)


# --- parts


def _settings(context: typer.Context) -> Any:
    """The `Settings` that a command was called with: its parameters that are called like fields of them."""
    from tablet_hf.training.arguments import Settings

    said = {name: value for name, value in context.params.items() if name in Settings.__dataclass_fields__}
    said |= {"window_frames": said["window_frames"] or None, "device": choose_device(said["device"])}
    return Settings(**said)


def _fields(size: str | None, init: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Fields of `TabletConfig` from --size and --set."""
    from tablet_hf.training.arguments import SIZES

    if size is not None and size not in SIZES:
        raise InputError(f"--size {size}: choose {', '.join(SIZES)}.")
    if size is not None and init is not None:
        raise InputError(f"--size {size}: {init} has a size of its own; leave --size out, or --init.")
    fields = dict(SIZES[size or "published"]) if init is None else {}
    from tablet_hf.configuration_tablet import TabletConfig

    told = dict.fromkeys((*TabletConfig.token_geometry, *TabletConfig.token_provenance), "the dataset says it")
    told |= dict.fromkeys(OF_LABEL, "the label decides it") | OPTIONS_OF_FIELDS
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if equals and name in told:
            raise InputError(f"--set {assignment}: {told[name]}; leave it out.")
        if not equals or name not in TabletConfig.__dataclass_fields__:
            raise InputError(f"--set {assignment}: give name=value, the name one of TabletConfig's fields.")
        try:
            fields[name] = json.loads(text)
        except ValueError:
            fields[name] = text
    return fields


def _rates(sweep: str | None) -> list[float] | None:
    if sweep is None:
        return None
    try:
        rates = [float(word) for word in sweep.split(",")]
    except ValueError as error:
        raise InputError(f"--sweep {sweep}: give numbers with commas between, such as 1e-5,1e-4.") from error
    if not all(rate > 0 for rate in rates) or len(set(rates)) < len(rates):
        raise InputError(f"--sweep {sweep}: learning rates are over 0, and no two the same.")
    return rates


def _open(dataset: str, streamed: bool, settings: Any) -> Any:
    from tablet_hf.datasets import StreamedWindows, TokenDataset

    if not streamed:
        return TokenDataset.load(dataset)
    if settings.window_frames is None:
        raise InputError("--window 0: streamed windows need a length.")
    return StreamedWindows(dataset, settings.window_frames, seed=settings.seed)


def _read_splits(path: Path, store: Any, streamed: bool = False) -> list[Any]:
    from tablet_hf.datasets import read_splits

    return read_splits(path, runs=list(store.runs.values()) if streamed else store.runs)


def _chosen(splits: Sequence[Any], name: str | None, path: Path) -> Any:
    if name is None:
        return splits[0]
    for split in splits:
        if split.name == name:
            return split
    raise InputError(f"{path}: it has no column {name!r}; it has {', '.join(split.name for split in splits)}.")


def _check_alone(splits: Path | None, fold: str | None, part: str = "test") -> None:
    """Refuse a fold or a part of no splits: everyone would be taken, and the test part too."""
    if splits is None and (fold is not None or part != "test"):
        asked = f"--fold {fold}" if fold is not None else f"--part {part}"
        raise InputError(f"{asked}: it is one of a file of splits; give that file as well, by --splits.")


def _drawn(store: Any, label: str, num_folds: int, seed: int, out: Path) -> list[Any]:
    """Folds that are drawn now, or were when this was begun, kept next to what comes of them."""
    from tablet_hf.datasets import family_ids, folds, subject_ids, write_splits
    from tablet_hf.sources.records import phenotype_values
    from tablet_hf.training.checkpoints import TRAINING_FILE

    path = out / "splits.csv"
    if path.is_file():
        kept = _read_splits(path, store)
        drawn_for = kept[0].settings.get("label", label)  # who brings a file of that name knows what it is for
        is_another = len(kept) != num_folds or drawn_for != label or kept[0].seed not in (None, seed)
        is_begun = any(out.glob(f"*/{TRAINING_FILE}"))
        if len(kept) != num_folds and (is_begun or "label" not in kept[0].settings):
            raise InputError(
                f"{out}: a training in {len(kept)} folds was begun there, not in {num_folds}; give --folds "
                f"{len(kept)}, or another --out."
            )
        if is_begun and drawn_for != label:
            raise InputError(
                f"{out}: a training with label {drawn_for!r}, not {label!r}, was begun there; choose another --out, or "
                f"delete it. (To train on the same folds: --splits {path} and another --out.)"
            )
        # What was drawn for a try that never began shall not decide about this one.
        if not is_another or is_begun or "label" not in kept[0].settings:
            return kept
    sites = [run.site for run in store.runs]
    drawn = folds(
        subject_ids(store.runs),
        phenotype_values(store.runs, label, store.folder),
        sites if any(sites) else None,
        family_ids(store.runs),
        num_folds=num_folds,
        seed=seed,
    )
    drawn = [replace(split, settings={**split.settings, "label": label}) for split in drawn]
    if _is_main_process():
        write_splits(drawn, path)
    return drawn


def _is_main_process() -> bool:
    from tablet_hf.training.arguments import process_state

    return process_state().is_main_process


def _note(sentence: str) -> None:
    if _is_main_process():
        messages.print(escape(sentence))


def _tell_fold(fold: Any) -> None:
    if not _is_main_process():
        return
    rate = "" if fold.learning_rate is None else f", learning rate {fold.learning_rate:g}"
    value = max(fold.validation.values()) if len(fold.validation) == 1 else None
    said = "" if value is None else f", {fold.metric} {value:.3g} in validation"
    messages.print(escape(f"{fold.name}: done{rate}{said}. {fold.folder}"))


def _tell_results(results: Mapping[str, Any] | None, out: Path) -> None:
    """Print a line per method: its metrics with intervals, and how far the first is ahead."""
    if results is None:
        return
    for sentence in results["warnings"]:
        messages.print(f"Note: {escape(sentence)}")
    people = "1 person" if results["num_subjects"] == 1 else f"{results['num_subjects']} people"
    output.print(escape(f"{results['label']}, {people}, mean and 95% interval over people"))
    names = list(next(iter(results["methods"].values()))["metrics"])
    main, first = results["main_metric"], next(iter(results["methods"]))
    ahead = {each["second"]: each for each in results["comparisons"]}
    rows = [["", *names, *([f"{first} ahead in {main}"] if ahead else [])]]
    for method, found in results["methods"].items():
        rows.append([method, *(_estimate(found["metrics"][name]) for name in names)])
        if ahead:
            rows[-1].append(_difference(ahead[method], main) if method in ahead else "")
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        output.print(escape("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))
    messages.print(f"Pictures and everything else: {escape(str(out / 'index.html'))}")


def _estimate(found: Mapping[str, Any], sign: str = "") -> str:
    value, low, high = (found[name] for name in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{value:{sign}.3g}" if low is None else f"{value:{sign}.3g} ({low:{sign}.3g} to {high:{sign}.3g})"


def _difference(found: Mapping[str, Any], metric: str) -> str:
    text = _estimate(found["metrics"][metric], "+")
    return text if found["p_value"] is None else f"{text}, p = {found['p_value']:.2g}"


def _bars(what: str) -> Any:
    """Trainer's progress in the bars of this command line."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from transformers import TrainerCallback

    class ShownProgress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bars = None
            if not state.is_world_process_zero:
                return
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
            self.bars = Bars(
                *columns, TextColumn("{task.fields[loss]}"), TimeRemainingColumn(), console=messages, unit="steps"
            )
            self.bars.start()
            self.task = self.bars.add_task(what, total=state.max_steps, completed=state.global_step, loss="")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.bars is not None:
                self.bars.update(self.task, completed=state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if getattr(self, "bars", None) is not None and "loss" in (logs or {}):
                self.bars.update(self.task, loss=f"loss {float(logs['loss']):.4g}")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.bars is not None:
                self.bars.stop()

    return ShownProgress()
