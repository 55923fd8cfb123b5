"""What the files of a store say, who is taken out of them, and how damage is found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tablet_hf.datasets import TokenDataset, TokenStoreWriter
from tablet_hf.datasets.store_files import file_of_key, forget_people, read_sidecar, sidecar_of, write_index
from tablet_hf.errors import InputError
from tablet_hf.sources import ScanRecord


class TestWhatTheySay:
    @pytest.mark.parametrize("name", ["dtype", "is_restricted", "preprocessing", "token_size", "autoencoder"])
    def test_settings_with_something_missing(self, store, tmp_path, name):
        known = json.loads((store.folder / "store.json").read_text())
        for part in (known, known["preprocessing"]):
            part.pop(name, None)
        (tmp_path / "runs").mkdir()
        (tmp_path / "store.json").write_text(json.dumps(known))
        with pytest.raises(InputError, match=rf"store.json: .*{name}"):
            TokenDataset.load(tmp_path)

    def test_without_its_table_it_reads_the_sidecars(self, write_store, tmp_path):
        store = write_store(tmp_path / "store")
        (store.folder / "runs.parquet").unlink()
        assert [run.sha256 for run in TokenDataset.load(store.folder).runs] == [run.sha256 for run in store.runs]

    def test_people_are_forgotten(self, write_store, tmp_path):
        store = write_store(tmp_path / "store")
        gone = forget_people(store.folder, {"02", "07"})
        assert [run.key for run in gone] == ["sub-02_task-rest"]
        assert not (store.folder / "runs" / "sub-02").exists()
        after = TokenDataset.load(store.folder)
        assert [run.subject for run in after.runs] == ["01", "03"]
        assert after.check() == []
        assert forget_people(store.folder, {"02"}) == []

    def test_a_run_is_named_by_its_key_and_says_all_of_itself_beside_its_tokens(self, store):
        for run in store.runs:
            assert file_of_key(run.key).as_posix() == run.file
            said = read_sidecar(sidecar_of(store.folder / run.file))
            known = {name: value for name, value in run.phenotypes.items() if value is not None}
            assert {name: value for name, value in said.phenotypes.items() if value is not None} == known
            assert replace(said, phenotypes=run.phenotypes) == run

    def test_the_table_of_all_runs_says_the_same(self, write_store, tmp_path):
        store = write_store(tmp_path / "store")
        write_index(store.folder, store.runs)
        assert TokenDataset.load(store.folder).runs == store.runs


class TestFaults:
    def test_a_whole_store_has_no_faults(self, store, int8_store):
        assert store.check() == int8_store.check() == []

    @pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
    def test_damage_is_found(self, write_store, tmp_path, damage):
        store = write_store(tmp_path / "store")
        path = store.folder / store.runs[1].file
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        if damage == "cut":
            del content[len(content) // 2 :]
        path.unlink()
        if damage != "missing":
            path.write_bytes(content)
        (fault,) = TokenDataset.load(store.folder).check()
        assert str(path) in fault
        assert "tokenize the run again" in fault

    @pytest.mark.parametrize("change", ["lost", "cut", "edited"])
    def test_a_sidecar_that_is_not_as_it_was_is_found(self, write_store, tmp_path, change):
        store = write_store(tmp_path / "store")
        sidecar = store.folder / store.runs[1].file.replace(".arrow", ".json")
        content = sidecar.read_text()
        sidecar.unlink()
        if change != "lost":
            sidecar.write_text(content[:50] if change == "cut" else content.replace('"sex": "M"', '"sex": "F"'))
        (fault,) = TokenDataset.load(store.folder).check()
        assert fault.startswith(f"{sidecar}: ")
        assert {"lost": "is missing", "cut": "does not describe a run", "edited": "phenotype sex is 'F'"}[
            change
        ] in fault

    @pytest.mark.parametrize(
        ("name", "value", "told"),
        [
            ("token_size", 48, "27 x 96 a frame"),
            ("dtype", "int8", "float16 of 27 x 96"),
            ("volume_size", 48, "made with"),
        ],
    )
    def test_settings_that_are_not_those_of_the_runs_are_found(self, write_store, tmp_path, name, value, told):
        store = write_store(tmp_path / "store")
        path = store.folder / "store.json"
        known = json.loads(path.read_text())
        (known["preprocessing"] if name in known["preprocessing"] else known)[name] = value
        path.write_text(json.dumps(known))
        faults = TokenDataset.load(store.folder).check()
        assert len(faults) == 3
        assert all(told in fault and "store.json" in fault for fault in faults)

    def test_numbers_that_are_none_are_no_fault(self, tmp_path, preprocessing):
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        for subject, score in (("01", float("nan")), ("02", 0.1)):
            record = ScanRecord(subject, Path("x"), phenotypes={"score": score})
            writer.write(record, torch.zeros(2, 27, 96), 2.0, {})
        assert writer.finish().check() == []

    def test_runs_that_the_table_does_not_list_are_found(self, write_store, tmp_path, preprocessing, known_tokens):
        store = write_store(tmp_path / "store")
        writer = TokenStoreWriter(store.folder, preprocessing)
        writer.write(ScanRecord("04", Path("x")), known_tokens["03"], 2.0, {})
        (fault,) = TokenDataset.load(store.folder).check()
        assert "sub-04_tokens.arrow: the run is whole, but runs.parquet does not list it" in fault
