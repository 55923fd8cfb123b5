"""A store goes to Parquet and comes back, is read by `datasets`, and streams."""

import json
import multiprocessing
import os
import shutil
import socket
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tablet_hf.datasets import TabletCollator, TokenDataset, TokenStoreWriter, average_by
from tablet_hf.datasets.export import export_parquet
from tablet_hf.datasets.run_files import token_column
from tablet_hf.datasets.streaming import StreamedWindows, mixed
from tablet_hf.errors import InputError
from tablet_hf.sources import Problem, ScanRecord


@pytest.fixture(scope="module", params=["float16", "int8"])
def exported(request, write_store, tmp_path_factory):
    """A store and its export, a file a run."""
    folder = tmp_path_factory.mktemp("exports")
    store = write_store(folder / "store", request.param, dataset="ABIDE")
    (store.folder / "splits").mkdir()
    (store.folder / "splits" / "sex.csv").write_text("subject,sex\n01,train\n")
    return store, export_parquet(store, folder / "export", shard_bytes=1)


@pytest.fixture(scope="module")
def processes():
    """Starts processes that need not import for seconds: they are copies of one that has done so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tablet_hf.datasets.streaming", "datasets", "accelerate"])
    return context


def runs_as_rank(rank, port, told, source, dispatch_batches):
    """As one of two processes that torchrun starts, read windows as accelerate prepares them; tell places of runs."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch_batches))
    assert accelerator.num_processes == 2
    # One window a run, all of one length, since accelerate hands out batches of one size alone.
    windows = StreamedWindows(source, 5)
    loader = torch.utils.data.DataLoader(windows, batch_size=1, collate_fn=TabletCollator(keep_run_index=True))
    found = {"own": [], "gathered": []}
    for batch in accelerator.prepare(loader):
        found["own"] += batch["run_index"].tolist()
        found["gathered"] += accelerator.gather_for_metrics(batch["run_index"]).tolist()
    told.write_text(json.dumps(found))
    accelerator.end_training()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_comes_back_as_it_was(exported, own_cache):
    store, export = exported
    back = TokenDataset.load(export)
    assert back.folder.is_relative_to(own_cache)
    assert [run.key for run in back.runs] == [run.key for run in store.runs]
    for index, (run, before) in enumerate(zip(back.runs, store.runs, strict=True)):
        for name in ("phenotypes", "site", "error", "made", "repetition_time"):
            assert getattr(run, name) == getattr(before, name)
        assert torch.equal(back.window(index), store.window(index))
        means = back.mean_tokens(index), store.mean_tokens(index)
        assert means == (None, None) if means[1] is None else torch.equal(*means)
    assert back.check() == []
    assert (back.folder / "splits" / "sex.csv").is_file()


def test_it_is_unpacked_once(exported, own_cache):
    first = TokenDataset.load(exported[1])
    times = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.arrow")}
    second = TokenDataset.load(exported[1])
    assert {path: path.stat().st_mtime_ns for path in second.folder.rglob("*.arrow")} == times


def test_unpacking_that_was_cut_short_is_finished(exported, own_cache):
    whole = TokenDataset.load(exported[1])
    (whole.folder / "runs.parquet").unlink()
    lost = whole.folder / whole.runs[1].file
    lost.with_name(lost.name.replace(".arrow", ".json")).unlink()
    assert torch.equal(TokenDataset.load(exported[1]).window(1), whole.window(1))


def test_datasets_reads_typed_rows(exported, tmp_path):
    store, export = exported
    rows = datasets.load_dataset(str(export), split="train", cache_dir=str(tmp_path))
    assert len(rows) == sum(run.num_frames for run in store.runs)
    assert rows.features["tokens"] == datasets.Array2D((27, 96), store.dtype)
    assert rows.features["age"] == datasets.Value("float64")
    assert rows.features["sex"] == datasets.Value("string")
    row = rows[150 + 3]
    assert (row["subject"], row["frame"], row["num_frames"], row["sex"], row["age"]) == ("02", 3, 64, "M", None)
    if store.dtype == "float16":
        np.testing.assert_array_equal(np.asarray(row["tokens"], np.float16), store.window(1, 3, 1)[0])


