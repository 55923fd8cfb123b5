"""From scans to a store: the same tokens as the extractor's, however often the work is interrupted."""

import csv
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from small_autoencoders import save_f32
from typer.testing import CliRunner

from tablet_hf import TabletFeatureExtractor
from tablet_hf.cli.__main__ import app
from tablet_hf.datasets import TokenDataset, TokenStoreWriter
from tablet_hf.datasets.tokenization import tokenize_scans
from tablet_hf.sources import ScanRecord

FRAMES = {"01": 3, "02": 9, "03": 1, "04": 4}
READERS = 2


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder with a small f32 autoencoder of random weights, so that most of the time goes into everything else."""
    return save_f32(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, make_scan):
    """A table of four scans of one to nine frames."""
    folder = tmp_path_factory.mktemp("cohort")
    for number, (subject, frames) in enumerate(FRAMES.items()):
        make_scan(folder / f"sub-{subject}_task-rest_bold.nii.gz", frames=frames, seed=number)
    rows = "".join(f"sub-{subject}_task-rest_bold.nii.gz\t{subject}\t{20 + int(subject)}\n" for subject in FRAMES)
    (folder / "scans.tsv").write_text("path\tsubject\tage\n" + rows)
    return folder


@pytest.fixture(scope="module")
def processes():
    """Starts processes that need not import for seconds: they are copies of one that has done so."""
    context = multiprocessing.get_context("forkserver")
    libraries = ["diffusers.models.autoencoders.autoencoder_dc", "datasets", "accelerate", "nilearn.masking"]
    context.set_forkserver_preload(["tablet_hf.datasets.tokenization", *libraries])
    return context


def scan_of(cohort, subject):
    return cohort / f"sub-{subject}_task-rest_bold.nii.gz"


def records_of(cohort):
    return [ScanRecord(subject, scan_of(cohort, subject), task="rest") for subject in FRAMES]


def make_extractor(autoencoder, **settings):
    extractor = TabletFeatureExtractor(str(autoencoder), **settings)
    _ = extractor.slice_autoencoder
    return extractor


def tablet_hf(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def command_for(table, autoencoder, store, *options):
    command = ["tokenize", "--source", "table", table, "--out", store, "--autoencoder", autoencoder]
    return [*command, "--device", "cpu", *options]


def as_rank(rank, port, *arguments):
    """Run a command as one of two processes that a launcher such as torchrun or accelerate starts."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(tablet_hf(*arguments).exit_code)


