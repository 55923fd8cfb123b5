"""The table of predictions is read back as it was written, and runs nothing in a spreadsheet."""

import csv
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_predictions import classifier, regressor

from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import Predictions, read_predictions, write_predictions
from tablet_hf.evaluation.statistics import evaluate_predictions


def assert_equal(found, expected):
    for name in ("method", "label", "classes", "subjects", "sites", "folds"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("targets", "outputs"):
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize(
    "classes", [("control", "ADHD"), (0, 1), (False, True), ("a", "b", "c"), (-1, 0, 1), ("01", "02"), (1.5, 2.5)]
)
def test_predictions_come_back_as_they_were(tmp_path, classes):
    methods = [classifier(classes=classes), classifier("other: one", classes=classes, seed=1)]
    write_predictions(tmp_path / "predictions.csv", methods)
    for found, expected in zip(read_predictions(tmp_path / "predictions.csv"), methods, strict=True):
        assert_equal(found, expected)
        assert [type(name) for name in found.classes] == [type(name) for name in expected.classes]


def test_numbers_come_back_to_the_last_bit(tmp_path):
    methods = [regressor(), regressor("other", seed=1)]
    methods[0].outputs[:3] = [1e-300, -0.1, 1 / 3]
    write_predictions(tmp_path / "predictions.csv", methods)
    for found, expected in zip(read_predictions(tmp_path / "predictions.csv"), methods, strict=True):
        assert_equal(found, expected)


def test_the_table_says_what_each_method_said(tmp_path):
    made = classifier()
    table = pd.read_csv(write_predictions(tmp_path / "predictions.csv", [made]), dtype={"subject": str})
    assert list(table.columns) == [
        "subject",
        "site",
        "fold",
        "true diagnosis",
        "TABLeT: predicted diagnosis",
        "TABLeT: probability of control",
        "TABLeT: probability of ADHD",
    ]
    assert tuple(table.subject) == made.subjects
    right = (table["true diagnosis"] == table["TABLeT: predicted diagnosis"]).mean()
    assert right == evaluate_predictions(made, 5, 5).metrics["accuracy"].value


DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\n")
TEXTS = st.text(min_size=1, max_size=8).filter(lambda text: "\x00" not in text and text.isprintable()) | st.builds(
    lambda first, rest: first + rest, st.sampled_from(["=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", "'=x", "\t=1"]),
    st.sampled_from(["", "'", '"', ",", " "]),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXTS, min_size=7, max_size=7, unique=True))
def test_no_cell_from_outside_is_a_formula_and_all_come_back(tmp_path, texts):
    method, one, other, subject, site, fold, label = texts
    made = Predictions(
        method, label, (one + "x", other + "x"), (subject, subject + "2"), np.array([0, 1]),
        np.array([[0.25, 0.75], [0.5, 0.5]]), (site, None), (fold, fold),
    )  # fmt: skip
    path = write_predictions(tmp_path / "predictions.csv", [made])
    with path.open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    dangerous = [cell for cell in cells if cell.startswith(DANGEROUS)]
    assert all(re.fullmatch(r"-\d+(\.\d+)?(e[+-]?\d+)?", cell) for cell in dangerous)  # numbers
    assert_equal(read_predictions(path)[0], made)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"scan,model\na,b\n",
        b"subject,site,fold,true sex,TABLeT: predicted sex\n",
        b"subject,site,fold,true sex,TABLeT: predicted sex\n1,2\n",
        b"subject,site,fold,true sex,x\n1,a,b,M,2\n",
        b"subject,site,fold,true sex,TABLeT: predicted sex\n1,a,b,M,M\n",
        b"subject,site,fold,true sex,T: predicted sex,T: probability of M\n1,a,b,F,M,0.5\n",
        b"\xff\xfe\x00\x01",
        None,
    ],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "predictions.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"predictions\.csv"):
        read_predictions(path)
