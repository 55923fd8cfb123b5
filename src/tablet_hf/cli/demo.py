"""`tablet-hf demo`: simulate a small cohort, then run on it the commands of a real study."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tablet_hf.cli.terminal import DeviceOption, messages, output, printable, report_errors
from tablet_hf.errors import InputError

TRAINING = {"size": "tiny", "window": 8, "epochs": 20, "batch-size": 8, "learning-rate": 1e-3, "warmup": 0.1}
"""Options of `tablet-hf finetune`; the learning rate was chosen on the cohort of seed 10."""


@report_errors
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Output folder; run the same command again to resume.")] = Path(
        "tablet-demo"
    ),
    subjects: Annotated[int, typer.Option("--subjects", min=16, help="Number of simulated subjects.")] = 28,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the cohort, the split and the weights.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Simulate a cohort, tokenize it, fine-tune a small model and write a page of results, without a network."""
    from tablet_hf.sources.simulated import CohortDesign, is_cohort, write_cohort

    cohort, design = out / "cohort", CohortDesign(num_subjects=subjects, seed=seed)
    if cohort.exists() and not is_cohort(cohort, design):
        raise InputError(f"{cohort}: it does not hold this cohort of the demo; choose another --out.")
    if not cohort.exists():
        messages.print(f"Simulating {subjects} subjects with {design.num_frames} frames each in {printable(cohort)}.")
        out.mkdir(parents=True, exist_ok=True)
        write_cohort(cohort, design)
    for words in demo_commands(out, seed, device):
        messages.print(f"\n$ tablet-hf {printable(shlex.join(words))}")
        if code := context.find_root().command.main(words, prog_name="tablet-hf", standalone_mode=False):
            raise typer.Exit(code)
    scan = min(cohort.glob("sub-*/func/*_bold.nii.gz"))
    messages.print("\nThe subjects are simulated: the figures show that the steps work together, and nothing else.")
    output.print(f"Results: {printable(out / 'model' / 'index.html')}")
    predict = ["tablet-hf", "predict", str(out / "model" / "fold-1" / "model"), str(scan)]
    output.print(f"Next: {printable(shlex.join(predict))}")


def demo_commands(out: Path, seed: int, device: str) -> list[list[str]]:
    """Return the words of each command that the demo runs on `out/cohort`, in their order."""
    cohort, tokens, splits = out / "cohort", out / "tokens", out / "splits.csv"
    tokenize = ["tokenize", "--source", "bids", cohort, "--dataset", "demo", "--signal", "percent_change"]
    split = ["dataset", "split", tokens, "--label", "group", "--folds", 4, "--seed", seed, "--out", splits]
    finetune = ["finetune", "--dataset", tokens, "--label", "group", "--splits", splits, "--scans", cohort]
    finetune += [word for name, value in TRAINING.items() for word in (f"--{name}", value)]
    commands = [
        [*tokenize, "--out", tokens, "--device", device],
        *([] if splits.exists() else [split]),
        [*finetune, "--seed", seed, "--device", device, "--out", out / "model"],
    ]
    return [[str(word) for word in words] for words in commands]
