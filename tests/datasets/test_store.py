"""Tokens come back from a store as they went in, and what is damaged or does not fit is told."""

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

from tablet_hf import TabletConfig
from tablet_hf.datasets import TokenDataset, TokenStoreWriter, merge_stores
from tablet_hf.datasets.run_files import quantise
from tablet_hf.errors import InputError
from tablet_hf.sources import ScanRecord
from tablet_hf.sources.records import Problem


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
        written = known_tokens[store.runs[index].subject].half()
        start = data.draw(st.integers(0, len(written) - 1))
        frames = data.draw(st.integers(1, len(written) - start))
        window = store.window(index, start, frames)
        assert window.dtype == torch.float16
        assert torch.equal(window, written[start : start + frames])

    def test_by_key_whole_and_into_given_memory(self, store, known_tokens):
        assert torch.equal(store.window("sub-02_task-rest"), known_tokens["02"].half())
        out = torch.empty(10, 27, 96, dtype=torch.float16)
        assert store.window(1, 50, 10, out=out) is out
        assert torch.equal(out, known_tokens["02"][50:60].half())
        with pytest.raises(ValueError, match="contiguous float16"):
            store.window(1, 50, 10, out=torch.empty(10, 27, 96))

    def test_a_window_is_the_callers_own(self, store, known_tokens):
        store.window(0, 0, 5).zero_()
        assert torch.equal(store.window(0, 0, 5), known_tokens["01"][:5].half())

    def test_a_batch_of_windows(self, store, known_tokens):
        batch = store.windows([(0, 60), ("sub-02_task-rest", 3)], 20)
        assert torch.equal(batch[0], known_tokens["01"][60:80].half())
        assert torch.equal(batch[1], known_tokens["02"][3:23].half())

    def test_it_is_a_torch_dataset(self, store, known_tokens):
        assert len(store) == 3
        assert torch.equal(store[2]["input_values"], known_tokens["03"].half())
        assert store[2]["repetition_time"] == 2.0

    def test_mean_volumes_are_kept_where_there_are_any(self, store, int8_store, known_tokens):
        for opened in (store, int8_store):
            torch.testing.assert_close(
                opened.mean_tokens(0), known_tokens["01"].mean(0, keepdim=True).half(), atol=1e-3, rtol=1e-3
            )
            assert opened.mean_tokens(2) is None

    @pytest.mark.parametrize(("start", "frames"), [(-1, 2), (0, 151), (150, 1), (0, 0)])
    def test_frames_that_are_not_there(self, store, start, frames):
        with pytest.raises(InputError, match=r"sub-01_task-rest.*it has 150"):
            store.window(0, start, frames)

    def test_runs_that_are_not_there(self, store):
        with pytest.raises(InputError, match="no run 'sub-09'"):
            store.window("sub-09")
        with pytest.raises(IndexError):
            store.window(3)

    def test_a_run_is_its_record_its_key_or_its_index(self, store, known_tokens):
        for index, run in enumerate(store.runs):
            by_index = store.window(index, 1, 4)
            assert torch.equal(by_index, known_tokens[run.subject][1:5].half())
            for asked in (run, run.key, replace(run, phenotypes={"age": 5})):
                assert torch.equal(store.window(asked, 1, 4), by_index)
                assert torch.equal(store.windows([(asked, 1)], 4)[0], by_index)

    def test_records_of_other_stores(self, store, int8_store):
        with pytest.raises(InputError, match=r"float16: its run 'sub-02_task-rest' has other tokens than the record"):
            store.window(int8_store.runs[1])
        with pytest.raises(InputError, match="no run 'sub-09_task-rest'"):
            store.windows([(replace(store.runs[0], key="sub-09_task-rest"), 0)], 2)

    def test_it_goes_to_other_processes(self, store, known_tokens):
        store.window(0)
        copy = pickle.loads(pickle.dumps(store))
        assert torch.equal(copy.window(0), known_tokens["01"].half())
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(_sum_of_first_run, (copy,)) == pytest.approx(known_tokens["01"].half().sum().item(), 1e-3)

    def test_datasets_reads_its_files(self, store, known_tokens):
        rows = datasets.Dataset.from_file(str(store.folder / store.runs[1].file))
        row = rows.with_format("numpy", dtype=np.float16)[7]
        assert (row["subject"], row["frame"]) == ("02", 7)
        np.testing.assert_array_equal(row["tokens"], known_tokens["02"][7].half())


