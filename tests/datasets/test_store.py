"""Tokens come back from a store as they were written; damage, other tokens and other studies are noticed."""

import json
import multiprocessing
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

from tablet_hf.cli.__main__ import app
from tablet_hf.datasets import Split, TokenDataset, TokenStoreWriter, merge_stores, write_splits
from tablet_hf.datasets.run_files import quantise
from tablet_hf.datasets.store_files import file_of_key, forget_subjects, read_sidecar, sidecar_of
from tablet_hf.errors import InputError
from tablet_hf.files import file_identity
from tablet_hf.sources import ScanRecord
from tablet_hf.sources.records import Problem

NO_COMPANIONS = {"mask": None, "repetition_time": None, "sidecars": []}


class TestReading:
    def test_runs_are_described(self, store):
        assert [run.subject for run in store.runs] == ["01", "02", "03"]
        run = store.runs[0]
        assert (run.key, run.session, run.task, run.num_frames) == ("sub-01_task-rest", None, "rest", 150)
        assert (run.repetition_time, run.site, run.phenotypes) == (2.0, "NYU", {"age": 31, "sex": "F"})
        assert store.runs[1].phenotypes == {"age": None, "sex": "M"}
        assert store.runs[2].phenotypes == {"age": 28.5, "sex": None}
        assert store.phenotype_types() == {"age": float, "sex": str}
        assert (store.geometry.num_cells, store.geometry.token_size) == (27, 96)

    @settings(deadline=None)
    @given(data=st.data())
    def test_a_window_is_the_frames_that_were_written(self, store, known_tokens, data):
        index = data.draw(st.integers(0, 2))
        expected = known_tokens[store.runs[index].subject].half()
        start = data.draw(st.integers(0, len(expected) - 1))
        frames = data.draw(st.integers(1, len(expected) - start))
        window = store.window(index, start, frames)
        assert window.dtype == torch.float16
        assert torch.equal(window, expected[start : start + frames])

    def test_a_window_is_a_copy_in_new_or_given_memory(self, store, known_tokens):
        store.window(0, 0, 5).zero_()
        assert torch.equal(store.window(0, 0, 5), known_tokens["01"][:5].half())
        out = torch.empty(10, 27, 96, dtype=torch.float16)
        assert store.window(1, 50, 10, out=out) is out
        assert torch.equal(out, known_tokens["02"][50:60].half())
        with pytest.raises(ValueError, match="float16"):
            store.window(1, 50, 10, out=torch.empty(10, 27, 96))

    def test_it_is_a_torch_dataset_that_goes_to_other_processes(self, store, known_tokens):
        assert len(store) == 3
        assert torch.equal(store[2]["input_values"], known_tokens["03"].half())
        assert store[2]["repetition_time"] == 2.0
        copy = pickle.loads(pickle.dumps(store))
        assert torch.equal(copy.window(0), known_tokens["01"].half())
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(sum_of_first_run, (copy,)) == pytest.approx(known_tokens["01"].half().sum().item(), 1e-3)

    def test_mean_volumes_are_stored_where_there_are_any(self, store, int8_store, known_tokens):
        expected = known_tokens["01"].mean(0, keepdim=True).half()
        for opened in (store, int8_store):
            torch.testing.assert_close(opened.mean_tokens(0), expected, atol=1e-3, rtol=1e-3)
            assert opened.mean_tokens(2) is None

    @pytest.mark.parametrize(("start", "frames"), [(-1, 2), (0, 151), (150, 1), (0, 0)])
    def test_frames_that_are_not_there(self, store, start, frames):
        with pytest.raises(InputError, match=r"sub-01_task-rest.*150"):
            store.window(0, start, frames)

    def test_a_run_is_given_by_its_record_its_key_or_its_index(self, store, int8_store, known_tokens):
        for index, run in enumerate(store.runs):
            for asked in (index, index - 3, run, run.key, replace(run, phenotypes={"age": 5})):
                assert torch.equal(store.window(asked, 1, 4), known_tokens[run.subject][1:5].half())
        for other in ("sub-09", replace(store.runs[0], key="sub-09_task-rest"), int8_store.runs[1]):
            with pytest.raises(InputError, match="sub-0"):
                store.window(other)
        with pytest.raises(IndexError):
            store.window(3)

    def test_datasets_reads_its_files(self, store, known_tokens):
        rows = datasets.Dataset.from_file(str(store.folder / store.runs[1].file))
        row = rows.with_format("numpy", dtype=np.float16)[7]
        assert (row["subject"], row["frame"]) == ("02", 7)
        np.testing.assert_array_equal(row["tokens"], known_tokens["02"][7].half())

    def test_more_runs_than_files_may_be_open(self, tmp_path, preprocessing, monkeypatch):
        monkeypatch.setattr("tablet_hf.datasets.store.OPEN_RUNS", 3)
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        for number in range(10):
            writer.write(ScanRecord(f"{number}", Path("x")), torch.full((2, 27, 96), float(number)), 2.0, {})
        store = writer.finish()
        for _ in range(2):
            assert [store.window(index)[1, 2, 3].item() for index in range(10)] == list(range(10))
        maps = Path("/proc/self/maps")
        if maps.exists():
            assert maps.read_text().count(str(tmp_path)) <= 3

    def test_it_is_described(self, store, int8_store):
        facts = store.describe()
        assert facts["subjects"] == facts["runs"] == "3"
        assert facts["frames"] == "219, 5 to 150 per run"
        assert (facts["repetition time"], facts["sites"]) == ("2 s", "NYU (3)")
        assert facts["phenotype sex"] == "F (1), M (1); 1 missing"
        assert "error of int8" not in facts
        assert "%" in int8_store.describe()["error of int8"]


