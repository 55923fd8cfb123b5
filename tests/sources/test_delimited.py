"""Tables of text: every dialect that spreadsheets and exports write is read, and no cell is changed on the way."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tablet_hf.errors import InputError
from tablet_hf.sources.delimited import column_among, read_table


def cells(table):
    return [row.cells for row in table.rows]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize(
    ("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("a.tsv", ",")]
)
def test_every_dialect_reads_alike(write, name, mark, encoding, ending):
    lines = [mark.join(line) for line in (("subject", "city"), ("0010042", "Zürich"), ("007", " Orsay "))]
    table = read_table(write(name, *lines, ending=ending, encoding=encoding))
    assert table.columns == ("subject", "city")
    assert cells(table) == [{"subject": "0010042", "city": "Zürich"}, {"subject": "007", "city": "Orsay"}]
    assert not table.problems


def test_a_semicolon_in_a_quoted_heading_is_no_delimiter(write):
    table = read_table(write("a.csv", '"a; b; c; d",sex', '"1;2",F'))
    assert cells(table) == [{"a; b; c; d": "1;2", "sex": "F"}]


def test_a_cell_may_be_quoted_after_a_space(write):
    table = read_table(write("a.csv", "id, note", '1, "tired, hungry"'))
    assert cells(table) == [{"id": "1", "note": "tired, hungry"}]


def test_numbers_stay_as_they_were_typed(write):
    table = read_table(write("a.csv", "id,x", "0010042,1.50", "1e5,NA", "12345678901234567890,"))
    assert [tuple(row.values()) for row in cells(table)] == [
        ("0010042", "1.50"),
        ("1e5", "NA"),
        ("12345678901234567890", ""),
    ]


def test_columns_without_a_name_and_empty_rows_are_passed_over(write):
    table = read_table(write("a.csv", "", '"",id,x,', "0,a,1,", ",,,", "", "1,b,2,"))
    assert cells(table) == [{"id": "a", "x": "1"}, {"id": "b", "x": "2"}]


def test_a_short_row_lacks_its_last_cells(write):
    assert cells(read_table(write("a.csv", "id,x,y", "a,1"))) == [{"id": "a", "x": "1", "y": ""}]


def test_a_row_that_is_too_long_is_told_and_left_out(write):
    path = write("a.csv", "id,note", "a,fine", "b,tired, hungry", "c,fine")
    table = read_table(path)
    assert [row.cells["id"] for row in table.rows] == ["a", "c"]
    (problem,) = table.problems
    assert problem.what == f"{path}, line 3"
    assert "3 cells where the header has 2" in problem.why


def test_only_wanted_columns_and_rows_are_kept(write):
    path = write("a.csv", "Subject,secret,Age", "1,x,30", "2,y,40")
    table = read_table(path, {"Subject": "subject", "Age": "age"}.get, lambda row: row["subject"] == "2")
    assert table.columns == ("subject", "age")
    assert [(row.line, row.cells) for row in table.rows] == [(3, {"subject": "2", "age": "40"})]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((), "is empty"),
        (("", "  "), "is empty"),
        (("id,age,age", "1,2,3"), "'age' stands there more than once"),
        (("id,note", '1,"never closed', "2,x"), "check its quotation marks"),
    ],
)
def test_what_is_no_table_is_refused(write, lines, said):
    path = write("a.csv", *lines)
    with pytest.raises(InputError, match=said) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))


def test_a_spreadsheet_a_folder_and_nothing_are_refused(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(InputError, match="save the table as CSV"):
        read_table(tmp_path / "a.xlsx")
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(InputError, match="cannot be read"):
            read_table(path)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@given(rows=st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), max_size=5))
def test_whatever_the_csv_module_writes_is_read_back(tmp_path_factory, mark, rows):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=mark, quoting=csv.QUOTE_ALL)
    writer.writerows([["a", "b", "c"], *rows])
    path = tmp_path_factory.mktemp("tables") / "a.csv"
    path.write_bytes(text.getvalue().encode("utf-8", "replace"))
    expected = [[cell.encode("utf-8", "replace").decode().strip() for cell in row] for row in rows]
    found = [list(row.values()) for row in cells(read_table(path))]
    assert found == [row for row in expected if any(row)]


def test_columns_are_found_whatever_their_case():
    assert column_among(("x", "Family_ID"), ("family", "family_id")) == "Family_ID"
    assert column_among(("ID", "Subject"), ("subject", "id")) == "Subject"
    assert column_among(("x",), ("subject",)) is None
