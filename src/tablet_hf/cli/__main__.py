"""The command line, `tablet-hf`. Every command calls what a script of the user's own would call.

Exit codes: 0, 2 for input that could not be used (what could be used was done), 1 for our own failure.
"""

from typing import Annotated

import typer

from tablet_hf.cli import datasets, demo, hub, predict, scans, training
from tablet_hf.version import __version__

app = typer.Typer(
    name="tablet-hf",
    help="Tokenize whole fMRI runs and model them with a transformer (TABLeT).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (scans.info, scans.tokenize, scans.reconstruct, predict.predict, hub.convert, demo.demo):
    app.command()(command)
app.add_typer(datasets.app, name="dataset")
for command in (training.pretrain, training.finetune, training.evaluate, hub.push):
    app.command()(command)


def show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"tablet-hf {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    app()


if __name__ == "__main__":
    main()
