"""Tables: every dialect reads alike, cells become typed values, rows that contradict each other give none."""

import csv
import io
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tablet_hf.errors import InputError
from tablet_hf.sources import ScanRecord
from tablet_hf.sources.tables import (
    PhenotypeTables,
    add_sex_and_age,
    bids_label,
    number_label,
    read_table,
    typed_cells,
)


def rows(table):
    return table.cells.to_dict("records")


def phenotypes(tables, subject, session=None):
    (record,) = tables.join([ScanRecord(subject, Path("x"), session=session)])
    return record.phenotypes


class TestReading:
    @pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    @pytest.mark.parametrize(
        ("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("a.tsv", ",")]
    )
    def test_every_dialect_reads_alike(self, write, name, mark, encoding, ending):
        lines = [mark.join(line) for line in (("subject", "city"), ("0010042", "Zürich"), ("007", " Orsay "))]
        table = read_table(write(name, *lines, ending=ending, encoding=encoding))
        assert rows(table) == [{"subject": "0010042", "city": "Zürich"}, {"subject": "007", "city": "Orsay"}]
        assert (table.cells.index.tolist(), table.delimiter) == ([2, 3], mark)

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            (['"a; b; c; d",sex', '"1;2",F'], [{"a; b; c; d": "1;2", "sex": "F"}]),
            (["id, note", '1, "tired, hungry"'], [{"id": "1", "note": "tired, hungry"}]),
            (['id,"a\nnote"', '1,"two\nlines"'], [{"id": "1", "a\nnote": "two\nlines"}]),
            (["id,x", "0010042,1.50", "1e5,NA"], [{"id": "0010042", "x": "1.50"}, {"id": "1e5", "x": "NA"}]),
            (["", '"",id,x,', "0,a,1,", ",,,", "", "1,b,2,"], [{"id": "a", "x": "1"}, {"id": "b", "x": "2"}]),
            (["id,x,y", "a,1"], [{"id": "a", "x": "1", "y": ""}]),
            (["id,x", "a,1,", "b,2"], [{"id": "a", "x": "1"}, {"id": "b", "x": "2"}]),
            (["id"], []),
        ],
        ids=[
            "quoted heading",
            "after a space",
            "line break",
            "numbers",
            "no name",
            "short row",
            "empty end",
            "no rows",
        ],
    )
    def test_no_cell_is_changed(self, write, lines, expected):
        assert rows(read_table(write("a.csv", *lines))) == expected

    def test_only_wanted_columns_are_read(self, write):
        path = write("a.csv", "Subject,secret,Age", "1,x,30", "2,y,40")
        table = read_table(path, {"Subject": "subject", "Age": "age"}.get)
        assert rows(table) == [{"subject": "1", "age": "30"}, {"subject": "2", "age": "40"}]

    @pytest.mark.parametrize(
        ("lines", "word"),
        [
            ((), "empty"),
            (("", "  "), "empty"),
            (("id,age,age", "1,2,3"), "'age'"),
            (("id,note", '1,"never closed', "2,x"), "quotation"),
            (("id,note", "a,fine", "b,tired, hungry", "c,fine"), "row 3"),
            (("id,note", "a,1,2,3,4", "b,1,2,3,4"), "row 2"),
        ],
    )
    @pytest.mark.parametrize("rename", [str, lambda heading: heading if heading != "note" else None])
    def test_what_is_not_a_table_is_an_error(self, write, lines, word, rename):
        path = write("a.csv", *lines)
        with pytest.raises(InputError, match=word) as caught:
            read_table(path, rename)
        assert str(caught.value).startswith(str(path))

    def test_a_spreadsheet_a_folder_and_a_missing_file_are_errors(self, tmp_path):
        (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04rest")
        for name, word in (("a.xlsx", "CSV"), (".", "cannot be read"), ("none.csv", "cannot be read")):
            with pytest.raises(InputError, match=word):
                read_table(tmp_path / name)

    @pytest.mark.parametrize("mark", [",", ";", "\t"])
    @given(st.lists(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=8), min_size=3, max_size=3)))
    def test_what_the_csv_module_writes_is_read_back(self, tmp_path_factory, mark, cells):
        text = io.StringIO()
        csv.writer(text, delimiter=mark, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *cells])
        path = tmp_path_factory.mktemp("tables") / "a.csv"
        path.write_bytes(text.getvalue().encode("utf-8", "replace"))
        expected = [[cell.encode("utf-8", "replace").decode().strip() for cell in row] for row in cells]
        found = [list(row.values()) for row in rows(read_table(path))]
        assert [row for row in found if any(row)] == [row for row in expected if any(row)]


