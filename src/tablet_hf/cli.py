"""The command line, `tablet-hf`. Every command calls what a script of the user's own would call.

Exit codes: 0, 2 for input that could not be used (what could be used was done), 1 for our own failure.
"""

import csv
import errno
import functools
import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tablet_hf.errors import InputError
from tablet_hf.files import written_whole

app = typer.Typer(
    name="tablet-hf",
    help="Whole fMRI runs as tokens of a natural-image autoencoder, and a transformer over them (TABLeT).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
output = Console(soft_wrap=True, highlight=False)
messages = Console(stderr=True, soft_wrap=True, highlight=False)

Scans = Annotated[list[Path], typer.Argument(help="4D NIfTI files in MNI152 space.", show_default=False)]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
MaskOption = Annotated[Path | None, typer.Option("--mask", help="Brain mask on the scan's own grid; for one scan.")]
SecondsOption = Annotated[
    float | None, typer.Option("--repetition-time", help="Seconds, in place of what sidecar or header say.")
]
MeanOption = Annotated[Path | None, typer.Option("--add-mean", help="Image to add back to a demeaned scan.")]
SpaceOption = Annotated[
    bool, typer.Option("--space-check/--no-space-check", help="Refuse scans that are not in MNI152 space.")
]
FramesOption = Annotated[int | None, typer.Option("--num-frames", min=1, help="Frames of the window; all by default.")]
StartOption = Annotated[int, typer.Option("--start", min=0, help="First frame of the window.")]
StrideOption = Annotated[int, typer.Option("--stride", min=1, help="Take one of so many frames.")]
AutoencoderOption = Annotated[
    str, typer.Option("--autoencoder", help="Shipped name, folder or Hub id of a diffusers autoencoder.")
]
SubfolderOption = Annotated[str | None, typer.Option("--autoencoder-subfolder", help="Where it lies in there.")]
SignalOption = Annotated[str, typer.Option("--signal", help="intensity or percent_change.")]
ScalingOption = Annotated[str, typer.Option("--scaling", help="max or percentile.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Do again what is already there.")]


def one_sentence(command: Callable) -> Callable:
    """Tell unusable input in its sentence and leave with 2; anything else is our failure, and Python leaves with 1."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except InputError as error:
            messages.print(f"Error: {escape(str(error))}")
            raise typer.Exit(2) from error
        except OSError as error:
            # A full disk, a folder that may not be written to: no fault of the program's, but nothing else either.
            if error.filename is None and error.errno != errno.ENOSPC:
                raise
            messages.print(f"Error: {escape(str(error.filename or 'disk'))}: {escape(str(error.strerror))}.")
            raise typer.Exit(2) from error

    return wrapped


@app.command()
@one_sentence
def predict(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a fine-tuned model.", show_default=False)],
    scans: Annotated[
        list[Path], typer.Argument(help="4D NIfTI files, or files of `tablet-hf tokenize`.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option("--out", help="CSV file to write; scans already in it are kept.")] = None,
    num_frames: Annotated[
        int | None, typer.Option("--num-frames", min=1, help="Frames of a window; the model's own by default.")
    ] = None,
    mask: MaskOption = None,
    repetition_time: SecondsOption = None,
    add_mean: MeanOption = None,
    space_check: SpaceOption = True,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Predict with a fine-tuned model: a row for each scan."""
    for_one_scan("--mask", mask, scans)
    for_one_scan("--add-mean", add_mean, scans)
    options = {
        "num_frames": num_frames,
        "mask": mask and str(mask),
        "repetition_time": repetition_time,
        "add_mean": add_mean and str(add_mean),
        "space_check": space_check,
    }
    rows = {} if out is None else finished_rows(out, model)
    requests = {scan: fingerprint([source_identity(scan), model_identity(model), options]) for scan in scans}
    kept = {str(scan) for scan in scans if rows.get(str(scan), {}).get("request") == requests[scan] and not overwrite}
    todo = [scan for scan in scans if str(scan) not in kept]
    if len(todo) < len(scans):
        messages.print(f"Already in {escape(str(out))} and kept: {len(scans) - len(todo)} of {len(scans)}.")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist; make it first.")
    failures: dict[Path, str] = {}
    if todo:
        from tablet_hf.pipelines import ScanPredictor
        from tablet_hf.token_files import SUFFIX

        predictor = ScanPredictor.from_pretrained(model, choose_device(device), num_frames)
        if not all(scan.name.endswith(SUFFIX) for scan in todo):
            predictor.prepare()

        def predict_one(scan: Path, on_progress: Callable) -> None:
            result = predictor(scan, mask, repetition_time, add_mean, space_check, on_progress)
            rows[str(scan)] = {
                "scan": str(scan),
                "model": model,
                "prediction": result.prediction,
                **{f"score_{name}": f"{score:.6g}" for name, score in result.scores.items()},
                "num_frames": result.num_frames,
                "num_windows": result.num_windows,
                "repetition_time": result.repetition_time,
                "request": requests[scan],
            }
            if out is not None:
                write_csv(rows.values(), out)

        failures = for_each_scan(todo, predict_one)
    show_rows(rows[str(scan)] for scan in scans if str(scan) in rows and scan not in failures)
    tell_and_leave(failures, len(scans), None if out is None or not rows else f"Written: {out}")


@app.command()
@one_sentence
def tokenize(
    scans: Scans,
    out: Annotated[Path, typer.Option("--out", help="Folder for the token files; made if needed.")],
    autoencoder: AutoencoderOption = "natural-f32c32",
    autoencoder_subfolder: SubfolderOption = None,
    signal: SignalOption = "intensity",
    scaling: ScalingOption = "max",
    num_frames: FramesOption = None,
    start: StartOption = 0,
    stride: StrideOption = 1,
    mask: MaskOption = None,
    repetition_time: SecondsOption = None,
    add_mean: MeanOption = None,
    space_check: SpaceOption = True,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Turn scans into tokens: one float16 safetensors file for each."""
    from tablet_hf.token_files import read_record, save_tokens, token_file_names

    for_one_scan("--mask", mask, scans)
    for_one_scan("--add-mean", add_mean, scans)
    extractor = make_extractor(autoencoder, autoencoder_subfolder, signal, scaling, choose_device(device))
    extractor.slice_autoencoder  # noqa: B018  (loaded now, so that a wrong name is told before any scan is read)
    out.mkdir(parents=True, exist_ok=True)
    names = dict(zip(scans, token_file_names(scans), strict=True))
    claimed: dict[Path, Path] = {}

    def tokenize_one(scan: Path, on_progress: Callable) -> None:
        path = out / names[scan]
        if path in claimed and os.path.abspath(claimed[path]) == os.path.abspath(scan):
            return
        if path in claimed:
            raise InputError(
                f"{scan}: it would become {path}, as {claimed[path]} did; tokenize them into different folders."
            )
        claimed[path] = scan
        request = {
            **extractor.to_dict(),
            "source": source_identity(scan),
            "window": {"num_frames": num_frames, "start": start, "stride": stride},
            "options": {
                "mask": mask and str(mask),
                "repetition_time": repetition_time,
                "add_mean": add_mean and str(add_mean),
                "space_check": space_check,
            },
        }
        if path.exists() and not overwrite:
            if read_record(path) == request:
                messages.print(f"{escape(str(path))} is there already.")
                return
            raise InputError(f"{path}: it holds tokens made otherwise; choose another --out, or pass --overwrite.")
        run = extractor.tokenize(
            scan,
            mask,
            num_frames=num_frames,
            start=start,
            stride=stride,
            repetition_time=repetition_time,
            add_mean=add_mean,
            check_space=space_check,
            on_progress=on_progress,
        )
        save_tokens(run, request, path)
        clipped = f", {100 * run.clipped_share:.2f}% clipped" if run.clipped_share else ""
        output.print(f"{escape(str(path))}  {' x '.join(map(str, run.tokens.shape))}{clipped}")

    tell_and_leave(for_each_scan(scans, tokenize_one), len(scans), None)


@app.command()
@one_sentence
def reconstruct(
    scan: Annotated[Path, typer.Argument(help="A 4D NIfTI file in MNI152 space.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="NIfTI file to write (.nii.gz or .nii), on the scan's own grid.")],
    autoencoder: AutoencoderOption = "natural-f32c32",
    autoencoder_subfolder: SubfolderOption = None,
    signal: SignalOption = "intensity",
    scaling: ScalingOption = "max",
    num_frames: FramesOption = None,
    start: StartOption = 0,
    stride: StrideOption = 1,
    mask: MaskOption = None,
    repetition_time: SecondsOption = None,
    add_mean: MeanOption = None,
    space_check: SpaceOption = True,
    device: DeviceOption = "auto",
) -> None:
    """Encode a scan, decode it again, and say how much of it is left."""
    from tablet_hf.reconstruction import write_reconstruction
    from tablet_hf.volumes import check_nifti_name, open_run

    check_nifti_name(out)
    extractor = make_extractor(autoencoder, autoencoder_subfolder, signal, scaling, choose_device(device))
    run = open_run(scan, mask, repetition_time, extractor.volume_size, add_mean, space_check)
    with progress_bars() as progress:
        task = progress.add_task("encode", total=None)
        tokenized = extractor.tokenize(
            run,
            num_frames=num_frames,
            start=start,
            stride=stride,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
        task = progress.add_task("decode", total=None)
        fidelity = write_reconstruction(
            tokenized, run, extractor, out, lambda done, total: progress.update(task, completed=done, total=total)
        )
    shape = " x ".join(map(str, (*run.source_shape, len(tokenized.tokens))))
    output.print(f"{escape(str(out))}  {shape}, in the scan's own unit and on its own grid")
    output.print(f"PSNR inside the brain: {fidelity.psnr(run.maximum):.1f} dB (peak: its maximum)")
    if len(tokenized.tokens) > 2:
        median = fidelity.temporal_correlation().median()
        output.print(f"Correlation over time of a voxel with itself, median over the brain: {median:.2f}")


@app.command()
@one_sentence
def info(
    model_or_scan: Annotated[
        str,
        typer.Argument(
            help="A scan, a file of tokens, or name, folder or Hub id of a model or autoencoder.", show_default=False
        ),
    ],
    mask: MaskOption = None,
    repetition_time: SecondsOption = None,
    space_check: SpaceOption = True,
) -> None:
    """Say what a scan, a model, an autoencoder or a file of tokens holds."""
    from tablet_hf.describe import describe

    facts = describe(model_or_scan, mask, repetition_time, space_check)
    width = max(map(len, facts))
    for name, value in facts.items():
        output.print(f"{name:{width}}  {escape(str(value))}")


@app.command()
@one_sentence
def convert(
    source: Annotated[
        str, typer.Argument(help="Released folder, Hub id, or a .pth of the released code.", show_default=False)
    ],
    destination: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    config: Annotated[Path | None, typer.Option("--config", help="Released config.json, for a .pth.")] = None,
    head: Annotated[str | None, typer.Option("--head", help="masked or classification, where both are there.")] = None,
    problem_type: Annotated[
        str | None,
        typer.Option(help="multi_label_classification (one logit), single_label_classification or regression."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
) -> None:
    """Convert a checkpoint of the code released with the paper to a folder for `from_pretrained`."""
    from tablet_hf.hub.conversion import convert_checkpoint

    settings = {} if problem_type is None else {"problem_type": problem_type}
    output.print(
        escape(str(convert_checkpoint(source, destination, config=config, head=head, revision=revision, **settings)))
    )


@app.command()
@one_sentence
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for cohort, model and pictures.")] = Path("tablet-demo"),
    seed: Annotated[int, typer.Option(help="Draws the cohort and the weights.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Make a small cohort, tokenize it, fine-tune a small TABLeT on it, and show what it learnt. Needs no network."""
    from tablet_hf.demo import run_demo

    run_demo(out, device=choose_device(device), seed=seed)


# --- what commands share


def quiet_libraries() -> None:
    """Warnings as one line each; no progress bars, load reports or retry notices between ours."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as library_logging

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if issubclass(category, UserWarning):
            messages.print(f"Note: {escape(str(message))}")

    warnings.showwarning = show
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    logging.getLogger("tablet_hf").setLevel(logging.WARNING)
    hub_logging.set_verbosity_error()


def choose_device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name}: this machine has no such device ({reason}); use auto or cpu.") from error
    return name


def make_extractor(autoencoder: str, subfolder: str | None, signal: str, scaling: str, device: str) -> Any:
    import torch

    from tablet_hf import TabletFeatureExtractor

    try:
        extractor = TabletFeatureExtractor(autoencoder, autoencoder_subfolder=subfolder, signal=signal, scaling=scaling)
    except ValueError as error:
        raise InputError(str(error)) from error
    return extractor.to(device, torch.float16 if device.startswith("cuda") else torch.float32)


def for_one_scan(option: str, value: Path | None, scans: list[Path]) -> None:
    if value is not None and len(scans) > 1:
        raise InputError(f"{option} belongs to one scan, but {len(scans)} scans were given; run them one by one.")


@contextmanager
def progress_bars() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"))
    with Progress(*columns, TimeRemainingColumn(), console=messages, transient=True) as progress:
        yield progress


def for_each_scan(scans: list[Path], work: Callable[[Path, Callable], None]) -> dict[Path, str]:
    """Call `work(scan, on_progress)` for every scan; the sentence for each that could not be used comes back."""
    failures: dict[Path, str] = {}
    with progress_bars() as progress:
        for number, scan in enumerate(scans, 1):
            task = progress.add_task(f"[{number}/{len(scans)}] {escape(scan.name[:48])}", total=None)
            try:
                work(scan, lambda done, total, task=task: progress.update(task, completed=done, total=total))
            except (InputError, OSError) as error:
                if isinstance(error, OSError) and (error.errno == errno.ENOSPC or error.filename is None):
                    raise
                failures[scan] = str(error) if isinstance(error, InputError) else f"{scan}: {error.strerror}."
                messages.print(f"Skipped: {escape(failures[scan])}")
            progress.remove_task(task)
    return failures


def tell_and_leave(failures: dict[Path, str], total: int, done: str | None) -> None:
    if done:
        messages.print(escape(done))
    if failures:
        messages.print(f"{len(failures)} of {total} scans could not be used:")
        for sentence in failures.values():
            messages.print(f"  {escape(sentence)}")
        raise typer.Exit(2)


def fingerprint(request: Any) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]


def model_identity(name: str) -> list[Any]:
    """What tells that a model was trained again into the same folder; of a Hub id, its name."""
    files = sorted(Path(name).glob("*.json")) + sorted(Path(name).glob("*.safetensors"))
    return [name, *([path.name, path.stat().st_size, path.stat().st_mtime] for path in files)]


def source_identity(scan: Path) -> dict[str, Any]:
    """Path, size and time of a scan; of one that cannot be looked at, the path: reading it will tell why."""
    try:
        status = scan.stat()
    except OSError:
        return {"path": str(scan)}
    return {"path": str(scan.resolve()), "bytes": status.st_size, "modified": status.st_mtime}


def finished_rows(path: Path, model: str) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run with the same model, by scan."""
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: it is no CSV file that can be continued; choose another --out.") from error
    if any(row.get("scan") is None or row.get("model") != model for row in rows):
        raise InputError(f"{path}: it holds something else than predictions of {model}; choose another --out.")
    return {row["scan"]: {name: value for name, value in row.items() if value not in (None, "")} for row in rows}


def write_csv(rows: Iterable[dict[str, Any]], path: Path) -> None:
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def show_rows(rows: Iterable[dict[str, Any]]) -> None:
    """Aligned columns, never cut: what is printed may be read by a program."""
    rows = list(rows)
    if not rows:
        return
    columns = [name for name in rows[0] if name not in ("model", "request")]
    lines = [columns, *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        output.print(escape("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    quiet_libraries()
    app()


if __name__ == "__main__":
    sys.exit(main())
