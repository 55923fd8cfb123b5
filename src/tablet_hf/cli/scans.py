"""Commands on single scans: tokenize, reconstruct and info."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tablet_hf.cli import datasets as cli_datasets
from tablet_hf.cli.terminal import (
    AutoencoderOption,
    DeviceOption,
    FramesOption,
    MaskOption,
    MeanOption,
    OverwriteOption,
    ScalingOption,
    SecondsOption,
    SignalOption,
    SpaceOption,
    StartOption,
    StrideOption,
    SubfolderOption,
    choose_device,
    for_each_scan,
    for_one_scan,
    make_extractor,
    messages,
    output,
    printable,
    progress_bars,
    report_errors,
    report_failures,
    show_facts,
)
from tablet_hf.errors import InputError
from tablet_hf.files import file_identity

SOURCE_OPTIONS = ("phenotypes", "tasks", "sessions", "space", "pattern", "withdrawn", "dataset", "keep_failed_quality")


@report_errors
def tokenize(
    context: typer.Context,
    scans: Annotated[
        list[Path],
        typer.Argument(
            help="4D NIfTI files in MNI152 space, or with --source one folder or table.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Output folder for the token files or the store.")],
    source: cli_datasets.SourceOption = None,
    phenotypes: cli_datasets.PhenotypesOption = None,
    tasks: cli_datasets.TasksOption = None,
    sessions: cli_datasets.SessionsOption = None,
    space: cli_datasets.SpaceNameOption = None,
    pattern: cli_datasets.PatternOption = None,
    withdrawn: cli_datasets.WithdrawnOption = None,
    dataset: cli_datasets.DatasetOption = None,
    keep_failed_quality: cli_datasets.KeepFailedOption = False,
    dtype: cli_datasets.DtypeOption = "float16",
    readers: cli_datasets.ReadersOption = None,
    dry_run: cli_datasets.DryRunOption = False,
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
    """Tokenize scans: one float16 safetensors file per scan, or with --source a store of a whole dataset."""
    source_options = {name: context.params[name] for name in SOURCE_OPTIONS if context.params[name]}
    window = {"num_frames": num_frames, "start": start, "stride": stride}
    companions = {"mask": mask, "repetition_time": repetition_time, "add_mean": add_mean}

    def extractor_on(device: str) -> Any:
        return make_extractor(autoencoder, autoencoder_subfolder, signal, scaling, device)

    if source is not None:
        if overwrite or any(companions.values()) or window != {"num_frames": None, "start": 0, "stride": 1}:
            raise InputError(
                "A store holds whole runs: with --source leave out --num-frames, --start, --stride, --mask, "
                "--repetition-time, --add-mean and --overwrite."
            )
        cli_datasets.tokenize_source(
            source, scans, out, source_options, extractor_on, device, dtype, readers, space_check, dry_run
        )
        return
    if source_options or dry_run or readers is not None or dtype != "float16":
        raise InputError("Options of datasets need --source; see tablet-hf tokenize --help.")
    for_one_scan("--mask", mask, scans)
    for_one_scan("--add-mean", add_mean, scans)
    tokenize_files(scans, out, extractor_on(choose_device(device)), companions, window, space_check, overwrite)


def tokenize_files(
    scans: list[Path],
    out: Path,
    extractor: Any,
    companions: dict[str, Any],
    window: dict[str, Any],
    check_space: bool,
    overwrite: bool,
) -> None:
    """Write a token file for each scan, except where the same command wrote it before."""
    import torch

    from tablet_hf.datasets.token_files import read_record, save_tokens, token_file_name

    paths = {scan: out / token_file_name(scan) for scan in scans}
    scan_of: dict[Path, Path] = {}
    for scan, path in paths.items():
        if (other := scan_of.setdefault(path, scan)) != scan:
            raise InputError(f"{other} and {scan} would both become {path.name}; use an --out for each.")
    extractor.slice_autoencoder  # noqa: B018  (a wrong name is reported before any scan is read)
    out.mkdir(parents=True, exist_ok=True)

    def tokenize_one(scan: Path, on_progress: Callable) -> None:
        record = {
            **extractor.to_dict(),
            "source": {"path": str(scan.resolve())} | file_identity(scan),
            "window": window,
            "options": {"space_check": check_space, **companion_identities(scan, **companions)},
        }
        path = paths[scan]
        if path.exists() and not overwrite:
            if read_record(path) != record:
                raise InputError(f"{path}: it holds other tokens; choose another --out, or pass --overwrite.")
            messages.print(f"{printable(path)} exists already.")
            return
        run = extractor.tokenize(
            scan, **companions, **window, check_space=check_space, on_progress=on_progress, dtype=torch.float16
        )
        save_tokens(run, record, path)
        clipped = f", {100 * run.clipped_share:.2f}% clipped" if run.clipped_share else ""
        output.print(f"{printable(path)}  {' x '.join(map(str, run.tokens.shape))}{clipped}")

    report_failures(for_each_scan(list(paths), tokenize_one), len(paths))


@report_errors
def reconstruct(
    scan: Annotated[Path, typer.Argument(help="A 4D NIfTI file in MNI152 space.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="NIfTI file to write (.nii.gz or .nii), on the grid of the scan.")],
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
    """Encode and decode a scan, and report how well it is reconstructed."""
    from tablet_hf.nifti import check_nifti_name
    from tablet_hf.report.reconstruction import write_reconstruction
    from tablet_hf.scans import find_brain_mask_file
    from tablet_hf.volumes import open_run

    check_nifti_name(out)
    check_not_replaced(out, [scan, mask or find_brain_mask_file(scan), add_mean], overwrite)
    extractor = make_extractor(autoencoder, autoencoder_subfolder, signal, scaling, choose_device(device))
    run = open_run(scan, mask, repetition_time, extractor.volume_size, add_mean, space_check)
    with progress_bars() as on_progress:
        tokenized = extractor.tokenize(
            run, num_frames=num_frames, start=start, stride=stride, on_progress=on_progress("encode")
        )
        fidelity = write_reconstruction(tokenized, run, extractor, out, on_progress("decode"))
    shape = " x ".join(map(str, (*run.source_shape, len(tokenized.tokens))))
    output.print(f"{printable(out)}  {shape}, in the unit and on the grid of the scan")
    output.print(f"PSNR inside the brain: {fidelity.psnr(run.maximum):.1f} dB (peak: its maximum)")
    if len(tokenized.tokens) > 2:
        correlations = fidelity.temporal_correlation()
        median = f"{correlations.median():.2f}" if len(correlations) else "undefined (constant time series)"
        output.print(f"Median temporal correlation over brain voxels: {median}")


@report_errors
def info(
    model_or_scan: Annotated[
        str,
        typer.Argument(
            help="Scan, token file, or name, folder or Hub id of a model or autoencoder.", show_default=False
        ),
    ],
    mask: MaskOption = None,
    repetition_time: SecondsOption = None,
    add_mean: MeanOption = None,
    space_check: SpaceOption = True,
) -> None:
    """Describe a scan, a token file, a model or an autoencoder."""
    from tablet_hf.cli.describe import describe

    options = {"mask": mask, "repetition_time": repetition_time, "check_space": space_check, "add_mean": add_mean}
    show_facts(describe(model_or_scan, **options))


def check_not_replaced(out: Path, inputs: list[Path | None], overwrite: bool) -> None:
    """Refuse an output that is one of the inputs, or that exists without --overwrite.

    Raises:
        InputError: either of these.
    """
    if any(path is not None and path.exists() and out.exists() and out.samefile(path) for path in inputs):
        raise InputError(f"{out}: it is an input of this command; choose another --out.")
    if os.path.lexists(out) and not overwrite:
        raise InputError(f"{out}: it exists; choose another --out, or pass --overwrite.")


def companion_identities(
    scan: Path, mask: Path | None, repetition_time: float | None, add_mean: Path | None
) -> dict[str, Any]:
    """Return the identities of mask, mean image and sidecars, given or found, which show whether one changed."""
    from tablet_hf.scans import find_brain_mask_file, find_sidecars

    mask = mask or find_brain_mask_file(scan)
    return {
        "mask": mask and file_identity(mask),
        "repetition_time": repetition_time or [file_identity(path) for path in find_sidecars(scan)],
        "add_mean": add_mean and file_identity(add_mean),
    }
