"""Keys of records, and values of cells."""

import json
import math
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tablet_hf.errors import InputError
from tablet_hf.sources import ScanRecord
from tablet_hf.sources.records import phenotype_values, store_key, typed_columns, typed_rows, typed_value


@pytest.mark.parametrize(
    ("record", "key"),
    [
        (ScanRecord("01", Path("x")), "sub-01"),
        (ScanRecord("01", Path("x"), session="a", task="rest", run="1+acqAP"), "sub-01_ses-a_task-rest_run-1+acqAP"),
        (ScanRecord("../../etc", Path("x"), run="a/b"), "sub-etc+CHECKSUM_run-ab+CHECKSUM"),
        (ScanRecord("--", Path("x")), "sub-x+CHECKSUM"),
        (ScanRecord("Jörg Schön", Path("x")), "sub-JorgSchon+CHECKSUM"),
        (ScanRecord("张伟", Path("x"), dataset="HCP-YA"), "HCP-YA/sub-x+CHECKSUM"),
    ],
)
def test_the_key_is_fit_for_a_file_name(record, key):
    assert re.fullmatch(re.escape(key).replace("CHECKSUM", "[0-9a-f]{8}"), record.key)
    assert store_key(record) == record.key


@given(st.lists(st.text(max_size=6), min_size=2, max_size=5, unique_by=lambda text: unicodedata.normalize("NFC", text)))
def test_different_labels_have_different_keys(labels):
    for field in ("subject", "session", "task", "run", "dataset"):
        keys = [ScanRecord(**({"subject": "1", "scan": Path("x")} | {field: label})).key for label in labels]
        assert len(set(keys)) == len(labels)
        assert all(re.fullmatch(r"([0-9A-Za-z+-]+/)?[0-9A-Za-z+_-]+", key) for key in keys)


@given(st.text("0123456789abcXYZ+", min_size=1))
def test_plain_labels_stay_as_they_are(label):
    assert ScanRecord(label, Path("x"), dataset=f"{label}-1").key == f"{label}-1/sub-{label}"
    one, other = (ScanRecord(unicodedata.normalize(form, f"{label}ö"), Path("x")) for form in ("NFC", "NFD"))
    assert one.key == other.key


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *(("1", 1), ("1.0", 1), ("-3", -3), ("0", 0), (" 1.5 ", 1.5), ("1e3", 1000.0)),
        *((text, text) for text in ("yes", "26-30", "1,5", "007", "52259_82122", "2_0", "12345678901234567")),
        ("123456789012345", 123456789012345),
        *((cell, None) for cell in ("", "n/a", "N/A", "NaN", "pending", "<NA>", "inf", "-999", "-999.0")),
    ],
)
def test_typed_values(cell, value):
    found = typed_value(cell)
    assert found == value
    assert type(found) is type(value)


@given(st.text())
def test_a_text_is_a_number_missing_or_itself(cell):
    value = typed_value(cell)
    assert value is None or value == cell.strip() or float(cell) == value


@given(st.integers(-(10**15) + 1, 10**15 - 1))
def test_whole_numbers_come_back(number):
    for text in (str(number), f"{number}.0", f" {number}\t"):
        assert typed_value(text) == (None if number in (-999, -9999, -888, -777) else number)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_fractions_come_back(number):
    assert typed_value(repr(number)) == (None if number in (-999, -9999, -888, -777) else number)


def test_numbers_of_numpy_and_pandas_can_be_written():
    values = {"a": np.float32(1.5), "b": np.int64(3), "c": np.bool_(1), "d": np.nan, "e": pd.NA, "f": pd.NaT}
    record = ScanRecord("1", Path("x"), phenotypes=values | {"g": math.inf, "sex": "F"})
    assert record.phenotypes == {"a": 1.5, "b": 3, "c": True, "d": None, "e": None, "f": None, "g": None, "sex": "F"}
    assert json.loads(json.dumps(record.phenotypes, allow_nan=False)) == record.phenotypes
    for value in (pd.Timestamp("2020-01-01"), [1], np.zeros(2)):
        with pytest.raises(InputError, match="'age'"):
            ScanRecord("1", Path("x"), phenotypes={"age": value})


def test_rows_have_all_columns_each_of_one_type():
    rows = [{"code": 1, "age": 1, "iq": 2}, {"code": "x", "age": 1.5, "iq": 3, "ok": True, "dx": None}]
    assert typed_columns(rows) == {"code": str, "age": float, "iq": int, "ok": bool, "dx": str}
    assert typed_rows(rows) == [
        {"code": "1", "age": 1.0, "iq": 2, "ok": None, "dx": None},
        {"code": "x", "age": 1.5, "iq": 3, "ok": True, "dx": None},
    ]


def test_a_phenotype_of_all_runs_or_what_there_is_instead():
    rows = [{"age": 30.5, "sex": "F", "iq": None}, {"age": None, "sex": "M"}, {}]
    records = [ScanRecord(str(number), Path("x"), phenotypes=row) for number, row in enumerate(rows)]
    assert phenotype_values(records, "age", "STORE") == [30.5, None, None]
    for name in ("IQ", "iq"):  # a column without a value is no better than none
        with pytest.raises(InputError, match=rf"STORE: .*{name}; choose from age, sex\."):
            phenotype_values(records, name, Path("STORE"))
    with pytest.raises(InputError, match="none"):
        phenotype_values(records[2:], "age", "STORE")
