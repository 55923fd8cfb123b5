"""Started by accelerate launch: how many processes there are, and a word where there are fewer than were asked for."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import warnings
from tablet_hf.datasets.tokenization import shared_out

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    with shared_out([], cpu=True) as (share, state):
        pass
print(state.num_processes, *(f"told: {one.message}" for one in told if one.category is UserWarning))
"""


@pytest.mark.parametrize("asked", [1, 2])
def test_one_process_where_two_were_asked_for_is_told(tmp_path, asked):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(asked), tmp_path / "script.py"]
    clean = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "WORLD_SIZE")}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    count, told = done.stdout.split(maxsplit=1) if "told" in done.stdout else (done.stdout.strip(), "")
    assert int(count) == 1
    assert ("accelerate launch was asked for several processes" in told) == (asked == 2)


def test_two_processes_of_torchrun_are_two(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tmp_path / "script.py"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Both write to one pipe, and may do so between the other's figure and its line end.
    assert "".join(done.stdout.split()) == "22"