def sum_of_first_run(store):
    return store.window(0).float().sum().item()


class TestInt8:
    def test_a_window_is_off_by_half_a_step_at_most(self, int8_store, known_tokens):
        for index, run in enumerate(int8_store.runs):
            tokens = known_tokens[run.subject]
            largest = (tokens - tokens.mean(0)).abs().amax(1)
            usual = largest.median(0).values
            # A frame's steps are those of its features, times what its own largest deviation needs.
            step = usual * (largest / usual).amax(1, keepdim=True) / 127
            error = (int8_store.window(index).float() - tokens).abs()
            # Half a step, and the rounding to float16 of the steps, the mean and the sum.
            assert (error <= 0.51 * step[:, None] + 2.0**-10 * tokens.abs() + 1e-4).all()

    def test_deviations_times_steps_plus_mean_rounded_once(self):
        # More frames than are widened at a time, and no multiple of that.
        stored, _ = quantise(torch.randn(21, 27, 3072))
        steps = stored.token_scale.double() * stored.frame_scale.double()[:, None, None]
        expected = stored.values.double() * steps + stored.token_mean.double()
        off = (stored.widen().double() - expected).abs()
        assert (off <= 2.0**-11 * 1.001 * expected.abs() + 1e-6).all()
        assert torch.equal(stored[3:14].widen(), stored.widen()[3:14])

    def test_motion_makes_only_its_own_frame_coarse_and_errors_are_recorded(self, known_tokens):
        tokens = known_tokens["01"].clone()
        tokens[7] = tokens[7].roll(5, dims=0)  # fifty times the usual deviation
        stored, error = quantise(tokens)
        residual, temporal = stored.widen().float() - tokens, tokens - tokens.mean(0)
        of_run = (residual.norm() / temporal.norm()).item()
        by_frame = sorted((residual[n].norm() / temporal[n].norm()).item() for n in range(len(tokens)))
        assert error["of_temporal_deviation"] == pytest.approx(of_run, rel=1e-4)
        assert error["of_worst_frame"] == pytest.approx(by_frame[-1], rel=1e-4)
        assert error["of_median_frame"] == pytest.approx(by_frame[74], rel=1e-4)
        assert temporal[7].norm() > 30 * temporal[8].norm()
        still = quantise(known_tokens["01"])[1]
        assert 0.001 < still["of_temporal_deviation"] < 0.05
        assert error["of_median_frame"] < 1.5 * still["of_median_frame"]
        assert error["of_worst_frame"] < 0.05

    def test_a_feature_that_changes_in_one_frame_only(self):
        tokens = torch.randn(20, 27, 96)
        tokens[:, :, 3] = 0.5
        tokens[4, :, 3] += torch.randn(27)
        stored, error = quantise(tokens)
        others = torch.tensor([n for n in range(20) if n != 4])
        off = (stored.widen().float() - tokens)[others].norm() / (tokens - tokens.mean(0))[others].norm()
        assert off < 0.02
        assert torch.isfinite(stored.frame_scale).all()
        assert error["of_worst_frame"] < 1

    @settings(deadline=None, max_examples=30)
    @given(hnp.arrays(np.float32, (4, 3, 5), elements=st.floats(-1000, 1000, width=32)))
    def test_no_deviation_leaves_the_range(self, array):
        stored, _ = quantise(torch.from_numpy(array))
        mean, steps = stored.token_mean.float(), stored.token_scale.float() * stored.frame_scale[:, None, None]
        bound = 0.51 * steps + 2.0**-10 * (mean.abs() + np.abs(array).max()) + 1e-6
        assert ((stored.values.float() * steps + mean - torch.from_numpy(array)).abs() <= bound).all()

    def test_a_still_run_has_no_error_and_takes_half_the_room(self, store, int8_store):
        assert quantise(torch.randn(27, 96).expand(4, 27, 96))[1]["of_temporal_deviation"] == 0
        # Arrow's own structures weigh more next to these small tokens than next to real ones.
        assert int8_store.runs[0].num_bytes < 0.65 * store.runs[0].num_bytes


