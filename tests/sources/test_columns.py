"""Columns of a table: what `31,5` and `none` mean there, and how many cells were taken for missing."""

import pytest

from tablet_hf.sources import find_scans
from tablet_hf.sources.columns import typed_cells
from tablet_hf.sources.delimited import read_table


@pytest.fixture
def read(write):
    """A function that reads a column of cells, in a table with that delimiter: its values, and notes."""

    def make(*cells, delimiter=","):
        lines = [f"id{delimiter}x", *(f'{number}{delimiter}"{cell}"' for number, cell in enumerate(cells))]
        rows, notes = typed_cells(read_table(write("t.csv", *lines)), ["x"])
        assert all(note.is_note for note in notes)
        return [row["x"] for row in rows], [note.why for note in notes]

    return make


class TestDecimalCommas:
    def test_numbers_of_a_table_with_semicolons(self, read):
        values, notes = read("31,5", "-0,25", "7", "1,5e3", "n/a", "", "-999,0", delimiter=";")
        assert values == [31.5, -0.25, 7, 1500.0, None, None, None]
        assert "the comma was read as the decimal point in x." in notes

    @pytest.mark.parametrize(
        ("cells", "delimiter"),
        [
            (["31,5", "30"], ","),
            (["31,5", "30"], "\t"),
            (["31,5", "about 30"], ";"),
            (["31,5", "30.25"], ";"),
            (["31,5", "1,234,567"], ";"),
        ],
    )
    def test_what_does_not_fit_stays_text_and_is_told(self, read, cells, delimiter):
        values, notes = read(*cells, delimiter=delimiter)
        assert values[0] == "31,5"
        assert notes == ["cells with a comma were kept as text in x (31,5); write numbers with a decimal point."]

    def test_texts_with_commas_are_nobodys_business(self, read):
        for delimiter in (",", ";"):
            assert read("tired, hungry", "fine", delimiter=delimiter) == (["tired, hungry", "fine"], [])

    def test_a_german_spreadsheet(self, plant, write, reasons):
        plant("a.nii", "b.nii")
        table = write("t.csv", "path;subject;repetition_time;age", "a.nii;1;0,72;31,5", "b.nii;2;2;28", ending="\r\n")
        cohort = find_scans("table", table)
        assert [(record.repetition_time, record.phenotypes["age"]) for record in cohort.records] == [
            (0.72, 31.5),
            (2, 28),
        ]
        assert reasons(cohort, "the comma was read as the decimal point in age, repetition_time.")
        assert cohort.is_all_used


class TestNone:
    @pytest.mark.parametrize("word", ["none", "None"])
    def test_a_group_of_this_name_stays(self, read, word):
        values, notes = read(*[word] * 3, *["mild"] * 4, "n/a")
        assert values == [word] * 3 + ["mild"] * 4 + [None]
        assert (
            "'none' was taken for a group and not for a missing value in x (3 cells); write n/a if it is none." in notes
        )

    @pytest.mark.parametrize(
        "others", [["31", "28", "40"], ["F"] * 60 + ["M"] * 60, []], ids=["numbers", "rare", "nothing else"]
    )
    def test_it_is_missing_elsewhere_and_that_is_told(self, read, others):
        values, notes = read("none", "None", *others)
        assert values[:2] == [None, None]
        assert notes == ["cells that were taken for missing values, by column: x 2 (none, None)."]

    def test_a_single_one_is_missing(self, read):
        assert read("none", "mild", "severe")[0] == [None, "mild", "severe"]


class TestMissing:
    def test_cells_are_counted_with_what_stands_in_them(self, read):
        values, notes = read("n/a", "n/a", "-999", "31", "", "pending")
        assert values == [None, None, None, 31, None, None]
        assert notes == ["cells that were taken for missing values, by column: x 4 (n/a, -999, pending)."]

    def test_empty_cells_are_missing_without_a_word(self, read):
        assert read("", "31") == ([None, 31], [])

    def test_columns_that_are_most_likely_misread_come_first(self, write):
        table = read_table(write("t.csv", "a,b,c", "n/a,unknown,1", "n/a,none,2", "n/a,F,3"))
        _, (note,) = typed_cells(table, table.columns)
        assert (
            str(note)
            == f"{table.path}: cells that were taken for missing values, by column: b 2 (unknown, none), a 3 (n/a)."
        )

    def test_a_table_of_many_columns_has_one_note(self, write):
        names = [f"c{number}" for number in range(30)]
        table = read_table(write("t.csv", ",".join(names), ",".join(["n/a"] * 30)))
        _, (note,) = typed_cells(table, names)
        assert note.why.endswith("c19 1 (n/a) and 10 more columns.")


def test_words_of_missing_cells_are_no_site_family_or_dataset(plant, write):
    plant("a.nii", "b.nii")
    table = write("t.csv", "path,subject,site,family,dataset,mask", "a.nii,1,n/a,n/a,NA,n/a", "b.nii,2,X,n/a,,")
    for record, site in zip(find_scans("table", table).records, (None, "X"), strict=True):
        assert (record.site, record.family, record.dataset, record.mask) == (site, None, None, None)
