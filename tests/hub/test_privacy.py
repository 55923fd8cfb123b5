"""What of a store is published: named columns that hold no dates or identifiers, pseudonyms, numbered sites."""

import json
import stat
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import PLANTED, SITES, SUBJECTS

from tablet_hf.datasets import TokenDataset, TokenStoreWriter, read_splits
from tablet_hf.errors import InputError
from tablet_hf.hub.privacy import Pseudonyms, published_classes, published_runs
from tablet_hf.hub.publishing import Sharing, prepare
from tablet_hf.hub.sharing import decide
from tablet_hf.hub.training_data import UNNAMED, TrainingData
from tablet_hf.sources import ScanRecord

RIGHT = "Our agreement with the consortium names this project"
NAMES = Pseudonyms(b"s" * 32)
OPEN = TrainingData("sex", ("ADHD-200",), 112, 12, 130, 20_190, False)
MARKED = replace(OPEN, is_restricted=True)


@pytest.fixture
def runs_with(tmp_path):
    """A function that writes a store of open data, with a subject for each of these."""

    def make(phenotypes, **labels):
        made = {"autoencoder": "natural-f32c32", "signal": "intensity", "scaling": "max", "volume_size": 96}
        writer = TokenStoreWriter(tmp_path / "store", made | {"grid_size": 1, "token_size": 2})
        for number, values in enumerate(phenotypes):
            own = {"subject": f"subject{number}"} | {name: each[number] for name, each in labels.items()}
            record = ScanRecord(scan=tmp_path, dataset="ADHD-200", phenotypes=values, **own)
            writer.write(record, torch.zeros(1, 1, 2), 2.0, {"name": f"{number}"})
        return writer.finish()

    return make


class TestSharing:
    @pytest.mark.parametrize("kind", ["model", "autoencoder", "dataset"])
    def test_restricted_data_need_a_right(self, kind):
        with pytest.raises(InputError, match="--i-have-the-right-to-share"):
            decide("x", kind, Sharing(is_restricted=True), [])
        assert decide("x", kind, Sharing(is_restricted=True, right_to_share=RIGHT), []).is_gated

    def test_restricted_tokens_are_never_public(self):
        public = Sharing(is_private=False, is_restricted=True, right_to_share=RIGHT)
        with pytest.raises(InputError, match="--public"):
            decide("x", "dataset", public, [])
        decide("x", "model", public, [])

    @pytest.mark.parametrize(("kind", "right"), [("model", None), ("dataset", None), ("dataset", RIGHT)])
    def test_unknown_is_not_open(self, kind, right):
        with pytest.raises(InputError, match="--source-open"):
            decide("x", kind, Sharing(is_private=False, right_to_share=right), [])
        assert decide("x", kind, Sharing(right_to_share=right), []).is_restricted is None
        decide("x", kind, Sharing(is_private=False, is_restricted=False, right_to_share=right), [])

    @pytest.mark.parametrize("right", ["", "yes", "I may"])
    def test_a_right_is_a_sentence(self, right):
        with pytest.raises(InputError, match="sentence"):
            decide("x", "dataset", Sharing(is_restricted=True, right_to_share=right), [])

    @pytest.mark.parametrize(
        ("trainings", "is_restricted"),
        [
            ([{}, {}], False),
            *(
                ([{}, {"studies": (name,)}], True)
                for name in ("HCP", "hcp_ya_fmriprep", "UK Biobank imaging", "lab_hcp")
            ),
            *(([{"studies": (name,)}, {}], True) for name in ("UKB", "ABCD")),
            *(([first, {}], None) for first in ({"studies": ()}, {"studies": ("ADHD-200", UNNAMED)})),
            *(([first, {}], None) for first in ({"studies": ("ours",)}, {"started_from": "lab/tablet"})),
            ([], None),
        ],
    )
    def test_names_of_studies(self, trainings, is_restricted):
        data = [replace(OPEN, **changes) for changes in trainings]
        assert decide("x", "model", Sharing(right_to_share=RIGHT), data).is_restricted is is_restricted
        assert decide("x", "model", Sharing(is_restricted=False), data).is_restricted is False

    def test_a_mark_is_not_removed(self):
        for data in ([OPEN, MARKED], [MARKED, OPEN]):
            with pytest.raises(InputError, match="--source-open"):
                decide("x", "model", Sharing(is_restricted=False), data)
            assert decide("x", "model", Sharing(right_to_share=RIGHT), data).is_restricted


