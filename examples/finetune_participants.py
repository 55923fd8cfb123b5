"""From fMRIPrep derivatives and a participants.tsv to a fine-tuned model, beside a functional-connectivity baseline.

    python examples/finetune_participants.py DERIVATIVES --label sex --positive F --out my-model

DERIVATIVES holds participants.tsv and sub-*/**/func/*_space-MNI152*_desc-preproc_bold.nii.gz; the first run of each
person is used. Tokens are kept in OUT/tokens, so the script can be stopped and started again. One fifth of the people
are held out of all training; what is printed at the end is about them alone.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from transformers import Trainer, TrainingArguments

from tablet_hf import InputError, TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification
from tablet_hf.files import source_identity
from tablet_hf.pipelines import ScanPredictor
from tablet_hf.token_files import load_tokens, read_record, save_tokens, token_file_name
from tablet_hf.training.baselines import LinearModel
from tablet_hf.training.connectivity import connectivity_features, power_regions, region_time_courses
from tablet_hf.training.metrics import binary_metrics


class RandomWindows(torch.utils.data.Dataset):
    """One random window of contiguous frames from each run and epoch."""

    def __init__(self, token_files: list[Path], labels: list[int], num_frames: int):
        self.token_files, self.labels, self.num_frames = token_files, labels, num_frames

    def __len__(self) -> int:
        return len(self.token_files)

    def __getitem__(self, index: int) -> dict:
        run, _ = load_tokens(self.token_files[index])
        start = torch.randint(max(1, len(run.tokens) - self.num_frames + 1), ()).item()
        tokens = run.tokens[start : start + self.num_frames].float()
        padded = tokens.new_zeros(self.num_frames, *tokens.shape[1:])
        padded[: len(tokens)] = tokens
        return {
            "input_values": padded,
            "attention_mask": (torch.arange(self.num_frames) < len(tokens)).long(),
            "repetition_time": torch.tensor(run.repetition_time, dtype=torch.float32),
            "labels": torch.tensor(self.labels[index]),
        }


def find_people(derivatives: Path, label: str, positive: str) -> pd.DataFrame:
    """participant_id, scan, y: people who have both a label and a scan; how many have not is told."""
    path = derivatives / "participants.tsv"
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; put the study's participants.tsv into {derivatives}.")
    table = pd.read_csv(path, sep="\t", dtype=str)
    for column in ("participant_id", label):
        if column not in table:
            raise InputError(f"{path}: it has no column {column!r}; its columns are {', '.join(table)}.")
    everybody, table = len(table), table.dropna(subset=[label])
    if positive not in set(table[label]):
        found = ", ".join(sorted(table[label].unique())[:10])
        raise InputError(f"{path}: nobody has {positive!r} as {label}; the values are {found}.")
    pattern = "**/func/*_space-MNI152*_desc-preproc_bold.nii.gz"
    people = "sub-" + table.participant_id.str.removeprefix("sub-")
    runs = [sorted((derivatives / person).glob(pattern)) for person in people]
    table = table.assign(participant_id=people, y=(table[label] == positive).astype(int))
    table = table.assign(scan=[found[0] if found else None for found in runs]).dropna(subset=["scan"])
    print(f"{len(table)} of {everybody} people have a {label} and a scan.", flush=True)
    return table


def hold_out(people: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Four fifths to learn from and one fifth held out, both kinds of people in both."""
    counts = people.y.value_counts()
    try:
        train, held_out = train_test_split(people, test_size=0.2, stratify=people.y, random_state=seed)
    except ValueError:
        train = held_out = people[:0]
    if held_out.y.nunique() < 2:
        raise InputError(
            f"{counts.get(1, 0)} people are positive and {counts.get(0, 0)} are not: too few to hold a fifth of both "
            "out; five of each are enough."
        )
    return train, held_out


