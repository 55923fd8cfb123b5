"""What is told while a command works, to whoever watches and to a file that is read later."""

import pytest
import typer

from tablet_hf.cli.terminal import one_sentence
from tablet_hf.demo.terminal import Terminal


def test_who_stops_a_command_is_told_how_to_go_on(capsys):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as left:
        one_sentence(stopped)()
    assert left.value.exit_code == 130
    assert "Stopped; run the same command again" in capsys.readouterr().err


def test_a_stage_of_the_demo_tells_a_file_that_it_began(capsys):
    with Terminal().stage("cohort", "Simulating people"):
        assert capsys.readouterr().out == "Simulating people ...\n"
    assert capsys.readouterr().out == ""
