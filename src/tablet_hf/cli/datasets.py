"""The commands about token datasets: `tablet-hf tokenize --source ...` and `tablet-hf dataset ...`."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from tablet_hf.cli.terminal import choose_device, messages, output, printable, progress_bars, report_errors, show_facts
from tablet_hf.errors import InputError, counted
from tablet_hf.progress import Bars

app = typer.Typer(name="dataset", help="Describe, check, split, merge and export token datasets.", no_args_is_help=True)

LABELS = ("dataset", "site", "session", "task", "run", "family")

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
    """Find the scans of a source and tokenize this process's share; the main process reports and finishes the store."""
    from tablet_hf.sources import find_scans

    if len(roots) != 1:
        raise InputError(f"--source takes one folder or table, but {len(roots)} were given.")
    cohort = find_scans(source, roots[0], **options)
    if dry_run:
        _show_cohort(cohort)
        _show_labels(cohort.records)
        raise typer.Exit(2 if cohort.problems else 0)
    if not cohort.records:
        _show_cohort(cohort)
        _forget_withdrawn(out, options)
        raise InputError(f"{roots[0]}: --source {source} found no scan there that can be used; nothing was tokenized.")

    from accelerate.utils import gather_object

    from tablet_hf.datasets.tokenization import share_records, tokenize_scans
    from tablet_hf.datasets.writer import TokenStoreWriter

    chosen = choose_device(device)
    with share_records(cohort.records, cpu=chosen == "cpu") as (share, state):
        if state.num_processes > 1 and state.device.type == "cuda":
            chosen = str(state.device)
        if state.is_main_process:
            _show_cohort(cohort)
        extractor = make_extractor(chosen)
        extractor.slice_autoencoder  # noqa: B018  (loaded now, since the store records its revision)
        with state.main_process_first():
            writer = TokenStoreWriter(out, extractor.to_dict(), dtype, cohort.is_restricted)
            if state.is_main_process:
                writer.clean_up()
                _forget_withdrawn(out, options)
        with _progress() if state.is_main_process else nullcontext() as on_progress:
            outcome = tokenize_scans(share, extractor, writer, readers, check_space, on_progress)
        outcomes = gather_object([outcome])
        if state.is_main_process:
            _finish(outcomes, cohort, writer)


def _show_problems(problems: Sequence[Any], most: int = 50) -> None:
    for problem in problems[:most]:
        messages.print(f"  {printable(problem)}")
    if len(problems) > most:
        messages.print(f"  and {len(problems) - most:,} more.")


def _forget_withdrawn(store: Path, options: dict[str, Any]) -> None:
    """Delete the runs of subjects who withdrew from a store."""
    from tablet_hf.datasets.store_files import STORE_FILE, forget_subjects
    from tablet_hf.sources.ukb import withdrawn_subjects

    if options.get("withdrawn") is None or not (store / STORE_FILE).is_file():
        return
    if gone := forget_subjects(store, withdrawn_subjects(Path(options["withdrawn"]))):
        messages.print(
            f"{printable(store)}: deleted {counted(len(gone), 'run')} of subjects who withdrew: "
            f"{printable(', '.join(run.key for run in gone))}. Delete them from copies, exports and splits too."
        )


def _show_cohort(cohort: Any) -> None:
    subjects = {(record.dataset, record.subject) for record in cohort.records}
    messages.print(f"{counted(len(cohort.records), 'scan')} of {counted(len(subjects), 'subject')}.")
    _show_problems(cohort.problems, most=20)


def _show_labels(records: Sequence[Any]) -> None:
    """What was found of the scans: an example, and how many have which label or phenotype."""
    if not records:
        return
    facts = {"first scan": str(records[0].scan)}
    columns = {name: [getattr(record, name) for record in records] for name in LABELS}
    for name in sorted({name for record in records for name in record.phenotypes}):
        columns[f"phenotype {name}"] = [record.phenotypes.get(name) for record in records]
    for name, cells in columns.items():
        if values := [cell for cell in cells if cell is not None]:
            different = sorted(set(values), key=str)
            some = ", ".join(map(str, different[:4])) + (", ..." if len(different) > 4 else "")
            facts[name] = f"{len(values)} of {counted(len(records), 'scan')}: {some}"
    facts["mask"] = f"{sum(record.mask is not None for record in records)} of {counted(len(records), 'scan')}"
    show_facts(facts)


def _finish(outcomes: Sequence[Any], cohort: Any, writer: Any) -> None:
    """Report what was done, write the tables of runs and of problems, and exit with 2 if anything was left out."""
    failed = [problem for outcome in outcomes for problem in outcome.failed]
    done, existing = (sum(len(getattr(outcome, name)) for outcome in outcomes) for name in ("done", "existing"))
    frames, seconds = sum(outcome.frames for outcome in outcomes), max(outcome.seconds for outcome in outcomes)
    rate = f" in {seconds:,.0f} s, {frames / seconds:.1f} frames/s" if frames else ""
    messages.print(f"{counted(done, 'run')} tokenized ({counted(frames, 'frame')}{rate}), {existing:,} existing.")
    if failed:
        messages.print(f"{len(failed):,} of {counted(len(cohort.records), 'scan')} could not be used:")
        _show_problems(failed)
    try:
        store = writer.finish()
        _warn_of_lost_scans(store, cohort)
        output.print(f"{printable(store.folder)}  {counted(len(store), 'run')}")
    finally:
        _show_problems(writer.unreadable)
        problems = [*cohort.problems, *failed, *writer.unreadable]
        writer.write_problems(problems)
        if problems:
            messages.print(f"Table of what could not be used: {printable(writer.problems_file)}")
    if problems:
        raise typer.Exit(2)


