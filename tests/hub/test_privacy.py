"""Nothing of the source leaves that must not: people have other names, and planted leaks are found in every file."""

import csv
import json
import os
import re
import stat
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from planted import PLANTED, SUBJECTS
from safetensors.torch import save_file

from tablet_hf.cli.prediction_table import PredictionTable
from tablet_hf.datasets import TokenDataset, TokenStoreWriter, read_splits
from tablet_hf.errors import InputError
from tablet_hf.hub.privacy import (
    Pseudonyms,
    Secrets,
    check_may_be_published,
    find_leaks,
    leaks_of_words,
    published_runs,
)
from tablet_hf.hub.publishing import Sharing, prepare
from tablet_hf.sources import ScanRecord

RIGHT = "Our agreement with the consortium names this project"
SECRETS = Secrets(frozenset([*SUBJECTS, "07"]), frozenset(["MRN-4711_bold.nii.gz"]), frozenset(["tok" * 12]))


class TestWhoMayPublish:
    def test_restricted_data_need_a_right(self):
        for kind in ("model", "dataset"):
            with pytest.raises(InputError, match="--i-have-the-right-to-share"):
                check_may_be_published("x", kind, True, True, None)
            check_may_be_published("x", kind, True, True, RIGHT)

    def test_restricted_tokens_are_never_public(self):
        with pytest.raises(InputError, match="leave out --public"):
            check_may_be_published("x", "dataset", True, False, RIGHT)
        check_may_be_published("x", "model", True, False, RIGHT)

    def test_a_model_of_unknown_data_is_not_public(self):
        with pytest.raises(InputError, match="--source-open"):
            check_may_be_published("x", "model", None, False, None)
        check_may_be_published("x", "model", None, True, None)
        check_may_be_published("x", "model", False, False, None)

    @pytest.mark.parametrize("said", ["", "yes", "I may"])
    def test_a_right_is_a_sentence(self, said):
        with pytest.raises(InputError, match="say in a sentence"):
            check_may_be_published("x", "dataset", True, True, said)

    @pytest.mark.parametrize(
        "dataset", ["HCP", "hcp_ya_fmriprep", "UKB", "UK Biobank imaging", "uk_biobank", "lab_hcp", "my-ukb", "ABCD"]
    )
    def test_a_store_that_came_by_another_way_is_known_by_its_name(self, make_store, tmp_path, dataset):
        store = make_store(is_restricted=False, dataset=dataset)
        with pytest.raises(InputError, match="--i-have-the-right-to-share"):
            prepare(store.folder, tmp_path / "sent", "lab/tokens")
        prepared = prepare(store.folder, tmp_path / "sent", "lab/tokens", Sharing(is_restricted=False))
        assert prepared.sharing.is_restricted is False


class TestPseudonyms:
    def test_they_depend_on_salt_and_dataset(self):
        first, second = Pseudonyms(b"a" * 32), Pseudonyms(b"b" * 32)
        names = {first.of("HCP-YA", "1"), first.of("UKB", "1"), first.of("HCP-YA", "2"), second.of("HCP-YA", "1")}
        assert len(names) == 4
        assert first.of("HCP-YA", "1") == Pseudonyms(b"a" * 32).of("HCP-YA", "1")

    @given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
    def test_words_do_not_run_together(self, one, other):
        names = Pseudonyms(b"s" * 32)
        assert (names.of(*one) == names.of(*other)) == (one == other)

    def test_the_salt_lies_beside_the_store_and_only_its_owner_reads_it(self, tmp_path):
        (tmp_path / "store").mkdir()
        first = Pseudonyms.beside(tmp_path / "store").of("a")
        salt = tmp_path / "store.salt"
        assert stat.S_IMODE(salt.stat().st_mode) == 0o600
        assert not any((tmp_path / "store").iterdir())
        assert Pseudonyms.beside(tmp_path / "store").of("a") == first
        salt.unlink()
        assert Pseudonyms.beside(tmp_path / "store").of("a") != first
        salt.write_text("no salt")
        with pytest.raises(InputError, match=r"store.salt: it is no salt"):
            Pseudonyms.beside(tmp_path / "store")


