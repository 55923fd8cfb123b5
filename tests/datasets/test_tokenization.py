"""From scans to a store: the same tokens as the extractor's, whatever ends the work in between."""

import csv
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import threading
import time
import traceback

import nibabel
import numpy as np
import pytest
import torch
from rich.console import Console
from small_autoencoders import save_f32
from typer.testing import CliRunner

from tablet_hf import TabletFeatureExtractor
from tablet_hf.cli.__main__ import app
from tablet_hf.cli.datasets import _progress
from tablet_hf.datasets import TokenDataset, TokenStoreWriter
from tablet_hf.datasets.tokenization import Outcome, Resources, occupied_slices, tokenize_scans
from tablet_hf.sources import ScanRecord
from tablet_hf.volumes import open_run

FRAMES = {"01": 3, "02": 9, "03": 1, "04": 4}
RESOURCES = Resources(readers=2, cache_bytes=2**20, slices_at_once=100, is_compiled=False)


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


def tablet_hf_as_rank(rank, port, told, *arguments):
    """As one of two processes that a launcher such as torchrun or accelerate starts; writes what it tells to a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result = tablet_hf(*arguments)
    told.write_text(result.output)
    sys.exit(result.exit_code)


def tablet_hf_until_the_disk_is_full(store, told, *arguments):
    """As soon as a run is finished, the system refuses files of more than 100 bytes; writes what is told to a file."""
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
    trace = "" if result.exc_info is None else "".join(traceback.format_exception(*result.exc_info))
    told.write_text(result.output + (trace if not isinstance(result.exception, SystemExit) else ""))
    sys.exit(result.exit_code)


def read_log(store, name="tokenize-0"):
    with (store / "logs" / f"{name}.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


class TestTokens:
    @pytest.mark.parametrize("signal_name", ["intensity", "percent_change"])
    def test_they_are_those_of_the_extractor(self, cohort, autoencoder, tmp_path, signal_name):
        extractor = make_extractor(autoencoder, signal=signal_name)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        told = []
        outcome = tokenize_scans(
            records_of(cohort), extractor, writer, RESOURCES, on_progress=lambda done, total: told.append(total)
        )
        assert sorted(outcome.done) == [f"sub-{subject}_task-rest" for subject in FRAMES]
        assert (outcome.frames, outcome.failed, outcome.kept) == (sum(FRAMES.values()), [], [])
        assert set(told) == {4}
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

    def test_a_real_scan(self, real_data, autoencoder, tmp_path):
        (whole,) = real_data("bold/sub-01/func").glob("*preproc_bold.nii.gz")
        scan = tmp_path / "scan.nii.gz"
        nibabel.save(nibabel.load(whole).slicer[..., :9], scan)
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        tokenize_scans([ScanRecord("01", scan)], extractor, writer, RESOURCES)
        expected = extractor.tokenize(scan).tokens.half()
        torch.testing.assert_close(writer.finish().window(0), expected, atol=2e-3, rtol=2e-3)

    def test_empty_slices_are_those_without_brain(self, cohort):
        run = open_run(scan_of(cohort, "01"))
        occupied = set(occupied_slices(run.mask).tolist())
        for axis in range(3):
            for place in range(96):
                assert (96 * axis + place in occupied) == run.mask.take(place, axis).any()


class TestResumption:
    def test_what_is_finished_is_kept(self, cohort, autoencoder, tmp_path):
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        records = records_of(cohort)
        tokenize_scans(records[:2], extractor, writer, RESOURCES)
        outcome = tokenize_scans(records, extractor, writer, RESOURCES)
        assert sorted(outcome.kept) == ["sub-01_task-rest", "sub-02_task-rest"]
        assert sorted(outcome.done) == ["sub-03_task-rest", "sub-04_task-rest"]

    def test_a_scan_that_changed_is_done_again(self, cohort, autoencoder, tmp_path, make_scan):
        scan = make_scan(tmp_path / "scan.nii.gz", frames=2)
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        tokenize_scans([ScanRecord("01", scan)], extractor, writer, RESOURCES)
        make_scan(scan, frames=3, seed=5)
        assert tokenize_scans([ScanRecord("01", scan)], extractor, writer, RESOURCES).done == ["sub-01"]
        assert writer.finish().runs[0].num_frames == 3

    def test_a_corrected_repetition_time_reaches_what_is_finished(self, autoencoder, tmp_path, make_scan):
        name = "sub-01_space-MNI152NLin6Asym_desc-preproc_bold"
        scan = make_scan(tmp_path / "bids" / "sub-01" / "func" / f"{name}.nii.gz", frames=2)
        (sidecar := scan.with_name(f"{name}.json")).write_text('{"RepetitionTime": 2.0}')
        command = ["tokenize", "--source", "bids", tmp_path / "bids", "--out", tmp_path / "store"]
        command += ["--autoencoder", autoencoder]
        assert tablet_hf(*command).exit_code == 0
        (tokens,) = (tmp_path / "store").rglob("*.arrow")
        written = tokens.stat().st_mtime_ns
        sidecar.write_text('{"RepetitionTime": 0.8}')
        assert "1 was there already" in tablet_hf(*command).output
        store = TokenDataset.load(tmp_path / "store")
        assert store[0]["repetition_time"] == 0.8
        assert tokens.stat().st_mtime_ns == written
        sidecar.write_text('{"RepetitionTime": 800}')
        result = tablet_hf(*command)
        assert result.exit_code == 2
        assert "milliseconds? then 0.8" in result.output

    def test_another_mask_is_another_run(self, autoencoder, tmp_path, make_scan):
        scan = make_scan(tmp_path / "sub-01_desc-preproc_bold.nii.gz", frames=2)
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        records = [ScanRecord("01", scan)]

        def tokenize():
            outcome = tokenize_scans(records, extractor, writer, RESOURCES)
            assert outcome.failed == []
            return outcome.done, writer.finish().runs[0]

        assert tokenize()[1].made["mask"] == "nonzero"
        image = nibabel.load(scan)
        brain = (np.asarray(image.dataobj)[..., 0] > 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(brain, image.affine), scan.with_name("sub-01_desc-brain_mask.nii.gz"))
        done, run = tokenize()
        assert (done, run.made["mask"]) == (["sub-01"], "bids")
        assert run.beside["mask"]["name"] == "sub-01_desc-brain_mask.nii.gz"
        assert tokenize()[0] == []
        brain[:46] = 0
        nibabel.save(nibabel.Nifti1Image(brain, image.affine), scan.with_name("sub-01_desc-brain_mask.nii.gz"))
        assert tokenize()[0] == ["sub-01"]
        assert tokenize()[0] == []

    def test_a_run_whose_sidecar_was_destroyed_is_done_again(self, cohort, autoencoder, tmp_path):
        command = ["tokenize", "--source", "table", cohort / "scans.tsv", "--out", tmp_path / "store"]
        command += ["--autoencoder", autoencoder]
        assert tablet_hf(*command).exit_code == 0
        (sidecar,) = (tmp_path / "store").rglob("sub-02*.json")
        sidecar.write_text('{"key": "sub-02')
        result = tablet_hf(*command)
        assert result.exit_code == 0, result.output
        assert "1 run tokenized (9 frames" in result.output
        assert TokenDataset.load(tmp_path / "store").check() == []

    def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(self, cohort, autoencoder, processes, tmp_path):
        """A process of its own, killed without warning; every later one goes on from what was finished."""
        command = ["tokenize", "--source", "table", cohort / "scans.tsv", "--device", "cpu"]
        command += ["--autoencoder", autoencoder]
        whole, cut = tmp_path / "whole", tmp_path / "cut"
        generator = random.Random(0)

        def start(out):
            process = processes.Process(target=tablet_hf, args=(*command, "--out", out))
            process.start()
            while process.is_alive() and not list(out.rglob("*.tsv")):
                time.sleep(0.005)
            return process, time.perf_counter()

        process, begun = start(whole)
        process.join()
        seconds = time.perf_counter() - begun
        in_the_middle, kept = 0, []
        for _ in range(8):
            process, begun = start(cut)
            kept.append(len(list(cut.rglob("*_tokens.json"))))
            process.join(generator.uniform(0, seconds))
            process.kill()
            process.join()
            finished = len(list(cut.rglob("*_tokens.json")))
            # The log was begun, so scans were being read, and not all of them were written.
            in_the_middle += process.exitcode == -signal.SIGKILL and finished < len(FRAMES)
            if in_the_middle >= 3:
                break
            if finished == len(FRAMES):
                shutil.rmtree(cut)
        assert in_the_middle
        assert tablet_hf(*command, "--out", cut).exit_code == 0

        statuses = [(row["run"], row["status"]) for row in read_log(cut)]
        for subject in FRAMES:
            assert statuses.count((f"sub-{subject}_task-rest", "done")) <= 1
        first, second = TokenDataset.load(whole), TokenDataset.load(cut)
        assert second.check() == []
        assert [run.key for run in first.runs] == [run.key for run in second.runs]
        for run, other in zip(first.runs, second.runs, strict=True):
            assert run.phenotypes == other.phenotypes
            torch.testing.assert_close(first.window(run.key), second.window(run.key), atol=2e-3, rtol=2e-3)


class TestTimeLeft:
    def test_what_was_there_does_not_count(self, cohort, autoencoder, tmp_path):
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        records, told = records_of(cohort), []
        tokenize_scans(records[:2], extractor, writer, RESOURCES)
        bad = ScanRecord("05", tmp_path / "bad.nii.gz")
        bad.scan.write_bytes(b"no scan at all")
        tokenize_scans(
            [*records, bad],
            extractor,
            writer,
            RESOURCES,
            on_progress=lambda outcome, _: told.append(
                (outcome.frames, outcome.bytes_done, outcome.bytes_to_do, outcome.seconds, outcome.seconds_left)
            ),
        )
        size = {record.subject: record.scan.stat().st_size for record in records}
        assert told[0][1:3] == (0, size["03"] + size["04"] + bad.scan.stat().st_size)
        assert told[0][4] is None
        frames, done, to_do, seconds, left = told[-1]
        assert (frames, to_do, left) == (5, size["03"] + size["04"], pytest.approx(0, abs=1e-6))
        assert done == pytest.approx(to_do)
        for _, done, to_do, seconds, left in told:
            if done:
                assert left == pytest.approx(seconds * (to_do - done) / done, abs=1e-6)

    @pytest.mark.parametrize("is_watched", [True, False])
    def test_it_is_told_however_long_a_scan_takes(self, monkeypatch, is_watched):
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_watched, width=120, soft_wrap=True)
        monkeypatch.setattr("tablet_hf.cli.datasets.messages", console)
        with _progress(True) as show:
            show(Outcome(), 1000)
            # An hour for each of the first two scans of the same size, nothing told in between.
            show(Outcome(done=["a", "b"], frames=2400, seconds=7200.0, bytes_done=2.0, bytes_to_do=10.0), 10)
            if not is_watched:
                monkeypatch.setattr("tablet_hf.progress.Bars.SECONDS_BETWEEN_LINES", 0)
                show(Outcome(done=["a", "b"], frames=2400, seconds=7200.0, bytes_done=2.0, bytes_to_do=10.0), 10)
        assert "8:00:00 left" in file.getvalue()
        assert "0.3 frames/s" in file.getvalue()


class TestTrouble:
    def test_bad_scans_are_told_and_the_others_go_on(self, cohort, autoencoder, tmp_path):
        folder = tmp_path / "cohort"
        shutil.copytree(cohort, folder)
        content = scan_of(folder, "02").read_bytes()
        scan_of(folder, "02").write_bytes(content[: len(content) // 2])
        image = nibabel.load(scan_of(folder, "03"))
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), scan_of(folder, "03"))
        store = tmp_path / "store"
        result = tablet_hf("tokenize", "--source", "table", folder / "scans.tsv", "--out", store,
                           "--autoencoder", autoencoder)  # fmt: skip
        assert result.exit_code == 2
        assert "2 of 4 scans could not be used" in result.output
        for subject in ("02", "03"):
            assert len(re.findall(rf"^  \S*sub-{subject}_task-rest_bold.nii.gz: ", result.output, re.M)) == 1
        assert [run.subject for run in TokenDataset.load(store).runs] == ["01", "04"]
        problems = (store / "problems.tsv").read_text()
        assert "sub-02" in problems
        assert "sub-03" in problems
        assert {row["status"] for row in read_log(store)} == {"done", "failed"}

        shutil.copy(scan_of(cohort, "02"), scan_of(folder, "02"))
        shutil.copy(scan_of(cohort, "03"), scan_of(folder, "03"))
        result = tablet_hf("tokenize", "--source", "table", folder / "scans.tsv", "--out", store,
                           "--autoencoder", autoencoder)  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "2 runs tokenized" in result.output
        assert "2 were there already" in result.output
        assert len((store / "problems.tsv").read_text().splitlines()) == 1

    def test_a_missing_table_of_labels_is_told_once_and_leaves_nothing_out(self, autoencoder, tmp_path, make_scan):
        root = tmp_path / "a" / "b"
        make_scan(root / "sub-01" / "func" / "sub-01_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz", frames=1)
        command = ["tokenize", "--source", "bids", root, "--out", tmp_path / "store"]
        for options in (["--dry-run"], ["--autoencoder", autoencoder]):
            result = tablet_hf(*command, *options)
            assert result.exit_code == 0, result.output
            assert result.output.count("no participants.tsv was found") == 1
            assert "left out" not in result.output
        assert "no participants.tsv was found" in (tmp_path / "store" / "problems.tsv").read_text()

    def test_a_disk_that_takes_no_more_ends_it_and_loses_nothing(self, cohort, autoencoder, processes, tmp_path):
        """As soon as a run is written the system refuses larger files: further runs, the table and the problems."""
        for number in range(8):
            shutil.copy(scan_of(cohort, "02"), tmp_path / f"sub-{number:02}_task-rest_bold.nii.gz")
        table = tmp_path / "scans.csv"
        rows = (f"sub-{number:02}_task-rest_bold.nii.gz,{number:02}\n" for number in range(8))
        table.write_text("path,subject\n" + "".join(rows))
        store, told = tmp_path / "store", tmp_path / "told.txt"
        command = ["tokenize", "--source", "table", table, "--out", store, "--autoencoder", autoencoder]
        process = processes.Process(target=tablet_hf_until_the_disk_is_full, args=(store, told, *command))
        process.start()
        process.join()
        text = told.read_text()
        assert process.exitcode == 2, text
        assert "Traceback" not in text
        assert "its tokens could not be written (File too large); mend the store's disk and run it again." in text
        assert "not begun, since the work was stopped" in text
        assert re.search(r"^\d+ of 8 scans could not be used:", text, re.M)
        assert "the table of runs could not be written (File too large)" in text
        assert "problems.tsv: it could not be written" in text
        finished = len(list(store.rglob("*_tokens.json")))
        assert 0 < finished < 8
        assert [path for path in store.rglob(".*") if path.is_file()] == []

        result = tablet_hf(*command)
        assert result.exit_code == 0, result.output
        assert f"{8 - finished} run" in result.output
        opened = TokenDataset.load(store)
        assert opened.check() == []
        assert len(opened) == 8

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_folders_that_may_not_be_written_to_end_it(self, cohort, autoencoder, tmp_path):
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        (tmp_path / "store" / "logs").mkdir()
        (tmp_path / "store" / "runs").chmod(0o500)
        outcome = tokenize_scans(records_of(cohort), extractor, writer, RESOURCES)
        (tmp_path / "store" / "runs").chmod(0o700)
        assert sum("Permission denied" in problem.why for problem in outcome.failed) >= 3
        assert len(outcome.failed) == 4

    def test_names_that_are_no_text_are_told(self, autoencoder, tmp_path, make_scan):
        root = tmp_path / os.fsdecode(b"M\xfcnchen")
        for subject in ("01", "02"):
            name = f"sub-{subject}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
            scan = make_scan(root / "bids" / f"sub-{subject}" / "func" / name, frames=1)
        scan.write_bytes(scan.read_bytes()[:1000])
        result = tablet_hf("tokenize", "--source", "bids", root / "bids", "--out", root / "store",
                           "--autoencoder", autoencoder)  # fmt: skip
        assert result.exit_code == 2, result.output
        assert not isinstance(result.exception, UnicodeError)
        assert "1 of 2 scans could not be used" in result.output
        assert r"M\udcfcnchen/bids/sub-02" in result.output
        assert r"M\udcfcnchen/bids/sub-02" in (root / "store" / "problems.tsv").read_text(encoding="utf-8")
        assert [row["status"] for row in read_log(root / "store")] in (["done", "failed"], ["failed", "done"])

    def test_no_scans_at_all(self, tmp_path, make_scan):
        scan = tmp_path / "scans.csv"
        scan.write_text("path,subject\nnowhere.nii.gz,01\n")
        result = tablet_hf("tokenize", "--source", "table", scan, "--out", tmp_path / "store",
                           "--autoencoder", "/no/such/autoencoder")  # fmt: skip
        assert result.exit_code == 2
        assert "found no scan there that can be used; nothing was tokenized" in result.output
        assert "autoencoder" not in result.output
        assert not (tmp_path / "store").exists()

    def test_our_own_failure_does_not_hang(self, cohort, autoencoder, tmp_path, monkeypatch):
        extractor = make_extractor(autoencoder)
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())

        def broken(slices):
            raise RuntimeError("broken")

        monkeypatch.setattr(extractor, "encode_slices", broken)
        with pytest.raises(RuntimeError, match="broken"):
            tokenize_scans(records_of(cohort), extractor, writer, RESOURCES)


class TestCommands:
    @pytest.fixture(scope="class")
    def store(self, cohort, autoencoder, tmp_path_factory):
        folder = tmp_path_factory.mktemp("store") / "store"
        result = tablet_hf("tokenize", "--source", "table", cohort / "scans.tsv", "--out", folder,
                           "--autoencoder", autoencoder, "--dtype", "int8")  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "4 scans of 4 people" in result.output
        assert "4 runs tokenized (17 frames" in result.output
        return folder

    def test_a_dry_run_writes_nothing(self, cohort, tmp_path):
        result = tablet_hf("tokenize", "--source", "table", cohort / "scans.tsv", "--out", tmp_path / "x", "--dry-run")
        assert result.exit_code == 0
        assert "4 scans of 4 people" in result.output
        assert not (tmp_path / "x").exists()

    def test_check_and_describe(self, store):
        for command in ("check", "describe"):
            result = tablet_hf("dataset", command, store)
            assert result.exit_code == 0, result.output
            assert "17, 1 to 9 a run" in result.output
            assert "phenotype age" in result.output
        assert "All files" in tablet_hf("dataset", "check", store).output

    def test_check_finds_damage(self, store, tmp_path):
        shutil.copytree(store, tmp_path / "copy")
        (path,) = (tmp_path / "copy").rglob("sub-02*.arrow")
        path.write_bytes(path.read_bytes()[:-100])
        result = tablet_hf("dataset", "check", tmp_path / "copy")
        assert result.exit_code == 2
        assert "sub-02_task-rest_tokens.arrow: its content is not what was written" in result.output

    def test_merge_and_export(self, store, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
        result = tablet_hf("dataset", "merge", store, "--out", tmp_path / "merged")
        assert result.exit_code == 0, result.output
        assert tablet_hf("dataset", "export", tmp_path / "merged", "--out", tmp_path / "parquet").exit_code == 0
        back, before = TokenDataset.load(tmp_path / "parquet"), TokenDataset.load(store)
        assert torch.equal(back.window(1), before.window(1))

    def test_split(self, tmp_path, preprocessing):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        for number in range(40):
            phenotypes = {"sex": "FM"[number % 2]}
            record = ScanRecord(f"{number:02}", tmp_path, site="AB"[number // 20], phenotypes=phenotypes)
            writer.write(record, torch.zeros(2, 27, 96), 2.0, {})
        store = writer.finish()
        out = tmp_path / "store" / "splits" / "sex.csv"
        result = tablet_hf("dataset", "split", store.folder, "--label", "sex", "--folds", "4", "--out", out)
        assert result.exit_code == 0, result.output
        assert result.output.count("train 32") == 4
        with out.open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 40
        for fold in range(1, 5):
            tested = [int(row["subject"]) for row in rows if row[f"fold-{fold}"] == "test"]
            assert len(tested) == 4
            assert sum(number % 2 for number in tested) == 2
        result = tablet_hf("dataset", "split", store.folder, "--leave-one-site-out", "--out", tmp_path / "sites.csv")
        assert result.exit_code == 0, result.output
        assert "site-A" in result.output
        for options, message in [
            (["--label", "sex", "--out", out], "there already"),
            (["--label", "iq", "--out", tmp_path / "x.csv"], "has this phenotype; there are sex"),
            (["--stratify", "age", "--out", tmp_path / "x.csv"], "stratified by site"),
        ]:
            result = tablet_hf("dataset", "split", store.folder, *options)
            assert result.exit_code == 2
            assert message in result.output

    def test_options_that_do_not_go_together(self, cohort, tmp_path):
        table = cohort / "scans.tsv"
        for options, message in [
            (["--source", "table", table, "--num-frames", "4"], "--num-frames belongs to single scans"),
            (["--source", "table", table, table], "one folder or table"),
            ([scan_of(cohort, "01"), "--dtype", "int8"], "need --source"),
            (["--source", "nowhere", table], "nowhere"),
        ]:
            result = tablet_hf("tokenize", *options, "--out", tmp_path / "x")
            assert result.exit_code == 2, result.output
            assert message in result.output

    def test_two_processes_share_the_work(self, cohort, autoencoder, store, processes, tmp_path):
        command = ["tokenize", "--source", "table", cohort / "scans.tsv", "--device", "cpu"]
        command += ["--autoencoder", autoencoder, "--out", tmp_path / "store"]
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        told = [tmp_path / f"told-{rank}.txt" for rank in (0, 1)]
        both = [processes.Process(target=tablet_hf_as_rank, args=(rank, port, told[rank], *command)) for rank in (0, 1)]
        for process in both:
            process.start()
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [0, 0], [file.read_text() for file in told]
        tokens = TokenDataset.load(tmp_path / "store")
        assert tokens.check() == []
        assert [run.subject for run in tokens.runs] == sorted(FRAMES)
        shares = [{row["run"] for row in read_log(tmp_path / "store", f"tokenize-{rank}")} for rank in (0, 1)]
        assert all(shares)
        assert not shares[0] & shares[1]
        assert "4 runs tokenized (17 frames" in told[0].read_text()
        for run in tokens.runs:
            torch.testing.assert_close(
                tokens.window(run.key), TokenDataset.load(store).window(run.key), atol=2e-2, rtol=2e-2
            )

    def test_paths_of_the_source_are_not_kept(self, cohort, autoencoder, tmp_path):
        folder, out = tmp_path / "hospital", tmp_path / "store"
        shutil.copytree(cohort, folder)
        scan_of(folder, "02").write_bytes(b"no scan")
        result = tablet_hf("tokenize", "--source", "table", folder / "scans.tsv", "--out", out,
                           "--autoencoder", autoencoder)  # fmt: skip
        assert result.exit_code == 2
        naming = [path for path in out.rglob("*") if path.is_file() and str(folder).encode() in path.read_bytes()]
        # What could not be used can only be told by where it lies; this table stays on the machine.
        assert naming == [out / "problems.tsv"]
        assert json.loads((out / "store.json").read_text())["is_restricted"] is False
        result = tablet_hf("dataset", "export", out, "--out", tmp_path / "export")
        assert result.exit_code == 0, result.output
        files = [path for path in (tmp_path / "export").rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"README.md", "store.json", "runs.parquet"}
        for path in files:
            for told in (folder, autoencoder.parent):
                assert str(told).encode() not in path.read_bytes()

    def test_an_export_of_restricted_data_is_warned_of(self, cohort, store, tmp_path):
        shutil.copytree(store, tmp_path / "store")
        settings = json.loads((tmp_path / "store" / "store.json").read_text())
        (tmp_path / "store" / "store.json").write_text(json.dumps(settings | {"is_restricted": True}))
        result = tablet_hf("dataset", "export", tmp_path / "store", "--out", tmp_path / "export")
        assert result.exit_code == 0
        assert "These data are restricted" in result.output
        assert "Restricted." in (tmp_path / "export" / "README.md").read_text()
        assert "These data" not in tablet_hf("dataset", "export", store, "--out", tmp_path / "other").output

    def test_how_each_run_was_made_is_recorded(self, store):
        made = TokenDataset.load(store).runs[0].made
        assert made["encoder"] == "float32 on cpu"
        assert (made["space"], made["voxel_size"], made["is_resampled"]) == (None, [2.0, 2.0, 2.0], False)
        assert made["mask"] == "nonzero"
        assert made["software"]["torch"] == torch.__version__

    def test_runs_that_the_source_has_no_more_are_told(self, cohort, store, autoencoder, tmp_path):
        shutil.copytree(store, tmp_path / "store")
        for line in ("path\tsubject\n" + f"{scan_of(cohort, '01')}\t01\n",):
            (tmp_path / "scans.tsv").write_text(line)
        command = ["tokenize", "--source", "table", tmp_path / "scans.tsv", "--out", tmp_path / "store"]
        command += ["--autoencoder", autoencoder, "--dtype", "int8"]
        result = tablet_hf(*command)
        assert result.exit_code == 0, result.output
        assert "1 was there already" in result.output
        for subject in ("02", "03", "04"):
            assert f"runs/sub-{subject}" in result.output
        assert len(TokenDataset.load(tmp_path / "store")) == 4

    def test_people_who_withdrew_are_deleted(self, autoencoder, tmp_path, make_scan, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for eid in ("1000011", "1000022"):
            make_scan(tmp_path / "ukb" / f"{eid}_20227_2_0_bold.nii.gz", frames=1)
        command = ["tokenize", "--source", "ukb", tmp_path / "ukb", "--out", tmp_path / "store"]
        command += ["--pattern", "{eid}_20227_{instance}_0_bold.nii.gz", "--autoencoder", autoencoder]
        result = tablet_hf(*command)
        assert len(TokenDataset.load(tmp_path / "store")) == 2, result.output
        (tmp_path / "gone.csv").write_text("1000022\n")
        result = tablet_hf(*command, "--withdrawn", tmp_path / "gone.csv")
        assert "1 run of people who withdrew was deleted: " in result.output
        store = TokenDataset.load(tmp_path / "store")
        assert [run.subject for run in store.runs] == ["1000011"]
        assert store.check() == []
        assert not [path for path in (tmp_path / "store" / "runs").rglob("*") if "1000022" in path.name]