def _sum_of_first_run(store):
    return store.window(0).float().sum().item()


def widened(kept):
    return kept.widen(torch.empty(kept.values.shape, dtype=torch.float16))


class TestInt8:
    def test_what_comes_back_is_off_by_half_a_step_at_most(self, int8_store, known_tokens):
        for index, run in enumerate(int8_store.runs):
            written = known_tokens[run.subject]
            largest = (written - written.mean(0)).abs().amax(1)
            usual = largest.median(0).values
            # A frame's steps are those of its features, so much larger as its own largest deviation needs.
            step = usual * (largest / usual).amax(1, keepdim=True) / 127
            error = (int8_store.window(index).float() - written).abs()
            # Half a step, and the rounding to float16 of the steps, the mean and the sum.
            assert (error <= 0.51 * step[:, None] + 2.0**-10 * written.abs() + 1e-4).all()

    def test_deviations_times_steps_plus_mean_rounded_once(self):
        # More frames than are widened at a time, and no multiple of that.
        kept, _ = quantise(torch.randn(21, 27, 3072))
        steps = kept.token_scale.double() * kept.frame_scale.double()[:, None, None]
        expected = kept.values.double() * steps + kept.token_mean.double()
        off = (widened(kept).double() - expected).abs()
        assert (off <= 2.0**-11 * 1.001 * expected.abs() + 1e-6).all()
        assert torch.equal(widened(kept[3:14]), widened(kept)[3:14])

    def test_the_recorded_error_is_the_real_one(self, known_tokens):
        tokens = known_tokens["01"]
        kept, error = quantise(tokens)
        residual, temporal = widened(kept).float() - tokens, tokens - tokens.mean(0)
        assert error["relative"] == pytest.approx((residual.norm() / tokens.norm()).item(), rel=1e-4)
        expected = (residual.norm() / temporal.norm()).item()
        assert error["of_temporal_deviation"] == pytest.approx(expected, rel=1e-4)
        assert 0.001 < expected < 0.05
        by_frame = [(residual[n].norm() / temporal[n].norm()).item() for n in range(len(tokens))]
        assert error["of_worst_frame"] == pytest.approx(max(by_frame), rel=1e-4)
        assert error["of_median_frame"] == pytest.approx(sorted(by_frame)[74], rel=1e-4)

    def test_a_frame_in_which_somebody_moved_does_not_make_the_others_coarse(self, known_tokens):
        still = known_tokens["01"]
        moved = still.clone()
        moved[7] = still[7].roll(5, dims=0)  # fifty times the usual deviation
        (kept, error), (_, before) = quantise(moved), quantise(still)
        temporal = moved - moved.mean(0)
        off = (widened(kept).float() - moved).flatten(1).norm(dim=1) / temporal.flatten(1).norm(dim=1)
        assert temporal[7].norm() > 30 * temporal[8].norm()
        assert off[7] < 0.05
        assert off.median() < 1.5 * before["of_median_frame"]
        assert off.max().item() == pytest.approx(error["of_worst_frame"], rel=1e-4)
        assert error["of_worst_frame"] < 0.05

    def test_a_feature_that_moves_in_one_frame_alone(self):
        tokens = torch.randn(20, 27, 96)
        tokens[:, :, 3] = 0.5
        tokens[4, :, 3] += torch.randn(27)
        kept, error = quantise(tokens)
        others = torch.tensor([n for n in range(20) if n != 4])
        off = (widened(kept).float() - tokens)[others].norm() / (tokens - tokens.mean(0))[others].norm()
        assert off < 0.02
        assert torch.isfinite(kept.frame_scale).all()
        assert error["of_worst_frame"] < 1

    @settings(deadline=None, max_examples=30)
    @given(hnp.arrays(np.float32, (4, 3, 5), elements=st.floats(-1000, 1000, width=32)))
    def test_no_deviation_leaves_the_range(self, array):
        kept, _ = quantise(torch.from_numpy(array))
        assert kept.values.dtype == torch.int8
        mean, steps = kept.token_mean.float(), kept.token_scale.float() * kept.frame_scale[:, None, None]
        back = kept.values.float() * steps + mean
        bound = 0.51 * steps + 2.0**-10 * (mean.abs() + np.abs(array).max()) + 1e-6
        assert ((back - torch.from_numpy(array)).abs() <= bound).all()

    def test_a_frame_takes_half_the_room(self, store, int8_store):
        # Beside the numbers, Arrow's own structures weigh more in these small tokens than in real ones.
        assert int8_store.runs[0].num_bytes < 0.65 * store.runs[0].num_bytes

    def test_a_still_run(self, tmp_path, preprocessing):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing, "int8")
        tokens = torch.randn(27, 96).expand(4, 27, 96)
        run = writer.write(ScanRecord("01", Path("x")), tokens, 2.0, {})
        assert run.error["of_temporal_deviation"] == 0
        torch.testing.assert_close(writer.finish().window(0).float(), tokens, atol=2e-3, rtol=1e-3)


