"""A store goes to Parquet and comes back, is read by `datasets`, and streams."""

import json
import multiprocessing
import os
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
from tablet_hf.datasets.store_files import sidecar_of
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


def runs_as_rank(rank, port, out, source, dispatch_batches):
    """As one of two processes of torchrun, read windows as accelerate prepares them; write the indices of runs."""
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
    out.write_text(json.dumps(found))
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
    with pytest.raises(InputError, match=export.name):
        export_parquet(store, export)  # nothing is overwritten


def test_it_is_unpacked_once_and_continued_when_interrupted(exported, own_cache):
    first = TokenDataset.load(exported[1])
    times = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.arrow")}
    (first.folder / "runs.parquet").unlink()
    lost = sidecar_of(first.folder / first.runs[1].file)
    lost.unlink()
    second = TokenDataset.load(exported[1])
    changed = [path for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == [second.folder / first.runs[1].file]
    assert TokenDataset.load(exported[1]).check() == []


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


def test_a_phenotype_named_like_a_column_keeps_its_values(tmp_path, own_cache, preprocessing):
    writer = TokenStoreWriter(tmp_path / "store", preprocessing)
    phenotypes = {"frame": 7, "tokens": "many"}
    writer.write(ScanRecord("01", Path("x"), phenotypes=phenotypes), torch.zeros(2, 27, 96), 1.0, {})
    export = export_parquet(writer.finish(), tmp_path / "export")
    assert TokenDataset.load(export).runs[0].phenotypes == phenotypes
    rows = datasets.load_dataset(str(export), split="train", cache_dir=str(tmp_path / "rows"))
    assert (rows[1]["frame"], rows[1]["phenotype_frame"]) == (1, 7)


class TestDamage:
    """What is damaged is never read as numbers, nor given a new checksum."""

    @pytest.fixture
    def plain(self, write_store, tmp_path):
        store = write_store(tmp_path / "store")
        return store, export_parquet(store, tmp_path / "export", shard_bytes=1)

    def test_a_damaged_run_is_not_exported(self, plain, tmp_path):
        store, _ = plain
        path = store.folder / store.runs[1].file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=path.name):
            export_parquet(TokenDataset.load(store.folder), tmp_path / "again")
        assert not (tmp_path / "again").exists()

    @pytest.mark.parametrize("damage", ["flip", "cut", "rewritten"])
    def test_a_damaged_file_is_neither_unpacked_nor_streamed(self, plain, own_cache, damage):
        _, export = plain
        path = sorted((export / "data").iterdir())[1]
        if damage == "flip":  # which checksums of pages find
            flip_in_column(path, "tokens")
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:3000])
        else:  # which only the checksum of the run's numbers finds
            rows = pq.read_table(path)
            values = rows["tokens"].combine_chunks()
            storage = values.storage if hasattr(values, "storage") else values
            numbers = storage.flatten().flatten().to_numpy().copy()
            numbers[5] += 1
            column = token_column(numbers.reshape(64, 27, 96), rows.schema.field("tokens").type)
            index = rows.schema.names.index("tokens")
            pq.write_table(rows.set_column(index, rows.schema.field("tokens"), column), path, write_page_checksum=True)
        for read in (TokenDataset.load, lambda source: list(StreamedWindows(source, 20))):
            with pytest.raises(InputError, match=path.name):
                read(export)

    def test_a_lost_file_is_reported(self, plain, own_cache):
        sorted((plain[1] / "data").iterdir())[1].unlink()
        with pytest.raises(InputError, match="sub-02_task-rest"):
            TokenDataset.load(plain[1])


