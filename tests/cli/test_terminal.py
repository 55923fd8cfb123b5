"""Errors, warnings and progress as the user sees them."""

import errno
import os
import subprocess
import sys
import warnings

import pytest
import typer

from tablet_hf.cli.terminal import for_each_scan, printable, report_errors, report_failures
from tablet_hf.errors import InputError


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (InputError("a.csv: it is empty."), 2, "Error: a.csv"),
        (PermissionError(errno.EACCES, "Permission denied", "a.csv"), 2, "Error: a.csv"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space"),
        (KeyboardInterrupt(), 130, "again"),
    ],
)
def test_errors_of_the_user_are_one_line(error, code, word, capsys):
    def command():
        raise error

    with pytest.raises(typer.Exit) as left:
        report_errors(command)()
    printed = capsys.readouterr()
    assert left.value.exit_code == code
    assert word in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


TERMINATED = """
import os, signal, tempfile, time
from tablet_hf.cli.terminal import report_errors
@report_errors
def command():
    with tempfile.TemporaryDirectory():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
try:
    command()
except Exception as exit:
    raise SystemExit(exit.exit_code)
"""


def test_a_terminated_command_deletes_its_temporary_folder(tmp_path):
    done = subprocess.run([sys.executable, "-c", TERMINATED], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    assert done.returncode == 130
    assert not list(tmp_path.iterdir())


def test_other_errors_are_raised():
    def command():
        raise OSError("of no file")

    with pytest.raises(OSError, match="of no file"):
        report_errors(command)()


def test_warnings_for_the_user_are_one_line(capsys):
    @report_errors
    def command():
        warnings.warn("the mask is empty.", stacklevel=1)
        warnings.warn("argument x is deprecated", DeprecationWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        command()
    assert capsys.readouterr().err == "Warning: the mask is empty.\n"


def test_a_scan_that_fails_does_not_stop_the_others(tmp_path, capsys):
    scans, done = [tmp_path / f"{number}.nii" for number in range(4)], []

    def work(scan, on_progress):
        on_progress(1, 2)
        if scan == scans[0]:
            raise InputError(f"{scan}: it is empty.")
        if scan == scans[2]:
            scan.read_bytes()
        done.append(scan)

    failures = for_each_scan(scans, work)
    assert done == [scans[1], scans[3]]
    assert list(failures) == [scans[0], scans[2]]
    with pytest.raises(typer.Exit) as left:
        report_failures(failures, 4)
    assert left.value.exit_code == 2
    printed = capsys.readouterr().err
    assert all(printed.count(f"{scan}: ") == 1 for scan in failures)
    report_failures({}, 4)


def test_a_full_disk_stops_the_batch(tmp_path):
    def work(scan, on_progress):
        raise OSError(errno.ENOSPC, "No space left on device", str(scan))

    with pytest.raises(OSError, match="No space"):
        for_each_scan([tmp_path / "a.nii"], work)


@pytest.mark.parametrize(("value", "text"), [("[bold]", r"\[bold]"), ("a\udcff.nii", "a\\udcff.nii")])
def test_any_file_name_can_be_printed(value, text):
    assert printable(value) == text
