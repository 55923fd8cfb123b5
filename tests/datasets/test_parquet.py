"""A store goes to Parquet and comes back, is read by `datasets`, and streams."""

import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from tablet_hf.datasets import ScanRecord, TokenDataset, TokenStoreWriter
from tablet_hf.datasets.parquet import StreamedWindows, export_parquet, mixed
from tablet_hf.errors import InputError


@pytest.fixture(scope="module", params=["float16", "int8"])
def exported(request, write_store, tmp_path_factory):
    """A store and its export, a file a run."""
    folder = tmp_path_factory.mktemp("exports")
    store = write_store(folder / "store", request.param, dataset="ABIDE")
    (store.folder / "splits").mkdir()
    (store.folder / "splits" / "sex.csv").write_text("subject,sex\n01,train\n")
    return store, export_parquet(store, folder / "export", shard_bytes=1)


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
        assert (run.phenotypes, run.site, run.scan, run.error) == (
            before.phenotypes,
            before.site,
            before.scan,
            before.error,
        )
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