class TestPseudonyms:
    @given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
    def test_they_are_equal_where_words_and_salt_are(self, one, other):
        assert (NAMES.of(*one) == NAMES.of(*other)) == (one == other)
        assert NAMES.of(*one) != Pseudonyms(b"t" * 32).of(*one)

    def test_the_salt_is_next_to_the_store_and_only_its_owner_reads_it(self, tmp_path):
        (tmp_path / "store").mkdir()
        first = Pseudonyms.next_to(tmp_path / "store").of("a")
        salt = tmp_path / "store.salt"
        assert stat.S_IMODE(salt.stat().st_mode) == 0o600
        assert not any((tmp_path / "store").iterdir())
        assert Pseudonyms.next_to(tmp_path / "store").of("a") == first
        salt.unlink()
        assert Pseudonyms.next_to(tmp_path / "store").of("a") != first
        salt.write_text("no salt")
        with pytest.raises(InputError, match=r"store\.salt"):
            Pseudonyms.next_to(tmp_path / "store")


class TestRuns:
    def test_nothing_that_is_not_named(self, make_store):
        runs = published_runs(make_store(), NAMES)
        assert len({run.subject for run in runs}) == len({run.key for run in runs}) == 6
        assert {run.site for run in runs} == {"site-1", "site-2"}
        assert {(run.session, run.task, run.family) for run in runs} == {("1", "rest", None)}
        assert {json.dumps(run.phenotypes) for run in runs} == {"{}"}
        written = json.dumps([vars(run) for run in runs], default=str)
        assert not [secret for secret in PLANTED if secret in written]

    def test_what_is_named(self, make_store):
        runs = published_runs(make_store(is_restricted=True), NAMES, ["age", "sex", "centre", "family"])
        assert [run.phenotypes["sex"] for run in runs] == list("FMFMFM")
        assert [run.phenotypes["age"] for run in runs] == [20, 21, 22, 23, 24, 25]
        assert [run.phenotypes["centre"] for run in runs] == [run.site for run in runs]
        assert [run.family == runs[0].family for run in runs] == [True, True, False, False, False, False]
        with pytest.raises(InputError, match="sexx"):
            published_runs(make_store(), NAMES, ["sexx"])

    def test_open_data_may_keep_subject_ids(self, make_store):
        assert [run.subject for run in published_runs(make_store(), NAMES, keep_subjects=True)] == SUBJECTS
        with pytest.raises(InputError, match="--keep-subjects"):
            published_runs(make_store(True), NAMES, keep_subjects=True)

    def test_the_order_of_sites_depends_on_the_salt(self, runs_with):
        sites = ["UM_1", "NYU", "UM_1", None, "Leiden_2180"]
        store = runs_with([{}] * 5, site=sites)
        orders = {tuple(run.site for run in published_runs(store, Pseudonyms(bytes([salt] * 16)))) for salt in range(9)}
        assert len(orders) > 1
        for order in orders:
            assert (order[0], order[3], set(order)) == (order[2], None, {"site-1", "site-2", "site-3", None})

    def test_sessions_are_numbered_in_their_order_within_a_subject(self, runs_with):
        store = runs_with(
            [{}] * 5,
            subject=list("aabba"),
            session=["20190304", "20180101", "20170101", None, "20200101"],
            run=["1", "2", "1", "2", "3"],
        )
        found = {
            run.scan["name"]: other.session for run, other in zip(store.runs, published_runs(store, NAMES), strict=True)
        }
        assert found == {"0": "2", "1": "1", "2": "1", "3": None, "4": "3"}

    @pytest.mark.parametrize("label", ["rest of Ann", "100307", "2019-03-04"])
    def test_tasks_and_runs_that_are_not_plain_are_numbered(self, runs_with, label):
        for run in published_runs(runs_with([{}] * 2, task=[label, "rest"], run=["1", label]), NAMES):
            assert (run.task, run.run) == ("1", "1")