class TestTypedCells:
    @pytest.fixture
    def read(self, write):
        """Read a column of cells in a table with that delimiter: its values, and warnings without the file name."""

        def make(*cells, delimiter=","):
            lines = [f"id{delimiter}x", *(f'{number}{delimiter}"{cell}"' for number, cell in enumerate(cells))]
            path = write("t.csv", *lines)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                values = [row["x"] for row in typed_cells(read_table(path), ["x"])]
            return values, [str(warning.message).removeprefix(f"{path}: ") for warning in caught]

        return make

    def test_decimal_commas_in_a_table_with_semicolons(self, read):
        values, messages = read("31,5", "-0,25", "7", "1,5e3", "n/a", "", "-999,0", delimiter=";")
        assert values == [31.5, -0.25, 7, 1500.0, None, None, None]
        assert [message.split()[0] for message in messages] == ["commas", "cells"]

    @pytest.mark.parametrize(
        ("other", "delimiter"), [("30", ","), ("30", "\t"), ("about 30", ";"), ("30.25", ";"), ("1,234,567", ";")]
    )
    def test_other_commas_stay_text_with_a_warning(self, read, other, delimiter):
        values, (message,) = read("31,5", other, delimiter=delimiter)
        assert values[0] == "31,5"
        assert "x (31,5)" in message
        assert read("tired, hungry", "fine", delimiter=delimiter) == (["tired, hungry", "fine"], [])

    @pytest.mark.parametrize("word", ["none", "None"])
    def test_none_is_a_category_where_it_is_frequent(self, read, word):
        values, (message,) = read(*[word] * 3, *["mild"] * 4, "n/a")
        assert values == [word] * 3 + ["mild"] * 4 + [None]
        assert "category" in message

    @pytest.mark.parametrize(
        "others", [["31", "28"], ["F"] * 60 + ["M"] * 60, ["mild"], []], ids=["numbers", "rare", "one", "alone"]
    )
    def test_none_is_missing_elsewhere(self, read, others):
        values, (message,) = read("none", *(["None"] if others != ["mild"] else []), *others)
        assert values[0] is None
        assert "missing values: x (" in message
        assert "none" in message

    def test_unusual_missing_values_are_listed(self, read):
        assert read("n/a", "NA", "", "31") == ([None, None, None, 31], [])
        values, (message,) = read("n/a", "-999", "31", "", "pending")
        assert values == [None, None, 31, None, None]
        assert "x (-999, pending)" in message

    def test_a_warning_names_at_most_five_columns(self, write):
        names = [f"c{number}" for number in range(30)]
        table = read_table(write("t.csv", ",".join(names), ",".join(["?", *["unknown"] * 29])))
        with pytest.warns(UserWarning, match="c5 .*and 24 more") as caught:
            typed_cells(table, names)
        assert len(caught) == 1


