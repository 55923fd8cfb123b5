"""The command `tablet-hf predict`, and its table of predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tablet_hf.cli.terminal import (
    DeviceOption,
    MaskOption,
    MeanOption,
    OverwriteOption,
    SecondsOption,
    SpaceOption,
    choose_device,
    for_each_scan,
    for_one_scan,
    messages,
    printable,
    report_errors,
    report_failures,
    show_rows,
)
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write, protect_cell, unprotect_cell


@report_errors
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
    model = str(Path(model)) if Path(model).is_dir() else model
    rows = read_table(out, model)
    todo = [scan for scan in scans if overwrite or str(scan) not in rows]
    if len(todo) < len(scans):
        num_kept = f"{len(scans) - len(todo)} of {len(scans)}"
        messages.print(f"Already in {printable(out)} and kept: {num_kept} (--overwrite predicts them again).")
    failures: dict[Path, str] = {}
    if todo:
        from tablet_hf.datasets.token_files import SUFFIX
        from tablet_hf.hub.loading import load_extractor, load_model
        from tablet_hf.pipeline_tablet import FmriClassificationPipeline

        network = load_model(model)
        extractor = load_extractor(model, network)
        classify = FmriClassificationPipeline(network, feature_extractor=extractor, device=choose_device(device))
        if not all(scan.name.endswith(SUFFIX) for scan in todo):
            classify.check_extractor()  # once, not for each scan
        reading = {"mask": mask, "repetition_time": repetition_time, "add_mean": add_mean, "check_space": space_check}
        if outdated := {str(scan): None for scan in todo if str(scan) in rows}:
            update_table(out, model, outdated)

        def predict_one(scan: Path, on_progress: Callable) -> None:
            run = open_scan(scan, classify, reading)
            row = {"scan": str(scan), "model": model, **row_of(classify, run, num_frames, on_progress)}
            rows[str(scan)] = row
            update_table(out, model, {str(scan): row})

        failures = for_each_scan(todo, predict_one)
    predicted = [rows[str(scan)] for scan in scans if scan not in failures]
    show_rows(predicted)
    if out is not None and predicted:
        messages.print(f"Written: {printable(out)}")
    report_failures(failures, len(scans))


def open_scan(path: Path, classify: Any, reading: dict[str, Any]) -> Any:
    """Open a scan, or load a token file, to which no option of reading scans applies."""
    from tablet_hf.datasets.token_files import SUFFIX, load_tokens
    from tablet_hf.volumes import open_run

    if not path.name.endswith(SUFFIX):
        return open_run(path, volume_size=classify.feature_extractor.volume_size, **reading)
    if any(reading[name] is not None for name in ("mask", "repetition_time", "add_mean")):
        raise InputError(f"{path}: no mask, mean or repetition time applies to tokens; give the scan itself.")
    run, record = load_tokens(path)
    classify.model.config.check_tokens_compatible(record, str(path))
    return run


def row_of(classify: Any, run: Any, num_frames: int | None, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Prediction, scores, and the frames and windows that they come from."""
    from tablet_hf.tokens import cut_windows

    config = classify.model.config
    entries = classify(run, num_frames=num_frames, on_progress=on_progress)
    scores = {entry["label"]: entry["score"] for entry in entries}
    prediction = entries[0]["score" if config.problem_type == "regression" else "label"]
    if config.problem_type == "multi_label_classification" and config.num_labels > 1:
        prediction = " ".join(label for label, score in scores.items() if score >= 0.5) or "none"
    length = len(run.tokens) if hasattr(run, "tokens") else run.num_frames
    windows = cut_windows(length, num_frames or config.num_frames)
    return {
        "prediction": prediction,
        **{f"score_{label}": f"{scores[label]:.6g}" for label in config.id2label.values()},
        "num_frames": sum(frames for _, frames in windows),
        "num_windows": len(windows),
        "repetition_time": run.repetition_time,
    }


def read_table(path: Path | None, model: str) -> dict[str, dict[str, Any]]:
    """Rows of a table of predictions by scan; none where there is no table yet.

    Raises:
        InputError: the file is not such a table, or one of another model.
    """
    import pandas as pd

    if path is not None and not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first.")
    if path is None or not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: it is not a readable CSV file; choose another --out.") from error
    table = table.rename(columns=unprotect_cell).map(unprotect_cell)
    if not {"scan", "model", "prediction"} <= set(table.columns):
        raise InputError(f"{path}: it is not a table of predictions; choose another --out.")
    if others := sorted(set(table["model"]) - {model}):
        raise InputError(f"{path}: it holds predictions of another model, {others[0]}; choose another --out.")
    return {row["scan"]: row for row in table.to_dict("records")}


def update_table(path: Path | None, model: str, rows: dict[str, dict[str, Any] | None]) -> None:
    """Write rows by scan, or remove those that are None; several commands may write one table at once."""
    import pandas as pd
    from filelock import FileLock

    if path is None:
        return
    with FileLock(path.with_name(f".{path.name}.lock")), atomic_write(path) as unfinished:
        merged = [row for row in (read_table(path, model) | rows).values() if row is not None]
        columns = None if merged else ["scan", "model", "prediction"]
        table = pd.DataFrame(merged, columns=columns).rename(columns=protect_cell).map(protect_cell)
        table.to_csv(unfinished, index=False)