class TestWhatGoesAlong:
    def test_people_families_and_telling_labels_have_other_names(self, make_store):
        store = make_store()
        runs, left_out = published_runs(store, Pseudonyms(b"s" * 32))
        assert len({run.subject for run in runs}) == len({run.key for run in runs}) == 6
        assert [run.family == runs[0].family for run in runs] == [True, True, False, False, False, False]
        assert [run.session for run in runs[1:]] == ["01"] * 5
        assert {run.site for run in runs} == {"site-1"}
        told = json.dumps([vars(run) for run in runs], default=str)
        assert not [secret for secret in PLANTED if secret in told]
        assert set(runs[0].phenotypes) == {"age", "sex", "dx"}
        assert set(left_out) == {"scan_day", "remark", "eid", "seen", "labels of sessions", "labels of sites"}

    def test_of_restricted_data_only_what_is_named(self, make_store):
        store = make_store(is_restricted=True)
        runs, left_out = published_runs(store, Pseudonyms(b"s" * 32))
        assert runs[0].phenotypes == {}
        assert {run.family for run in runs} == {None}
        assert "--phenotype" in left_out["age"]
        runs, _ = published_runs(store, Pseudonyms(b"s" * 32), ["age", "family"])
        assert set(runs[0].phenotypes) == {"age"}
        assert None not in {run.family for run in runs}
        with pytest.raises(InputError, match="restricted; people do not keep their names"):
            published_runs(store, Pseudonyms(b"s" * 32), keep_subjects=True)
        with pytest.raises(InputError, match="restricted; ages go in whole years"):
            published_runs(store, Pseudonyms(b"s" * 32), ["age"], exact_ages=True)

    def test_ages_go_in_whole_years(self, tmp_path):
        ages = [7.9167, 21.0, 35.9999, 89.99, 90.2, 101.5]
        store = runs_with(tmp_path, [{"Age_in_Yrs": age, "stage": age, "p21003_i2": int(age)} for age in ages])
        runs, _ = published_runs(store, Pseudonyms(b"s" * 32))
        assert [run.phenotypes["Age_in_Yrs"] for run in runs] == [7.0, 21.0, 35.0, 89.0, 90.0, 90.0]
        assert [run.phenotypes["p21003_i2"] for run in runs] == [7, 21, 35, 89, 90, 90]
        assert [run.phenotypes["stage"] for run in runs] == ages
        runs, _ = published_runs(store, Pseudonyms(b"s" * 32), exact_ages=True)
        assert [run.phenotypes["Age_in_Yrs"] for run in runs] == ages

    @pytest.mark.parametrize(
        ("name", "age"),
        [
            ("age_months", 95.2),
            ("AgeInDays", 99.0),
            ("agedays", 99.0),
            ("agemos", 62),
            ("interview_age", 62),
            ("age", 431.0),
            ("age_z", -1.2),
        ],
    )
    def test_ages_that_cannot_be_rounded_stay_behind(self, tmp_path, name, age):
        store = runs_with(tmp_path, [{name: age + number / 8} for number in range(6)])
        assert "ages that are not in years" in published_runs(store, Pseudonyms(b"s" * 32), exact_ages=False)[1][name]

    def test_groups_of_ages_are_categories(self, tmp_path):
        store = runs_with(tmp_path, [{"age": ["22-25", "26-30"][number % 2]} for number in range(6)])
        assert published_runs(store, Pseudonyms(b"s" * 32))[0][0].phenotypes == {"age": "22-25"}

    def test_what_is_not_wanted_stays_behind(self, make_store):
        runs, left_out = published_runs(make_store(), Pseudonyms(b"s" * 32), without=["age", "family"])
        assert set(runs[0].phenotypes) == {"sex", "dx"}
        assert {run.family for run in runs} == {None}
        assert left_out["age"] == "it was not wanted"
        with pytest.raises(InputError, match="no phenotype 'iq'"):
            published_runs(make_store(), Pseudonyms(b"s" * 32), without=["iq"])

    def test_sites_are_numbered(self, tmp_path):
        made = {"autoencoder": "natural-f32c32", "signal": "intensity", "scaling": "max", "volume_size": 96}
        writer = TokenStoreWriter(tmp_path / "store", made | {"grid_size": 1, "token_size": 2})
        sites = ["UM_1", "NYU", "UM_1", None, "Leiden_2180"]
        for number, site in enumerate(sites):
            record = ScanRecord(f"person{number}", tmp_path, site=site, phenotypes={"Site": number // 2})
            writer.write(record, torch.zeros(1, 1, 2), 2.0, {})
        store = writer.finish()
        runs, left_out = published_runs(store, Pseudonyms(b"s" * 32))
        told = [run.site for run in runs]
        assert (told[0], told[3], set(told)) == (told[2], None, {"site-1", "site-2", "site-3", None})
        assert "--keep-sites" in left_out["labels of sites"]
        assert "where people were scanned" in left_out["Site"]
        orders = {
            tuple(run.site for run in published_runs(store, Pseudonyms(bytes([salt] * 16)))[0]) for salt in range(9)
        }
        assert len(orders) > 1, "their order tells their names"
        runs, left_out = published_runs(store, Pseudonyms(b"s" * 32), keep_sites=True)
        assert [run.site for run in runs] == sites
        assert "Site" in runs[0].phenotypes

    @pytest.mark.parametrize(
        ("name", "why"),
        [("eid", "names of people"), ("remark", "different texts"), ("seen", "dates"), ("scan_day", "dates")],
    )
    def test_what_tells_of_people_is_not_sent_though_it_is_named(self, make_store, name, why):
        with pytest.raises(InputError, match=f"{name}' is not sent: it h.*{why}"):
            published_runs(make_store(), Pseudonyms(b"s" * 32), [name])

    @pytest.mark.parametrize("day", ["04/03/19", "4.3.19", "04-Mar-19", "4 March 2019", "March 4, 2019", "2019-03"])
    def test_days_that_many_share_are_no_categories(self, tmp_path, day):
        runs = runs_with(tmp_path, [{"visit": day} for _ in range(6)])
        assert "dates" in published_runs(runs, Pseudonyms(b"s" * 32))[1]["visit"]

    @pytest.mark.parametrize("text", ["1.2", "site 4", "right-handed", "2/3", "control", "1-2", "may be"])
    def test_categories_are_no_days(self, tmp_path, text):
        runs = runs_with(tmp_path, [{"kind": text} for _ in range(6)])
        assert published_runs(runs, Pseudonyms(b"s" * 32))[0][0].phenotypes == {"kind": text}

    @pytest.mark.parametrize("name", ["YOB", "scandate", "Birth_Year", "visitDate"])
    def test_columns_by_whose_names_people_are_found(self, tmp_path, name):
        runs = runs_with(tmp_path, [{name: 1985 + number % 2} for number in range(6)])
        assert "lead to people" in published_runs(runs, Pseudonyms(b"s" * 32))[1][name]

    @pytest.mark.parametrize(
        "texts",
        [
            [None, "panic attack", None, None, "left early", None],
            ["none", "none", "none", "none", "none", "mother ill"],
            [None, None, "Anna", None, "Svetlana", None],
        ],
    )
    def test_words_of_one_person_alone_stay_behind_unless_they_are_named(self, tmp_path, texts):
        store = runs_with(tmp_path, [{"reason": text} for text in texts])
        runs, left_out = published_runs(store, Pseudonyms(b"s" * 32))
        assert {tuple(run.phenotypes) for run in runs} == {()}
        assert "words of one person alone" in left_out["reason"]
        runs, _ = published_runs(store, Pseudonyms(b"s" * 32), ["reason"])
        assert [run.phenotypes["reason"] for run in runs] == texts

    @pytest.mark.parametrize("texts", [["F", "M"], ["left hand", "left hand", "right hand", "right hand"]])
    def test_names_of_groups_go_along(self, tmp_path, texts):
        runs, _ = published_runs(runs_with(tmp_path, [{"group": text} for text in texts]), Pseudonyms(b"s" * 32))
        assert [run.phenotypes["group"] for run in runs] == texts

    def test_a_phenotype_that_is_not_there(self, make_store):
        with pytest.raises(InputError, match="no phenotype 'sexx'; there are age, dx"):
            published_runs(make_store(), Pseudonyms(b"s" * 32), ["sexx"])

    @pytest.mark.parametrize("dtype", ["float16", "int8"])
    def test_tokens_and_splits_are_the_same_under_other_names(self, make_store, tmp_path, monkeypatch, dtype):
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
        store = make_store(dtype=dtype)
        prepare(store.folder, tmp_path / "sent", "lab/tokens")
        names = Pseudonyms.beside(store.folder)
        back = TokenDataset.load(tmp_path / "sent")
        assert back.check() == []
        by_name = {run.subject: run.key for run in back.runs}
        for run in store.runs:
            assert torch.equal(back.window(by_name[names.of(run.dataset, run.subject)]), store.window(run.key))
        (split,) = read_splits(back.folder / "splits" / "sex.csv", runs=back.runs)
        assert split.assignment[names.of("ADHD-200", SUBJECTS[5])] == "test"
        assert split.counts["train"] == 4
        assert [run.key for run in back.runs] == sorted(run.key for run in back.runs)
        assert not contents_with(tmp_path / "sent", PLANTED)

    def test_open_data_may_keep_their_names(self, make_store, tmp_path):
        store = make_store()
        prepare(store.folder, tmp_path / "sent", "lab/tokens", keep_subjects=True)
        rows = pq.read_table(tmp_path / "sent" / "runs.parquet").to_pylist()
        assert {row["subject"] for row in rows} == set(SUBJECTS)
        with pytest.raises(InputError, match="people do not keep their names"):
            prepare(make_store(True).folder, tmp_path / "other", "lab/tokens", Sharing(right_to_share=RIGHT),
                    keep_subjects=True)  # fmt: skip


def runs_with(folder, phenotypes):
    """A store of open data, a person for each of these."""
    made = {"autoencoder": "natural-f32c32", "signal": "intensity", "scaling": "max", "volume_size": 96}
    writer = TokenStoreWriter(folder / "store", made | {"grid_size": 1, "token_size": 2})
    for number, told in enumerate(phenotypes):
        record = ScanRecord(f"person{number}", folder, dataset="ADHD-200", phenotypes=told)
        writer.write(record, torch.zeros(1, 1, 2), 2.0, {})
    return writer.finish()


def contents_with(folder, secrets):
    """Files that hold one of these in plain bytes, or in any cell of Parquet."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        text = path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            columns = [name for name in table.column_names if name != "tokens"]
            text += json.dumps(table.select(columns).to_pylist(), default=str) + str(table.schema.metadata)
        found += [(path.name, secret) for secret in secrets if secret in text]
    return found


# --- leaks, planted in each kind of file


def as_json(folder, text):
    (folder / "config.json").write_text(json.dumps({"model_type": "tablet", "nested": [{"note": text}]}))


def as_json_key(folder, text):
    (folder / "config.json").write_text(json.dumps({text: 1}))


def as_readme(folder, text):
    (folder / "README.md").write_text(f"# A model\n\nIt knows {text}, among others.\n")


def as_split(folder, text):
    (folder / "sex.csv").write_text(f"subject,fold-1\n{text},train\n")


def as_safetensors_metadata(folder, text):
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt", "from": text})


def as_safetensors_name(folder, text):
    save_file({f"weight {text}": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})


def as_safetensors_bytes(folder, text):
    values = torch.from_numpy(np.frombuffer(bytes(5) + text.encode() + bytes(5), np.uint8).copy())
    save_file({"weight": values}, folder / "model.safetensors", metadata={"format": "pt"})


def as_parquet_column(folder, text):
    pq.write_table(pa.table({"subject": ["p1", text], "tokens": [[1.0], [2.0]]}), folder / "runs.parquet")


def as_parquet_json(folder, text):
    pq.write_table(pa.table({"scan": [json.dumps({"name": text})]}), folder / "runs.parquet")


def as_parquet_metadata(folder, text):
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({"pandas": text}), folder / "runs.parquet")


def as_file_name(folder, text):
    (folder / f"{text.replace('/', '_')}.json").write_text("{}")


KINDS = [as_json, as_json_key, as_readme, as_split, as_safetensors_metadata, as_safetensors_name, as_safetensors_bytes]
KINDS += [as_parquet_column, as_parquet_json, as_parquet_metadata, as_file_name]
TELLING = {
    "subject": SUBJECTS[2],
    "key": f"sub-{SUBJECTS[2]}_task-rest",
    "short subject": "sub-07_task-rest",
    "path": "/data/study/visit/bold.nii.gz",
    "path of a drive": "/Volumes/lab/visit/bold.nii.gz",
    "path of a cluster": "/cluster/someone/bold.nii.gz",
    "Windows path": r"D:\study\bold.nii.gz",
    "day": "2019-03-04",
    "day in digits": "20190304",
    "scan": "MRN-4711_bold.nii.gz",
    "address": "someone@example.org",
    "access token": "tok" * 12,
    "another access token": "hf_" + "aB3" * 11,
    "access token of a page": "token_hf_oauth_" + "aB3" * 11,
    "day in words": "4 March 2019",
}


PAIRS = [(plant, what) for plant in KINDS for what in TELLING if plant is not as_file_name or "path" not in what]


@pytest.mark.parametrize(
    ("plant", "what"), PAIRS, ids=[f"{what} {plant.__name__.removeprefix('as_')}" for plant, what in PAIRS]
)
def test_a_planted_leak_is_found(tmp_path, plant, what):
    plant(tmp_path, TELLING[what])
    found = find_leaks(tmp_path, SECRETS)
    assert found, f"{what} went unseen"
    assert all(TELLING[what] not in sentence for sentence in found if plant is not as_file_name)


@pytest.mark.parametrize("plant", KINDS[:4] + KINDS[5:], ids=lambda plant: plant.__name__.removeprefix("as_"))
@pytest.mark.parametrize("text", ["a run at 2604.03619", "sha256.0123456789ab", "2.13.0+cpu", "10030700"])
def test_what_tells_nothing_is_let_through(tmp_path, plant, text):
    plant(tmp_path, text)
    assert find_leaks(tmp_path, SECRETS) == []


SEPARATORS = st.text("_-./:;,|()[]{}<>=#'\" \n\t", min_size=1, max_size=3)


@given(
    st.from_regex(r"[0-9]{5,8}|NDAR[A-Z0-9]{8}|[1-9][0-9]{4}_[0-9]{5}", fullmatch=True),
    st.text(),
    SEPARATORS,
    st.sampled_from(["", "sub", "sub-", "HCP"]),
    SEPARATORS,
    st.text(),
)
def test_names_are_found_whatever_stands_around_them(name, before, left, prefix, right, after):
    if prefix in ("sub", "HCP") and not name.isdigit():
        prefix = ""
    text = f"{before}{left}{prefix}{name}{right}{after}"
    # No number with a fraction; there are more ways to write its digits.
    assume(not re.search(rf"[0-9]\.{prefix}{name}", unicodedata.normalize("NFKC", text)))
    assert leaks_of_words(text, Secrets(ids=frozenset([name])))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Ann Smith", "it is ann  smith\nwho"),
        ("Ann Smith", "it is Ann\u00a0Smith"),
        ("Mu\u0308ller7", "sub-M\u00fcller7_task-rest"),
        ("M\u00fcller", "by Mu\u0308ller_x"),
        ("M\u00fcller", '{"who": "M\\u00fcller"}'),
        ("Stra\u00dfer", "(STRASSER)"),
        ("100307", "number \uff11\uff10\uff10\uff13\uff10\uff17."),
        ("\u5f20\u4e09\u674e\u56db\u738b", "sub-\u5f20\u4e09\u674e\u56db\u738b"),
        ("100307", "100\u200b307"),
    ],
)
@pytest.mark.parametrize("plant", [as_json, as_readme, as_parquet_column, as_parquet_json, as_parquet_metadata])
def test_names_are_found_however_their_letters_are_written(tmp_path, plant, name, written):
    plant(tmp_path, written)
    assert find_leaks(tmp_path, Secrets(ids=frozenset([name])))
    assert not find_leaks(tmp_path, Secrets(ids=frozenset(["another person"])))


def test_what_was_written_of_people_is_found_in_capitals_too(tmp_path):
    as_readme(tmp_path, "WAS AFRAID of the scanner")
    assert find_leaks(tmp_path, Secrets(texts=frozenset(["was afraid"])))


@given(st.from_regex(r"[0-9]{5,8}", fullmatch=True), st.from_regex(r"[0-9a-f]{12,64}", fullmatch=True))
def test_checksums_are_no_names(name, checksum):
    assume(len(set(re.findall(r"[a-f]+", checksum))) > 2)
    assert not leaks_of_words(f"sha256:{checksum} {Pseudonyms(b's' * 16).of(checksum)}", Secrets(ids=frozenset([name])))


@pytest.mark.parametrize("written", ["10001", "0010001", 10001])
def test_names_of_digits_with_and_without_their_zeros(tmp_path, written):
    (tmp_path / "config.json").write_text(json.dumps({"note": f"it is {written}"}))
    assert find_leaks(tmp_path, Secrets(ids=frozenset(["0010001"])))


@pytest.mark.parametrize(
    "name",
    ["training_args.bin", "optimizer.pt", "rng_state.pth", "model.pkl", "events.out.tfevents.1.host", "scan.nii.gz",
     "modeling.py", "picture.png", "store.arrow", "x.npy", ".env"],
)  # fmt: skip
def test_files_that_nobody_can_look_through_are_never_sent(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert find_leaks(tmp_path, Secrets()) != []


@pytest.mark.parametrize("where", ["behind", "between", "twice"])
def test_what_safetensors_files_hold_besides_their_tensors(tmp_path, where):
    """The library reads such a file, or an earlier one did, and shows nothing of it."""
    header = {"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    data = bytes(4)
    if where == "behind":
        data += b"MRN-4711"
    if where == "between":
        header["weight"]["data_offsets"], data = [8, 12], b"MRN-4711" + data
    text = json.dumps(header)
    if where == "twice":
        text = '{"__metadata__": {"of": "MRN-4711"}, "__metadata__": {"format": "pt"}, ' + text[1:]
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    (sentence,) = find_leaks(tmp_path, Secrets())
    assert "holds more than its tensors" in sentence


def test_names_of_digits_that_became_numbers_with_a_fraction(tmp_path):
    """As tables write them in which one cell is empty."""
    name = float(SUBJECTS[2])
    pq.write_table(pa.table({"mother": [name, None, 1.5]}), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps({"mother": name}))
    assert len(find_leaks(tmp_path, SECRETS)) == 2
    pq.write_table(pa.table({"intensity_scale": [name]}), tmp_path / "a.parquet")
    assert len(find_leaks(tmp_path, SECRETS)) == 1


def test_a_column_called_tokens_may_hold_numbers_alone(tmp_path):
    pq.write_table(pa.table({"tokens": [SUBJECTS[2]]}), tmp_path / "a.parquet")
    assert len(find_leaks(tmp_path, SECRETS)) == 1
    pq.write_table(pa.table({"tokens": [[[float(SUBJECTS[2])]]]}), tmp_path / "a.parquet")
    assert find_leaks(tmp_path, SECRETS) == []


def test_secrets_do_not_show_themselves():
    assert repr(SECRETS) == "Secrets(allowed=())"


def test_short_names_count_where_people_are_named(tmp_path):
    pq.write_table(pa.table({"subject": ["07"], "session": ["07"]}), tmp_path / "runs.parquet")
    (sentence,) = find_leaks(tmp_path, SECRETS)
    assert "column subject" in sentence
    pq.write_table(pa.table({"subject": ["p7"], "session": ["07"]}), tmp_path / "runs.parquet")
    assert find_leaks(tmp_path, SECRETS) == []


def test_columns_of_moments_and_days(tmp_path):
    pq.write_table(pa.table({"scanned": [20190304, 20190305]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"scanned": pa.array([1], pa.timestamp("s"))}), tmp_path / "b.parquet")
    assert [sentence.split(":")[0] for sentence in find_leaks(tmp_path, Secrets())] == ["a.parquet", "b.parquet"]


def test_links_and_damaged_files(tmp_path):
    os.symlink("/etc/hostname", tmp_path / "README.md")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    (tmp_path / "config.json").write_text("{")
    assert len(find_leaks(tmp_path, Secrets())) == 3


def test_code_goes_only_if_it_is_the_package_s(tmp_path):
    import hashlib

    (tmp_path / "tokens.py").write_text("x = 1\n")
    checksum = hashlib.sha256(b"x = 1\n").hexdigest()
    assert find_leaks(tmp_path, Secrets(), {"tokens.py": checksum}) == []
    (tmp_path / "tokens.py").write_text("x = 2\n")
    assert "no Python file of this package" in find_leaks(tmp_path, Secrets(), {"tokens.py": checksum})[0]


def test_a_table_of_runs_from_elsewhere_names_no_file_outside(make_store, tmp_path, monkeypatch):
    """A dataset of somebody else, unpacked here, writes nowhere but into its own folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    prepare(make_store().folder, tmp_path / "sent", "lab/tokens")
    index = pq.read_table(tmp_path / "sent" / "runs.parquet")
    for name in ("../../escaped.arrow", "/tmp/escaped.arrow", "runs/../../escaped.arrow", "splits/x", "runs\\..\\x"):
        place = index.schema.get_field_index("file")
        evil = index.set_column(place, "file", pa.array([name] * len(index)))
        pq.write_table(evil, tmp_path / "sent" / "runs.parquet")
        with pytest.raises(InputError, match="is not one of the store"):
            TokenDataset.load(tmp_path / "sent")
    assert not list(tmp_path.rglob("escaped*"))


def test_labels_of_a_model_from_elsewhere_are_no_formulas(tmp_path):
    """What a table of predictions gets from a model, a spreadsheet takes for text; it is read back as it was."""
    table = PredictionTable(tmp_path / "predictions.csv", "evil")
    label = '=HYPERLINK("http://example.org", "open")'
    for scan, prediction in (("a.nii", label), ("b.nii", "-1.5"), ("c.nii", -2.5), ("d.nii", "'=1"), ("@e.nii", "M")):
        table.add(tmp_path.__class__(scan), {"prediction": prediction, f"score_{label}": "0.5", "=x": 1})
    with (tmp_path / "predictions.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+@" and cell]
    assert {"-1.5", "-2.5", f"'{label}", "''=1"} <= set(cells)
    again = PredictionTable(tmp_path / "predictions.csv", "evil")
    assert [again.get(name)["prediction"] for name in ("a.nii", "b.nii", "d.nii")] == [label, "-1.5", "'=1"]
    assert again.get("@e.nii")["=x"] == "1"
