"""What the commands of `tablet-hf` share: options, the two consoles, sentences for what went wrong, progress."""

import errno
import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tablet_hf.errors import InputError
from tablet_hf.progress import Bars

output = Console(soft_wrap=True, highlight=False, emoji=False)
messages = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

DeviceOption = Annotated[str, typer.Option("--device", help="Device: auto, cpu, cuda, cuda:1 or mps.")]
MaskOption = Annotated[Path | None, typer.Option("--mask", help="Brain mask on the grid of the scan (one scan only).")]
SecondsOption = Annotated[
    float | None,
    typer.Option(
        "--repetition-time", help="Repetition time in seconds (default: from the BIDS sidecar or the header)."
    ),
]
MeanOption = Annotated[
    Path | None, typer.Option("--add-mean", help="Mean image to add to a demeaned scan (one scan only).")
]
SpaceOption = Annotated[
    bool, typer.Option("--space-check/--no-space-check", help="Refuse scans that are not in MNI152 space.")
]
FramesOption = Annotated[int | None, typer.Option("--num-frames", min=1, help="Number of frames (default: all).")]
StartOption = Annotated[int, typer.Option("--start", min=0, help="Index of the first frame.")]
StrideOption = Annotated[int, typer.Option("--stride", min=1, help="Step between frames.")]
AutoencoderOption = Annotated[
    str, typer.Option("--autoencoder", help="Name, folder or Hub id of a diffusers autoencoder.")
]
SubfolderOption = Annotated[
    str | None, typer.Option("--autoencoder-subfolder", help="Subfolder of the autoencoder repository.")
]
SignalOption = Annotated[str, typer.Option("--signal", help="Voxel signal: intensity or percent_change.")]
ScalingOption = Annotated[str, typer.Option("--scaling", help="Intensity scaling: max or percentile.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Overwrite existing output.")]


def one_sentence(command: Callable) -> Callable:
    """Tell unusable input in its sentence and leave with 2, and with 130 where somebody stops it.

    Anything else is our failure, and Python leaves with 1.

    The libraries are made quiet here, when the command begins: importing them takes seconds that --help should not.
    """

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        quiet_libraries()
        try:
            return command(*args, **kwargs)
        except InputError as error:
            messages.print(f"Error: {escape(str(error))}")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as stop:
            messages.print("Stopped; run the same command again to go on with what is not finished.")
            raise typer.Exit(130) from stop
        except OSError as error:
            # A full disk, a folder that may not be written to: no fault of the program's, but nothing else either.
            if error.filename is None and error.errno != errno.ENOSPC:
                raise
            messages.print(f"Error: {escape(str(error.filename or 'disk'))}: {escape(str(error.strerror))}.")
            raise typer.Exit(2) from error

    return wrapped


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
    # diffusers asks the Hub with an argument that it has given up: nothing that whoever sits there could do about it.
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks", category=UserWarning)


def choose_device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {name}: this machine has no such device; give auto, cpu, cuda, cuda:1 (the second GPU) or mps."
        ) from error
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
    with Bars(*columns, TimeRemainingColumn(), console=messages, unit="frames") as progress:
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


def show_facts(facts: Mapping[str, Any]) -> None:
    """A line each: its name, and what is known, in a second column."""
    width = max(map(len, facts))
    for name, value in facts.items():
        output.print(f"{name:{width}}  {escape(str(value))}")


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