class TestColumns:
    @pytest.mark.parametrize("name", ["Age_in_Yrs", "p21003_i2", "age", "AgeAtScan_age", "marriage age"])
    def test_ages_are_in_whole_years(self, runs_with, name):
        store = runs_with([{name: age} for age in (7.9167, 21.0, 35.9999, 89.99, 90.2, 101.5)])
        ages = [run.phenotypes[name] for run in published_runs(store, NAMES, [name])]
        assert ages == [7, 21, 35, 89, 90, 90]
        assert set(map(type, ages)) == {float}

    @pytest.mark.parametrize("values", [[1.25, -3.5, None, 900.125], [True, False, None, True], [1, 2, 1, 9_999]])
    def test_numbers_stay(self, runs_with, values):
        store = runs_with([{"stage": value} for value in values])
        assert [run.phenotypes["stage"] for run in published_runs(store, NAMES, ["stage"])] == values

    @pytest.mark.parametrize("text", ["1.2", "site 4", "right-handed", "2/3", "control", "22-25", ">= 90", "Español"])
    def test_categories_stay(self, runs_with, text):
        store = runs_with([{"group": text}, {"group": "other"}] * 2)
        assert [run.phenotypes["group"] for run in published_runs(store, NAMES, ["group"])] == [text, "other"] * 2

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            *(("visit", [day] * 4) for day in ("04/03/19", "4.3.19", "04-Mar-19", "4 March 2019", "March 4, 2019")),
            *(("visit", [day] * 4) for day in ("2019-03", "2019-03-04", "20190304", "4. Mar 19", "2019W10")),
            *(("visit", [day, day + 1] * 2) for day in (20190304, 43528, 43528.5, 2458547, 1551657600)),
            *(("contact", [text] * 4) for text in ("ann@lab.org", "http://lab.org/ann", "/home/ann", "+49 89 1234567")),
            *(("note", [text] * 4) for text in ("was afraid of the scanner, and so left it early", "a\nb", "")),
            ("phone", [4989123, 4989124] * 2),
            ("born", [1985, 1986, 1990, None]),
            ("reason", ["none", "none", "none", "mother ill"]),
            ("first_name", ["Ann", "Bo", "Cy", "Di"]),
            ("id", ["subject0", "subject1", "subject2", "subject3"]),
            ("kind", [f"k{number // 2}" for number in range(44)]),
            *((name, [62.5, 95.2] * 2) for name in ("age_months", "AgeInDays", "agemos", "interview_age", "Age_Weeks")),
            ("age", [431.0, 20.0] * 2),
            ("age_z", [-1.2, 1.2] * 2),
        ],
    )
    def test_dates_identifiers_and_free_text_are_refused(self, runs_with, name, values):
        with pytest.raises(InputError, match=f"'{name}'") as caught:
            published_runs(runs_with([{name: value} for value in values]), NAMES, [name])
        assert not [
            value for value in values if isinstance(value, str) and len(value) > 4 and value in str(caught.value)
        ]

    def test_each_session_of_a_subject_counts(self, runs_with):
        """The value of the last session is not all that there is."""
        store = runs_with(
            [{"seen": "2019-03-04"}, {"seen": "no"}, {"seen": "no"}], subject=list("aab"), session=list("121")
        )
        with pytest.raises(InputError, match="seen"):
            published_runs(store, NAMES, ["seen"])

    @pytest.mark.parametrize("ids", [["01", "02", "03", "04"], ["7", "8", "9", "10"]])
    def test_short_subject_ids_are_refused(self, runs_with, ids):
        store = runs_with([{"code": int(subject)} for subject in ids], subject=ids)
        with pytest.raises(InputError, match="code"):
            published_runs(store, NAMES, ["code"])


def test_classes_of_a_model():
    assert published_classes("sex", ["F", "M"]) == ["F", "M"]
    assert published_classes("21003-2.0", ["LABEL_0"]) == ["LABEL_0"]
    assert published_classes("Site_ID", ["Leiden-2180", "NYU"]) == ["site-1", "site-2"]
    for label, classes in (("subject", SUBJECTS), ("visit", ["2019-03-04"]), ("/home/ann/sex", ["F"])):
        with pytest.raises(InputError, match="classes"):
            published_classes(label, classes)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_tokens_and_splits_are_the_same_under_pseudonyms(make_store, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    store = make_store(dtype=dtype)
    prepare(store.folder, tmp_path / "to-upload", "lab/tokens")
    names = Pseudonyms.next_to(store.folder)
    back = TokenDataset.load(tmp_path / "to-upload")
    assert back.check() == []
    by_name = {run.subject: run for run in back.runs}
    for run in store.runs:
        assert torch.equal(back.window(by_name[names.of(run.dataset, run.subject)].key), store.window(run.key))
    splits = read_splits(back.folder / "splits" / "splits-1.csv", runs=back.runs)
    site = by_name[names.of("ADHD-200", SUBJECTS[0])].site
    assert store.runs[0].site == SITES[0]
    assert [split.name for split in splits] == ["fold-1", site, "split-3"]
    for split in splits:
        assert split.assignment[names.of("ADHD-200", SUBJECTS[5])] == "test"
        assert (split.counts["train"], split.settings) == (4, {})
    assert [run.key for run in back.runs] == sorted(run.key for run in back.runs)


def test_a_table_of_runs_from_elsewhere_names_no_file_outside(make_store, tmp_path, monkeypatch):
    """A dataset of others, unpacked here, writes nowhere but into its own folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    prepare(make_store().folder, tmp_path / "to-upload", "lab/tokens")
    index = pq.read_table(tmp_path / "to-upload" / "runs.parquet")
    for name in ("../../escaped.arrow", "/tmp/escaped.arrow", "runs/../../escaped.arrow", "splits/x", "runs\\..\\x"):
        column = index.schema.get_field_index("file")
        pq.write_table(index.set_column(column, "file", pa.array([name] * len(index))),
                       tmp_path / "to-upload" / "runs.parquet")  # fmt: skip
        with pytest.raises(InputError, match=r"runs\.parquet"):
            TokenDataset.load(tmp_path / "to-upload")
    assert not list(tmp_path.rglob("escaped*"))
