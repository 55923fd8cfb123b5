"""
A study of some hundred people: TABLeT by what its head reads and what it starts from, beside baselines.

    python benchmarks/small_study.py STORE --labels sex dx --scans derivatives/ --atlas atlas.nii.gz --out study
    python benchmarks/small_study.py --picture study.png study/results-*            # of results already there

STORE holds tokens with the labels as phenotypes. People are dealt into four folds, the same for all labels, balanced in
each of them and in site. In each fold a small network (`tablet-hf finetune --size small`) is pre-trained on the people
of the training part, without their labels, and fine-tuned from there and from scratch, with the head on the mean of the
states or on their variability; linear probes are fitted on the pre-trained network and, as a control, on one that was
never trained. Learning rate and epoch are chosen by the loss of the validation part. All of it is written by
`write_results`: intervals over people, permutation, sites.

Beforehand, and without any label: from whose first half does a second half come? Features of the halves of all people
are compared by the correlation of their z-scores, and the share of right answers says how much of a person they hold.

It goes on where it was stopped. `--fold N` does one fold and no results, so that several processes can share the work.
"""

import argparse
import dataclasses
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from tablet_hf import TabletModel
from tablet_hf.datasets import Split, TokenDataset, folds, subject_ids
from tablet_hf.evaluation.predictions import joined
from tablet_hf.report.evaluation_page import write_results
from tablet_hf.training.arguments import SIZES, TabletTrainingArguments
from tablet_hf.training.experiments import baselines
from tablet_hf.training.finetuning import finetune_fold, read_fold
from tablet_hf.training.pretraining import pretrain

MEAN, VARIABILITY = {"pooling_type": "mean"}, {"pooling_type": "variability"}
VARIANTS = {  # name: (what it starts from, fields over those of it, mode)
    "from scratch, mean of states": (None, MEAN, "full"),
    "pre-trained, all weights, mean of states": ("pretrained", MEAN, "full"),
    "pre-trained, linear probe, mean of states": ("pretrained", MEAN, "head"),
    "from scratch, variability": (None, VARIABILITY, "full"),
    "pre-trained, all weights, variability": ("pretrained", VARIABILITY, "full"),
    "pre-trained, linear probe, variability": ("pretrained", VARIABILITY, "head"),
    "untrained, linear probe, variability": ("untrained", VARIABILITY, "head"),
}
LEARNING_RATES = (1e-4, 3e-4)


def dealt(store: TokenDataset, labels: Sequence[str]) -> list[Split]:
    """Four folds, the same for all labels."""
    together = [" ".join(str(run.phenotypes[label]) for label in labels) for run in store.runs]
    return folds(subject_ids(store.runs), together, [run.site for run in store.runs], num_folds=4)


def pretrained(store: TokenDataset, split: Split, out: Path, arguments: argparse.Namespace) -> None:
    """Networks of one fold: one trained on the training part by masked token modeling, one as it was drawn."""
    size = SIZES[arguments.size]
    for name, steps, rate in (("pretrained", arguments.steps, 5e-4), ("untrained", 1, 1e-12)):
        training = TabletTrainingArguments(
            window_frames=arguments.window,
            max_steps=steps,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=rate,
            weight_decay=0.05,
            save_strategy="steps",
            save_steps=500,
            disable_tqdm=True,
        )
        started = time.perf_counter()
        result = pretrain(store, out / split.name / name, training, split=split, model=size)
        if name == "pretrained":
            losses = ", ".join(f"{loss:.3f}" for _, loss in result.validation_loss)
            seconds = time.perf_counter() - started
            print(f"{split.name}: pre-trained in {seconds:.0f} s, held-out loss {losses}", flush=True)
            print(f"  of naming each cell's mean: {result.mean_predictor_loss:.3f}", flush=True)


def tuned(store: TokenDataset, split: Split, label: str, variant: str, out: Path, arguments: argparse.Namespace):
    start, fields, mode = VARIANTS[variant]
    training = TabletTrainingArguments(
        window_frames=arguments.window,
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=8,
        weight_decay=0.05,
        warmup_steps=0.1,
        mode=mode,
        learning_rates=None if mode == "head" else LEARNING_RATES,
        metric_for_best_model="auroc" if mode == "head" else "loss",
        disable_tqdm=True,
    )
    return finetune_fold(
        store,
        split,
        label,
        folder_of(out, split, label, variant),
        training,
        init=None if start is None else out / split.name / start / "model",
        model=fields if start is not None else SIZES[arguments.size] | fields,
    )


def folder_of(out: Path, split: Split, label: str, variant: str) -> Path:
    return out / split.name / f"{label}, {variant}"


