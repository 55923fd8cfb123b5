"""The page and the results of an evaluation have its figures and warnings."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from small_predictions import classifier, regressor

from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import read_predictions
from tablet_hf.evaluation.statistics import as_json, compare, evaluate_predictions
from tablet_hf.report.evaluation_page import NO_BASELINE, write_results


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.pictures = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attributes))

    def handle_data(self, data):
        self.words.append(data)


# --- results.json and the page


def test_results_are_the_evaluations_and_comparisons(tmp_path):
    methods = [classifier(), classifier("functional connectivity", seed=1), classifier("mean token", seed=2, skill=0)]
    returned = write_results(tmp_path / "results", methods, None, {"model": "my-model"}, 100, 50, seed=7)
    assert json.loads((tmp_path / "results/results.json").read_text()) == returned
    assert list(returned["methods"]) == ["TABLeT", "functional connectivity", "mean token"]
    for each in methods:
        assert returned["methods"][each.method] == as_json(evaluate_predictions(each, 100, 50, seed=7))
    assert returned["comparisons"] == as_json([compare(methods[0], other, 100, seed=7) for other in methods[1:]])
    assert returned["settings"] == {"confidence": 0.95, "num_bootstraps": 100, "num_permutations": 50, "seed": 7}
    assert (returned["task"], returned["classes"], returned["num_subjects"]) == (
        "classification",
        ["control", "ADHD"],
        40,
    )
    assert returned["about"] == {"model": "my-model"}
    assert returned["baselines"] == ["functional connectivity", "mean token"]
    assert NO_BASELINE not in returned["warnings"]
    assert {"tablet_hf", "scikit-learn", "numpy"} <= set(returned["software"])


@pytest.mark.parametrize(
    ("methods", "pictures"),
    [
        ([classifier(), classifier("other", seed=1)], ["calibration", "confusion", "methods", "roc", "sites"]),
        ([classifier(classes=("a", "b", "c"), folds=1)], ["calibration", "confusion", "methods", "roc", "sites"]),
        ([regressor(), regressor("other", seed=1)], ["methods", "scatter", "sites"]),
    ],
    ids=["two classes", "three classes", "a number"],
)
def test_the_page_holds_tables_and_pictures(tmp_path, methods, pictures):
    results = write_results(tmp_path, methods, num_bootstraps=50, num_permutations=50)
    assert sorted(path.stem for path in (tmp_path / "pictures").iterdir()) == pictures
    page = Page(tmp_path / "index.html")
    assert len(page.pictures) == len(pictures)
    assert all(each["src"].startswith("data:image/png;base64,") and each["alt"] for each in page.pictures)
    for name, evaluation in results["methods"].items():
        main = evaluation["metrics"][evaluation["main_metric"]]
        assert name in page.text
        assert f"{main['value']:.2f} ({main['low']:.2f} to {main['high']:.2f})".replace("-", "−") in page.text
    for each in results["comparisons"]:
        assert f"p = {each['p_value']:.2g}" in page.text
    assert ("Folds" in page.text) == (len(set(methods[0].folds)) > 1)
    assert not {"script", "link"} & set(page.tags)


def test_pictures_of_an_older_evaluation_go(tmp_path):
    write_results(tmp_path, [classifier()], num_bootstraps=10, num_permutations=10)
    write_results(tmp_path, [regressor()], num_bootstraps=10, num_permutations=10)
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == {"methods", "scatter", "sites"}


def test_warnings_are_in_the_results_and_on_the_page(tmp_path):
    results = write_results(
        tmp_path, [classifier(count=12)], num_bootstraps=20, num_permutations=20, warnings=["Mine."]
    )
    assert results["baselines"] == []
    assert {"Mine.", NO_BASELINE} < set(results["warnings"])
    page = Page(tmp_path / "index.html")
    assert all(f"Warning: {warning}" in page.text for warning in results["warnings"])
    pair = [classifier(), classifier("TABLeT, pre-trained", seed=1)]
    assert NO_BASELINE in write_results(tmp_path, pair, (), None, 10, 10)["warnings"]
    assert NO_BASELINE not in write_results(tmp_path, pair, ["TABLeT, pre-trained"], None, 10, 10)["warnings"]


def test_all_methods_are_evaluated_on_the_subjects_that_all_predicted(tmp_path):
    every, some = classifier(), classifier("other", seed=1).chosen(np.arange(39, 5, -1))
    results = write_results(tmp_path, [every, some], num_bootstraps=50, num_permutations=50)
    assert results["num_subjects"] == 34
    assert any("6 of 40 predictions of TABLeT are left out" in warning for warning in results["warnings"])
    expected = as_json(evaluate_predictions(every.chosen(np.arange(6, 40)), 50, 50))
    assert results["methods"]["TABLeT"] == expected
    for found, written in zip(read_predictions(tmp_path / "predictions.csv"), [every, some], strict=True):
        assert sorted(found.subjects) == sorted(written.subjects)


def test_a_note_on_one_method_has_its_name(tmp_path):
    perfect = replace(classifier("oracle"), outputs=np.eye(2)[classifier().targets])
    warnings = write_results(tmp_path, [classifier(), perfect], num_bootstraps=20, num_permutations=20)["warnings"]
    assert any(warning.startswith("oracle: ") for warning in warnings)


def test_names_from_outside_break_neither_page_nor_pictures(tmp_path):
    made = classifier(classes=("$x^{", "<script>alert(1)</script>"), count=24)
    made = replace(made, method="<b>$\\alpha", sites=("<i>$_{",) * 24)
    write_results(tmp_path, [made], about={"<u>": "</td>"}, num_bootstraps=10, num_permutations=10)
    page = Page(tmp_path / "index.html")
    assert not {"script", "b", "i", "u"} & set(page.tags)
    assert "<b>$\\alpha" in page.text


@pytest.mark.parametrize(
    ("methods", "word"),
    [
        ([], "no predictions"),
        ([classifier(), classifier()], "two methods"),
        ([classifier(), regressor("other")], "other: "),
        ([classifier().chosen([0, 1]), classifier("other").chosen([2, 3])], "all methods"),
        ([classifier(), classifier("other").chosen([*range(40), 3])], "0003"),
    ],
)
def test_methods_that_do_not_match_are_refused(tmp_path, methods, word):
    with pytest.raises(InputError, match=word):
        write_results(tmp_path, methods, num_bootstraps=5, num_permutations=5)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_results(tmp_path / "file", [classifier()], num_bootstraps=5, num_permutations=5)