class TestWriting:
    def test_a_store_of_other_tokens_is_refused(self, store, tmp_path, preprocessing):
        shutil.copytree(store.folder, tmp_path / "store")
        for changed in ({"signal": "percent_change"}, {"autoencoder_revision": "sha256:other"}, {"token_size": 3072}):
            (name,) = changed
            with pytest.raises(InputError, match=f"made with {name}.*choose another --out"):
                TokenStoreWriter(tmp_path / "store", preprocessing | changed)
        with pytest.raises(InputError, match="made with dtype float16, not int8"):
            TokenStoreWriter(tmp_path / "store", preprocessing, "int8")

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path, preprocessing):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(InputError, match="something else than a store"):
            TokenStoreWriter(tmp_path, preprocessing)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_tokens_that_do_not_fit(self, tmp_path, preprocessing):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        record = ScanRecord("01", Path("x"))
        with pytest.raises(InputError, match=r"sub-01.*\(4, 27, 95\).*27, 96"):
            writer.write(record, torch.zeros(4, 27, 95), 2.0, {})
        for wrong in (float("nan"), 1e6):
            with pytest.raises(InputError, match="numbers that float16 has not"):
                writer.write(record, torch.full((4, 27, 96), wrong), 2.0, {})
        assert not list((tmp_path / "store" / "runs").rglob("*.arrow"))

    def test_a_finished_run_is_known_by_its_scan(self, write_store, tmp_path, preprocessing):
        writer = TokenStoreWriter(write_store(tmp_path / "store").folder, preprocessing)
        record = ScanRecord("01", Path("01.nii.gz"), task="rest", site="NYU", phenotypes={"age": 31, "sex": "F"})
        scan = {"name": "01.nii.gz", "bytes": 1, "modified_ns": 2}
        assert writer.finished(record, scan)
        assert not writer.finished(record, scan | {"modified_ns": 3})
        assert not writer.finished(replace(record, run="2"), scan)

    def test_a_new_repetition_time_reaches_finished_runs(self, write_store, tmp_path, preprocessing, known_tokens):
        before = write_store(tmp_path / "store")
        writer = TokenStoreWriter(before.folder, preprocessing)
        record = ScanRecord("01", Path("x"), task="rest")
        scan = {"name": "01.nii.gz", "bytes": 1, "modified_ns": 2}
        beside = {"mask": None, "repetition_time": None, "sidecars": [{"name": "x.json", "bytes": 1}]}
        asked = []

        def find_repetition_time():
            asked.append(1)
            return 0.72

        for _ in range(2):
            assert writer.finished(record, scan, beside, find_repetition_time)
        assert len(asked) == 1  # read again only when what tells it has changed
        after = writer.finish()
        assert [run.repetition_time for run in after.runs] == [0.72, 2.0, 2.0]
        assert after[0]["repetition_time"] == 0.72
        assert torch.equal(after.window(0), known_tokens["01"].half())
        assert after.check() == []

    def test_another_mask_is_another_run(self, tmp_path, preprocessing, known_tokens):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        record, scan = ScanRecord("01", Path("x"), task="rest"), {"name": "01.nii.gz", "bytes": 1, "modified_ns": 2}
        mask = {"name": "m.nii.gz", "bytes": 5, "modified_ns": 6}
        masks = [None, mask, mask | {"bytes": 7}]
        for written in masks:
            beside = {"mask": written, "repetition_time": None, "sidecars": []}
            writer.write(record, known_tokens["03"], 2.0, scan, beside=beside)
            found = [writer.finished(record, scan, beside | {"mask": other}, lambda: 2.0) for other in masks]
            assert found == [other == written for other in masks]

    def test_new_phenotypes_reach_finished_runs(self, write_store, tmp_path, preprocessing):
        before = write_store(tmp_path / "store")
        tokens = before.folder / before.runs[0].file
        written = tokens.stat().st_mtime_ns
        writer = TokenStoreWriter(before.folder, preprocessing)
        record = ScanRecord("01", Path("x"), task="rest", family="7", phenotypes={"age": 32, "iq": 110})
        assert writer.finished(record, {"name": "01.nii.gz", "bytes": 1, "modified_ns": 2})
        run = writer.finish().runs[0]
        assert (run.phenotypes["age"], run.phenotypes["iq"], run.family) == (32, 110, "7")
        assert tokens.stat().st_mtime_ns == written

    def test_a_run_without_its_sidecar_is_not_there(self, write_store, tmp_path, preprocessing):
        store = write_store(tmp_path / "store")
        (store.folder / store.runs[0].file.replace(".arrow", ".json")).unlink()
        reopened = TokenStoreWriter(store.folder, preprocessing).finish()
        assert [run.subject for run in reopened.runs] == ["02", "03"]
        assert any("no run of the store is kept there" in fault for fault in reopened.check())

    @pytest.mark.parametrize("content", ["", "{", "[1]", '{"key": 3}', '{"subject": "02"}'])
    def test_a_sidecar_that_cannot_be_read_costs_its_own_run_alone(
        self, write_store, tmp_path, preprocessing, known_tokens, content
    ):
        store = write_store(tmp_path / "store")
        sidecar = store.folder / store.runs[1].file.replace(".arrow", ".json")
        sidecar.write_text(content)
        writer = TokenStoreWriter(store.folder, preprocessing)
        reopened = writer.finish()
        assert [run.subject for run in reopened.runs] == ["01", "03"]
        assert [problem.what for problem in writer.unreadable] == [str(sidecar)]
        assert any(fault.startswith(f"{sidecar}: it does not describe a run") for fault in reopened.check())
        record, scan = ScanRecord("02", Path("02.nii.gz"), task="rest"), {"name": "02.nii.gz"}
        assert not writer.finished(record, scan)
        writer.write(record, known_tokens["02"], 2.0, scan)
        assert [run.subject for run in writer.finish().runs] == ["01", "02", "03"]
        assert writer.unreadable == []

    def test_how_a_run_was_made_is_recorded(self, tmp_path, preprocessing):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        made = {"space": "MNI152NLin6Asym", "mask": "bids", "is_resampled": True}
        writer.write(ScanRecord("01", Path("x")), torch.zeros(2, 27, 96), 2.0, {}, made=made)
        known = writer.finish().runs[0].made
        assert {name: known[name] for name in made} == made
        assert known["software"]["torch"] == torch.__version__
        assert known["tokens"]["volume_size"] == 96

    def test_without_a_revision_the_name_tells_autoencoders_apart(self, tmp_path, preprocessing):
        without = preprocessing | {"autoencoder_revision": None}
        TokenStoreWriter(tmp_path / "store", without | {"autoencoder": "one"})
        TokenStoreWriter(tmp_path / "store", without | {"autoencoder": "one"})
        with pytest.raises(InputError, match="made with autoencoder one, not two"):
            TokenStoreWriter(tmp_path / "store", without | {"autoencoder": "two"})

    def test_a_name_that_is_no_text(self, tmp_path, preprocessing):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        with pytest.raises(InputError, match=r"its site .* is no text"):
            writer.write(ScanRecord("01", Path("x"), site="M\udcfcnchen"), torch.zeros(2, 27, 96), 2.0, {})
        writer.write_problems([Problem("M\udcfcnchen/x.nii.gz", "it is damaged.")])
        assert "M\\udcfcnchen" in writer.problems_file.read_text(encoding="utf-8")

    def test_datasets_with_the_same_people_stay_apart(self, tmp_path, preprocessing):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        for name in ("ABIDE", "HCP-YA"):
            writer.write(ScanRecord("01", Path("x"), dataset=name), torch.zeros(2, 27, 96), 2.0, {})
        assert [run.key for run in writer.finish().runs] == ["ABIDE/sub-01", "HCP-YA/sub-01"]

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


