"""Splits by subject: each tested once, no subject or family in two parts, strata in all parts; and their files."""

import json
import time
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
from tablet_hf.datasets import TokenStoreWriter
from tablet_hf.datasets.split_files import read_splits, write_splits
from tablet_hf.datasets.splits import (
    PARTS,
    Split,
    check,
    families_of,
    family_ids,
    folds,
    leave_one_site_out,
    random_splits,
    runs_in,
    subject_ids,
)
from tablet_hf.errors import InputError
from tablet_hf.sources import ScanRecord

# Small cohorts are dealt with warnings, which have tests of their own.
pytestmark = pytest.mark.filterwarnings("ignore:.*(stratify|no label)")


def names(count):
    return [f"{number:04d}" for number in range(count)]


def run(subject, dataset=None, family=None):
    return SimpleNamespace(subject=subject, dataset=dataset, family=family)


@st.composite
def cohorts(draw):
    """Subjects with labels (some missing), sites and families; the first ten have a label and no family."""
    count = draw(st.integers(14, 60))
    labels = draw(st.lists(st.sampled_from(["F", "M", "M", None]), min_size=count, max_size=count))
    sites = draw(st.lists(st.sampled_from(["A", "B", "C", None]), min_size=count, max_size=count))
    families = draw(st.lists(st.sampled_from([None, None, *range(count // 4)]), min_size=count, max_size=count))
    labels[:10], families[:10] = ["F", "M"] * 5, [None] * 10
    return {"subjects": names(count), "labels": labels, "sites": sites, "families": families}


def labelled(cohort):
    return {name for name, label in zip(cohort["subjects"], cohort["labels"], strict=True) if label is not None}


# --- what always holds


@settings(deadline=None, max_examples=40)
@given(cohorts(), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_every_subject_is_tested_once_and_families_stay_together(cohort, num_folds, seed):
    splits = folds(**cohort, num_folds=num_folds, seed=seed)
    tested = [subject for split in splits for subject in split.subjects("test")]
    assert sorted(tested) == sorted(labelled(cohort))
    for split in splits:
        assert set(split.assignment) == labelled(cohort)
        assert set(split.left_out) == set(cohort["subjects"]) - labelled(cohort)
        assert all(split.counts[part] > 0 for part in PARTS)
        check(split, dict(zip(cohort["subjects"], cohort["families"], strict=True)))


@settings(deadline=None, max_examples=20)
@given(cohorts(), st.integers(0, 2**32 - 9))
def test_random_splits_keep_families_together_too(cohort, seed):
    splits = random_splits(**cohort, seed=seed)
    assert [split.seed for split in splits] == [seed, seed + 1, seed + 2, seed + 3]
    for split in splits:
        assert set(split.assignment) == labelled(cohort)
        assert all(split.counts[part] > 0 for part in PARTS)
        check(split, dict(zip(cohort["subjects"], cohort["families"], strict=True)))


@settings(deadline=None, max_examples=20)
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


@settings(deadline=None, max_examples=8)
@given(cohorts(), st.randoms(use_true_random=False), st.integers(0, 1000))
def test_the_seed_decides_and_not_the_order_of_the_runs(cohort, random, seed):
    rows = list(zip(*cohort.values(), strict=True)) * 2  # two runs a subject
    random.shuffle(rows)
    shuffled = dict(zip(cohort, map(list, zip(*rows, strict=True)), strict=True))
    for draw in (folds, random_splits):
        assert draw(**shuffled, seed=seed) == draw(**cohort, seed=seed)
        assert draw(**cohort, seed=seed) != draw(**cohort, seed=seed + 5)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=3, max_size=3), st.integers(10, 40), st.integers(0, 99))
def test_without_families_test_parts_have_their_share_of_labels_and_sites(counts, large, seed):
    """A label or stratum of m members has between floor(m / 5) and ceil(m / 5) in each fifth."""
    strata = list(zip("FFMM", "ABAB", strict=True))
    people = [stratum for stratum, members in zip(strata, [large, *counts], strict=True) for _ in range(members)]
    labels, sites = map(list, zip(*people, strict=True))
    for split in folds(names(len(people)), labels, sites, seed=seed):
        tested = [people[int(name)] for name in split.subjects("test")]
        for found, every in ((Counter(tested), Counter(people)), (Counter(x for x, _ in tested), Counter(labels))):
            for stratum, members in every.items():
                assert members // 5 <= found[stratum] <= -(-members // 5)


# --- single behaviours


def test_sizes_of_the_parts():
    for split in folds(names(100), ["ADHD"] * 40 + ["control"] * 60):
        assert split.counts == {"train": 70, "validation": 10, "test": 20}
        assert Counter(int(subject) < 40 for subject in split.subjects("validation")) == {True: 4, False: 6}
    for split in random_splits(names(100), ["ADHD"] * 40 + ["control"] * 60):
        assert split.counts == {"train": 80, "validation": 10, "test": 10}
    tested = [split.subjects("test") for split in random_splits(names(100))]
    assert len({*map(tuple, tested)}) == 4


@pytest.mark.parametrize(
    ("fractions", "counts"),
    [
        ((0.7, 0.15, 0.15), (140, 30, 30)),
        ((0.4, 0.3, 0.3), (80, 60, 60)),
        ((0.8, 0.2, 0), (160, 40, 0)),
        ((0.9, 0, 0.1), (180, 0, 20)),
        ((0.98, 0.01, 0.01), (196, 2, 2)),
    ],
)
def test_other_fractions(fractions, counts):
    (split,) = random_splits(names(200), num_splits=1, fractions=fractions)
    assert list(split.counts.values()) == pytest.approx(counts, abs=2)
    with pytest.raises(InputError, match="add up to 1"):
        random_splits(names(200), fractions=(*fractions[:2], fractions[2] + 0.1))


def test_a_rare_subject_is_not_always_in_the_same_part():
    labels = ["rare"] + ["common"] * 39
    parts = [random_splits(names(40), labels, num_splits=1, seed=seed)[0].assignment["0000"] for seed in range(40)]
    assert set(parts) == set(PARTS)


def test_a_regression_is_stratified_by_quantiles():
    ages = np.random.default_rng(0).gamma(2, 10, 200)
    for split in folds(names(200), ages.tolist()):
        tested = {int(subject) for subject in split.subjects("test")}
        assert [len(tested & set(fifth.tolist())) for fifth in np.split(np.argsort(ages), 5)] == [8] * 5


def test_columns_of_tables_and_missing_values_of_all_kinds():
    table = pd.DataFrame(
        {"who": names(60), "sex": ["F", "M", None] * 20, "site": ["A", "B"] * 30, "family": [1, 2.5] * 30}
    )
    table.loc[2:, "family"] = np.nan
    lists = [["F", "M", float("nan")] * 20, ["A", "B"] * 30, [1, 2.5] + [None] * 58]
    with pytest.warns(UserWarning, match="20 subjects have no label"):
        from_table = folds(table["who"], table["sex"], table["site"], table["family"])
    assert from_table == folds(*(table[name].to_numpy() for name in table)) == folds(names(60), *lists)


def test_families_that_share_a_subject_are_one():
    subjects, families = ["a", "b", "b", "c", *names(30)], ["1", "1", "2", "2", *[None] * 30]
    parts = {
        tuple(split.assignment[subject] for subject in "abc")
        for seed in range(10)
        for split in folds(subjects, families=families, seed=seed)
    }
    assert parts == {("train",) * 3, ("validation",) * 3, ("test",) * 3}


def test_where_stratification_is_impossible_a_warning_says_so():
    with pytest.warns(UserWarning, match="stratify"):
        splits = folds(names(12), [f"diagnosis {number}" for number in range(12)])
    assert sorted(subject for split in splits for subject in split.subjects("test")) == names(12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds(names(100), ["F", "M"] * 50, ["A"] * 50 + ["B"] * 50)


@pytest.mark.parametrize(
    ("subjects", "options"),
    [
        (names(4), {}),
        (names(100), {"num_folds": 1}),
        (names(20), {"labels": ["F"] + [None] * 19}),
        (names(100), {"families": [0, 1] * 50}),
        ([], {}),
    ],
)
def test_too_few_subjects_are_refused(subjects, options):
    with pytest.raises(InputError, match="subjects"):
        folds(subjects, **options)


def test_leaving_a_site_out_keeps_family_and_travellers_out_of_training():
    sites = ["A"] * 20 + ["B"] * 20
    subjects = [*names(40), "0005"]  # 0005 was scanned at both sites
    families = ["f" if place in (0, 39) else None for place in range(41)]
    first, second = leave_one_site_out(subjects, sites=[*sites, "B"], families=families)
    assert first.left_out == ("0005", "0039")
    assert second.left_out == ("0000", "0005")
    assert first.counts["test"] == 19
    for sites in (None, ["A"] * 20, [None] * 20):
        with pytest.raises(InputError, match="sites"):
            leave_one_site_out(names(20), sites=sites)


def test_sites_with_hostile_names_become_names_of_folders():
    splits = leave_one_site_out(names(40), sites=["/abs/victim", "../../evil", "..", "Oxford"] * 10)
    assert "site-Oxford" in [split.name for split in splits]
    assert len({split.name for split in splits}) == 4
    assert not any(set(split.name) & set("/\\") for split in splits)


# --- subjects and families of a store


def test_subjects_of_several_datasets_are_kept_apart():
    runs = [run("01", "HCP", "f1"), run("01", "UKB", "f1"), run("02", "HCP")]
    assert subject_ids(runs) == ["HCP/01", "UKB/01", "HCP/02"]
    assert family_ids(runs) == ["HCP/f1", "UKB/f1", None]
    assert subject_ids(runs[::2]) == ["01", "02"]
    assert len(set(families_of(runs).values())) == 3


def test_runs_of_a_part():
    runs = [run("a"), run("b"), run("a"), run("c")]
    split = Split("split", {"a": "train", "b": "test"})
    assert runs_in(split, runs, "train") == [0, 2]
    assert runs_in(split, runs, "test") == [1]
    with pytest.raises(InputError, match="validation"):
        runs_in(split, runs, "validation")


@pytest.mark.parametrize(
    ("assignment", "families"),
    [
        ({"01": "train", "sub-01": "test"}, None),
        ({"HCP/sub-01": "train", "HCP/01": "test"}, {}),
        ({"a": "train", "b": "test"}, {"a": "1", "b": "1"}),
    ],
)
def test_a_subject_or_family_in_two_parts_is_refused(assignment, families):
    with pytest.raises(InputError, match=r"mine: .*are the same"):
        check(Split("mine", assignment), families)
    check(Split("mine", dict.fromkeys(assignment, "train")), families)
    check(Split("mine", {"a": "train", "b": "test", "c": "validation"}), {"a": None, "b": None, "z": "1"})


@pytest.mark.parametrize("name", ["/abs/victim", "..", "", "a\\b", "NUL", "x\0", "Results.json", "baselines"])
def test_names_that_are_no_folders_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="name"):
        Split(name, {"01": "train"})
    with pytest.raises(InputError, match="'held out'"):
        Split("mine", {"01": "held out"})
    if name not in ("", "x\0"):
        path = write(tmp_path / "mine.csv", f"subject,{name}\n01,train\n")
        with pytest.raises(InputError, match=r"mine\.csv"):
            read_splits(path)


# --- files


def write(path, text):
    path.write_bytes(text.encode())
    return path


@settings(deadline=None, max_examples=8)
@given(cohort=cohorts(), name=st.sampled_from(["sex.csv", "sex.tsv", "sex.CSV"]))
def test_written_splits_are_read_back(tmp_path_factory, cohort, name):
    path = tmp_path_factory.mktemp("splits") / name
    splits = folds(**cohort)
    write_splits(splits, path)
    assert read_splits(path, [run(subject) for subject in cohort["subjects"]]) == splits


def test_names_are_no_formulas_for_a_spreadsheet(tmp_path):
    path, parts = tmp_path / "a.csv", {"+1|cmd": "train", "-2x": "test", "@a": "test", "'=b": "train"}
    write_splits([Split("=fold", parts)], path)
    assert not any(cell[0] in "=+-@" for line in path.read_text().split("\n") for cell in line.split(",") if cell)
    assert read_splits(path)[0] == Split("=fold", parts)


def test_forty_thousand_subjects_with_families_are_dealt_evenly_within_seconds():
    rng = np.random.default_rng(0)
    labels, sites = rng.choice(["F", "M"], 40_000), rng.integers(0, 20, 40_000)
    families = np.where(rng.random(40_000) < 0.6, None, rng.integers(0, 8000, 40_000).astype(object))
    start = time.process_time()
    splits = folds(names(40_000), labels, sites, families)
    assert time.process_time() - start < 30
    for split in splits:
        check(split, dict(zip(names(40_000), families, strict=True)))
        for part, share in zip(PARTS, (0.7, 0.1, 0.2), strict=True):
            members = np.array([int(subject) for subject in split.subjects(part)])
            assert len(members) == pytest.approx(share * 40_000, rel=0.01)
            assert (labels[members] == "F").mean() == pytest.approx((labels == "F").mean(), abs=0.02)


def test_the_file_is_a_table_with_a_record(tmp_path):
    path = tmp_path / "age.csv"
    write_splits(folds([f"s{name}" for name in names(40)], [20 + place for place in range(39)] + [None], seed=3), path)
    table = pd.read_csv(path)
    assert list(table) == ["subject", *(f"fold-{number}" for number in range(1, 6))]
    assert table["subject"].tolist() == [f"s{name}" for name in names(40)]
    assert table["fold-1"].value_counts()["test"] in (7, 8)
    assert table.iloc[-1, 1:].isna().all()
    made = json.loads((tmp_path / "age.json").read_text())["splits"]["fold-1"]
    assert (made["seed"], made["num_left_out"], made["settings"]["num_folds"]) == (3, 1, 5)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["age.csv", "age.json"]


def test_an_edited_split_has_no_seed(tmp_path):
    path = tmp_path / "a.csv"
    write_splits(folds(names(40)), path)
    table = pd.read_csv(path, dtype=str, index_col=0)
    table.loc["0000", "fold-1"] = "validation" if table.loc["0000", "fold-1"] == "train" else "train"
    table.to_csv(path)
    with pytest.warns(UserWarning, match=r"a\.csv: fold-1"):
        changed, *_ = read_splits(path)
    assert (changed.seed, changed.settings) == (None, {})


def test_a_file_written_by_hand(tmp_path):
    path = write(
        tmp_path / "mine.csv",
        "\ufeffparticipant_id;my split\r\nsub-01;train\r\n\r\nsub-02;Valid\r\n03;dev\r\n04; test\r\n05;\r\nsub-05\r\n",
    )
    write(tmp_path / "mine.json", '{"participant_id": {"Description": "of BIDS"}}')
    (split,) = read_splits(path, [run(f"{number:02}") for number in range(1, 6)])
    parts = {"01": "train", "02": "validation", "03": "validation", "04": "test"}
    assert split == Split("my split", parts, left_out=("05",))
    path = write(tmp_path / "mine.tsv", "fold\tsubject\ntrain\tsub-01\nval\tHCP/sub-02\n")
    (split,) = read_splits(path)
    assert split.assignment == {"sub-01": "train", "HCP/sub-02": "validation"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("subject,a\n01,train\n09,test\n", "'09'"),
        ("subject,a\n01,train\n2,test\n", "'02'.*zeros"),
        ("subject,a\n01,train\n", "'02'"),
        ("subject,a\n01,train\n02,tset\n", "'tset'"),
        ("subject,a\n01,train\n02,test\n01,test\n", "'01'.*several rows"),
        ("subject,a\n01,train\n02,test\nsub-01,\n", "'01'.*several rows"),
        ("subject,a\n01,train\n02,test,test\n", "table"),
        ("subject,a\n01,train\n,test\n", "no subject"),
        ("subject\n01\n02\n", "column"),
        ("who,a\n01,train\n", "column"),
        ("subject,a,a\n01,train,test\n", "different names"),
        ("subject,a\n", "rows"),
        ("", "table"),
        ('subject,a\n"01,train\n', "table"),
        ("subject,a\n01,train\n02,test\n", "column a: .*family"),
        ("subject,a\nJos\udce9,train\n", "UTF-8"),
    ],
)
def test_unusable_files_are_refused_by_name(tmp_path, text, word):
    path = tmp_path / "mine.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=word) as error:
        read_splits(path, [run("01", family="f"), run("02", family="f")])
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    "runs",
    [
        [run("a", family="f"), run("a"), run("b", family="f"), run("c")],
        [run("a", family="f"), run("c", family="f"), run("c", family="g"), run("b", family="g")],
    ],
    ids=["known from one run only", "related over a third subject"],
)
def test_a_family_in_two_parts_is_refused_when_read_and_when_runs_are_taken(tmp_path, runs):
    path = write(tmp_path / "mine.csv", "subject,mine\na,train\nb,test\nc,\n")
    with pytest.raises(InputError, match=r"column mine: .*family"):
        read_splits(path, runs)
    (split,) = read_splits(path)
    for part in ("train", "test"):
        with pytest.raises(InputError, match=r"mine: .*family"):
            runs_in(split, runs, part)


@pytest.mark.parametrize("name", ["x.json", "x", "x.csv.gz", "participants.csv"])
def test_splits_replace_no_other_file(tmp_path, name):
    (tmp_path / "participants.json").write_text('{"age": {"Units": "years"}}')
    with pytest.raises(InputError, match=name.split(".")[0]):
        write_splits([Split("a", {"01": "train"})], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["participants.json"]


def test_splits_of_one_name_are_not_written(tmp_path):
    for name in ("a", "subject"):
        with pytest.raises(ValueError, match="different"):
            write_splits([Split(name, {"01": "train"}), Split("a", {"01": "train"})], tmp_path / "a.csv")


class TestCommand:
    @pytest.fixture
    def split(self, tmp_path, preprocessing):
        """A function that runs `dataset split` on a store of twenty subjects and returns its exit code and output."""
        writer = TokenStoreWriter(tmp_path / "store", preprocessing)
        for number in range(20):
            record = ScanRecord(f"{number:02}", tmp_path / "x.nii", phenotypes={"sex": "FM"[number % 2]})
            writer.write(record, torch.zeros(1, 27, 96), 2.0, {})
        writer.finish()

        def run_command(*options):
            command = ["dataset", "split", str(tmp_path / "store"), *options]
            result = CliRunner().invoke(app, [str(option) for option in command])
            return result.exit_code, " ".join(result.output.split())

        return run_command

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            (["--seed", "-1"], "seed"),
            (["--scheme", "random"], "released"),
            (["--scheme", "site"], "site"),
            (["--stratify-by-site"], "site"),
            (["--label", "iq"], "iq"),
            (["--folds", "30"], "20 subjects"),
        ],
    )
    def test_impossible_options_exit_with_code_2(self, split, tmp_path, options, word):
        code, output = split(*options, "--out", tmp_path / "x.csv")
        assert code == 2
        assert word in output
        assert not (tmp_path / "x.csv").exists()
