"""What the commands of `tablet-hf` share: options, the two consoles, errors and warnings as lines, progress."""

import errno
import functools
import logging
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

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


def printable(value: Any) -> str:
    """Return text for a console: without markup, and with file names that are not valid text escaped."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode())


def report_errors(command: Callable) -> Callable:
    """Decorate a command: InputError becomes one line and exit code 2, Ctrl-C and SIGTERM exit code 130."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        quiet_libraries()  # here and not at import, which --help should not wait for
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary folders are deleted
        try:
            return command(*args, **kwargs)
        except InputError as error:
            messages.print(f"Error: {printable(error)}")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as stop:
            messages.print("Interrupted; run the same command again to resume.")
            raise typer.Exit(130) from stop
        except OSError as error:
            if not is_of_user(error):
                raise
            messages.print(f"Error: {printable(error.filename or 'disk')}: {printable(error.strerror)}.")
            raise typer.Exit(2) from error

    return wrapped


def is_of_user(error: OSError) -> bool:
    """Whether an error is about a file that the user named, or a full disk."""
    return error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def quiet_libraries() -> None:
    """Show each UserWarning once, as one line, and no progress bars, load reports or retry notices of libraries."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as library_logging

    shown: set[str] = set()  # the registries of modules are cleared by each catch_warnings

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if issubclass(category, UserWarning) and str(message) not in shown:
            shown.add(str(message))
            messages.print(f"Warning: {printable(message)}")

    warnings.showwarning = show
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.CRITICAL)  # logs what it raises
    hub_logging.set_verbosity_error()
    # diffusers passes an argument that huggingface_hub deprecated, which the user cannot change.
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks", category=UserWarning)


def choose_device(name: str) -> str:
    """Return the name of a device that exists; "auto" is cuda where there is one, else cpu."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available; give auto, cpu, cuda, cuda:1 or mps.") from error
    return name


def make_extractor(autoencoder: str, subfolder: str | None, signal: str, scaling: str, device: str) -> Any:
    """Return a `TabletFeatureExtractor` on a device, in float16 on a GPU."""
    import torch

    from tablet_hf import TabletFeatureExtractor

    try:
        extractor = TabletFeatureExtractor(autoencoder, autoencoder_subfolder=subfolder, signal=signal, scaling=scaling)
    except ValueError as error:
        raise InputError(str(error)) from error
    return extractor.to(device, torch.float16 if device.startswith("cuda") else torch.float32)


def for_one_scan(option: str, value: Path | None, scans: list[Path]) -> None:
    """Refuse an option that holds for one scan where there are several."""
    if value is not None and len(scans) > 1:
        raise InputError(f"{option}: it holds for one scan, but {len(scans)} were given; run them one by one.")


@contextmanager
def progress_bars(unit: str = "frames") -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Give a function that starts a bar by its title and returns its callback `(done, in all)`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Bars(*columns, TimeRemainingColumn(), console=messages, unit=unit) as bars:

        def start(title: str) -> Callable[[int, int], None]:
            for finished in bars.task_ids:
                bars.remove_task(finished)
            task = bars.add_task(printable(title), total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield start


def for_each_scan(scans: list[Path], work: Callable[[Path, Callable], None]) -> dict[Path, str]:
    """Call `work(scan, on_progress)` for every scan and return the reason for each that could not be used."""
    failures: dict[Path, str] = {}
    with progress_bars() as start:
        for number, scan in enumerate(scans, 1):
            try:
                work(scan, start(f"[{number}/{len(scans)}] {scan.name[:48]}"))
            except InputError as error:
                failures[scan] = str(error)
            except OSError as error:
                if not is_of_user(error) or error.errno == errno.ENOSPC:
                    raise
                failures[scan] = f"{scan}: {error.strerror}."
    return failures


def report_failures(failures: Mapping[Path, str], total: int) -> None:
    """Print the scans that could not be used, one a line, and exit with code 2 if there are any."""
    if failures:
        messages.print(f"{len(failures)} of {total} scans could not be used:")
        for reason in failures.values():
            messages.print(f"  {printable(reason)}")
        raise typer.Exit(2)


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print a line a fact, in two columns."""
    width = max(map(len, facts))
    for name, value in facts.items():
        output.print(f"{name:{width}}  {printable(value)}")


def show_rows(rows: Iterable[dict[str, Any]]) -> None:
    """Print rows in aligned columns, uncut, so that a program can read them."""
    rows = list(rows)
    if not rows:
        return
    columns = [name for name in rows[0] if name != "model"]
    cells = [[row.get(name, "") for name in columns] for row in rows]
    lines = [columns, *([f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        output.print(printable("  ".join(map(str.ljust, line, widths)).rstrip()))
