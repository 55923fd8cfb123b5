"""The commands `tablet-hf push` and `tablet-hf convert`."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from tablet_hf.cli.terminal import messages, output, printable, progress_bars, report_errors
from tablet_hf.errors import InputError

Folder = typer.Argument(help="Folder of a model, autoencoder, store or Parquet export.", show_default=False)
Repo = typer.Argument(help="Hub repository: owner/name.", show_default=False)
Private = typer.Option("--private/--public", help="Visibility of the repository.")
Gated = typer.Option(
    "--gated/--not-gated", help="Require access requests (default: if restricted).", show_default=False
)
Revision = typer.Option("--revision", help="Branch to push to, created if needed (default: main).")
Tag = typer.Option("--tag", help="Tag of the pushed commit, such as v1.")
Token = typer.Option("--token", help="Access token; prefer `hf auth login`, since others can see command lines.")
Dataset = typer.Option("--dataset", help="Token dataset that the model was trained on, if not recorded.")
Evaluation = typer.Option("--evaluation", help="results.json of tablet-hf evaluate, for the model card.")
WithCode = typer.Option("--with-code", help="Code of the model, to load it without tablet_hf installed.")
Phenotypes = typer.Option("--phenotypes", help="Phenotypes of a token dataset, such as sex,age (default: none).")
KeepSubjects = typer.Option("--keep-subjects", help="Subject ids of an open dataset instead of pseudonyms.")
Restricted = typer.Option(
    "--source-restricted/--source-open", help="Terms of the data on sharing, if not recorded.", show_default=False
)
Right = typer.Option("--i-have-the-right-to-share", help="Legal basis for sharing restricted data, for the card.")
License = typer.Option("--license", help="Licence identifier of the Hub, such as apache-2.0.")
Message = typer.Option("--message", help="Commit message.")
DryRun = typer.Option("--dry-run", help="Folder for the files to upload; nothing is uploaded.")


@report_errors
def push(
    path: Annotated[str, Folder],
    repo: Annotated[str, Repo],
    private: Annotated[bool, Private] = True,
    gated: Annotated[bool | None, Gated] = None,
    revision: Annotated[str | None, Revision] = None,
    tag: Annotated[str | None, Tag] = None,
    token: Annotated[str | None, Token] = None,
    dataset: Annotated[str | None, Dataset] = None,
    evaluation: Annotated[Path | None, Evaluation] = None,
    with_code: Annotated[bool, WithCode] = False,
    phenotypes: Annotated[list[str], Phenotypes] = [],  # noqa: B006
    keep_subjects: Annotated[bool, KeepSubjects] = False,
    source_restricted: Annotated[bool | None, Restricted] = None,
    right_to_share: Annotated[str | None, Right] = None,
    license: Annotated[str | None, License] = None,
    message: Annotated[str | None, Message] = None,
    dry_run: Annotated[Path | None, DryRun] = None,
) -> None:
    """Publish a model, an autoencoder or a token dataset on the Hub, with its card (default: private)."""
    from tablet_hf.hub.publishing import Sharing
    from tablet_hf.slice_autoencoder import SHIPPED_WEIGHTS, shipped_autoencoders

    source = SHIPPED_WEIGHTS / path if path in shipped_autoencoders() else Path(path)
    names = [name.strip() for names in phenotypes for name in names.split(",") if name.strip()]
    options = {"dataset": dataset, "evaluation": evaluation, "with_code": with_code, "phenotypes": names}
    options |= {"sharing": Sharing(private, gated, source_restricted, right_to_share, license)}
    how = {"revision": revision, "tag": tag, "message": message}
    _send(source, repo, options | {"keep_subjects": keep_subjects}, dry_run, token, **how)


def _send(
    source: Path, repo: str, options: dict[str, Any], out: Path | None = None, token: str | None = None, **how: Any
) -> None:
    """Prepare a folder, list its files, and upload it, unless it was prepared in `out` for a look."""
    from huggingface_hub.utils import disable_progress_bars

    from tablet_hf.hub.published_files import kind_of
    from tablet_hf.hub.publishing import check_may_write, prepare, publish

    if not messages.is_terminal:
        disable_progress_bars()
    kind_of(source)
    if out is None:
        check_may_write(repo, token)  # a store takes minutes to prepare
    with tempfile.TemporaryDirectory(prefix="tablet-hf-push-") as scratch:
        with progress_bars("runs") as start:
            prepared = prepare(
                source, out or Path(scratch) / "to-upload", repo, on_progress=start("preparing"), **options
            )
        for name, size in prepared.files.items():
            output.print(f"{size:>14,}  {printable(name)}")
        if prepared.left_behind:
            messages.print(f"Not uploaded: {printable(', '.join(prepared.left_behind))}.")
        if prepared.kind == "dataset" and not options.get("keep_subjects"):
            messages.print(f"Subjects have pseudonyms; their salt {printable(source.name)}.salt stays here.")
        if out is not None:
            output.print(printable(out))
            messages.print("Nothing was uploaded.")
            return
        published = publish(prepared, repo, token=token, **how)
    visibility = "private" if prepared.sharing.is_private else "public"
    messages.print(f"Uploaded to {printable(repo)} ({visibility}), commit {published.oid[:12]}.")
    output.print(printable(published.repo_url))


Source = typer.Argument(help="Folder or Hub id in the released layout, or a .pth file.", show_default=False)
Out = typer.Option("--out", help="Output folder.")
Push = typer.Option("--push", help="Hub repository (owner/name) for the result: private, with its card.")
Config = typer.Option("--config", help="config.json of the released model, needed for a .pth file.")
Head = typer.Option("--head", help="Head to convert if there are two: masked or classification.")
Problem = typer.Option(help="multi_label_classification (one logit), single_label_classification or regression.")
GridSize = typer.Option(help="Cells per edge of a frame, for tokens of other than 3,072 numbers.")
Autoencoder = typer.Option(help="Autoencoder of its tokens (default: that of the released model).")
Signal = typer.Option(help="Voxel signal of its tokens: intensity or percent_change.")
Scaling = typer.Option(help="Intensity scaling of its tokens: max or percentile.")
SourceRevision = typer.Option("--revision", help="Branch, tag or commit of the Hub repository.")


@report_errors
def convert(
    source: Annotated[str, Source],
    out: Annotated[Path | None, Out] = None,
    push: Annotated[str | None, Push] = None,
    config: Annotated[Path | None, Config] = None,
    head: Annotated[str | None, Head] = None,
    problem_type: Annotated[str | None, Problem] = None,
    grid_size: Annotated[int | None, GridSize] = None,
    autoencoder: Annotated[str | None, Autoencoder] = None,
    signal: Annotated[str | None, Signal] = None,
    scaling: Annotated[str | None, Scaling] = None,
    revision: Annotated[str | None, SourceRevision] = None,
) -> None:
    """Convert a checkpoint of the code released with the paper to a folder for `from_pretrained`, and publish it."""
    from tablet_hf.convert_tablet_to_hf import convert_checkpoint
    from tablet_hf.hub.publishing import check_may_write

    if out is None and push is None:
        raise InputError("no output; give --out FOLDER, or --push owner/name, or both.")
    if push is not None:
        check_may_write(push)
    tokens = {"grid_size": grid_size, "autoencoder": autoencoder, "signal": signal, "scaling": scaling}
    settings = {name: value for name, value in tokens.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="tablet-hf-convert-") as scratch:
        folder = out or Path(scratch) / "converted"
        model = convert_checkpoint(
            source, folder, config=config, head=head, revision=revision, problem_type=problem_type, **settings
        )
        output.print(f"{type(model).__name__}, {model.num_parameters():,} parameters: {printable(out or push)}")
        if push is not None:
            _send(folder, push, {})