def test_a_phenotype_called_like_a_column_keeps_its_values(write_store, tmp_path, own_cache, preprocessing):
    writer = TokenStoreWriter(tmp_path / "store", preprocessing)
    writer.write(
        ScanRecord("01", Path("x"), phenotypes={"frame": 7, "tokens": "many"}), torch.zeros(2, 27, 96), 1.0, {}
    )
    export = export_parquet(writer.finish(), tmp_path / "export")
    assert TokenDataset.load(export).runs[0].phenotypes == {"frame": 7, "tokens": "many"}
    rows = datasets.load_dataset(str(export), split="train", cache_dir=str(tmp_path / "rows"))
    assert (rows[1]["frame"], rows[1]["phenotype_frame"]) == (1, 7)


def test_nothing_is_overwritten(exported):
    with pytest.raises(InputError, match="there already"):
        export_parquet(*exported)


def test_a_lost_file_is_told(exported, own_cache, tmp_path):
    shutil.copytree(exported[1], tmp_path / "copy")
    sorted((tmp_path / "copy" / "data").iterdir())[1].unlink()
    with pytest.raises(InputError, match=r"1 of its 3 runs.*ABIDE/sub-02_task-rest"):
        TokenDataset.load(tmp_path / "copy")


class TestDamage:
    """What is damaged is never read as numbers, nor given a checksum of its own."""

    @pytest.fixture
    def plain(self, write_store, tmp_path):
        """A store and its export without compression, so that a changed number changes nothing else."""
        store = write_store(tmp_path / "store")
        return store, export_parquet(store, tmp_path / "export", shard_bytes=1)

    def test_a_damaged_run_is_not_exported(self, plain, tmp_path):
        store, _ = plain
        path = store.folder / store.runs[1].file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"sub-02.*content is not what was written; delete it and tokenize"):
            export_parquet(TokenDataset.load(store.folder), tmp_path / "again")
        assert not (tmp_path / "again").exists()

    def test_pages_have_checksums_that_are_looked_at(self, plain, own_cache, monkeypatch):
        _, export = plain
        flip_in_column(sorted((export / "data").iterdir())[1], "tokens")
        with pytest.raises(InputError, match=r"train-00001-of-00003.parquet: it is damaged .*; copy or download"):
            TokenDataset.load(export)

    def test_numbers_that_were_changed_with_their_page_are_found(self, plain, own_cache):
        """As by somebody who wrote the file anew, or by a reader that does not look at the checksums of pages."""
        _, export = plain
        path = sorted((export / "data").iterdir())[1]
        rows = pq.read_table(path)
        values = rows["tokens"].combine_chunks()
        storage = values.storage if hasattr(values, "storage") else values
        numbers = storage.flatten().flatten().to_numpy().copy()
        numbers[5] += 1
        column = token_column(numbers.reshape(64, 27, 96), rows.schema.field("tokens").type)
        place = rows.schema.names.index("tokens")
        pq.write_table(rows.set_column(place, rows.schema.field("tokens"), column), path, write_page_checksum=True)
        told = r"the tokens of sub-02_task-rest are not those that were exported; copy or download"
        with pytest.raises(InputError, match=told):
            TokenDataset.load(export)
        with pytest.raises(InputError, match=told):
            list(StreamedWindows(export, 20))

    def test_a_flipped_bit_is_found_by_streaming_too(self, plain, own_cache):
        _, export = plain
        flip_in_column(sorted((export / "data").iterdir())[1], "tokens")
        with pytest.raises(InputError, match=r"copy or download the dataset again"):
            list(StreamedWindows(export, 20))

    def test_a_file_that_was_cut(self, plain, own_cache):
        _, export = plain
        path = sorted((export / "data").iterdir())[1]
        path.write_bytes(path.read_bytes()[:3000])
        stream = StreamedWindows(export, 20)
        for read in (lambda: list(stream), lambda: TokenDataset.load(export)):
            with pytest.raises(InputError, match=r"it is damaged or out of reach .*; copy or download"):
                read()


