"""Several studies in one store: nobody takes another's place, and what is there already is known again."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from small_autoencoders import save_f32
from typer.testing import CliRunner

from tablet_hf.cli.__main__ import app
from tablet_hf.datasets import Split, TokenDataset, TokenStoreWriter, merge_stores, write_splits
from tablet_hf.errors import InputError
from tablet_hf.files import file_identity
from tablet_hf.sources import ScanRecord, find_scans
from tablet_hf.sources.records import store_key


def tablet_hf(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


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


def tokens(value):
    return torch.full((2, 27, 96), float(value))


def put(writer, record, value):
    """What `tokenize` does with a scan; whether it was there already."""
    scan = file_identity(record.scan)
    if writer.finished(record, scan):
        return True
    writer.write(record, tokens(value), 2.0, scan)
    return False


def held(writer):
    """First number of the tokens of each run, by key."""
    store = writer.finish()
    return {run.key: store.window(run.key)[0, 0, 0].item() for run in store.runs}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder with a small f32 autoencoder of random weights."""
    return save_f32(tmp_path_factory.mktemp("autoencoder"))


class TestPlaces:
    def test_studies_with_names_stand_beside_each_other(self, writer, scan):
        for value, name in enumerate(("A", "B")):
            assert not put(writer, ScanRecord("01", scan(name, name), task="rest", dataset=name), value)
        assert held(writer) == {"A/sub-01_task-rest": 0, "B/sub-01_task-rest": 1}

    def test_a_person_of_another_study_without_a_name_is_refused(self, writer, scan):
        """Same label and same file name, as all fMRIPrep derivatives have them."""
        put(writer, ScanRecord("01", scan("a", "one"), task="rest"), 1)
        other = ScanRecord("01", scan("b", "another"), task="rest")
        with pytest.raises(InputError, match=r"has sub-01_task-rest of subject '01'.*name that with --dataset"):
            put(writer, other, 2)
        assert not put(writer, replace(other, dataset="B"), 3)
        assert held(writer) == {"sub-01_task-rest": 1, "B/sub-01_task-rest": 3}

    def test_a_study_without_a_name_stands_beside_one_with_a_name(self, writer, scan):
        put(writer, ScanRecord("01", scan("a", "one"), dataset="A"), 1)
        assert not put(writer, ScanRecord("01", scan("b", "another")), 2)
        assert held(writer) == {"A/sub-01": 1, "sub-01": 2}

    def test_a_scan_of_one_study_that_changed_is_done_again(self, writer, scan):
        for name in (None, "A"):
            record = ScanRecord("01", scan("a", "one"), session=str(name), dataset=name)
            put(writer, record, 1)
            scan("a", "changed")
            assert not put(writer, record, 2)
        assert set(held(writer).values()) == {2}

    def test_another_file_of_the_same_run_is_refused(self, writer, scan):
        put(writer, ScanRecord("01", scan("a", name="sub-01_res-1_bold.nii.gz"), dataset="A"), 1)
        other = ScanRecord("01", scan("a", name="sub-01_res-2_bold.nii.gz"), dataset="A")
        with pytest.raises(InputError, match=r"from sub-01_res-1_bold.nii.gz already.*from sub-01_res-2_bold.nii.gz"):
            put(writer, other, 2)
        assert held(writer) == {"A/sub-01": 1}

    def test_labels_that_only_look_alike_are_two_people(self, writer, scan):
        labels = ["a-1", "a1", "ö", "ä", "o"]
        for value, subject in enumerate(labels):
            put(writer, ScanRecord(subject, scan("a", name=f"{value}.nii")), value)
        assert sorted(held(writer).values()) == [0, 1, 2, 3, 4]
        assert sorted(run.subject for run in writer.finish().runs) == sorted(labels)

    def test_a_folder_that_was_moved_is_known_again_and_so_is_what_changes_there(self, writer, scan, tmp_path):
        put(writer, ScanRecord("01", scan("a")), 1)
        (tmp_path / "a").rename(tmp_path / "b")
        moved = ScanRecord("01", tmp_path / "b" / "sub-01_task-rest_bold.nii.gz")
        assert put(writer, moved, 2)
        scan("b", "changed")
        assert not put(writer, moved, 3)
        assert held(writer) == {"sub-01": 3}

    def test_without_a_name_a_file_of_another_folder_that_changed_is_refused(self, writer, scan):
        put(writer, ScanRecord("01", scan("a")), 1)
        with pytest.raises(InputError, match="has sub-01 of subject '01' from"):
            put(writer, ScanRecord("01", scan("b", "another")), 2)
        (run,) = writer.finish().runs
        assert run.scan.keys() == {"name", "bytes", "modified_ns", "folder"}
        assert len(run.scan["folder"]) == 4


@pytest.fixture
def derivatives(tmp_path, make_scan):
    """A function that makes fMRIPrep derivatives of one person; all of them have the same labels and file names."""

    def make(study, frames, **description):
        folder = tmp_path / study / "derivatives" / "fmriprep"
        name = "sub-01/func/sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        make_scan(folder / name, frames=frames, seed=frames)
        (folder / "participants.tsv").write_text(f"participant_id\tage\nsub-01\t{30 + frames}\n")
        (folder / "dataset_description.json").write_text(json.dumps(description))
        return folder

    return make