class TestWriting:
    def test_a_store_of_other_tokens_is_refused(self, store, tmp_path, preprocessing):
        shutil.copytree(store.folder, tmp_path / "store")
        for changed in ({"signal": "percent_change"}, {"autoencoder_revision": "sha256:other"}, {"token_size": 3072}):
            with pytest.raises(InputError, match=f"store: .*{next(iter(changed))}"):
                TokenStoreWriter(tmp_path / "store", preprocessing | changed)
        with pytest.raises(InputError, match="float16, not int8"):
            TokenStoreWriter(tmp_path / "store", preprocessing, "int8")
        without = preprocessing | {"autoencoder_revision": None}
        for _ in range(2):
            TokenStoreWriter(tmp_path / "other", without | {"autoencoder": "one"})
        with pytest.raises(InputError, match="one, not two"):
            TokenStoreWriter(tmp_path / "other", without | {"autoencoder": "two"})
        with pytest.raises(InputError, match="test_a_store"):
            TokenStoreWriter(tmp_path, preprocessing)  # a folder of something else

    @pytest.mark.parametrize(
        ("tokens", "word"),
        [
            (torch.zeros(2, 27, 95), "27, 95"),
            (torch.zeros(27, 96), "27, 96"),
            (torch.zeros(0, 27, 96), "0, 27"),
            (torch.full((2, 27, 96), 1e6), "float16"),
            (torch.full((2, 27, 96), float("nan")), "float16"),
        ],
    )
    def test_tokens_that_cannot_be_stored(self, tmp_path, preprocessing, tokens, word):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        with pytest.raises(InputError, match=f"sub-01.*{word}"):
            writer.write(ScanRecord("01", Path("x")), tokens, 2.0, {})
        assert not list(writer.folder.rglob("*_tokens*"))

    def test_what_else_is_known_of_a_finished_run_is_updated(self, write_store, tmp_path, preprocessing, known_tokens):
        before = write_store(tmp_path / "store")
        tokens = before.folder / before.runs[0].file
        written = tokens.stat().st_mtime_ns
        writer = TokenStoreWriter(before.folder, preprocessing)
        record = ScanRecord("01", Path("x"), task="rest", family="7", phenotypes={"age": 32, "iq": 110})
        scan = {"name": "01.nii.gz", "bytes": 1, "modified_ns": 2}
        companions = NO_COMPANIONS | {"sidecars": [scan | {"name": "01.json"}]}
        asked = []
        for _ in range(2):
            assert writer.finished(record, scan, companions, lambda: asked.append(1) or 0.72)
        assert len(asked) == 1  # the repetition time is read again only when its files have changed
        run = writer.finish().runs[0]
        assert (run.phenotypes["age"], run.phenotypes["iq"], run.family) == (32, 110, "7")
        assert run.repetition_time == 0.72
        assert tokens.stat().st_mtime_ns == written
        assert writer.finish().check() == []
        for other in (scan | {"bytes": 3}, scan):
            mask = None if other != scan else {"name": "mask.nii.gz"}
            assert not writer.finished(record, other, companions | {"mask": mask}, lambda: 2.0)

    @pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"key": 3}', '{"subject": "02"}'])
    def test_a_record_that_cannot_be_read_affects_only_its_run(
        self, write_store, tmp_path, preprocessing, known_tokens, content
    ):
        store = write_store(tmp_path / "store")
        sidecar = sidecar_of(store.folder / store.runs[1].file)
        sidecar.unlink()
        if content is not None:
            sidecar.write_text(content)
        writer = TokenStoreWriter(store.folder, preprocessing)
        reopened = writer.finish()
        assert [run.subject for run in reopened.runs] == ["01", "03"]
        assert [problem.what for problem in writer.unreadable] == ([] if content is None else [str(sidecar)])
        assert any("sub-02" in fault for fault in reopened.check())
        record, scan = ScanRecord("02", Path("02.nii.gz"), task="rest"), {"name": "02.nii.gz"}
        assert not writer.finished(record, scan, NO_COMPANIONS, lambda: 2.0)
        writer.write(record, known_tokens["02"], 2.0, scan)
        assert [run.subject for run in writer.finish().runs] == ["01", "02", "03"]
        assert writer.unreadable == []

    def test_a_name_that_is_not_text(self, tmp_path, preprocessing):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        with pytest.raises(InputError, match="site"):
            writer.write(ScanRecord("01", Path("x"), site="M\udcfcnchen"), torch.zeros(2, 27, 96), 2.0, {})
        writer.write_problems([Problem("M\udcfcnchen/x.nii.gz", "it is damaged.")])
        assert "M\\udcfcnchen" in writer.problems_file.read_text(encoding="utf-8")

    def test_what_killed_processes_left_is_deleted(self, write_store, tmp_path, preprocessing):
        store = write_store(tmp_path / "store")
        half = store.folder / "runs" / "sub-01" / ".0123.arrow"
        half.write_bytes(b"half")
        writer = TokenStoreWriter(store.folder, preprocessing)
        writer.clean_up()
        assert half.exists()
        writer.clean_up(older_than=0)
        assert not half.exists()
        assert TokenDataset.load(store.folder).check() == []


