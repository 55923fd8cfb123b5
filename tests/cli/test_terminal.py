"""What the user sees while a command works."""

import pytest
import typer

from tablet_hf.cli.terminal import one_sentence


def test_an_interrupted_command_says_how_to_resume(capsys):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as left:
        one_sentence(stopped)()
    assert left.value.exit_code == 130
    assert "again" in capsys.readouterr().err