def flip_in_column(path, name):
    """Change one bit in the pages of a column."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    (chunk,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.split(".")[0] == name)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 16
    path.write_bytes(content)


def test_names_of_scans_and_folders_stay_behind(tmp_path, preprocessing, known_tokens):
    folder = tmp_path / "hospital-7" / "my-autoencoder"
    writer = TokenStoreWriter(tmp_path / "store", preprocessing | {"autoencoder": str(folder)}, is_restricted=True)
    scan = {"name": "MRN-4711_bold.nii.gz", "bytes": 77_123_401, "modified_ns": 1_600_000_000_123_456_789}
    companions = {"mask": scan | {"name": "MRN-4711_mask.nii.gz"}, "repetition_time": None, "sidecars": []}
    writer.write(ScanRecord("01", Path("x")), known_tokens["03"], 2.0, scan, companions=companions)
    writer.write_problems([Problem(str(folder / "scan.nii.gz"), "it is damaged.")])
    export = export_parquet(writer.finish(), tmp_path / "export")
    assert {path.name for path in export.iterdir()} == {"README.md", "store.json", "runs.parquet", "data"}
    (row,) = pq.read_table(export / "runs.parquet").to_pylist()
    for secret in ("hospital-7", "MRN-4711", "77123401", "1600000000123456789"):
        assert secret not in str(row)
        for path in (path for path in export.rglob("*") if path.is_file()):
            assert secret.encode() not in path.read_bytes()
    made = json.loads((export / "store.json").read_text())["preprocessing"]
    assert (made["autoencoder"], made["autoencoder_revision"]) == ("my-autoencoder", "sha256:0123456789ab")
    assert "`my-autoencoder sha256:0123456789ab`" in (export / "README.md").read_text()


def test_a_name_that_nothing_has(own_cache):
    for name in ("nobody/nothing", "/no/such/store"):
        with pytest.raises(InputError, match=name):
            TokenDataset.load(name)


class TestStreaming:
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

    def test_windows_have_subjects(self, exported):
        store, export = exported
        for source in (store.folder, export):
            windows = StreamedWindows(source, 50, is_training=False)
            items = list(windows)
            assert [store.runs[item["run_index"]].key for item in items] == [item["run"] for item in items]
            assert windows.subjects == {run.key: run.subject for run in store.runs}
            assert windows.window_subjects == ["01", "01", "01", "02", "03"]
            subjects, means = average_by(np.array([1.0, 2, 6, 4, 5]), windows.window_subjects)
            assert (subjects, means.tolist()) == (["01", "02", "03"], [3.0, 4.0, 5.0])
        batch = TabletCollator(keep_run_index=True)(items)
        assert batch["run_index"].tolist() == [0, 0, 0, 1, 2]
        with pytest.raises(ValueError, match="is_training"):
            _ = StreamedWindows(export, 50).window_subjects

    def test_processes_of_an_own_loop_share_the_files(self, exported):
        for source in (exported[0].folder, exported[1]):
            for is_training in (True, False):
                stream = StreamedWindows(source, 999, is_training=is_training)
                shares = [[window["run"] for window in stream.shard(2, rank)] for rank in (0, 1)]
                assert all(shares)
                assert sorted(shares[0] + shares[1]) == [run.key for run in exported[0].runs]
        assert len(list(stream)) == 3
        with pytest.raises(ValueError, match="index"):
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
            outputs = [tmp_path / f"{source.name}-{rank}.json" for rank in (0, 1)]
            both = [
                processes.Process(target=runs_as_rank, args=(rank, port, outputs[rank], source, dispatch_batches))
                for rank in (0, 1)
            ]
            for process in both:
                process.start()
            for process in both:
                process.join()
            first, second = (json.loads(path.read_text()) for path in outputs)
            assert first["gathered"] == second["gathered"]
            assert sorted(first["gathered"]) == sorted(first["own"] + second["own"]) == list(range(8))
            assert len(first["own"]) == 4

    def test_workers_share_the_files(self, exported):
        for source in (exported[0].folder, exported[1]):
            loader = torch.utils.data.DataLoader(StreamedWindows(source, 8), batch_size=None, num_workers=2)
            assert sorted(window["run"] for window in loader) == [run.key for run in exported[0].runs]

    def test_more_readers_than_files(self, exported):
        loader = torch.utils.data.DataLoader(StreamedWindows(exported[1], 8), batch_size=None, num_workers=4)
        with pytest.raises(InputError, match=exported[1].name):
            list(loader)

    def test_mixing_keeps_everything(self):
        items = list(range(50))
        for size in (0, 1, 8, 100):
            assert sorted(mixed(iter(items), size, np.random.default_rng(0))) == items
        assert list(mixed(iter(items), 8, np.random.default_rng(0))) != items
