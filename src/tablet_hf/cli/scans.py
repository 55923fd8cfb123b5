"""Commands on single scans and models: predict, tokenize, reconstruct, info and convert."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from tablet_hf.cli import datasets as cli_datasets
from tablet_hf.cli import hub as cli_hub
from tablet_hf.cli.prediction_table import PredictionTable
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
    show_rows,
    tell_and_leave,
)
from tablet_hf.errors import InputError
from tablet_hf.files import checksum, source_identity


@one_sentence
def predict(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a fine-tuned model.", show_default=False)],
    scans: Annotated[
        list[Path], typer.Argument(help="4D NIfTI files, or token files of `tablet-hf tokenize`.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option("--out", help="CSV file to write; existing rows are kept.")] = None,
    num_frames: Annotated[
        int | None, typer.Option("--num-frames", min=1, help="Window length in frames (default: that of the model).")
    ] = None,
    mask: MaskOption = None,
    repetition_time: SecondsOption = None,
    add_mean: MeanOption = None,
    space_check: SpaceOption = True,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Predict with a fine-tuned model, one row per scan."""
    for_one_scan("--mask", mask, scans)
    for_one_scan("--add-mean", add_mean, scans)
    options = {"num_frames": num_frames, "repetition_time": repetition_time, "space_check": space_check}
    table = PredictionTable(out, model)
    identity = model_identity(model)
    requests = {
        scan: fingerprint(
            [source_identity(scan), identity, options | companion_identities(scan, mask, repetition_time, add_mean)]
        )
        for scan in scans
    }
    todo = [scan for scan in scans if overwrite or not table.holds(scan, requests[scan])]
    if len(todo) < len(scans):
        messages.print(f"Already in {escape(str(out))} and kept: {len(scans) - len(todo)} of {len(scans)}.")
    failures: dict[Path, str] = {}
    if todo:
        from tablet_hf.datasets.token_files import SUFFIX
        from tablet_hf.hub.loading import ScanPredictor

        predictor = ScanPredictor.from_pretrained(model, choose_device(device), num_frames)
        if not all(scan.name.endswith(SUFFIX) for scan in todo):
            predictor.prepare()
        # What is done again is not known any more.
        table.drop(todo)

        def predict_one(scan: Path, on_progress: Callable) -> None:
            result = predictor(scan, mask, repetition_time, add_mean, space_check, on_progress)
            row = {
                "prediction": result.prediction,
                **{f"score_{name}": f"{score:.6g}" for name, score in result.scores.items()},
                "num_frames": result.num_frames,
                "num_windows": result.num_windows,
                "repetition_time": result.repetition_time,
                "request": requests[scan],
            }
            table.add(scan, row)

        failures = for_each_scan(todo, predict_one)
    show_rows(row for scan in scans if scan not in failures and (row := table.get(scan)))
    tell_and_leave(failures, len(scans), None if out is None or not len(table) else f"Written: {out}")


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


@one_sentence
def convert(
    source: Annotated[
        str, typer.Argument(help="Folder or Hub id in the released layout, or a .pth file.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Output folder.", show_default=False)] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            help="Hub repository (owner/name) for the result: private, with its card.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="config.json of the released model, needed for a .pth file.")
    ] = None,
    head: Annotated[
        str | None, typer.Option("--head", help="Head to convert if there are two: masked or classification.")
    ] = None,
    problem_type: Annotated[
        str | None,
        typer.Option(
            help="Problem type: multi_label_classification (one logit), single_label_classification or regression."
        ),
    ] = None,
    grid_size: Annotated[
        int | None, typer.Option(help="Cells per edge of a frame, for tokens of other than 3,072 numbers.")
    ] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Autoencoder of its tokens (default: that of the released model).")
    ] = None,
    signal: Annotated[str | None, typer.Option(help="Voxel signal of its tokens: intensity or percent_change.")] = None,
    scaling: Annotated[str | None, typer.Option(help="Intensity scaling of its tokens: max or percentile.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the Hub repository.")] = None,
) -> None:
    """Convert a checkpoint of the code released with the paper to a folder for `from_pretrained`, and publish it."""
    from tablet_hf.hub.conversion import convert_checkpoint
    from tablet_hf.hub.publishing import check_may_write

    if out is None and push is None:
        raise InputError("Nothing says where the result goes; give --out FOLDER, or --push owner/name, or both.")
    if push is not None:
        check_may_write(push)
    settings = {
        "problem_type": problem_type,
        "grid_size": grid_size,
        "autoencoder": autoencoder,
        "signal": signal,
        "scaling": scaling,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="tablet-hf-convert-") as scratch:
        folder = out or Path(scratch) / "converted"
        report = convert_checkpoint(source, folder, config=config, head=head, revision=revision, **settings)
        output.print(escape(str(report)))
        if push is not None:
            cli_hub.send(folder, push, {})


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


# --- what is remembered of predictions


def fingerprint(request: Any) -> str:
    return checksum(request)[:16]


def model_identity(name: str) -> list[Any]:
    """What tells that a model was trained again into the same folder, or that a Hub id stands for another commit.

    Raises:
        InputError: neither a folder nor a model on the Hub.
    """
    if not Path(name).is_dir():
        from tablet_hf.hub.files import commit_of

        return [name, commit_of(name)]
    files = sorted(path for pattern in ("*.json", "*.safetensors") for path in Path(name).glob(pattern))
    return [str(Path(name)), *([path.name, path.stat().st_size, path.stat().st_mtime] for path in files)]


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