def test_the_command_keeps_studies_apart(autoencoder, derivatives, tmp_path):
    first = derivatives("first", 1, Name="fMRIPrep outputs")
    second = derivatives("second", 2, Name="fMRIPrep outputs")
    command = ["tokenize", "--out", tmp_path / "store", "--autoencoder", autoencoder, "--device", "cpu"]
    command += ["--source", "bids"]
    assert tablet_hf(*command, first).exit_code == 0
    refused = tablet_hf(*command, second)
    assert refused.exit_code == 2
    assert "name that with --dataset" in " ".join(refused.output.split())
    assert tablet_hf(*command, second, "--dataset", "Second").exit_code == 0
    for _ in range(2):
        result = tablet_hf(*command, first)
        assert "0 runs tokenized" in result.output
        assert re.search("1 (was|were) there already", result.output)
    store = TokenDataset.load(tmp_path / "store")
    assert {run.key: (run.num_frames, run.phenotypes["age"]) for run in store.runs} == {
        "sub-01_task-rest": (1, 31),
        "Second/sub-01_task-rest": (2, 32),
    }


def test_what_a_study_is_called_without_an_option(derivatives):
    folder = derivatives("third", 1, Name="Sleep: a study")
    (record,) = find_scans("bids", folder).records
    assert record.dataset == "Sleep: a study"
    assert re.fullmatch(r"Sleepastudy\+[0-9a-f]{8}/sub-01_task-rest", store_key(record))
    (record,) = find_scans("bids", folder, dataset="Sleep").records
    assert store_key(record) == "Sleep/sub-01_task-rest"


def test_phenotypes_are_the_same_whatever_load_reads(writer, scan):
    """Mixed columns, and one that a run lacks: from the table of all runs, or from sidecars where it is not there."""
    said = [{"code": 1, "age": 31}, {"code": "x", "age": 30.5, "ok": True}, {"code": None, "ok": None}]
    for number, phenotypes in enumerate(said):
        put(writer, ScanRecord(f"{number}", scan(f"{number}"), phenotypes=phenotypes), number)
    from_table = writer.finish()
    (writer.folder / "runs.parquet").unlink()
    from_sidecars = TokenDataset.load(writer.folder)
    assert from_sidecars.runs == from_table.runs
    assert from_sidecars.runs[0].phenotypes == {"code": "1", "age": 31.0, "ok": None}
    assert from_sidecars.phenotype_types() == from_table.phenotype_types()


class TestMerging:
    def test_a_refused_merge_leaves_nothing(self, write_store, tmp_path):
        write_store(tmp_path / "a")
        write_store(tmp_path / "b", "int8", dataset="B")
        with pytest.raises(InputError, match=r"/a: it holds tokens made with dtype float16, not int8 as in .*/b;"):
            merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
        shutil.copytree(tmp_path / "a", tmp_path / "c")
        with pytest.raises(InputError, match=r"it is in .*/a and in .*/c; give the datasets different names"):
            merge_stores([tmp_path / "a", tmp_path / "c"], tmp_path / "both")
        assert not (tmp_path / "both").exists()

    def test_what_is_there_is_not_written_over(self, writer, preprocessing, scan, tmp_path):
        put(writer, ScanRecord("01", scan("a"), task="rest"), 1)
        before = writer.finish()
        other = TokenStoreWriter(tmp_path / "other", preprocessing)
        for subject in ("01", "02"):
            put(other, ScanRecord(subject, scan("b", subject), task="rest"), 2)
        other.finish()
        with pytest.raises(InputError, match=r"sub-01_task-rest: it is in .*/store and in .*/other"):
            merge_stores([tmp_path / "other"], before.folder)
        assert held(writer) == {"sub-01_task-rest": 1}

    def test_one_is_added_to_another_and_again(self, writer, preprocessing, scan, tmp_path):
        put(writer, ScanRecord("01", scan("a"), task="rest"), 1)
        writer.finish()
        other = TokenStoreWriter(tmp_path / "other", preprocessing)
        put(other, ScanRecord("01", scan("b", "another"), task="rest", dataset="B"), 2)
        other.finish()
        for stores in ([writer.folder, tmp_path / "other"], [tmp_path / "other"]):
            merged = merge_stores(stores, writer.folder)
            assert held(writer) == {"sub-01_task-rest": 1, "B/sub-01_task-rest": 2}
            assert merged.check() == []

    def test_labels_cut_short_do_not_meet(self, writer, preprocessing, scan, tmp_path):
        put(writer, ScanRecord("a-1", scan("a", name="a-1.nii")), 1)
        other = TokenStoreWriter(tmp_path / "other", preprocessing)
        put(other, ScanRecord("a1", scan("a", name="a1.nii")), 2)
        merge_stores([writer.finish().folder, other.finish().folder], tmp_path / "both")
        assert {run.subject for run in TokenDataset.load(tmp_path / "both").runs} == {"a-1", "a1"}

    def test_the_command_says_that_splits_are_not_merged(self, write_store, tmp_path):
        for name in "ab":
            store = write_store(tmp_path / name, dataset=name)
        assert "Splits" not in tablet_hf("dataset", "merge", store.folder, "--out", tmp_path / "c").output
        write_splits([Split("mine", {"01": "train"})], store.folder / "splits" / "mine.csv")
        result = tablet_hf("dataset", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")
        assert result.exit_code == 0
        assert "Splits are not merged" in result.output
        assert not (tmp_path / "both" / "splits").exists()