class TestFiles:
    def test_tables_and_sidecars_say_the_same(self, tmp_path, preprocessing):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        cells = [{"code": 1, "age": 31}, {"code": "x", "age": 30.5, "ok": True}, {"code": None, "ok": None}]
        cells.append({"age": float("nan")})
        for number, phenotypes in enumerate(cells):
            record = ScanRecord(f"{number}", Path("x"), phenotypes=phenotypes)
            writer.write(record, torch.zeros(2, 27, 96), 2.0, {}, made={"mask": "bids"})
        store = writer.finish()
        assert store.check() == []
        (writer.folder / "runs.parquet").unlink()
        assert TokenDataset.load(writer.folder).runs == store.runs
        assert store.runs[0].phenotypes == {"code": "1", "age": 31.0, "ok": None}
        made = store.runs[0].made
        assert (made["mask"], made["tokens"]["volume_size"]) == ("bids", 96)
        assert made["software"]["torch"] == torch.__version__
        for run in store.runs:
            assert file_of_key(run.key).as_posix() == run.file
            assert replace(read_sidecar(sidecar_of(store.folder / run.file)), phenotypes=run.phenotypes) == run

    def test_subjects_are_forgotten(self, write_store, tmp_path):
        store = write_store(tmp_path / "store")
        assert [run.key for run in forget_subjects(store.folder, {"02", "07"})] == ["sub-02_task-rest"]
        assert not (store.folder / "runs" / "sub-02").exists()
        after = TokenDataset.load(store.folder)
        assert [run.subject for run in after.runs] == ["01", "03"]
        assert after.check() == []
        assert forget_subjects(store.folder, {"02"}) == []

    @pytest.mark.parametrize("name", ["format", "dtype", "is_restricted", "preprocessing", "token_size", "autoencoder"])
    @pytest.mark.parametrize("value", [None, -1])
    def test_settings_that_are_missing_or_wrong(self, store, tmp_path, name, value):
        content = json.loads((store.folder / "store.json").read_text())
        for part in (content, content["preprocessing"]):
            if name in part:
                part[name] = value
        (tmp_path / "runs").mkdir()
        (tmp_path / "store.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"store\.json"):
            TokenDataset.load(tmp_path)

    def test_folders_without_runs(self, tmp_path, preprocessing):
        for folder in (tmp_path / "nothing", TokenStoreWriter(tmp_path / "empty", preprocessing).folder):
            folder.mkdir(exist_ok=True)
            with pytest.raises(InputError, match=folder.name):
                TokenDataset.load(folder)

    @pytest.mark.parametrize(
        ("damage", "word"), [("none", ""), ("flip", "content"), ("cut", "content"), ("missing", "missing")]
    )
    def test_damaged_tokens_are_found(self, write_store, tmp_path, damage, word):
        store = write_store(tmp_path / "store")
        path = store.folder / store.runs[1].file
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        path.unlink()
        if damage != "missing":
            path.write_bytes(content[: 3000 if damage == "cut" else None])
        opened = TokenDataset.load(store.folder)
        faults = opened.check()
        assert len(faults) == (damage != "none")
        assert all(str(path) in fault and word in fault for fault in faults)
        if damage in ("cut", "missing"):
            with pytest.raises(InputError, match=path.name):
                opened.window(1)

    @pytest.mark.parametrize("change", ["lost", "cut", "edited", "not listed"])
    def test_records_that_are_not_as_they_were_are_found(self, write_store, tmp_path, preprocessing, change):
        store = write_store(tmp_path / "store")
        sidecar = sidecar_of(store.folder / store.runs[1].file)
        content = sidecar.read_text()
        if change == "lost":
            sidecar.unlink()
        elif change == "cut":
            sidecar.write_text(content[:50])
        elif change == "edited":
            sidecar.write_text(content.replace('"sex": "M"', '"sex": "F"'))
        else:
            writer = TokenStoreWriter(store.folder, preprocessing)
            run = writer.write(ScanRecord("04", Path("x")), torch.zeros(2, 27, 96), 2.0, {})
            sidecar = store.folder / run.file
        (fault,) = TokenDataset.load(store.folder).check()
        assert fault.startswith(f"{sidecar}: ")

    @pytest.mark.parametrize(("name", "value"), [("token_size", 48), ("dtype", "int8"), ("volume_size", 48)])
    def test_settings_of_another_store_are_found(self, write_store, tmp_path, name, value):
        store = write_store(tmp_path / "store")
        content = json.loads((path := store.folder / "store.json").read_text())
        (content["preprocessing"] if name in content["preprocessing"] else content)[name] = value
        path.write_text(json.dumps(content))
        opened = TokenDataset.load(store.folder)
        faults = opened.check()
        assert len(faults) == 3
        assert all("store.json" in fault for fault in faults)
        if name != "volume_size":
            with pytest.raises(InputError, match="sub-01"):
                opened.window(0)


@pytest.fixture
def scan(tmp_path):
    """A function that makes a file that stands for a scan: its folder decides the study, its content differs."""

    def make(folder, content="x", name="sub-01_task-rest_bold.nii.gz"):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    return make


@pytest.fixture
def writer(tmp_path, preprocessing):
    return TokenStoreWriter(tmp_path / "store", preprocessing)


def put(writer, record, value):
    """What `tokenize` does with a scan; whether it was there already."""
    identity = file_identity(record.scan)
    if writer.finished(record, identity, NO_COMPANIONS, lambda: 2.0):
        return True
    writer.write(record, torch.full((2, 27, 96), float(value)), 2.0, identity, companions=NO_COMPANIONS)
    return False


def values_in(writer):
    """First number of the tokens of each run, by key."""
    store = writer.finish()
    return {run.key: store.window(run.key)[0, 0, 0].item() for run in store.runs}


class TestSeveralStudies:
    """No subject takes the place of another, and existing runs are recognised."""

    def test_studies_with_names_and_one_without_are_apart(self, writer, scan):
        for value, name in enumerate(("A", "B", None)):
            assert not put(writer, ScanRecord("01", scan(str(name), str(value)), task="rest", dataset=name), value)
        assert values_in(writer) == {"A/sub-01_task-rest": 0, "B/sub-01_task-rest": 1, "sub-01_task-rest": 2}

    def test_another_study_without_a_name_is_refused(self, writer, scan):
        """Same label and same file name, as all fMRIPrep derivatives have them."""
        put(writer, ScanRecord("01", scan("a", "one"), task="rest"), 1)
        other = ScanRecord("01", scan("b", "another"), task="rest")
        with pytest.raises(InputError, match=r"sub-01_task-rest: .*--dataset"):
            put(writer, other, 2)
        assert not put(writer, replace(other, dataset="B"), 3)
        assert values_in(writer) == {"sub-01_task-rest": 1, "B/sub-01_task-rest": 3}
        (mark,) = {len(run.scan["folder"]) for run in writer.finish().runs}
        assert mark == 4

    def test_another_file_of_the_same_run_is_refused(self, writer, scan):
        put(writer, ScanRecord("01", scan("a", name="sub-01_res-1_bold.nii.gz"), dataset="A"), 1)
        with pytest.raises(InputError, match=r"A/sub-01: .*sub-01_res-1_bold.nii.gz"):
            put(writer, ScanRecord("01", scan("a", name="sub-01_res-2_bold.nii.gz"), dataset="A"), 2)
        assert values_in(writer) == {"A/sub-01": 1}

    def test_a_scan_that_changed_or_moved_is_recognised(self, writer, scan, tmp_path):
        for name in ("A", None):
            record = ScanRecord("01", scan("a", "one"), session=str(name), dataset=name)
            put(writer, record, 1)
            scan("a", "changed")
            assert not put(writer, record, 2)
        assert set(values_in(writer).values()) == {2}
        (tmp_path / "a").rename(tmp_path / "b")
        moved = ScanRecord("01", tmp_path / "b" / "sub-01_task-rest_bold.nii.gz", session="None")
        assert put(writer, moved, 3)
        scan("b", "changed again")
        assert not put(writer, moved, 4)

    def test_labels_that_look_alike_are_two_subjects(self, writer, scan):
        labels = ["a-1", "a1", "ö", "ä", "o"]
        for value, subject in enumerate(labels):
            put(writer, ScanRecord(subject, scan("a", name=f"{value}.nii")), value)
        assert sorted(values_in(writer).values()) == [0, 1, 2, 3, 4]
        assert sorted(run.subject for run in writer.finish().runs) == sorted(labels)


class TestMerging:
    def test_stores_of_one_kind_become_one(self, write_store, known_tokens, tmp_path):
        for name in "AB":
            store = write_store(tmp_path / name, dataset=name)
        write_splits([Split("mine", {"01": "train"})], store.folder / "splits" / "mine.csv")
        command = ["dataset", "merge", str(tmp_path / "A"), str(tmp_path / "B"), "--out", str(tmp_path / "both")]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0
        assert "Splits" in result.output
        assert not (tmp_path / "both" / "splits").exists()
        merged = TokenDataset.load(tmp_path / "both")
        assert [run.key for run in merged.runs] == [f"{d}/sub-0{n}_task-rest" for d in "AB" for n in (1, 2, 3)]
        assert torch.equal(merged.window("B/sub-02_task-rest"), known_tokens["02"].half())
        assert merged.check() == []

    def test_a_refused_merge_leaves_nothing(self, write_store, tmp_path):
        write_store(tmp_path / "a")
        write_store(tmp_path / "b", "int8", dataset="B")
        shutil.copytree(tmp_path / "a", tmp_path / "c")
        for other, word in (("b", "float16, not int8"), ("c", "sub-01_task-rest")):
            with pytest.raises(InputError, match=word):
                merge_stores([tmp_path / "a", tmp_path / other], tmp_path / "both")
        assert not (tmp_path / "both").exists()

    def test_runs_that_are_there_are_not_overwritten(self, writer, preprocessing, scan, tmp_path):
        put(writer, ScanRecord("01", scan("a"), task="rest"), 1)
        other = TokenStoreWriter(tmp_path / "other", preprocessing)
        put(other, ScanRecord("01", scan("b", "another"), task="rest", dataset="B"), 2)
        writer.finish(), other.finish()
        for stores in ([writer.folder, other.folder], [other.folder]):
            assert merge_stores(stores, writer.folder).check() == []
            assert values_in(writer) == {"sub-01_task-rest": 1, "B/sub-01_task-rest": 2}
        put(other, ScanRecord("01", scan("b", "another"), task="rest"), 3)
        other.finish()
        with pytest.raises(InputError, match=r"sub-01_task-rest.*store.*other"):
            merge_stores([other.folder], writer.folder)
        assert values_in(writer)["sub-01_task-rest"] == 1
