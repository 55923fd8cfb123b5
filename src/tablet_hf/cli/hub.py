"""The command that publishes: `tablet-hf push`."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from tablet_hf.cli.terminal import messages, one_sentence, output
from tablet_hf.progress import Bars


@one_sentence
def push(
    path: Annotated[
        str,
        typer.Argument(help="Folder of a model, autoencoder, store or Parquet export.", show_default=False),
    ],
    repo: Annotated[str, typer.Argument(help="Hub repository: owner/name.", show_default=False)],
    private: Annotated[bool, typer.Option("--private/--public", help="Visibility of the repository.")] = True,
    gated: Annotated[
        bool | None,
        typer.Option("--gated/--not-gated", help="Require access requests.", show_default=False),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch to push to, created if needed.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Tag of the pushed commit, such as v1.")] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            help="Access token. Prefer `hf auth login` or HF_TOKEN: other users can see command lines.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Token dataset that the model was trained on.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="results.json of tablet-hf evaluate, for the model card.")
    ] = None,
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Include the code, so that the model loads without tablet_hf installed.")
    ] = False,
    phenotype: Annotated[
        list[str],
        typer.Option("--phenotypes", "--phenotype", help="Phenotypes of a token dataset to publish, such as sex,age."),
    ] = [],  # noqa: B006
    without: Annotated[
        list[str], typer.Option("--without", help="Phenotypes of a token dataset to leave out, such as sex,age.")
    ] = [],  # noqa: B006
    keep_subjects: Annotated[
        bool, typer.Option("--keep-subjects", help="Keep the subject ids of an open dataset.")
    ] = False,
    keep_sites: Annotated[bool, typer.Option("--keep-sites", help="Keep site names instead of numbers.")] = False,
    exact_ages: Annotated[
        bool, typer.Option("--exact-ages", help="Keep exact ages of an open dataset instead of whole years.")
    ] = False,
    source_restricted: Annotated[
        bool | None,
        typer.Option(
            "--source-restricted/--source-open",
            help="Whether the terms of the data forbid sharing subject data, if not recorded.",
            show_default=False,
        ),
    ] = None,
    right_to_share: Annotated[
        str | None,
        typer.Option(
            "--i-have-the-right-to-share", help="Legal basis for sharing restricted data (printed on the card)."
        ),
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="Licence identifier of the Hub, such as apache-2.0.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", help="Commit message.")] = None,
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", help="Folder for the files to upload; nothing is uploaded.")
    ] = None,
) -> None:
    """Publish a model, an autoencoder or a token dataset on the Hub, with its card (default: private)."""
    from tablet_hf.hub.publishing import Sharing, check_repo, prepare
    from tablet_hf.slice_autoencoder import SHIPPED_WEIGHTS, shipped_autoencoders

    check_repo(repo)
    source = SHIPPED_WEIGHTS / path if path in shipped_autoencoders() else Path(path)
    sharing = Sharing(private, gated, source_restricted, right_to_share, license)
    options: dict[str, Any] = {
        "dataset": dataset,
        "evaluation": evaluation,
        "with_code": with_code,
        "phenotypes": _names(phenotype) or None,
        "without": _names(without),
        "keep_subjects": keep_subjects,
        "keep_sites": keep_sites,
        "exact_ages": exact_ages,
        "token": token or _known_token(),
    }
    if dry_run is not None:
        _tell(_prepared(prepare, source, dry_run, repo, sharing, options))
        output.print(escape(str(dry_run)))
        messages.print("Nothing was sent.")
        return
    send(source, repo, options, sharing, revision=revision, tag=tag, message=message, token=token)


def send(
    source: Path,
    repo: str,
    options: dict[str, Any],
    sharing: Any = None,
    token: str | None = None,
    **how: str | None,
) -> None:
    """Prepare a folder, send it and tell of both.

    Args:
        source, repo, options, sharing: of `tablet_hf.hub.publishing.prepare`.
        token, how: of `tablet_hf.hub.publishing.publish`.
    """
    from huggingface_hub.utils import disable_progress_bars

    from tablet_hf.hub.publishing import check_may_write, kind_of, prepare, publish

    if not messages.is_terminal:
        disable_progress_bars()  # of large files, which are for who watches
    options = {"token": token or _known_token()} | options
    kind_of(source)
    check_may_write(repo, token)  # a store takes minutes to prepare
    # Next to the source: weights are linked, not copied, on the same disk, and a store's tokens may not fit elsewhere.
    with tempfile.TemporaryDirectory(prefix=".tablet-hf-push-", dir=_room_beside(source)) as scratch:
        prepared = _prepared(prepare, source, Path(scratch) / "to-be-sent", repo, sharing, options)
        _tell(prepared)
        published = publish(prepared, repo, token=token, **how)
    for note in published.notes:
        messages.print(f"Note: {escape(note)}")
    state = "private" if prepared.sharing.is_private else "public"
    messages.print(f"Sent to {escape(repo)} ({state}), commit {published.commit[:12]}.")
    output.print(escape(published.url))


def _names(said: list[str]) -> list[str]:
    return [name.strip() for words in said for name in words.split(",") if name.strip()]


def _known_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _room_beside(source: Path) -> Path | None:
    """The folder that `source` is in, where it may be written to; None is the system's place for temporary files."""
    import os

    folder = source.resolve().parent
    return folder if os.access(folder, os.W_OK) else None


def _prepared(prepare: Any, source: Path, out: Path, repo: str, sharing: Any, options: dict[str, Any]) -> Any:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=messages) as bars:
        task = bars.add_task("preparing", total=None)
        return prepare(
            source,
            out,
            repo,
            sharing,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
            **options,
        )


def _tell(prepared: Any) -> None:
    for name, size in prepared.files.items():
        output.print(f"{size:>14,}  {escape(name)}")
    if prepared.left_behind:
        messages.print(f"Not sent: {escape(', '.join(prepared.left_behind))}.")
    for note in prepared.notes:
        messages.print(f"Note: {escape(note)}")
    sharing = prepared.sharing
    words = ["private" if sharing.is_private else "public", *(["gated"] if sharing.is_gated else [])]
    messages.print(f"{prepared.what.capitalize()}, {', '.join(words)}; its card is README.md.")