def until_the_disk_is_full(store, output, *arguments):
    """Run a command; as soon as a run is finished, the system refuses files of more than 100 bytes."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    is_over = threading.Event()

    def fill():
        while not is_over.is_set() and not list(store.rglob("*_tokens.json")):
            time.sleep(0.001)
        if not is_over.is_set():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))

    (watching := threading.Thread(target=fill)).start()
    result = tablet_hf(*arguments)
    is_over.set()
    watching.join()
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    output.write_text(result.output)
    sys.exit(result.exit_code if isinstance(result.exception, SystemExit) else 99)


def times(store):
    """When the tokens of each finished run were written."""
    finished = [path.with_suffix(".arrow") for path in store.rglob("*_tokens.json")]
    return {path.name: path.stat().st_mtime_ns for path in finished}


def problems_in(store):
    """Why scans could not be used, by the name of their file."""
    with (store / "problems.tsv").open(encoding="utf-8") as file:
        return {Path(row["what"]).name: row["why"] for row in csv.DictReader(file, delimiter="\t")}


class TestTokens:
    @pytest.mark.parametrize("signal_name", ["intensity", "percent_change"])
    def test_they_are_those_of_the_extractor(self, cohort, autoencoder, tmp_path, signal_name):
        extractor = make_extractor(autoencoder, signal=signal_name)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        reports = []
        outcome = tokenize_scans(
            records_of(cohort), extractor, writer, READERS, on_progress=lambda done, total: reports.append(total)
        )
        assert sorted(outcome.done) == [f"sub-{subject}_task-rest" for subject in FRAMES]
        assert (outcome.frames, outcome.failed, outcome.existing) == (sum(FRAMES.values()), [], [])
        assert set(reports) == {4}
        store = writer.finish()
        assert store.check() == []
        for run in store.runs:
            alone = extractor.tokenize(scan_of(cohort, run.subject))
            torch.testing.assert_close(store.window(run.key), alone.tokens.half(), atol=2e-3, rtol=2e-3)
            assert run.repetition_time == 2.0
            assert run.intensity_scale == pytest.approx(alone.intensity_scale)
            assert run.clipped_share == pytest.approx(alone.clipped_share)
            if signal_name == "intensity":
                assert store.mean_tokens(run.key) is None
            else:
                torch.testing.assert_close(store.mean_tokens(run.key), alone.mean_tokens.half(), atol=2e-3, rtol=2e-3)
        made = store.runs[0].made
        assert (made["encoder"], made["mask"], made["is_resampled"]) == ("float32 on cpu", "nonzero", False)
        assert (made["space"], made["voxel_size"]) == (None, [2.0, 2.0, 2.0])

    def test_a_real_scan(self, real_data, autoencoder, tmp_path):
        (whole,) = real_data("bold/sub-01/func").glob("*preproc_bold.nii.gz")
        scan = tmp_path / "scan.nii.gz"
        nibabel.save(nibabel.load(whole).slicer[..., :9], scan)
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        tokenize_scans([ScanRecord("01", scan)], extractor, writer, READERS)
        expected = extractor.tokenize(scan).tokens.half()
        torch.testing.assert_close(writer.finish().window(0), expected, atol=2e-3, rtol=2e-3)


class TestResumption:
    def test_finished_runs_stay_and_the_time_left_counts_only_what_is_left(self, cohort, autoencoder, tmp_path):
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        records, reports = records_of(cohort), []
        tokenize_scans(records[:2], extractor, writer, READERS)
        bad = ScanRecord("05", tmp_path / "bad.nii.gz")
        bad.scan.write_bytes(b"no scan at all")

        def report(outcome, total):
            reports.append(
                (outcome.frames, outcome.bytes_done, outcome.bytes_to_do, outcome.seconds, outcome.seconds_left)
            )

        outcome = tokenize_scans([*records, bad], extractor, writer, READERS, on_progress=report)
        assert sorted(outcome.existing) == ["sub-01_task-rest", "sub-02_task-rest"]
        assert sorted(outcome.done) == ["sub-03_task-rest", "sub-04_task-rest"]
        size = {record.subject: record.scan.stat().st_size for record in [*records, bad]}
        assert reports[0][1:3] == (0, size["03"] + size["04"] + size["05"])
        assert reports[0][4] is None
        frames, done, to_do, _, left = reports[-1]
        assert (frames, to_do, left) == (5, size["03"] + size["04"], pytest.approx(0, abs=1e-6))
        assert done == pytest.approx(to_do)
        for _, done, to_do, seconds, left in reports:
            if done:
                assert left == pytest.approx(seconds * (to_do - done) / done, abs=1e-6)

    def test_a_scan_that_changed_is_tokenized_again(self, autoencoder, tmp_path, make_scan):
        scan = make_scan(tmp_path / "scan.nii.gz", frames=2)
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        tokenize_scans([ScanRecord("01", scan)], extractor, writer, READERS)
        make_scan(scan, frames=3, seed=5)
        assert tokenize_scans([ScanRecord("01", scan)], extractor, writer, READERS).done == ["sub-01"]
        assert writer.finish().runs[0].num_frames == 3

    def test_a_corrected_repetition_time_reaches_finished_runs(self, autoencoder, tmp_path, make_scan):
        name = "sub-01_space-MNI152NLin6Asym_desc-preproc_bold"
        scan = make_scan(tmp_path / "bids" / "sub-01" / "func" / f"{name}.nii.gz", frames=2)
        (sidecar := scan.with_name(f"{name}.json")).write_text('{"RepetitionTime": 2.0}')
        store = tmp_path / "store"
        command = ["tokenize", "--source", "bids", tmp_path / "bids", "--out", store, "--autoencoder", autoencoder]
        assert tablet_hf(*command).exit_code == 0
        before = times(store)
        for seconds, exit_code in ((0.8, 0), (800, 2)):
            sidecar.write_text(json.dumps({"RepetitionTime": seconds}))
            assert tablet_hf(*command).exit_code == exit_code
            assert TokenDataset.load(store)[0]["repetition_time"] == 0.8
            assert times(store) == before

    def test_another_mask_is_another_run(self, autoencoder, tmp_path, make_scan):
        scan = make_scan(tmp_path / "sub-01_desc-preproc_bold.nii.gz", frames=2)
        mask = scan.with_name("sub-01_desc-brain_mask.nii.gz")
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())

        def tokenize():
            outcome = tokenize_scans([ScanRecord("01", scan)], extractor, writer, READERS)
            assert outcome.failed == []
            return outcome.done, writer.finish().runs[0]

        assert tokenize()[1].made["mask"] == "nonzero"
        image = nibabel.load(scan)
        brain = (np.asarray(image.dataobj)[..., 0] > 0).astype(np.uint8)
        for first in (0, 46):
            brain[:first] = 0
            nibabel.save(nibabel.Nifti1Image(brain, image.affine), mask)
            done, run = tokenize()
            assert (done, run.made["mask"], run.companions["mask"]["name"]) == (["sub-01"], "bids", mask.name)
            assert tokenize()[0] == []

    def test_a_run_with_a_destroyed_sidecar_is_tokenized_again(self, cohort, autoencoder, tmp_path):
        store = tmp_path / "store"
        command = command_for(cohort / "scans.tsv", autoencoder, store)
        assert tablet_hf(*command).exit_code == 0
        before = times(store)
        (sidecar,) = store.rglob("sub-02*.json")
        sidecar.write_text('{"key": "sub-02')
        assert tablet_hf(*command).exit_code == 0
        changed = {name for name, time in times(store).items() if time != before[name]}
        assert changed == {"sub-02_task-rest_tokens.arrow"}
        assert TokenDataset.load(store).check() == []

    def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(self, cohort, autoencoder, processes, tmp_path):
        """A process of its own, killed without warning; every later one continues from what was finished."""
        whole, cut = tmp_path / "whole", tmp_path / "cut"
        generator = random.Random(0)

        def start(out):
            command = command_for(cohort / "scans.tsv", autoencoder, out)
            process = processes.Process(target=tablet_hf, args=command)
            process.start()
            while process.is_alive() and not (out / "store.json").is_file():
                time.sleep(0.005)
            return process, time.perf_counter()

        process, begun = start(whole)
        process.join()
        seconds = time.perf_counter() - begun
        in_the_middle = 0
        for _ in range(8):
            before = times(cut)
            process, _ = start(cut)
            process.join(generator.uniform(0, seconds))
            process.kill()
            process.join()
            after = times(cut)
            assert before.items() <= after.items()  # nothing was written twice
            in_the_middle += process.exitcode == -signal.SIGKILL and len(after) < len(FRAMES)
            if in_the_middle >= 3:
                break
            if len(after) == len(FRAMES):
                shutil.rmtree(cut)
        assert in_the_middle
        before = times(cut)
        assert tablet_hf(*command_for(cohort / "scans.tsv", autoencoder, cut)).exit_code == 0
        assert before.items() <= times(cut).items()
        first, second = TokenDataset.load(whole), TokenDataset.load(cut)
        assert second.check() == []
        assert [run.key for run in first.runs] == [run.key for run in second.runs]
        for run, other in zip(first.runs, second.runs, strict=True):
            assert run.phenotypes == other.phenotypes
            torch.testing.assert_close(first.window(run.key), second.window(run.key), atol=2e-3, rtol=2e-3)


class TestTrouble:
    def test_bad_scans_are_reported_and_the_others_continue(self, cohort, autoencoder, tmp_path):
        folder, store = tmp_path / "hospital", tmp_path / "store"
        shutil.copytree(cohort, folder)
        content = scan_of(folder, "02").read_bytes()
        scan_of(folder, "02").write_bytes(content[: len(content) // 2])
        image = nibabel.load(scan_of(folder, "03"))
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), scan_of(folder, "03"))
        command = command_for(folder / "scans.tsv", autoencoder, store)
        result = tablet_hf(*command)
        assert result.exit_code == 2
        bad = {scan_of(folder, subject).name for subject in ("02", "03")}
        assert problems_in(store).keys() == bad
        assert all(result.output.count(name) == 1 for name in bad)
        assert [run.subject for run in TokenDataset.load(store).runs] == ["01", "04"]
        # Only the table of problems, which no export includes, names the folder of the scans.
        naming = [path for path in store.rglob("*") if path.is_file() and str(folder).encode() in path.read_bytes()]
        assert naming == [store / "problems.tsv"]
        assert tablet_hf("dataset", "export", store, "--out", tmp_path / "export").exit_code == 0
        for path in (path for path in (tmp_path / "export").rglob("*") if path.is_file()):
            for name in (folder, autoencoder.parent):
                assert str(name).encode() not in path.read_bytes()

        before = times(store)
        for subject in ("02", "03"):
            shutil.copy(scan_of(cohort, subject), scan_of(folder, subject))
        assert tablet_hf(*command).exit_code == 0
        assert before.items() < times(store).items()
        assert problems_in(store) == {}

    def test_a_full_disk_ends_the_work_and_loses_nothing(self, cohort, autoencoder, processes, tmp_path):
        """As soon as a run is written the system refuses larger files: further runs, the table and the problems."""
        store, output, table = tmp_path / "store", tmp_path / "output.txt", tmp_path / "scans.csv"
        table.write_text("path,subject\n")
        for number in range(8):
            scan = shutil.copy(scan_of(cohort, "02"), tmp_path / f"sub-{number:02}_task-rest_bold.nii.gz")
            with table.open("a") as file:
                file.write(f"{scan},{number:02}\n")
        command = command_for(table, autoencoder, store)
        process = processes.Process(target=until_the_disk_is_full, args=(store, output, *command))
        process.start()
        process.join()
        text = output.read_text()
        assert process.exitcode == 2, text
        assert "File too large" in text
        finished = times(store)
        assert 0 < len(finished) < 8
        assert [path for path in store.rglob(".*") if path.is_file()] == []

        result = tablet_hf(*command)
        assert result.exit_code == 0, result.output
        assert finished.items() < times(store).items()
        opened = TokenDataset.load(store)
        assert opened.check() == []
        assert len(opened) == 8

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_folders_that_may_not_be_written_to_end_it(self, cohort, autoencoder, tmp_path):
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        (tmp_path / "store" / "runs").chmod(0o500)
        outcome = tokenize_scans(records_of(cohort), extractor, writer, READERS)
        (tmp_path / "store" / "runs").chmod(0o700)
        assert sum("Permission denied" in problem.why for problem in outcome.failed) >= 3
        assert len(outcome.failed) == 4

    def test_names_that_are_not_text(self, autoencoder, tmp_path, make_scan):
        root = tmp_path / os.fsdecode(b"M\xfcnchen")
        for subject in ("01", "02"):
            name = f"sub-{subject}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
            scan = make_scan(root / "bids" / f"sub-{subject}" / "func" / name, frames=1)
        scan.write_bytes(scan.read_bytes()[:1000])
        command = ["tokenize", "--source", "bids", root / "bids", "--out", root / "store"]
        result = tablet_hf(*command, "--autoencoder", autoencoder)
        assert result.exit_code == 2, result.output
        for text in (result.output, (root / "store" / "problems.tsv").read_text(encoding="utf-8")):
            assert r"M\udcfcnchen/bids/sub-02" in text
        assert TokenDataset.load(root / "store")[0]["input_values"].shape[0] == 1

    def test_without_a_scan_nothing_is_loaded_or_written(self, tmp_path):
        (table := tmp_path / "scans.csv").write_text("path,subject\nnowhere.nii.gz,01\n")
        result = tablet_hf(*command_for(table, "/no/such/autoencoder", tmp_path / "store"))
        assert result.exit_code == 2
        assert "autoencoder" not in result.output
        assert not (tmp_path / "store").exists()

    def test_our_own_failure_does_not_hang(self, cohort, autoencoder, tmp_path, monkeypatch):
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())

        def broken(*_):
            raise RuntimeError("broken")

        monkeypatch.setattr(extractor, "volumes_to_tokens", broken)
        with pytest.raises(RuntimeError, match="broken"):
            tokenize_scans(records_of(cohort), extractor, writer, READERS)


class TestCommands:
    @pytest.fixture(scope="class")
    def store(self, cohort, autoencoder, tmp_path_factory):
        folder = tmp_path_factory.mktemp("store") / "store"
        result = tablet_hf(*command_for(cohort / "scans.tsv", autoencoder, folder, "--dtype", "int8"))
        assert result.exit_code == 0, result.output
        assert "17 frames" in result.output
        return folder

    def test_options_that_do_not_go_together(self, cohort, tmp_path):
        table = cohort / "scans.tsv"
        for options, word in [
            (["--source", "table", table, "--num-frames", "4"], "--num-frames"),
            (["--source", "table", table, table], "--source"),
            ([scan_of(cohort, "01"), "--dtype", "int8"], "--source"),
            (["--source", "nowhere", table], "nowhere"),
        ]:
            result = tablet_hf("tokenize", *options, "--out", tmp_path / "x")
            assert result.exit_code == 2, result.output
            assert word in result.output

    def test_two_processes_share_the_work(self, cohort, autoencoder, store, processes, tmp_path):
        command = command_for(cohort / "scans.tsv", autoencoder, tmp_path / "store")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        both = [processes.Process(target=as_rank, args=(rank, port, *command)) for rank in (0, 1)]
        for process in both:
            process.start()
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [0, 0]
        tokens, alone = TokenDataset.load(tmp_path / "store"), TokenDataset.load(store)
        assert tokens.check() == []
        assert [run.subject for run in tokens.runs] == sorted(FRAMES)
        for run in tokens.runs:
            torch.testing.assert_close(tokens.window(run.key), alone.window(run.key), atol=2e-2, rtol=2e-2)

    def test_an_export_of_restricted_data_is_marked(self, store, tmp_path):
        shutil.copytree(store, tmp_path / "store")
        settings = json.loads((tmp_path / "store" / "store.json").read_text())
        (tmp_path / "store" / "store.json").write_text(json.dumps(settings | {"is_restricted": True}))
        for folder, is_restricted in ((tmp_path / "store", True), (store, False)):
            export = tmp_path / f"export-{is_restricted}"
            result = tablet_hf("dataset", "export", folder, "--out", export)
            assert result.exit_code == 0
            assert ("are restricted" in result.output) == is_restricted
            assert ("Restricted" in (export / "README.md").read_text()) == is_restricted

    def test_runs_that_the_source_no_longer_has_are_reported_and_stay(self, cohort, store, autoencoder, tmp_path):
        shutil.copytree(store, tmp_path / "store")
        (tmp_path / "scans.tsv").write_text(f"path\tsubject\n{scan_of(cohort, '01')}\t01\n")
        command = command_for(tmp_path / "scans.tsv", autoencoder, tmp_path / "store", "--dtype", "int8")
        result = tablet_hf(*command)
        assert result.exit_code == 0, result.output
        assert all(f"sub-{subject}_task-rest" in result.output for subject in ("02", "03", "04"))
        assert len(TokenDataset.load(tmp_path / "store")) == 4

    def test_subjects_who_withdrew_are_deleted(self, autoencoder, tmp_path, make_scan, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for eid in ("1000011", "1000022"):
            make_scan(tmp_path / "ukb" / f"{eid}_20227_2_0_bold.nii.gz", frames=1)
        command = ["tokenize", "--source", "ukb", tmp_path / "ukb", "--out", tmp_path / "store"]
        command += ["--pattern", "{eid}_20227_{instance}_0_bold.nii.gz", "--autoencoder", autoencoder]
        result = tablet_hf(*command)
        assert len(TokenDataset.load(tmp_path / "store")) == 2, result.output
        (tmp_path / "gone.csv").write_text("1000022\n")
        assert "1000022" in tablet_hf(*command, "--withdrawn", tmp_path / "gone.csv").output
        store = TokenDataset.load(tmp_path / "store")
        assert [run.subject for run in store.runs] == ["1000011"]
        assert store.check() == []
        assert not [path for path in (tmp_path / "store" / "runs").rglob("*") if "1000022" in path.name]
