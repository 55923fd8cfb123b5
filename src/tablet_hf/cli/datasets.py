"""The commands about token datasets: `tablet-hf tokenize --source ...` and `tablet-hf dataset ...`."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tablet_hf.cli.terminal import choose_device, messages, one_sentence, output, show_facts
from tablet_hf.errors import InputError
from tablet_hf.progress import Bars

app = typer.Typer(name="dataset", help="Describe, check, split, merge and export token datasets.", no_args_is_help=True)

SourceOption = Annotated[
    str | None,
    typer.Option("--source", help="Source of a whole dataset: bids, hcp, ukb, adhd200, hbn or table."),
]
PhenotypesOption = Annotated[
    list[Path], typer.Option("--phenotypes", help="Phenotype table of the source (repeatable).")
]
TasksOption = Annotated[list[str], typer.Option("--task", help="BIDS task to include (repeatable; default: all).")]
SessionsOption = Annotated[list[str], typer.Option("--session", help="Session to include (repeatable; default: all).")]
SpaceNameOption = Annotated[
    str | None, typer.Option("--space", help="BIDS space of the scans, such as MNI152NLin2009cAsym.")
]
PatternOption = Annotated[
    str | None, typer.Option("--pattern", help="Path pattern of the scans (see docs/sources.md).")
]
WithdrawnOption = Annotated[
    Path | None, typer.Option("--withdrawn", help="CSV of withdrawn subjects, which are left out.")
]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help="Name of the study; needed to merge studies.")]
KeepFailedOption = Annotated[
    bool, typer.Option("--keep-failed-quality", help="Include runs that failed quality control.")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="Stored token type: float16, or int8 at half the size.")]
ReadersOption = Annotated[
    int | None, typer.Option("--readers", min=1, help="Number of scans to read in parallel (default: auto).")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="List the scans and labels that were found, and stop.")]
Store = Annotated[str, typer.Argument(help="Folder of a token dataset, or its Hub id.", show_default=False)]


def tokenize_source(
    source: str,
    roots: list[Path],
    out: Path,
    options: dict[str, Any],
    make_extractor: Callable[[str], Any],
    device: str,
    dtype: str,
    readers: int | None,
    check_space: bool,
    dry_run: bool,
) -> None:
    """Find the scans of a source and tokenize this process's share of them; the main process tells and finishes."""
    from tablet_hf.sources import find_scans

    if len(roots) != 1:
        raise InputError(f"--source takes one folder or table, but {len(roots)} were given.")
    cohort = find_scans(source, roots[0], **options)
    if dry_run:
        _tell_cohort(cohort)
        _show_labels(cohort)
        raise typer.Exit(2 if cohort.problems else 0)
    if not cohort.records:
        _tell_cohort(cohort)
        _forget_withdrawn(out, options)
        raise InputError(f"{roots[0]}: --source {source} found no scan there that can be used; nothing was tokenized.")

    from dataclasses import replace

    import torch

    from tablet_hf.datasets.tokenization import Resources, gathered, shared_out, tokenize_scans
    from tablet_hf.datasets.writer import TokenStoreWriter

    chosen = choose_device(device)
    with shared_out(cohort.records, cpu=chosen == "cpu") as (share, state):
        if state.num_processes > 1 and state.device.type == "cuda":
            chosen = str(state.device)
        if state.is_main_process:
            _tell_cohort(cohort)
        extractor = make_extractor(chosen)
        extractor.slice_autoencoder  # noqa: B018  (loaded now: what it is called stands in the store)
        with state.main_process_first():
            writer = TokenStoreWriter(out, extractor.to_dict(), dtype, cohort.is_restricted)
            if state.is_main_process:
                writer.clean_up()
                _forget_withdrawn(out, options)
        resources = Resources.of_device(torch.device(chosen), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        if readers is not None:
            resources = replace(resources, readers=readers)
        with _progress(state.is_main_process) as on_progress:
            outcome = tokenize_scans(
                share, extractor, writer, resources, check_space, on_progress, f"tokenize-{state.process_index}"
            )
        outcomes = gathered(outcome, state)
        if not state.is_main_process:
            return
        _tell_outcome(outcomes, cohort, writer, options)


def _said(what: Any) -> str:
    """As text to print: names of files need not be text, and what is not is reported as its number."""
    return escape(str(what).encode("utf-8", "backslashreplace").decode())


def _counted(number: int, one: str, several: str | None = None) -> str:
    """`1 scan`, `2 scans`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def _forget_withdrawn(store: Path, options: dict[str, Any]) -> None:
    """Delete from a store what it has of subjects who withdrew, and say so."""
    from tablet_hf.datasets.store_files import STORE_FILE, forget_people
    from tablet_hf.sources.ukb import withdrawn_subjects

    if options.get("withdrawn") is None or not (store / STORE_FILE).is_file():
        return
    gone = forget_people(store, withdrawn_subjects(Path(options["withdrawn"])))
    if gone:
        messages.print(
            f"{_said(store)}: {_counted(len(gone), 'run')} of people who withdrew "
            f"{'was' if len(gone) == 1 else 'were'} deleted: {_said(', '.join(run.key for run in gone))}. Copies and "
            "exports of the store, and splits, still have them; make these anew."
        )


def _warn_of_lost_scans(store: Path, runs: list[Any], cohort: Any, options: dict[str, Any]) -> None:
    """Warn about runs of a store that the source no longer finds; they are not deleted."""
    from tablet_hf.sources.records import same_labels

    found: dict[str, list[Any]] = {}
    for record in cohort.records:
        found.setdefault(str(record.subject), []).append(record)
    datasets = {record.dataset for record in cohort.records}
    asked = {name: options[f"{name}s"] for name in ("task", "session") if options.get(f"{name}s")}
    lost = [
        run
        for run in runs
        if (run.dataset in datasets or None in datasets)
        and all(getattr(run, name) in values for name, values in asked.items())
        and not any(same_labels(run, record) for record in found.get(run.subject, ()))
    ]
    if lost:
        files = ", ".join(run.file for run in lost[:5]) + (", ..." if len(lost) > 5 else "")
        message = (
            f"{store}: {_counted(len(lost), 'run')} with a scan that is no longer found, delete to remove: {files}."
        )
        warnings.warn(message, stacklevel=2)


def _tell_cohort(cohort: Any) -> None:
    people = {(record.dataset, record.subject) for record in cohort.records}
    messages.print(f"{_counted(len(cohort.records), 'scan')} of {_counted(len(people), 'person', 'people')}.")
    for problem in cohort.problems[:20]:
        messages.print(f"  {_said(problem)}")
    if len(cohort.problems) > 20:
        messages.print(f"  and {len(cohort.problems) - 20} more like these.")


def _show_labels(cohort: Any) -> None:
    """What was found next to the scans: an example, and how many of them have what."""
    records = cohort.records
    if not records:
        return
    facts = {"first scan": str(records[0].scan)}
    for name in ("dataset", "site", "session", "task", "run", "family"):
        values = [getattr(record, name) for record in records]
        known = {value for value in values if value is not None}
        if known:
            facts[name] = f"{len(known)} different, of {sum(value is not None for value in values)} scans"
    facts["mask beside it"] = f"{sum(record.mask is not None for record in records)} scans"
    for name in sorted({name for record in records for name in record.phenotypes}):
        values = [record.phenotypes.get(name) for record in records]
        known = [value for value in values if value is not None]
        some = ", ".join(str(value) for value in sorted(set(known), key=str)[:4])
        more = ", ..." if len(set(known)) > 4 else ""
        facts[f"phenotype {name}"] = f"{len(known)} of {len(records)} scans: {some}{more}"
    show_facts(facts)


def _tell_outcome(outcomes: list[Any], cohort: Any, writer: Any, options: dict[str, Any]) -> None:
    """Say what was done and what failed, before anything is written that a full disk may not take."""
    failed = [problem for outcome in outcomes for problem in outcome.failed]
    done, kept = (sum(len(getattr(outcome, name)) for outcome in outcomes) for name in ("done", "kept"))
    frames, seconds = sum(outcome.frames for outcome in outcomes), max(outcome.seconds for outcome in outcomes)
    rate = f", {frames / seconds:.1f} frames/s" if frames else ""
    messages.print(
        f"{_counted(done, 'run')} tokenized ({_counted(frames, 'frame')} in {seconds:,.0f} s{rate}), {kept:,} "
        f"{'was' if kept == 1 else 'were'} there already."
    )
    if failed:
        messages.print(f"{len(failed):,} of {_counted(len(cohort.records), 'scan')} could not be used:")
        for problem in failed[:50]:
            messages.print(f"  {_said(problem)}")
        if len(failed) > 50:
            messages.print(f"  and {len(failed) - 50} more.")
    is_whole = not failed and not cohort.problems
    if writer.has_runs():
        try:
            store = writer.finish()
        except OSError as error:
            is_whole = False
            messages.print(
                f"{_said(writer.folder)}: the table of runs could not be written ({error.strerror}); make room, "
                "and run this again, which keeps the runs that are whole."
            )
        else:
            _warn_of_lost_scans(writer.folder, store.runs, cohort, options)
            held = _counted(sum(run.num_frames for run in store.runs), "frame")
            output.print(f"{_said(store.folder)}  {_counted(len(store), 'run')}, {held}")
    for problem in writer.unreadable:
        is_whole = False
        messages.print(f"  {_said(problem)}")
    try:
        writer.write_problems([*cohort.problems, *failed, *writer.unreadable])
    except OSError as error:
        messages.print(f"{_said(writer.problems_file)}: it could not be written ({error.strerror}).")
        raise typer.Exit(2) from error
    if not is_whole:
        messages.print(f"All that was left out, and why: {_said(writer.problems_file)}")
        raise typer.Exit(2)


@contextmanager
def _progress(is_shown: bool) -> Iterator[Callable[[Any, int], None] | None]:
    """A bar over this process's scans, with the rate of frames and the time left."""
    if not is_shown:
        yield None
        return
    columns = (TextColumn("scans"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Bars(*columns, TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=messages) as bars:
        task = bars.add_task("scans", total=None, rate="", left="")

        def show(outcome: Any, total: int) -> None:
            rate = f"{outcome.frames / outcome.seconds:.1f} frames/s" if outcome.frames and outcome.seconds else ""
            # Told by the work itself: a bar forgets what is longer ago than half a minute, and a scan may take longer.
            left = "" if outcome.seconds_left is None else f"{timedelta(seconds=round(outcome.seconds_left))} left"
            finished = len(outcome.done) + len(outcome.kept) + len(outcome.failed)
            bars.update(task, completed=finished, total=total, rate=rate, left=left)

        yield show


@app.command()
@one_sentence
def check(store: Store) -> None:
    """Read every file of a store again, compare checksums, and say what is in it."""
    from tablet_hf.datasets.store import TokenDataset

    tokens = TokenDataset.load(store)
    show_facts(tokens.describe())
    faults = tokens.check()
    for fault in faults:
        messages.print(_said(fault))
    if faults:
        messages.print(f"{_counted(len(faults), 'fault')}.")
        raise typer.Exit(2)
    output.print("All files are as they were written.")


@app.command()
@one_sentence
def describe(store: Store) -> None:
    """Say what a store holds: subjects, runs, frames, how it was made, phenotypes."""
    from tablet_hf.datasets.store import TokenDataset

    show_facts(TokenDataset.load(store).describe())


@app.command()
@one_sentence
def split(
    store: Store,
    out: Annotated[
        Path,
        typer.Option("--out", help="Splits file to write (.csv or .tsv); its settings go into a .json next to it."),
    ],
    label: Annotated[str | None, typer.Option("--label", help="Phenotype to stratify by.")] = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=1, help="Number of folds with disjoint test sets (the paper uses 4 splits)."),
    ] = None,
    stratify: Annotated[str | None, typer.Option("--stratify", help="Second variable to stratify by: site.")] = None,
    leave_one_site_out: Annotated[
        bool, typer.Option("--leave-one-site-out", help="One split per site, with that site as the test set.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of the split.")] = 0,
) -> None:
    """Split the subjects of a store into train, validation and test (80/10/10), families kept together."""
    from tablet_hf.datasets import splits
    from tablet_hf.datasets.split_files import write_splits
    from tablet_hf.datasets.store import TokenDataset
    from tablet_hf.datasets.store_files import INDEX_FILE, STORE_FILE
    from tablet_hf.sources.records import phenotype_values

    if stratify not in (None, "site"):
        raise InputError(f"--stratify {stratify}: people are stratified by site, and by --label.")
    if folds is not None and leave_one_site_out:
        raise InputError("--folds and --leave-one-site-out are two ways to make splits; give one of them.")
    if out.exists():
        raise InputError(f"{out}: this split is there already; choose another --out, so that results stay comparable.")
    runs = TokenDataset.load(store).runs
    if (Path(store) / STORE_FILE).is_file() and not (Path(store) / INDEX_FILE).is_file():
        messages.print(
            f"Note: {_said(store)}: tablet-hf tokenize has not come to its end there, so people may be missing, who "
            "would stand in no part; draw the split again when it has."
        )
    labels = None if label is None else phenotype_values(runs, label, store)
    subjects, families, sites = splits.subject_ids(runs), splits.family_ids(runs), [run.site for run in runs]
    if stratify and not any(site is not None for site in sites):
        raise InputError(
            f"{store}: no run has a site, so people cannot be stratified by it; leave out --stratify, or run tablet-hf "
            "tokenize again with a table that has a column called site, which changes no token."
        )
    if leave_one_site_out:
        drawn = splits.leave_one_site_out(subjects, labels, sites, families, seed=seed)
    else:
        drawn = splits.folds(subjects, labels, sites if stratify else None, families, num_folds=folds or 1, seed=seed)
    write_splits(drawn, out)
    for one in drawn:
        counts = "  ".join(f"{part} {count}" for part, count in one.counts.items())
        output.print(f"{_said(one.name):12}  {counts}")
    output.print(_said(out))


@app.command()
@one_sentence
def merge(
    stores: Annotated[
        list[Path], typer.Argument(help="Stores whose tokens were made in the same way.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the merged store.")],
) -> None:
    """Merge several stores into one, without their splits. Files are hard-linked where possible."""
    from tablet_hf.datasets.store_files import SPLITS_FOLDER
    from tablet_hf.datasets.writer import merge_stores

    merged = merge_stores(stores, out)
    output.print(f"{_said(merged.folder)}  {len(merged)} runs")
    if any((store / SPLITS_FOLDER).is_dir() for store in stores):
        messages.print("Splits are not merged: there are more people now; draw new ones with tablet-hf dataset split.")


@app.command()
@one_sentence
def export(
    store: Store,
    out: Annotated[Path, typer.Option("--out", help="Output folder for the Parquet files.")],
    shard_megabytes: Annotated[
        int, typer.Option("--shard-megabytes", min=1, help="Size of a Parquet file, in MB.")
    ] = 500,
) -> None:
    """Export a store as Parquet, the format for the Hub and for streaming."""
    from tablet_hf.datasets.export import export_parquet
    from tablet_hf.datasets.store import TokenDataset

    tokens = TokenDataset.load(store)
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=messages) as bars:
        task = bars.add_task("runs", total=len(tokens))
        path = export_parquet(
            tokens, out, shard_megabytes * 10**6, lambda done, total: bars.update(task, completed=done, total=total)
        )
    output.print(_said(path))
    messages.print(
        "People, families, sites and phenotypes are called there as in the store, and splits name them; tablet-hf push "
        "gives people other names before anything leaves."
    )
    if tokens.settings["is_restricted"]:
        messages.print(
            "These data are restricted: their terms forbid passing on what concerns single people. Keep the export "
            "where the scans may be kept, and do not upload it to a public place."
        )