def recognised(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of features `(people, features)` of two halves: who is recognised by the other half, `(2, people)` bool."""
    halves = []
    for half in (first, second):
        scores = (half - half.mean(0)) / (half.std(0) + 1e-9)
        halves.append(scores / np.linalg.norm(scores, axis=1, keepdims=True))
    likeness = halves[0] @ halves[1].T
    people = np.arange(len(likeness))
    return np.stack([likeness.argmax(1) == people, likeness.argmax(0) == people])


def identification(store: TokenDataset, split: Split, out: Path, device: str) -> None:
    """Print how many people each kind of pooling recognises, with the networks of one fold."""
    half = min(run.num_frames for run in store.runs) // 2
    training_data = set(split.subjects("train"))
    is_new = np.array([subject not in training_data for subject in subject_ids(store.runs)])
    print(f"recognised in the other half of {2 * half} frames, chance {1 / len(store.runs):.3f}:")
    for name in ("untrained", "pretrained"):
        for pooling in ("cls", "mean", "variability"):
            model = TabletModel.from_pretrained(out / split.name / name / "model", pooling_type=pooling)
            model = model.eval().to(device)
            features = [half_features(model, store, start, half) for start in (0, half)]
            right = recognised(*features)
            new = f"of {is_new.sum()} not learnt from {right[:, is_new].mean():.3f}"
            print(f"  {name:10} {pooling:11} {right.mean():.3f}, {new}", flush=True)


@torch.no_grad()
def half_features(model: TabletModel, store: TokenDataset, start: int, frames: int) -> np.ndarray:
    pooled = []
    for number, run in enumerate(store.runs):
        tokens = store.window(number, start, frames).unsqueeze(0).to(model.device)
        pooled.append(model(tokens, repetition_time=run.repetition_time).pooler_output[0].double().cpu().numpy())
    return np.stack(pooled)


def results(store: TokenDataset, splits: Sequence[Split], label: str, out: Path, arguments: argparse.Namespace) -> Path:
    methods = []
    for variant in VARIANTS:
        found = [read_fold(folder_of(out, split, label, variant)) for split in splits]
        methods.append(dataclasses.replace(joined([fold.predictions for fold in found]), method=f"TABLeT, {variant}"))
    pairs = [(split, fold.task) for split, fold in zip(splits, found, strict=True)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    beside = baselines(store, pairs, arguments.scans, arguments.atlas, device, out / "baselines")
    if arguments.scans is not None:
        decoded = baselines(store, pairs, None, arguments.atlas, device, out / "baselines")
        beside += [one for one in decoded if one.method not in {known.method for known in beside}]
    about = {"store": store.folder.name, "signal": store.preprocessing.get("signal")}
    folder = out / f"results-{label}"
    write_results(folder, methods + beside, baselines=[one.method for one in beside], about=about)
    return folder


def table(folder: Path) -> None:
    judged = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    print(f"\n{judged['about'].get('signal')}, {judged['label']}, {judged['num_subjects']} people\n")
    print("| method | AUROC | balanced accuracy | p |\n| --- | --- | --- | --- |")
    for name, entry in judged["methods"].items():
        shown = [
            "{value:.2f} ({low:.2f} to {high:.2f})".format(**entry["metrics"][metric])
            for metric in ("auroc", "balanced_accuracy")
        ]
        print(f"| {name} | {' | '.join(shown)} | {entry['p_value']:.3f} |")


def draw(folders: Sequence[Path], path: Path) -> None:
    """AUROC of every method with its interval, a panel for each folder of results."""
    from matplotlib.figure import Figure

    judged = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    names = list(dict.fromkeys(name for one in judged for name in one["methods"]))
    figure = Figure(figsize=(3.2 + 2.4 * len(judged), 0.8 + 0.27 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(judged), sharey=True, squeeze=False)[0]
    for axes, one in zip(panels, judged, strict=True):
        for place, name in enumerate(names):
            if name not in one["methods"]:
                continue
            auroc = one["methods"][name]["metrics"]["auroc"]
            colour = "tab:gray" if name in one["baselines"] else "tab:blue"
            axes.plot([auroc["low"], auroc["high"]], [place, place], color=colour, linewidth=2)
            axes.plot(auroc["value"], place, "o", color=colour)
        axes.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=f"{one['label']}, {one['about'].get('signal')}", xlabel="AUROC", xlim=(0.15, 0.95))
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="STORE | RESULTS", help="with --picture, results")
    parser.add_argument("--labels", nargs="+", default=["sex"], help="phenotypes of two classes")
    parser.add_argument("--scans", type=Path, help="for functional connectivity")
    parser.add_argument("--atlas", type=Path, help="label image")
    parser.add_argument("--out", type=Path, default=Path("small-study"))
    parser.add_argument("--fold", type=int, help="do this one alone, from 1, and judge nothing")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--window", type=int, default=64, help="frames")
    parser.add_argument("--batch-size", type=int, default=16, help="of pre-training")
    parser.add_argument("--steps", type=int, default=1000, help="of pre-training")
    parser.add_argument("--epochs", type=int, default=12, help="of fine-tuning")
    parser.add_argument("--picture", type=Path, help="draw results that are there, and do nothing else")
    arguments = parser.parse_args()
    if arguments.picture is not None:
        draw(arguments.paths, arguments.picture)
        return
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    store = TokenDataset.load(arguments.paths[0])
    splits = dealt(store, arguments.labels)
    for number, split in enumerate(splits, start=1):
        if arguments.fold not in (None, number):
            continue
        pretrained(store, split, arguments.out, arguments)
        if number == 1:
            identification(store, split, arguments.out, device)
        for label in arguments.labels:
            for variant in VARIANTS:
                fold = tuned(store, split, label, variant, arguments.out, arguments)
                print(f"{split.name}, {label}, {variant}: validation {dict(fold.validation)}", flush=True)
    if arguments.fold is None:
        for label in arguments.labels:
            table(results(store, splits, label, arguments.out, arguments))


if __name__ == "__main__":
    main()