class TestWhatCannotBeRead:
    def test_a_cut_file_is_told_when_read(self, write_store, tmp_path):
        store = write_store(tmp_path / "store")
        path = store.folder / store.runs[1].file
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(InputError, match=r"sub-02.*damaged.*tokenize the run again"):
            TokenDataset.load(store.folder).window(1)

    def test_a_file_of_another_shape_is_told_when_read(self, store, preprocessing):
        settings = store.settings | {"preprocessing": preprocessing | {"token_size": 95}}
        with pytest.raises(InputError, match=r"sub-01.*damaged or holds no tokens"):
            TokenDataset(store.folder, settings, store.runs).window(0)

    def test_loading_what_is_no_store(self, tmp_path, preprocessing):
        with pytest.raises(InputError, match="no token dataset is there"):
            TokenDataset.load(tmp_path)
        TokenStoreWriter(tmp_path / "empty", preprocessing)
        with pytest.raises(InputError, match="no finished run yet"):
            TokenDataset.load(tmp_path / "empty")
        (tmp_path / "empty" / "store.json").write_text(json.dumps({"format": "tablet_hf token dataset 9"}))
        with pytest.raises(InputError, match=r"dataset 9.*reads 'tablet_hf token dataset 1'"):
            TokenDataset.load(tmp_path / "empty")

    def test_models_of_other_tokens(self, store):
        TabletConfig(token_size=96).check_tokens_compatible(store.preprocessing)
        with pytest.raises(ValueError, match="token_size 96 instead of 3072"):
            TabletConfig().check_tokens_compatible(store.preprocessing)

    def test_it_says_what_it_holds(self, store, int8_store):
        facts = store.describe()
        assert facts["people"] == facts["runs"] == "3"
        assert facts["frames"] == "219, 5 to 150 a run"
        assert facts["repetition time"] == "2 s"
        assert facts["sites"] == "NYU (3)"
        assert facts["phenotype sex"] == "F (1), M (1); 1 missing"
        assert "error of int8" not in facts
        assert "of the temporal deviation" in int8_store.describe()["error of int8"]


class TestMerging:
    def test_stores_of_one_kind_become_one(self, write_store, known_tokens, tmp_path):
        write_store(tmp_path / "a", dataset="A")
        write_store(tmp_path / "b", dataset="B")
        merged = merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
        assert [run.key for run in merged.runs] == [f"{d}/sub-0{n}_task-rest" for d in "AB" for n in (1, 2, 3)]
        assert torch.equal(merged.window("B/sub-02_task-rest"), known_tokens["02"].half())
        assert merged.check() == []

    def test_one_run_in_two_of_them(self, write_store, tmp_path):
        write_store(tmp_path / "a")
        write_store(tmp_path / "b")
        with pytest.raises(InputError, match=r"sub-01_task-rest.*give the datasets different names"):
            merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "both")

    def test_two_kinds_of_tokens(self, write_store, tmp_path):
        write_store(tmp_path / "a", dataset="A")
        write_store(tmp_path / "b", "int8", dataset="B")
        with pytest.raises(InputError, match="dtype float16, not int8"):
            merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