def flip_in_column(path, name):
    """Change one bit in the pages of a column."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    (chunk,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.split(".")[0] == name)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 16
    path.write_bytes(content)


class TestWhatStaysBehind:
    def test_scans_and_folders_are_not_told(self, write_store, tmp_path, preprocessing, known_tokens):
        secret = tmp_path / "hospital-7" / "my-autoencoder"
        made = preprocessing | {"autoencoder": str(secret)}
        writer = TokenStoreWriter(tmp_path / "store", made, is_restricted=True)
        scan = {"name": "MRN-4711_bold.nii.gz", "bytes": 77_123_401, "modified_ns": 1_600_000_000_123_456_789}
        beside = {"mask": scan | {"name": "MRN-4711_mask.nii.gz"}, "repetition_time": None, "sidecars": []}
        writer.write(ScanRecord("01", Path("x")), known_tokens["03"], 2.0, scan, beside=beside)
        writer.write_problems([Problem(str(secret / "scan.nii.gz"), "it is damaged.")])
        (writer.folder / "logs").mkdir()
        (writer.folder / "logs" / "tokenize-0.tsv").write_text(str(secret))
        export = export_parquet(writer.finish(), tmp_path / "export")
        assert {path.name for path in export.iterdir()} == {"README.md", "store.json", "runs.parquet", "data"}
        for path in (path for path in export.rglob("*") if path.is_file()):
            for told in ("hospital-7", "MRN-4711", "77123401", "1600000000123456789"):
                assert told.encode() not in path.read_bytes()
        (row,) = pq.read_table(export / "runs.parquet").to_pylist()
        assert not any(told in str(row) for told in ("hospital-7", "MRN-4711", "77123401", "1600000000123456789"))
        known = json.loads((export / "store.json").read_text())["preprocessing"]
        assert (known["autoencoder"], known["autoencoder_revision"]) == ("my-autoencoder", "sha256:0123456789ab")
        card = (export / "README.md").read_text()
        assert "`my-autoencoder sha256:0123456789ab`" in card
        assert "Restricted." in card

    def test_an_open_dataset_is_not_called_restricted(self, exported):
        assert "Restricted" not in (exported[1] / "README.md").read_text()


def test_a_name_that_nothing_has(own_cache):
    with pytest.raises(InputError, match=r"nobody/nothing: .* the Hub cannot be reached now"):
        TokenDataset.load("nobody/nothing")
    with pytest.raises(InputError, match="/no/such/store: there is no such folder"):
        TokenDataset.load("/no/such/store")


class TestStreaming:
    def test_another_export_of_the_same_name_does_not_lend_its_types(
        self, write_store, tmp_path, monkeypatch, own_cache
    ):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "shared"))
        exports = {}
        for dtype in ("float16", "int8"):
            store = write_store(tmp_path / dtype / "store", dtype)
            exports[dtype] = export_parquet(store, tmp_path / dtype / "export")
        datasets.load_dataset(str(exports["float16"]), split="train")
        streamed = {window["run"]: window["input_values"] for window in StreamedWindows(exports["int8"], 999)}
        for run in store.runs:
            torch.testing.assert_close(streamed[run.key], store.window(run.key), atol=2e-3, rtol=1e-3)

    def test_windows_are_those_of_the_store(self, exported):
        store, export = exported
        for source in (store.folder, export):
            windows = list(StreamedWindows(source, 50, is_training=False))
            assert [len(window["input_values"]) for window in windows] == [50, 50, 50, 50, 5]
            assert [window["run"][-16:-10] for window in windows] == ["sub-01"] * 3 + ["sub-02", "sub-03"]
            for window, (run, start) in zip(windows, [(0, 0), (0, 50), (0, 100), (1, 0), (2, 0)], strict=True):
                expected = store.window(run, start, len(window["input_values"]))
                torch.testing.assert_close(window["input_values"], expected, atol=2e-3, rtol=1e-3)
                assert window["repetition_time"] == 2.0
            assert len(list(StreamedWindows(source, 50, is_training=False, keep_remainder=True))) == 6

    def test_training_draws_one_window_a_run_and_others_in_the_next_epoch(self, exported):
        store, export = exported
        stream = StreamedWindows(export, 20, seed=3)
        first = {window["run"]: window["input_values"] for window in stream}
        again = {window["run"]: window["input_values"] for window in stream}
        stream.set_epoch(1)
        other = {window["run"]: window["input_values"] for window in stream}
        assert set(first) == {run.key for run in store.runs}
        assert all(torch.equal(first[key], again[key]) for key in first)
        key = store.runs[0].key
        assert not torch.equal(first[key], other[key])
        whole = store.window(0)
        assert any(torch.allclose(first[key], whole[s : s + 20], atol=2e-3, rtol=1e-3) for s in range(131))

    def test_labels_and_chosen_runs(self, exported):
        store, export = exported
        labels = {store.runs[0].key: 1, store.runs[1].key: 0}
        assert {w["run"]: w["labels"] for w in StreamedWindows(export, 8, labels)} == labels
        chosen = StreamedWindows(export, 8, labels, runs=[store.runs[1].key, store.runs[2].key])
        assert [w["run"] for w in chosen] == [store.runs[1].key]

    def test_people_are_known_of_windows(self, exported):
        store, export = exported
        for source in (store.folder, export):
            windows = StreamedWindows(source, 50, is_training=False)
            items = list(windows)
            assert [store.runs[item["run_index"]].key for item in items] == [item["run"] for item in items]
            assert windows.subjects == {run.key: run.subject for run in store.runs}
            assert windows.window_subjects == ["01", "01", "01", "02", "03"]
            people, means = average_by(np.array([1.0, 2, 6, 4, 5]), windows.window_subjects)
            assert (people, means.tolist()) == (["01", "02", "03"], [3.0, 4.0, 5.0])
        batch = TabletCollator(keep_run_index=True)(items)
        assert batch["run_index"].tolist() == [0, 0, 0, 1, 2]
        with pytest.raises(ValueError, match="is_training=False"):
            _ = StreamedWindows(export, 50).window_subjects

    def test_processes_of_an_own_loop_share_the_files(self, exported):
        for source in (exported[0].folder, exported[1]):
            for is_training in (True, False):
                stream = StreamedWindows(source, 999, is_training=is_training)
                shares = [[window["run"] for window in stream.shard(2, rank)] for rank in (0, 1)]
                assert all(shares)
                assert sorted(shares[0] + shares[1]) == [run.key for run in exported[0].runs]
        assert len(list(stream)) == 3
        with pytest.raises(ValueError, match="from 0 to 1"):
            stream.shard(2, 2)

    def test_two_processes_of_accelerate_see_every_run_once(self, write_store, tmp_path, processes):
        store = write_store(tmp_path / "store")
        writer = TokenStoreWriter(store.folder, store.preprocessing)
        for number in range(4, 9):
            writer.write(ScanRecord(f"{number:02}", Path("x"), task="rest"), torch.zeros(6, 27, 96), 2.0, {})
        export = export_parquet(writer.finish(), tmp_path / "export", shard_bytes=1)
        for source, dispatch_batches in ((store.folder, False), (export, None), (export, False)):
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            told = [tmp_path / f"{source.name}-{rank}.json" for rank in (0, 1)]
            both = [
                processes.Process(target=runs_as_rank, args=(rank, port, told[rank], source, dispatch_batches))
                for rank in (0, 1)
            ]
            for process in both:
                process.start()
            for process in both:
                process.join()
            first, second = (json.loads(path.read_text()) for path in told)
            assert first["gathered"] == second["gathered"]
            assert sorted(first["gathered"]) == sorted(first["own"] + second["own"]) == list(range(8))
            assert len(first["own"]) == 4

    def test_workers_share_the_files(self, exported):
        for source in (exported[0].folder, exported[1]):
            loader = torch.utils.data.DataLoader(StreamedWindows(source, 8), batch_size=None, num_workers=2)
            assert sorted(window["run"] for window in loader) == [run.key for run in exported[0].runs]

    def test_more_readers_than_files(self, exported):
        loader = torch.utils.data.DataLoader(StreamedWindows(exported[1], 8), batch_size=None, num_workers=4)
        with pytest.raises(InputError, match="3 files cannot be shared out among 4"):
            list(loader)

    def test_mixing_keeps_everything(self):
        items = list(range(50))
        for size in (0, 1, 8, 100):
            assert sorted(mixed(iter(items), size, np.random.default_rng(0))) == items
        assert list(mixed(iter(items), 8, np.random.default_rng(0))) != items