def _warn_of_lost_scans(store: Any, cohort: Any) -> None:
    """Warn of runs of these studies whose scans the source no longer has; they are not deleted."""
    from tablet_hf.sources.records import store_key

    datasets, found = {record.dataset for record in cohort.records}, {store_key(record) for record in cohort.records}
    lost = [run.key for run in store.runs if run.dataset in datasets and run.key not in found]
    if lost:
        names = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        warnings.warn(
            f"{store.folder}: the scans of {counted(len(lost), 'run')} are not among these ({names}); to remove a "
            "subject, delete its folder and run this again.",
            stacklevel=2,
        )


@contextmanager
def _progress() -> Iterator[Callable[[Any, int], None]]:
    """A bar over this process's scans, with the rate of frames and the time left."""
    columns = (TextColumn("scans"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Bars(*columns, TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=messages) as bars:
        task = bars.add_task("scans", total=None, rate="", left="")

        def show(outcome: Any, total: int) -> None:
            rate = f"{outcome.frames / outcome.seconds:.1f} frames/s" if outcome.frames else ""
            # Estimated by the work itself: a bar forgets what is older than half a minute, and a scan may take longer.
            left = "" if outcome.seconds_left is None else f"{timedelta(seconds=round(outcome.seconds_left))} left"
            finished = len(outcome.done) + len(outcome.existing) + len(outcome.failed)
            bars.update(task, completed=finished, total=total, rate=rate, left=left)

        yield show


@app.command()
@report_errors
def check(store: Store) -> None:
    """Read every file of a store again and compare it with its checksum."""
    from tablet_hf.datasets.store import TokenDataset

    tokens = TokenDataset.load(store)
    show_facts(tokens.describe())
    if faults := tokens.check():
        for fault in faults:
            messages.print(printable(fault))
        raise typer.Exit(2)
    output.print("All files are as they were written.")


@app.command()
@report_errors
def describe(store: Store) -> None:
    """Describe a store: subjects, runs, frames, how the tokens were made, phenotypes."""
    from tablet_hf.datasets.store import TokenDataset

    show_facts(TokenDataset.load(store).describe())


@app.command()
@report_errors
def split(
    store: Store,
    out: Annotated[Path, typer.Option("--out", help="Splits file to write (.csv or .tsv), with a record in JSON.")],
    label: Annotated[str | None, typer.Option("--label", help="Phenotype to stratify by.")] = None,
    scheme: Annotated[
        str,
        typer.Option(
            "--scheme",
            help="folds: every subject tested once; released: four random 80/10/10 splits; site: leave one site out.",
        ),
    ] = "folds",
    folds: Annotated[int, typer.Option("--folds", min=2, help="Number of folds.")] = 5,
    stratify_by_site: Annotated[bool, typer.Option("--stratify-by-site", help="Stratify by site as well.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 10, help="Random seed of the split.")] = 0,
) -> None:
    """Split the subjects of a store into train, validation and test; families stay together."""
    from tablet_hf.datasets import splits
    from tablet_hf.datasets.split_files import write_splits
    from tablet_hf.datasets.store import TokenDataset
    from tablet_hf.datasets.store_files import INDEX_FILE, STORE_FILE

    if out.exists():
        raise InputError(f"{out}: this file exists; choose another --out, so that results stay comparable.")
    tokens = TokenDataset.load(store)
    if (Path(store) / STORE_FILE).is_file() and not (Path(store) / INDEX_FILE).is_file():
        warnings.warn(f"{store}: tablet-hf tokenize is not finished, so subjects may be missing.", stacklevel=2)
    columns = splits.split_columns(tokens, label, stratify_by_site or scheme == "site")
    if scheme == "folds":
        drawn = splits.folds(**columns, num_folds=folds, seed=seed)
    elif scheme == "released":
        drawn = splits.random_splits(**columns, seed=seed)
    elif scheme == "site":
        drawn = splits.leave_one_site_out(**columns, seed=seed)
    else:
        raise InputError(f"--scheme {scheme}: choose folds, released or site.")
    write_splits(drawn, out)
    for one in drawn:
        counts = "  ".join(f"{part} {count}" for part, count in one.counts.items())
        output.print(f"{printable(one.name):12}  {counts}")
    tested = {subject for one in drawn for subject in one.subjects("test")}
    output.print(f"{len(tested)} of {len(set(columns['subjects']))} subjects are tested.")
    output.print(printable(out))


@app.command()
@report_errors
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
    output.print(f"{printable(merged.folder)}  {counted(len(merged), 'run')}")
    if any((store / SPLITS_FOLDER).is_dir() for store in stores):
        messages.print("Splits are not merged, since there are more subjects now; draw new ones.")


@app.command()
@report_errors
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
    with progress_bars("runs") as start:
        path = export_parquet(tokens, out, shard_megabytes * 10**6, start("export"))
    output.print(printable(path))
    messages.print("Subjects, families and sites are named as in the store; tablet-hf push pseudonymises them.")
    if tokens.settings["is_restricted"]:
        messages.print(
            "These data are restricted: their terms forbid passing on data of single subjects. Keep the export where "
            "the scans may be kept, and do not upload it to a public place."
        )
