"""Phenotype tables: rows that agree are joined, rows that do not give nothing and are told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tablet_hf.errors import InputError
from tablet_hf.sources.records import ScanRecord
from tablet_hf.sources.tables import People, bids_label, join, number_label, with_common_names


@pytest.fixture
def read(write):
    """A function that reads tables, each a list of lines, of people whose column is called id."""

    def make(*tables):
        people = People()
        for number, lines in enumerate(tables):
            path = write(f"table{number}.csv", *lines)
            people.add(path, ("id",), bids_label("sub"), ("session_id",))
        return people

    return make


def whys(people):
    return [problem.why for problem in people.problems]


def test_cells_become_typed_values_and_what_is_missing_none(read):
    people = read(["id,age,sex,dx", "sub-01,31,F,pending", "02,n/a,M,1.5"])
    assert people.phenotypes("01") == {"age": 31, "sex": "F", "dx": None}
    assert people.phenotypes("02") == {"age": None, "sex": "M", "dx": 1.5}
    assert people.phenotypes("03") == {"age": None, "sex": None, "dx": None}
    assert [people.has(one) for one in ("01", "02", "03")] == [True, True, False]


def test_equal_rows_count_once(read):
    people = read(["id,age,sex", "01,31,F", "01,31.0,F"])
    assert people.phenotypes("01") == {"age": 31, "sex": "F"}
    assert not people.problems


def test_rows_that_differ_give_nothing_and_are_told(read):
    people = read(["id,age,sex", "01,31,F", "02,40,M", "01,32,F"])
    assert people.phenotypes("01") == {"age": None, "sex": None}
    assert people.phenotypes("02") == {"age": 40, "sex": "M"}
    assert whys(people) == ["the rows on lines 2, 4 differ in age, so none is taken; keep one."]
    assert people.problems[0].what.endswith("table0.csv, subject 01")


def test_a_row_that_names_nobody_is_told(read):
    people = read(["id,age", ",31", "02,40"])
    assert people.subjects == {"02"}
    assert people.problems[0].what.endswith("line 2")


def test_tables_fill_what_is_missing_in_each_other(read):
    for tables in (["id,dx", "01,pending"], ["id,dx,iq", "01,1,100"]), (["id,dx,iq", "01,1,100"], ["id,dx", "01,n/a"]):
        people = read(*tables)
        assert people.phenotypes("01") == {"dx": 1, "iq": 100}
        assert all(problem.is_note for problem in people.problems)


def test_tables_that_contradict_each_other_give_nothing_however_many_follow(read):
    people = read(["id,dx,iq", "01,0,100"], ["id,dx", "01,1"], ["id,dx", "01,1"])
    assert people.phenotypes("01") == {"dx": None, "iq": 100}
    assert len(people.problems) == 1
    assert "1 where another table gives 0" in people.problems[0].why


def test_what_is_said_of_a_session_goes_before_what_is_said_of_the_person(read):
    people = read(["id,age,sex", "01,10,F", "02,11,M"], ["id,session_id,age", "01,ses-a,10.2", "01,b,n/a"])
    assert people.phenotypes("01", "a") == {"age": 10.2, "sex": "F"}
    assert people.phenotypes("01", "b") == {"age": None, "sex": "F"}
    assert people.phenotypes("02", "a") == {"age": 11, "sex": "M"}


def test_a_table_of_sessions_says_nothing_of_other_sessions(read):
    people = read(["id,session_id,age", "01,a,10", "01,b,12"])
    assert (people.has("01", "b"), people.has("01", "c"), people.has("01")) == (True, False, False)
    assert people.phenotypes("01", "c") == {"age": None}


def test_a_table_without_people_is_refused(read):
    with pytest.raises(InputError, match="must be called id"):
        read(["name,age", "01,3"])


def test_only_the_rows_of_wanted_people_are_kept(write):
    people = People()
    people.add(write("a.csv", "eid,x", "1,a", "2,b"), ("eid",), number_label(), wanted={"2"})
    assert people.subjects == {"2"}


@given(number=st.integers(0, 10**15), zeros=st.integers(0, 4), decimals=st.integers(-1, 3))
def test_a_number_is_the_same_label_however_a_spreadsheet_wrote_it(number, zeros, decimals):
    cell = "0" * zeros + str(number) + ("" if decimals < 0 else "." + "0" * decimals)
    assert number_label()(cell) == str(number)
    assert number_label(7)(cell) == f"{number:07d}"


@given(cell=st.text())
def test_what_is_no_whole_number_is_no_label(cell):
    label = number_label()(cell)
    assert label is None or float(cell) == int(label)


@pytest.mark.parametrize(
    ("header", "cells", "common"),
    [
        ("Gender,AGE", "Female,31;male,28.5;n/a,n/a", [("F", 31), ("M", 28.5), (None, None)]),
        ("SEX,Gender", "f,woman;M,man;m,man", [("F", None), ("M", None), ("M", None)]),
        ("gender,Age", "1,26-30;2,31-35;1,31-35", [(None, None)] * 3),
        ("Gender,x", "F,1;divers,2;M,3", [(None, None)] * 3),
        ("sex,Gender,age,Age", "1,F,a,31;2,M,b,28;1,F,c,30", [(1, "a"), (2, "b"), (1, "c")]),
    ],
)
def test_sex_and_age_are_found_by_other_names_where_nothing_else_can_be_meant(read, header, cells, common):
    people = read([f"id,{header}", *(f"{number},{row}" for number, row in enumerate(cells.split(";")))])
    records, _ = join([ScanRecord(str(number), Path("x")) for number in range(3)], people)
    named = with_common_names(records)
    assert [(record.phenotypes.get("sex"), record.phenotypes.get("age")) for record in named] == common
    for before, after in zip(records, named, strict=True):
        assert after.phenotypes | before.phenotypes == after.phenotypes


def test_site_and_family_become_fields_and_scans_without_a_row_stay(read):
    people = read(["id,Site_ID,Family_ID,age", "01,3,52259_82122,30", "02,n/a,n/a,31"])
    scans = [ScanRecord(subject, Path("x"), site="here") for subject in ("01", "02", "03", "03")]
    records, problems = join(scans, people)
    assert [(each.site, each.family) for each in records[:3]] == [("3", "52259_82122"), ("here", None), ("here", None)]
    assert [each.phenotypes for each in records[:3]] == [{"age": 30}, {"age": 31}, {"age": None}]
    assert [problem.what for problem in problems] == ["subject 03"]
