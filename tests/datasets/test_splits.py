"""Splits by subject: nobody on both sides, strata in all parts, and files that people can edit."""

import itertools
import json
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tablet_hf.cli.__main__ import app
from tablet_hf.datasets import TokenDataset, TokenStoreWriter
from tablet_hf.datasets.split_files import read_splits, write_splits
from tablet_hf.datasets.splits import (
    PARTS,
    Split,
    check,
    families_of,
    family_ids,
    folds,
    leave_one_site_out,
    runs_in,
    split_subjects,
    subject_ids,
)
from tablet_hf.errors import InputError
from tablet_hf.sources import ScanRecord

# A small cohort is dealt out with warnings; what they say has tests of its own.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def names(count):
    return [f"{number:04d}" for number in range(count)]


def run(subject, dataset=None, family=None):
    return SimpleNamespace(subject=subject, dataset=dataset, family=family)


@st.composite
def cohorts(draw, min_size=12):
    """Subjects with labels (some missing), sites and families; the first ten have a label and no family."""
    count = draw(st.integers(min_size, 60))
    labels = draw(st.lists(st.sampled_from(["F", "M", "M", None]), min_size=count, max_size=count))
    sites = draw(st.lists(st.sampled_from(["A", "B", "C", None]), min_size=count, max_size=count))
    families = draw(st.lists(st.sampled_from([None, None, *range(count // 4)]), min_size=count, max_size=count))
    labels[:10], families[:10] = ["F", "M"] * 5, [None] * 10
    return {"subjects": names(count), "labels": labels, "sites": sites, "families": families}


# --- what always holds


@settings(deadline=None, max_examples=60)
@given(cohorts(), st.integers(0, 2**32 - 1))
def test_everybody_with_a_label_stands_in_one_part_and_families_stay_together(cohort, seed):
    splits = folds(**cohort, seed=seed)
    without = {subject for subject, label in zip(cohort["subjects"], cohort["labels"], strict=True) if label is None}
    tested = [subject for split in splits for subject in split.subjects("test")]
    assert len(tested) == len(set(tested))
    for split in splits:
        assert set(split.left_out) == without
        assert set(split.assignment) == set(cohort["subjects"]) - without
        assert all(split.counts[part] > 0 for part in PARTS)
        part_of_family = {}
        for subject, family in zip(cohort["subjects"], cohort["families"], strict=True):
            if family is not None and subject not in without:
                assert part_of_family.setdefault(family, split.assignment[subject]) == split.assignment[subject]
        check(split, dict(zip(cohort["subjects"], cohort["families"], strict=True)))


@settings(deadline=None, max_examples=30)
@given(cohorts(), st.randoms(use_true_random=False), st.integers(0, 1000))
def test_the_seed_decides_and_not_the_order_of_the_runs(cohort, random, seed):
    rows = list(zip(*cohort.values(), strict=True)) * 2  # two runs a subject
    random.shuffle(rows)
    shuffled = dict(zip(cohort, map(list, zip(*rows, strict=True)), strict=True))
    assert folds(**shuffled, seed=seed) == folds(**cohort, seed=seed)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=4, max_size=4), st.integers(10, 40), st.integers(0, 3), st.integers(0, 99))
def test_without_families_parts_have_their_share_of_each_large_stratum_and_label(counts, large, place, seed):
    """A stratum of m members has between floor(m / 10) and ceil(m / 10) in each tenth."""
    counts[place] = large
    strata = dict(zip(itertools.product("FM", "AB"), counts, strict=True))
    people = [stratum for stratum, members in strata.items() for _ in range(members)]
    labels, sites = map(list, zip(*people, strict=True))
    (split, *_) = folds(names(len(people)), labels, sites, seed=seed)
    found = Counter(
        (*stratum, split.assignment[name]) for name, stratum in zip(names(len(people)), people, strict=True)
    )
    for stratum, members in strata.items():
        for part, tenths in (("train", 8), ("validation", 1), ("test", 1)):
            if members >= 10:
                assert tenths * (members // 10) <= found[*stratum, part] <= tenths * -(-members // 10)
    for label in "FM":
        in_test = sum(found[label, site, "test"] for site in "AB")
        assert labels.count(label) // 10 <= in_test <= -(-labels.count(label) // 10)
    assert len(people) // 10 <= split.counts["test"] <= -(-len(people) // 10)


@settings(deadline=None, max_examples=30)
@given(cohorts(), st.integers(0, 100))
def test_leaving_one_site_out_tests_on_it_alone(cohort, seed):
    cohort["sites"] = ["ABC"[place % 3] for place in range(len(cohort["subjects"]))]
    splits = leave_one_site_out(**cohort, seed=seed)
    site_of = dict(zip(cohort["subjects"], cohort["sites"], strict=True))
    assert [split.name for split in splits] == ["site-A", "site-B", "site-C"]
    for split in splits:
        for subject, part in split.assignment.items():
            assert (part == "test") == (site_of[subject] == split.name[-1])
        assert split.counts["validation"] > 0
        assert sorted([*split.assignment, *split.left_out]) == cohort["subjects"]
        check(split, dict(zip(cohort["subjects"], cohort["families"], strict=True)))


# --- single behaviours


def test_the_papers_split_of_a_hundred():
    labels = ["ADHD"] * 40 + ["control"] * 60
    splits = folds(names(100), labels)
    assert [split.name for split in splits] == ["fold-1", "fold-2", "fold-3", "fold-4"]
    for split in splits:
        assert split.counts == {"train": 80, "validation": 10, "test": 10}
        tested = Counter(labels[int(subject)] for subject in split.subjects("test"))
        assert tested == {"ADHD": 4, "control": 6}


def test_one_split_is_the_first_fold_and_another_seed_is_another_split():
    one = split_subjects(names(50))
    assert one.assignment == folds(names(50))[0].assignment
    assert one.assignment != split_subjects(names(50), seed=1).assignment


def test_a_lone_subject_of_a_stratum_is_not_always_in_the_same_part():
    labels = ["rare"] + ["common"] * 39
    parts = {split_subjects(names(40), labels, seed=seed).assignment["0000"] for seed in range(30)}
    assert parts == set(PARTS)


@pytest.mark.parametrize(
    ("fractions", "counts"),
    [
        ((0.7, 0.15, 0.15), (140, 30, 30)),
        ((0.5, 0.25, 0.25), (100, 50, 50)),
        ((0.8, 0.2, 0), (160, 40, 0)),
        ((0.9, 0, 0.1), (180, 0, 20)),
        ((0.98, 0.01, 0.01), (196, 2, 2)),
    ],
)
def test_other_fractions(fractions, counts):
    found = split_subjects(names(200), fractions=fractions).counts
    assert list(found.values()) == pytest.approx(counts, abs=2)
    assert [count == 0 for count in found.values()] == [count == 0 for count in counts]


def test_a_regression_is_stratified_by_quantiles():
    rng = np.random.default_rng(0)
    ages = rng.gamma(2, 10, 200)
    order = np.argsort(ages)
    for split in folds(names(200), ages.tolist()):
        tested = {int(subject) for subject in split.subjects("test")}
        assert [len(tested & set(fifth.tolist())) for fifth in np.split(order, 5)] == [4] * 5


def test_numbers_of_few_values_are_classes():
    grades = [1, 2, 3, 4] * 25
    tested = Counter(grades[int(subject)] for subject in split_subjects(names(100), grades).subjects("test"))
    assert all(2 <= tested[grade] <= 3 for grade in (1, 2, 3, 4))


def test_missing_labels_of_all_kinds_are_left_out():
    labels = ["F", "M"] * 20 + [None, float("nan"), np.float32("nan")]
    with pytest.warns(UserWarning, match="3 subjects have no label"):
        split = split_subjects(names(43), labels)
    assert split.left_out == ("0040", "0041", "0042")
    assert split.settings["num_subjects"] == 40


def test_of_differing_labels_the_most_frequent_counts():
    people = [*names(40), "0000", "0000", "0001"]
    labels = ["F", "M"] * 20 + ["M", "M", None]
    changed = ["M", "M"] + ["F", "M"] * 19
    assert split_subjects(people, labels).assignment == split_subjects(names(40), changed).assignment


def test_arrays_and_columns_of_tables_will_do():
    table = pd.DataFrame(
        {"who": names(60), "sex": ["F", "M", None] * 20, "site": ["A", "B"] * 30, "family": [1, 2.5] * 30}
    )
    table.loc[2:, "family"] = np.nan
    lists = [["F", "M", None] * 20, ["A", "B"] * 30, [1, 2.5] + [None] * 58]
    from_table = split_subjects(table["who"], table["sex"], table["site"], table["family"])
    from_arrays = split_subjects(*(table[name].to_numpy() for name in table))
    assert from_table == from_arrays == split_subjects(names(60), *lists)
    json.dumps(from_arrays.settings)


def test_families_that_share_a_subject_are_one():
    subjects, families = ["a", "b", "b", "c", *names(30)], ["1", "1", "2", "2", *[None] * 30]
    parts = {
        tuple(split_subjects(subjects, families=families, seed=seed).assignment[s] for s in "abc") for seed in range(40)
    }
    assert parts == {("train",) * 3, ("validation",) * 3, ("test",) * 3}


@pytest.mark.parametrize("labels", [None, ["F", "M", "M"] * 40])
def test_families_are_tested_on_as_often_as_others(labels):
    families = [place // 2 for place in range(40)] + [None] * 80
    tested = [
        sum(
            int(subject) < 40
            for subject in split_subjects(names(120), labels, families=families, seed=seed).subjects("test")
        )
        for seed in range(50)
    ]
    assert 3.2 < np.mean(tested) < 4.8  # of 40: a tenth


def test_a_very_large_family_is_learnt_from():
    families = ["clan"] * 40 + [None] * 60
    for seed in range(10):
        split = split_subjects(names(100), families=families, seed=seed)
        assert {split.assignment[name] for name in names(40)} == {"train"}


def test_small_sites_are_pooled_and_said():
    labels = ["F", "M"] * 60
    sites = ["big"] * 100 + ["tiny"] * 6 + ["small"] * 14
    with pytest.warns(
        UserWarning, match=r"4 strata have fewer subjects than the 10 pieces.*label F at site small \(7\)"
    ):
        split = split_subjects(names(120), labels, sites)
    tested = [int(subject) for subject in split.subjects("test")]
    assert sum(place < 100 for place in tested) == 10
    assert Counter(labels[place] for place in tested) == {"F": 6, "M": 6}


def test_few_subjects_give_every_part_both_classes_rather_than_the_fractions():
    with pytest.warns(UserWarning, match="hold 50%, 25%, 25% of the subjects instead of 80%, 10%, 10%"):
        split = split_subjects(names(8), ["F", "M"] * 4)
    for part in PARTS:
        assert {int(subject) % 2 for subject in split.subjects(part)} == {0, 1}


def test_strata_are_given_up_where_nothing_is_left_of_them():
    with pytest.warns(UserWarning, match="too few subjects to stratify by label"):
        split = split_subjects(names(12), [f"diagnosis {number}" for number in range(12)])
    assert split.settings["stratified_by"] == []
    assert sum(split.counts.values()) == 12


def test_a_good_cohort_is_split_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = split_subjects(names(100), ["F", "M"] * 50, ["A"] * 50 + ["B"] * 50)
    assert split.settings["stratified_by"] == ["label", "site"]
    assert split.settings["notes"] == []


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.1, 0.2), (0, 0.5, 0.5), (1, 0, 0), (0.995, 0.005, 0)])
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(InputError, match="add up to 1"):
        split_subjects(names(50), fractions=fractions)


def test_too_few_subjects_or_too_many_folds_are_refused():
    with pytest.raises(InputError, match="2 subjects of 2 families are too few"):
        split_subjects(names(2))
    with pytest.raises(InputError, match="1 subjects"):
        split_subjects(names(20), ["F"] + [None] * 19)
    with pytest.raises(InputError, match="no subjects"):
        split_subjects([])
    with pytest.raises(InputError, match="11 splits"):
        folds(names(100), num_folds=11)
    with pytest.raises(InputError, match="of 2 families are too few"):
        folds(names(100), families=[0, 1] * 50)
    with pytest.raises(ValueError, match="labels must have one entry"):
        split_subjects(names(20), ["F"])


def test_ten_folds_test_everybody_once():
    tested = [subject for split in folds(names(43), num_folds=10) for subject in split.subjects("test")]
    assert sorted(tested) == names(43)


def test_leaving_a_site_out_keeps_kin_and_travellers_out_of_training():
    sites = ["A"] * 20 + ["B"] * 20
    subjects = [*names(40), "0005"]  # 0005 was scanned at both sites
    families = ["f" if place in (0, 39) else None for place in range(41)]
    first, second = leave_one_site_out(subjects, sites=[*sites, "B"], families=families)
    assert first.left_out == ("0005", "0039")
    assert second.left_out == ("0000", "0005")
    assert first.counts["test"] == 19
    assert first.settings["site"] == "A"


def test_leaving_a_site_out_needs_two():
    for sites in (None, ["A"] * 20, [None] * 20):
        with pytest.raises(InputError, match="two sites"):
            leave_one_site_out(names(20), sites=sites)


# --- subjects of several datasets


def test_subjects_of_several_datasets_are_told_apart():
    runs = [run("01", "HCP", "f1"), run("01", "UKB", "f1"), run("02", "HCP")]
    assert subject_ids(runs) == ["HCP/01", "UKB/01", "HCP/02"]
    assert family_ids(runs) == ["HCP/f1", "UKB/f1", None]
    assert subject_ids(runs[::2]) == ["01", "02"]


def test_runs_of_a_part():
    runs = [run("a"), run("b"), run("a"), run("c")]
    split = Split("split", {"a": "train", "b": "test"})
    assert runs_in(split, runs, "train") == [0, 2]
    assert runs_in(split, runs, "test") == [1]
    with pytest.raises(InputError, match="none of the 4 runs"):
        runs_in(split, runs, "validation")
    with pytest.raises(ValueError, match="train, validation, test"):
        runs_in(split, runs, "val")


# --- both sides


def test_members_of_a_family_on_both_sides_are_refused():
    split = Split("mine", {"a": "train", "b": "test", "c": "validation"})
    check(split, {"a": None, "b": None, "z": "1"})
    with pytest.raises(InputError, match="mine: the family '1' stands on both sides, 'a' in train and 'b' in test"):
        check(split, {"a": "1", "b": "1"})


def test_a_subject_with_and_without_prefix_is_one():
    with pytest.raises(InputError, match="the subject '01' stands on both sides"):
        check(Split("mine", {"01": "train", "sub-01": "test"}))
    with pytest.raises(InputError, match="the subject 'HCP/01'"):
        check(Split("mine", {"HCP/sub-01": "train", "HCP/01": "test"}))
    check(Split("mine", {"01": "train", "sub-02": "test"}))


def test_words_that_are_no_part_are_refused():
    with pytest.raises(InputError, match="'held out'"):
        Split("mine", {"01": "held out"})


# --- files


@settings(deadline=None, max_examples=20)
@given(cohort=cohorts())
def test_what_is_written_is_read(tmp_path_factory, cohort):
    path = tmp_path_factory.mktemp("splits") / "sex.csv"
    splits = folds(**cohort)
    write_splits(splits, path)
    assert read_splits(path, cohort["subjects"]) == splits


def test_the_file_opens_in_pandas_and_says_beside_it_how_it_was_made(tmp_path):
    path = tmp_path / "age.csv"
    write_splits(folds([f"s{name}" for name in names(40)], [20 + place for place in range(39)] + [None], seed=3), path)
    table = pd.read_csv(path)
    assert list(table) == ["subject", "fold-1", "fold-2", "fold-3", "fold-4"]
    assert table["subject"].tolist() == [f"s{name}" for name in names(40)]
    assert table["fold-1"].value_counts()["test"] in (3, 4)
    assert table.iloc[-1, 1:].isna().all()
    made = json.loads((tmp_path / "age.json").read_text())["splits"]["fold-1"]
    assert (made["seed"], made["num_left_out"], made["settings"]["fractions"]) == (3, 1, [0.8, 0.1, 0.1])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["age.csv", "age.json"]


def test_a_split_that_was_edited_does_not_claim_to_be_drawn(tmp_path):
    path = tmp_path / "a.csv"
    write_splits(folds(names(40)), path)
    lines = path.read_text().splitlines()
    subject, first, *rest = lines[1].split(",")
    lines[1] = ",".join([subject, "test" if first == "train" else "train", *rest])
    path.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r"a\.csv: fold-1 was changed"):
        changed, same, *_ = read_splits(path)
    assert (changed.seed, changed.settings) == (None, {})
    assert same.settings["num_folds"] == 4


def write(path, text):
    path.write_bytes(text.encode())
    return path


def test_a_file_of_ones_own(tmp_path):
    path = write(
        tmp_path / "mine.csv",
        "\ufeffparticipant_id;my split\r\nsub-01;train\r\n\r\nsub-02;Valid\r\n03;dev\r\n04; test\r\n05;\r\nsub-05;\r\n",
    )
    write(tmp_path / "mine.json", '{"participant_id": {"Description": "of BIDS"}}')
    (split,) = read_splits(path, ["01", "02", "03", "04", "05"])
    assert split == Split(
        "my split", {"01": "train", "02": "validation", "03": "validation", "04": "test"}, left_out=("05",)
    )


def test_a_table_with_tabs_and_prefixes_that_belong_to_the_names(tmp_path):
    path = write(tmp_path / "mine.tsv", "fold\tsubject\ntrain\tsub-01\nval\tHCP/sub-02\n")
    (split,) = read_splits(path, ["sub-01", "HCP/02"])
    assert split.assignment == {"sub-01": "train", "HCP/02": "validation"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,a\n01,train\n09,test\n", r"line 3: the data set has no subject '09'; delete the line"),
        ("subject,a\n01,train\n2,test\n", r"line 3: .* no subject '2'; it has '02': a spreadsheet"),
        ("subject,a\n01,train\n", r"1 subjects of the data set have no row, the first is '02'"),
        ("subject,a\n01,train\n02,tset\n", r"line 3: 'tset' in column 'a' is no part"),
        ("subject,a\n01,train\n02,test\n01,test\n", r"line 4: the subject '01' stands elsewhere here than in line 2"),
        ("subject,a\n01,train\n02,test\nsub-01,\n", r"line 4: the subject '01' stands elsewhere"),
        ("subject,a\n01,train\n02\n", r"line 3: it has 1 cells, but the first line has 2"),
        ("subject,a\n01,train\n,test\n", r"line 3: the cell of the subject is empty"),
        ("subject\n01\n02\n", r"line 1: the columns are 'subject'; there must be one called subject and one"),
        ("who,a\n01,train\n", r"line 1: the columns are 'who', 'a'"),
        ("subject,a,a\n01,train,test\n", r"line 1: .*different names"),
        ("subject,a\n", "it has no subjects"),
        ("", "it has no subjects"),
        ('subject,a\n"01,train\n', "it is no table"),
        ("subject,a\n01,train\n02,test\n", r"column a: the family 'f' stands on both sides"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_line(tmp_path, text, message):
    path = write(tmp_path / "mine.csv", text)
    with pytest.raises(InputError, match=message) as error:
        read_splits(path, ["01", "02"], {"01": "f", "02": "f"})
    assert str(error.value).startswith(str(path))


def test_runs_say_who_there_is_and_who_is_kin(tmp_path):
    runs = [run("a", family="f"), run("b", family="f"), run("c"), run("c")]
    path = write(tmp_path / "mine.csv", "subject,mine\na,train\nb,train\nc,test\n")
    (split,) = read_splits(path, runs=runs)
    assert [runs_in(split, runs, part) for part in ("train", "test")] == [[0, 1], [2, 3]]
    with pytest.raises(InputError, match="1 subjects of the data set have no row, the first is 'd'"):
        read_splits(path, runs=[*runs, run("d")])
    with pytest.raises(ValueError, match="either these or those"):
        read_splits(path, ["a"], runs=runs)


@pytest.mark.parametrize(
    "runs",
    [
        [run("a", family="f"), run("b", family="f"), run("c")],
        [run("a", family="f"), run("a"), run("b", family="f"), run("c")],
        [run("a", family="f"), run("a", family="g"), run("b", family="g"), run("c")],
        [run("a", family="f"), run("c", family="f"), run("c", family="g"), run("b", family="g")],
    ],
    ids=["plain", "known from one run only", "two families of one person", "kin over a third person"],
)
def test_a_family_on_both_sides_is_refused_when_read_and_when_runs_are_taken(tmp_path, runs):
    path = write(tmp_path / "mine.csv", "subject,mine\na,train\nb,test\nc,\n")
    with pytest.raises(InputError, match=r"column mine: the family '[fg]' stands on both sides"):
        read_splits(path, runs=runs)
    (split,) = read_splits(path)
    for part in ("train", "test"):
        with pytest.raises(InputError, match=r"mine: the family '[fg]' stands on both sides"):
            runs_in(split, runs, part)


def test_families_of_two_datasets_are_not_kin():
    runs = [run("a", "A", "1"), run("b", "B", "1"), run("c", "B", None)]
    assert families_of(runs) == {"A/a": "A/1", "B/b": "B/1", "B/c": None}


@pytest.mark.parametrize("name", ["x.json", "x", "x.csv.gz", "x.xlsx"])
def test_splits_are_written_as_tables_alone(tmp_path, name):
    with pytest.raises(InputError, match=r"written as \.csv or \.tsv"):
        write_splits([Split("a", {"01": "train"})], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_two_files_never_share_a_record(tmp_path):
    written = {name: folds(names(20), seed=seed) for seed, name in enumerate(("a.csv", "a.tsv", "a.CSV"))}
    for name, splits in written.items():
        write_splits(splits, tmp_path / name)
    for name, splits in written.items():
        assert read_splits(tmp_path / name) == splits
    assert (tmp_path / "a.tsv").read_text().splitlines()[0] == "subject\tfold-1\tfold-2\tfold-3\tfold-4"


def test_a_file_of_another_kind_in_the_place_of_the_record_is_left_alone(tmp_path):
    (tmp_path / "participants.json").write_text('{"age": {"Units": "years"}}')
    with pytest.raises(InputError, match=r"participants\.json: it is in the place of the record"):
        write_splits([Split("a", {"01": "train"})], tmp_path / "participants.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["participants.json"]


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_seeds_that_are_none_are_one_sentence(seed):
    with pytest.raises(InputError, match="give a whole number from 0 to 4294967295"):
        folds(names(20), seed=seed)
    with pytest.raises(InputError, match="give a whole number"):
        leave_one_site_out(names(20), sites=["A", "B"] * 10, seed=seed)


class TestCommand:
    @pytest.fixture
    def split(self, tmp_path, preprocessing):
        """A function that runs `dataset split` on a store of twenty people and gives its exit code and output."""
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        for number in range(20):
            writer.write(ScanRecord(f"{number:02}", tmp_path / "x.nii"), torch.zeros(1, 27, 96), 2.0, {})
        writer.finish()

        def run_command(*options):
            command = ["dataset", "split", str(tmp_path / "store"), *options]
            result = CliRunner().invoke(app, [str(option) for option in command])
            return result.exit_code, " ".join(result.output.split())

        return run_command

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--seed", "-1"], "The seed -1 is not possible"),
            (["--folds", "4", "--leave-one-site-out"], "--folds and --leave-one-site-out are two ways"),
            (["--stratify", "site"], "no run has a site, so people cannot be stratified by it"),
        ],
    )
    def test_what_is_not_possible_is_one_sentence(self, split, tmp_path, options, said):
        code, output = split(*options, "--out", tmp_path / "x.csv")
        assert code == 2
        assert said in output
        assert "Traceback" not in output
        assert not (tmp_path / "x.csv").exists()

    def test_that_tokenizing_has_not_ended_is_told(self, split, tmp_path):
        assert "tokenize" not in split("--out", tmp_path / "whole.csv")[1]
        (tmp_path / "store" / "runs.parquet").unlink()
        code, output = split("--out", tmp_path / "x.csv")
        assert code == 0
        assert "tokenize has not come to its end there" in output

    def test_a_record_never_takes_the_place_of_the_split(self, split, tmp_path):
        code, output = split("--out", tmp_path / "x.json")
        assert code == 2
        assert "let the name end in one of them" in output
        for name in ("x.csv", "x.tsv"):
            assert split("--out", tmp_path / name, "--seed", len(name))[0] == 0
            assert split("--out", tmp_path / name)[0] == 2
            (one,) = read_splits(tmp_path / name, runs=TokenDataset.load(tmp_path / "store").runs)
            assert one.settings["num_subjects"] == 20


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_splits(tmp_path / "none.csv")
    with pytest.raises(InputError, match="directory"):
        read_splits(tmp_path)
    (tmp_path / "latin.csv").write_bytes("subject,a\nJosé,train\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_splits(tmp_path / "latin.csv")


def test_splits_of_one_name_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="differ"):
        write_splits([Split("a", {"01": "train"})] * 2, tmp_path / "a.csv")
    with pytest.raises(ValueError, match="differ"):
        write_splits([Split("subject", {"01": "train"})], tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())