class TestPhenotypeTables:
    @pytest.fixture
    def read(self, write):
        """Read tables, each a list of lines, with the columns id and session_id."""

        def make(*tables):
            paths = [write(f"table{number}.csv", *lines) for number, lines in enumerate(tables)]
            return PhenotypeTables(paths, ("id",), bids_label, ("session_id",))

        return make

    def test_cells_are_typed_and_equal_rows_count_once(self, read):
        tables = read(["id,age,sex,dx", "sub-01,31,F,n/a", "01,31.0,F,", "02,n/a,M,1.5"])
        assert phenotypes(tables, "01") == {"age": 31, "sex": "F", "dx": None}
        assert phenotypes(tables, "02") == {"age": None, "sex": "M", "dx": 1.5}
        assert tables.subjects == {"01", "02"}
        assert not tables.problems

    def test_rows_that_differ_give_no_values(self, read, reasons):
        tables = read(["id,age,sex", "01,31,F", "02,40,M", "01,32,F"])
        assert phenotypes(tables, "01") == {"age": None, "sex": None}
        assert phenotypes(tables, "02") == {"age": 40, "sex": "M"}
        assert len(tables.problems) == len(reasons(tables, "table0.csv, subject 01", "rows 2, 4", "age")) == 1

    def test_a_row_without_a_subject_is_a_problem(self, read, reasons):
        tables = read(["id,age", ",31", "02,40"])
        assert tables.subjects == {"02"}
        assert reasons(tables, "row 2")

    @pytest.mark.parametrize("order", [1, -1])
    def test_tables_fill_what_is_missing_in_each_other(self, read, order):
        tables = read(*[["id,dx", "01,n/a"], ["id,dx,iq", "01,1,100"]][::order])
        assert phenotypes(tables, "01") == {"dx": 1, "iq": 100}
        assert not tables.problems

    def test_tables_that_contradict_each_other_give_none_however_many_follow(self, read, reasons):
        tables = read(["id,dx,iq", "01,0,100"], ["id,dx", "01,1"], ["id,dx", "01,1"])
        assert phenotypes(tables, "01") == {"dx": None, "iq": 100}
        assert len(tables.problems) == len(reasons(tables, "table1.csv, subject 01", "dx")) == 1

    def test_rows_about_a_session_go_before_rows_about_the_subject(self, read):
        tables = read(["id,age,sex", "01,10,F", "02,11,M"], ["id,session_id,age", "01,ses-a,10.2", "01,b,n/a"])
        assert phenotypes(tables, "01", "a") == {"age": 10.2, "sex": "F"}
        assert phenotypes(tables, "01", "b") == {"age": None, "sex": "F"}
        assert phenotypes(tables, "02", "a") == {"age": 11, "sex": "M"}

    def test_a_table_without_subjects_is_an_error(self, read):
        with pytest.raises(InputError, match=r"table0\.csv.* id"):
            read(["name,age", "01,3"])

    def test_sites_and_families_become_fields_and_scans_without_a_row_stay(self, read):
        tables = read(["id,Site_ID,Family_ID,age", "01,3,52259_82122,30", "02,n/a,n/a,31"])
        scans = [ScanRecord(subject, Path("x"), site="here") for subject in ("01", "02", "03", "03")]
        with pytest.warns(UserWarning, match="subject 03") as caught:
            records = tables.join(scans)
        assert len(caught) == 1
        assert [(each.site, each.family, each.phenotypes) for each in records] == [
            ("3", "52259_82122", {"age": 30}),
            ("here", None, {"age": 31}),
            ("here", None, {"age": None}),
            ("here", None, {"age": None}),
        ]

    @pytest.mark.parametrize(
        ("header", "cells", "expected"),
        [
            ("Gender,AGE", "Female,31;male,28.5;n/a,n/a", [("F", 31), ("M", 28.5), (None, None)]),
            ("SEX,Gender", "f,woman;M,man;m,man", [("F", None), ("M", None), ("M", None)]),
            ("gender,Age", "1,26-30;2,31-35;1,31-35", [(None, None)] * 3),
            ("Gender,x", "F,1;divers,2;M,3", [(None, None)] * 3),
            ("sex,Gender,age,Age", "1,F,a,31;2,M,b,28;1,F,c,30", [(1, "a"), (2, "b"), (1, "c")]),
        ],
    )
    def test_sex_and_age_are_found_by_other_names_where_they_are_unambiguous(self, read, header, cells, expected):
        tables = read([f"id,{header}", *(f"{number},{row}" for number, row in enumerate(cells.split(";")))])
        records = tables.join(ScanRecord(str(number), Path("x")) for number in range(3))
        added = add_sex_and_age(records)
        assert [(record.phenotypes.get("sex"), record.phenotypes.get("age")) for record in added] == expected
        for before, after in zip(records, added, strict=True):
            assert after.phenotypes | before.phenotypes == after.phenotypes


@given(number=st.integers(0, 10**15), zeros=st.integers(0, 4), decimals=st.integers(-1, 3))
def test_a_number_is_the_same_label_however_a_spreadsheet_wrote_it(number, zeros, decimals):
    cell = "0" * zeros + str(number) + ("" if decimals < 0 else "." + "0" * decimals)
    assert number_label(cell) == str(number)
    assert number_label(cell, 7) == f"{number:07d}"


@given(cell=st.text())
def test_what_is_not_a_whole_number_is_not_a_label(cell):
    label = number_label(cell)
    assert label is None or float(cell) == int(label)
