"""The demo: a simulated cohort, then the commands of a real study."""

import json
import os

import pytest
import torch
import typer
from typer.testing import CliRunner

from tablet_hf.cli.__main__ import app
from tablet_hf.cli.demo import demo_commands


def test_its_commands_are_commands_of_the_command_line(tmp_path):
    root = typer.main.get_command(app)
    for words in demo_commands(tmp_path, seed=0, device="cpu"):
        context = typer.Context(root)
        command = root
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        command.make_context("command", words, parent=context)  # refuses options that it does not have


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "thesis.txt").write_text("years of work")
    ended = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert ended.exit_code == 2
    assert "--out" in ended.output
    assert [path.name for path in tmp_path.rglob("*")] == ["cohort", "thesis.txt"]


@pytest.mark.minutes
def test_the_demo_beats_chance_and_resumes(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        words = ["demo", "--out", str(tmp_path)]
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 0, ended.output
        weights = {path: path.stat().st_mtime_ns for path in tmp_path.glob("model/*/model/model.safetensors")}
        assert CliRunner().invoke(app, words).exit_code == 0
    finally:
        torch.set_num_threads(threads)
    assert len(weights) == 4
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    tablet = json.loads((tmp_path / "model" / "results.json").read_text())["methods"]["TABLeT"]
    assert tablet["p_value"] < 0.05
    assert tablet["metrics"]["auroc"]["value"] > 0.75
    assert str(tmp_path / "model" / "index.html") in ended.output
