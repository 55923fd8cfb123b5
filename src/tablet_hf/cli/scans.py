"""Commands on single scans: tokenize, reconstruct and info."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

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
    one_sentence,
    output,
    progress_bars,
    show_facts,
    tell_and_leave,
)
from tablet_hf.errors import InputError
from tablet_hf.files import source_identity


@one_sentence
def tokenize(
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
    source_options = {
        "phenotypes": phenotypes or None,
        "tasks": tasks or None,
        "sessions": sessions or None,
        "space": space,
        "pattern": pattern,
        "withdrawn": withdrawn,
        "dataset": dataset,
        "keep_failed_quality": keep_failed_quality or None,
    }
    given = {name: value for name, value in source_options.items() if value is not None}
    if source is not None:
        of_one_scan = {"--mask": mask, "--repetition-time": repetition_time, "--add-mean": add_mean}
        of_one_scan |= {
            "--num-frames": num_frames,
            "--start": start or None,
            "--stride": stride if stride > 1 else None,
        }
        if unfit := [option for option, value in of_one_scan.items() if value is not None]:
            raise InputError(f"{unfit[0]} belongs to single scans; a store keeps whole runs, so leave it out.")
        if overwrite:
            raise InputError("--overwrite belongs to single scans; delete what is to be done again from the store.")
        cli_datasets.tokenize_source(
            source,
            scans,
            out,
            given,
            lambda chosen: make_extractor(autoencoder, autoencoder_subfolder, signal, scaling, chosen),
            device,
            dtype,
            readers,
            space_check,
            dry_run,
        )
        return
    if given or dry_run or readers is not None or dtype != "float16":
        raise InputError("options of datasets need --source; see tablet-hf tokenize --help.")
    from tablet_hf.datasets.token_files import DTYPE, TokenFolder

    for_one_scan("--mask", mask, scans)
    for_one_scan("--add-mean", add_mean, scans)
    extractor = make_extractor(autoencoder, autoencoder_subfolder, signal, scaling, choose_device(device))
    extractor.slice_autoencoder  # noqa: B018  (loaded now, so that a wrong name is reported before any scan is read)
    out.mkdir(parents=True, exist_ok=True)
    tokens, seen = TokenFolder(out, scans), set()

    def tokenize_one(scan: Path, on_progress: Callable) -> None:
        if os.path.abspath(scan) in seen:
            return
        seen.add(os.path.abspath(scan))
        request = {
            **extractor.to_dict(),
            "source": source_identity(scan),
            "window": {"num_frames": num_frames, "start": start, "stride": stride},
            "options": {
                "repetition_time": repetition_time,
                "space_check": space_check,
                **companion_identities(scan, mask, repetition_time, add_mean),
            },
        }
        if not overwrite and (path := tokens.finished(scan, request)):
            messages.print(f"{escape(str(path))} is there already.")
            return
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
            dtype=DTYPE,
        )
        path = tokens.save(run, request, scan, overwrite)
        clipped = f", {100 * run.clipped_share:.2f}% clipped" if run.clipped_share else ""
        output.print(f"{escape(str(path))}  {' x '.join(map(str, run.tokens.shape))}{clipped}")

    tell_and_leave(for_each_scan(scans, tokenize_one), len(scans), None)


@one_sentence
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
    """Encode and decode a scan, and report how much of it is kept."""
    from tablet_hf.nifti import check_nifti_name
    from tablet_hf.report.reconstruction import write_reconstruction
    from tablet_hf.scans import find_brain_mask_file
    from tablet_hf.volumes import open_run

    check_nifti_name(out)
    check_not_replaced(
        out, {"scan": scan, "mask": mask or find_brain_mask_file(scan), "mean image": add_mean}, overwrite
    )
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
        correlations = fidelity.temporal_correlation()
        median = f"{correlations.median():.2f}" if len(correlations) else "none, since nothing moves in these frames"
        output.print(f"Correlation over time of a voxel with itself, median over the brain: {median}")


@one_sentence
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

    show_facts(describe(model_or_scan, mask, repetition_time, space_check, add_mean))


def check_not_replaced(out: Path, read: dict[str, Path | None], overwrite: bool) -> None:
    """Refuse to write over what is read, whatever was asked for, and over anything else unasked.

    Raises:
        InputError: `out` is one of the files `read`, {role: path}, by whatever name, or is there already.
    """
    if not os.path.lexists(out):
        return
    for role, path in read.items():
        if path is not None and (
            out.resolve() == path.resolve() or (path.exists() and out.exists() and out.samefile(path))
        ):
            raise InputError(f"{out}: it is the {role} itself, which would be lost; choose another --out.")
    if not overwrite:
        raise InputError(f"{out}: it is there already; choose another --out, or pass --overwrite.")


def companion_identities(
    scan: Path, mask: Path | None, repetition_time: float | None, add_mean: Path | None
) -> dict[str, Any]:
    """What tells that a mask, a mean image or a sidecar changed, given or found next to a scan."""
    from tablet_hf.datasets.token_files import SUFFIX
    from tablet_hf.scans import find_brain_mask_file, find_sidecars

    found = []
    if not scan.name.endswith(SUFFIX):
        own_mask = find_brain_mask_file(scan) if mask is None else None
        found = [own_mask] if own_mask else []
        found += find_sidecars(scan) if repetition_time is None else []
    return {
        "mask": mask and source_identity(mask),
        "add_mean": add_mean and source_identity(add_mean),
        "found": [source_identity(path) for path in found],
    }
