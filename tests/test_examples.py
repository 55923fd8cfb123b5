"""The examples run as they are written, on a few simulated people."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tablet_hf.demo.cohort import GROUPS, CohortDesign, write_cohort
from tablet_hf.pipelines import ScanPredictor
from tablet_hf.token_files import token_file_name

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_participants_are_finetuned_beside_a_baseline(tmp_path):
    people = write_cohort(tmp_path / "derivatives", CohortDesign(num_people=8, num_frames=2), resolution=4)
    damaged = tmp_path / "model" / "tokens" / f"{people[0].name}_{token_file_name(people[0].scan)}"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("no tokens")
    words = [tmp_path / "derivatives", "--label", "group", "--positive", GROUPS[1], "--out", tmp_path / "model"]
    command = [sys.executable, EXAMPLES / "finetune_participants.py", *words, "--epochs", "1", "--num-frames", "2"]
    ended = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )

    assert ended.returncode == 0, ended.stderr
    assert "left out" not in ended.stdout
    assert "6 people to learn from, 2 held out; larger class 1" in ended.stdout
    rows = [line for line in ended.stdout.splitlines() if " accuracy " in line]
    assert [row.split("  ")[0] for row in rows] == ["TABLeT", "functional connectivity"]
    assert len(list((tmp_path / "model" / "tokens").iterdir())) == len(people)
    assert ScanPredictor.from_pretrained(tmp_path / "model").model.config.id2label == {0: GROUPS[1]}