def is_done(path: Path, record: dict) -> bool:
    """Whether the tokens of a scan are there as this script would make them; a damaged file is made anew."""
    try:
        return path.exists() and read_record(path) == record
    except InputError:
        return False


def tokenize(people: pd.DataFrame, extractor: TabletFeatureExtractor, folder: Path) -> pd.DataFrame:
    """Adds the token file of each person; a scan that cannot be used is told and its person left out."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (person, scan) in enumerate(zip(people.participant_id, people.scan, strict=True), 1):
        path = folder / f"{person}_{token_file_name(scan)}"
        record = {**extractor.to_dict(), "source": source_identity(scan)}
        try:
            if not is_done(path, record):
                save_tokens(extractor.tokenize(scan), record, path)
            files.append(path)
            print(f"[{number}/{len(people)}] {path.name}", flush=True)
        except InputError as error:
            files.append(None)
            print(f"[{number}/{len(people)}] left out: {error}", flush=True)
    return people.assign(tokens=files).dropna(subset=["tokens"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("derivatives", type=Path)
    parser.add_argument("--label", required=True, help="column of participants.tsv")
    parser.add_argument("--positive", required=True, help="the value of that column that is the positive class")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-frames", type=int, default=64, help="frames of a training window")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    try:
        finetune(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"Error: {error}\n")


def finetune(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    extractor = TabletFeatureExtractor(signal="percent_change")
    extractor.to(device, torch.float16 if device == "cuda" else torch.float32)
    people = find_people(arguments.derivatives, arguments.label, arguments.positive)
    hold_out(people, arguments.seed)  # before the long work
    _ = extractor.slice_autoencoder  # loaded now, so that every record and the model's name its revision
    people = tokenize(people, extractor, arguments.out / "tokens")
    train, held_out = hold_out(people, arguments.seed)

    counts = np.bincount(train.y, minlength=2)
    config = TabletConfig(
        token_size=extractor.token_size,
        grid_size=extractor.grid_size,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=512,
        hidden_dropout_prob=0.1,
        num_labels=1,
        problem_type="multi_label_classification",
        positive_weight=float(counts[0] / counts[1]),
        id2label={0: arguments.positive},
        label2id={arguments.positive: 0},
        num_frames=arguments.num_frames,
        autoencoder=extractor.autoencoder,
        autoencoder_revision=extractor.autoencoder_revision,
        signal=extractor.signal,
        scaling=extractor.scaling,
        volume_size=extractor.volume_size,
    )
    model = TabletForSequenceClassification(config)
    Trainer(
        model,
        TrainingArguments(
            str(arguments.out),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=4,
            learning_rate=3e-4,
            lr_scheduler_type="cosine",
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            seed=arguments.seed,
        ),
        train_dataset=RandomWindows(list(train.tokens), list(train.y), arguments.num_frames),
    ).train()
    model.save_pretrained(arguments.out)
    extractor.save_pretrained(arguments.out)

    predictor = ScanPredictor(model.to(device), extractor)
    scores = np.array([predictor(path).scores[arguments.positive] for path in held_out.tokens])

    regions = power_regions(people.scan.iloc[0])
    baseline = LinearModel(seed=arguments.seed)
    baseline.fit(connectivity_features(region_time_courses(train.scan, regions)), train.y.to_numpy())
    baseline_scores = baseline.outputs(connectivity_features(region_time_courses(held_out.scan, regions)))[:, 1]

    print(
        f"{len(train)} people to learn from, {len(held_out)} held out; larger class {held_out.y.value_counts().max()}"
    )
    for name, values in (("TABLeT", scores), ("functional connectivity", baseline_scores)):
        metrics = binary_metrics(held_out.y.to_numpy(), values)
        print(f"{name:24}", "  ".join(f"{key} {value:.2f}" for key, value in metrics.items()))
    print(f"Model and extractor are in {arguments.out}; next: tablet-hf predict {arguments.out} SCAN")


if __name__ == "__main__":
    main()
