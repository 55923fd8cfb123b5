"""Evaluations against slow loops over scikit-learn and scipy, and against simulated subjects."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from tablet_hf.errors import InputError
from tablet_hf.evaluation.metrics import classification_metrics, regression_metrics
from tablet_hf.evaluation.predictions import Predictions, joined
from tablet_hf.evaluation.resampling import bootstrap_counts
from tablet_hf.evaluation.statistics import Estimate, as_json, compare, evaluate_predictions, main_metric


def table(targets, outputs, classes=("F", "M"), sites=None, folds=None, subjects=None, method="TABLeT"):
    count = len(targets)
    outputs = np.asarray(outputs, dtype=np.float64)
    if classes is not None and outputs.ndim == 1:
        outputs = np.stack([1 - outputs, outputs], axis=1)
    return Predictions(
        method,
        "sex" if classes else "age",
        classes,
        tuple(subjects or (f"s{number:03}" for number in range(count))),
        np.asarray(targets, dtype=np.int64 if classes else np.float64),
        outputs,
        tuple(sites or [None] * count),
        tuple(folds or ["test"] * count),
    )


def simulated(count=80, skill=1.5, seed=0, **fields):
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(count) % 2)
    odds = rng.standard_normal(count) + skill * (targets - 0.5)
    return table(targets, 1 / (1 + np.exp(-odds)), **fields)


def simulated_numbers(count=80, seed=0, **fields):
    rng = np.random.default_rng(seed)
    targets = 50 + 10 * rng.standard_normal(count)
    return table(targets, 50 + 0.5 * (targets - 50) + 5 * rng.standard_normal(count), classes=None, **fields)


def auroc_by_pairs(labels, scores):
    """The share of pairs in order, without ties."""
    return np.mean(scores[labels == 1][:, None] > scores[labels == 0])


# --- metrics and intervals


def test_values_are_those_of_the_metrics():
    made, numbers = simulated(), simulated_numbers()
    found = evaluate_predictions(made, 20, 20)
    positive = made.outputs[:, 1]
    expected = classification_metrics(made.targets, positive)
    assert {name: estimate.value for name, estimate in found.metrics.items()} == expected
    assert found.confusion.tolist() == sk.confusion_matrix(made.targets, positive >= 0.5).tolist()
    assert found.calibration["brier"].value == pytest.approx(sk.brier_score_loss(made.targets, positive))
    assert (found.main_metric, found.main) == ("auroc", found.metrics["auroc"])
    found = evaluate_predictions(numbers, 20, 20)
    expected = regression_metrics(numbers.targets, numbers.outputs)
    assert {name: estimate.value for name, estimate in found.metrics.items()} == expected
    line = stats.linregress(numbers.outputs, numbers.targets)
    assert found.calibration["slope"].value == pytest.approx(line.slope)
    assert found.calibration["intercept"].value == pytest.approx(line.intercept)
    assert (found.confusion, found.reliability, found.main_metric) == (None, (), "pearson_r")


def test_intervals_are_those_of_scipys_bootstrap():
    made = simulated(60)
    found = evaluate_predictions(made, 4000, 10).metrics
    for name, statistic in {
        "auroc": auroc_by_pairs,
        "accuracy": lambda labels, scores: np.mean(labels == (scores >= 0.5)),
    }.items():
        expected = stats.bootstrap(
            (made.targets, made.outputs[:, 1]), statistic, paired=True, vectorized=False, n_resamples=2000,
            method="percentile", rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        assert (found[name].low, found[name].high) == pytest.approx(tuple(expected), abs=0.02)


def test_a_subject_of_several_folds_is_drawn_whole():
    """The same 40 subjects in four folds are 40 subjects, and the interval is that of 40, not of 160."""
    once = simulated(40)
    fourfold = joined([table(once.targets, once.outputs, folds=[f"fold-{k}"] * 40) for k in range(4)])
    expected, found = (evaluate_predictions(each, 2000, 400) for each in (once, fourfold))
    assert (found.num_subjects, found.num_entries) == (40, 160)
    for name, estimate in expected.metrics.items():
        assert found.metrics[name].value == pytest.approx(estimate.value)
        assert (found.metrics[name].low, found.metrics[name].high) == pytest.approx((estimate.low, estimate.high))
    assert found.p_value == pytest.approx(expected.p_value, abs=0.01)
    assert any("40 subjects are in several folds" in note for note in found.notes)


def test_draws_without_a_class_are_counted_and_too_many_leave_no_interval():
    rng = np.random.default_rng(0)
    one_of_forty = evaluate_predictions(table([1] + [0] * 39, rng.random(40)), 1000, 10).metrics
    assert one_of_forty["auroc"].undefined == pytest.approx((1 - 1 / 40) ** 40, abs=0.05)
    assert math.isnan(one_of_forty["auroc"].low)
    assert math.isfinite(one_of_forty["auroc"].value)
    assert one_of_forty["accuracy"].undefined == 0
    four = evaluate_predictions(table([1] * 4 + [0] * 36, rng.random(40)), 1000, 10).metrics["auroc"]
    assert 0 < four.undefined < 0.05
    assert four.low <= four.value <= four.high


# --- several classes


def three_classes(count=90, seed=0, **fields):
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(count) % 3)
    odds = rng.standard_normal((count, 3))
    odds[np.arange(count), targets] += 1.2
    return table(targets, np.exp(odds) / np.exp(odds).sum(1, keepdims=True), classes=("a", "b", "c"), **fields)


def test_the_p_value_of_several_classes_is_that_of_their_mean_auroc():
    rng = np.random.default_rng(2)
    made = three_classes(30, seed=5)
    made = table(made.targets, rng.dirichlet(np.ones(3), 30), classes=made.classes)

    def mean_auroc(targets):
        return np.mean([auroc_by_pairs(targets == number, made.outputs[:, number]) for number in range(3)])

    observed = mean_auroc(made.targets)
    assert observed == pytest.approx(sk.roc_auc_score(made.targets, made.outputs, multi_class="ovr"))
    expected = np.mean([mean_auroc(rng.permutation(made.targets)) >= observed - 1e-12 for _ in range(4000)])
    assert evaluate_predictions(made, 10, 4000).p_value == pytest.approx(expected, abs=0.05)


def test_where_a_class_has_no_subject_accuracy_is_the_main_metric():
    made = three_classes(60)
    without = made.chosen(made.targets < 2)
    found = evaluate_predictions(without, 50, 400)
    assert found.main_metric == main_metric(without) == "accuracy"
    assert math.isnan(found.metrics["auroc"].value)
    assert found.p_value < 0.05
    assert any("sex c: 0" in note for note in found.notes)
    assert any("Not defined" in note and "auroc" in note for note in found.notes)


# --- chance and p values


def test_chance_is_what_a_constant_guess_reaches():
    targets = np.array([1] * 12 + [0] * 28)
    found = evaluate_predictions(table(targets, np.full(40, 0.3)), 20, 20)
    assert found.chance == pytest.approx(
        {"auroc": 0.5, "balanced_accuracy": 0.5, "accuracy": 0.7, "f1": 2 * 0.3 / 1.3, "brier": 0.3 * 0.7}
    )
    for name in ("auroc", "balanced_accuracy", "accuracy"):
        assert found.metrics[name].value == pytest.approx(found.chance[name])
    assert found.calibration["brier"].value == pytest.approx(found.chance["brier"])
    made = simulated_numbers()
    median = evaluate_predictions(table(made.targets, np.full(80, np.median(made.targets)), classes=None), 20, 20)
    assert median.metrics["mae"].value == pytest.approx(median.chance["mae"])
    mean = evaluate_predictions(table(made.targets, np.full(80, made.targets.mean()), classes=None), 20, 20)
    assert mean.metrics["mse"].value == pytest.approx(mean.chance["mse"])
    assert mean.metrics["r2"].value == pytest.approx(0, abs=1e-12)
    assert math.isnan(mean.p_value)


def test_p_values_of_noise_are_uniform():
    values = [evaluate_predictions(simulated(30, skill=0, seed=seed), 1, 99).p_value for seed in range(60)]
    assert stats.kstest(values, "uniform").pvalue > 0.01


def test_the_p_value_of_a_number_is_that_of_scipy():
    made = simulated_numbers(20, seed=3)
    noisy = table(made.targets, made.outputs + 12 * np.random.default_rng(0).standard_normal(20), classes=None)
    exact = stats.pearsonr(noisy.targets, noisy.outputs, alternative="greater").pvalue
    assert 0.01 < exact < 0.5
    assert evaluate_predictions(noisy, 10, 8000).p_value == pytest.approx(exact, rel=0.25)


def test_knowing_the_fold_is_no_skill():
    """A model that only recognises its fold, where folds (such as sites left out) differ in the label."""
    rng = np.random.default_rng(0)
    folds = ["KKI"] * 40 + ["NYU"] * 40
    targets = np.r_[rng.random(40) < 0.9, rng.random(40) < 0.1].astype(int)
    made = table(targets, np.repeat([0.9, 0.1], 40), folds=folds)
    found = evaluate_predictions(made, 100, 400)
    assert found.metrics["auroc"].value > 0.8
    assert found.p_value == 1
    assert evaluate_predictions(table(targets, made.outputs), 100, 400).p_value < 0.01


# --- sites and folds


def test_sites_with_enough_subjects_are_evaluated():
    sites = [*["NYU"] * 40, *["KKI"] * 25, *["OHSU"] * 9, *[None] * 6]
    made = simulated(80, sites=sites)
    found = {site.name: site for site in evaluate_predictions(made, 200, 10).by_site}
    assert list(found) == ["KKI", "NYU", "OHSU", None]
    assert [site.num_subjects for site in found.values()] == [25, 40, 9, 6]
    nyu = made.chosen([site == "NYU" for site in made.sites])
    assert found["NYU"].metrics["auroc"].value == pytest.approx(sk.roc_auc_score(nyu.targets, nyu.outputs[:, 1]))
    assert found["NYU"].metrics == evaluate_predictions(nyu, 200, 10).metrics
    assert found["OHSU"].metrics == {}
    assert "fewer than 10" in found["OHSU"].note
    assert evaluate_predictions(simulated(), 10, 10).by_site == ()


def test_a_site_of_one_class_has_no_auroc():
    made = table([0] * 12 + [0, 1] * 10, np.linspace(0.1, 0.8, 32), sites=["Pittsburgh"] * 12 + ["NYU"] * 20)
    site = evaluate_predictions(made, 50, 10).by_site[1]
    assert site.name == "Pittsburgh"
    assert "auroc" in site.note
    assert math.isnan(site.metrics["auroc"].value)
    assert math.isfinite(site.metrics["specificity"].low)


def test_folds_have_their_own_values_mean_and_spread():
    folds = [f"fold-{number % 4 + 1}" for number in range(80)]
    made = simulated(80, folds=folds)
    found = evaluate_predictions(made, 20, 20)
    values = [
        sk.roc_auc_score(part.targets, part.outputs[:, 1])
        for part in (made.chosen([fold == name for fold in folds]) for name in sorted(set(folds)))
    ]
    assert [fold.name for fold in found.by_fold] == sorted(set(folds))
    assert [fold.metrics["auroc"] for fold in found.by_fold] == pytest.approx(values)
    assert found.over_folds["auroc"] == pytest.approx(
        {"mean": np.mean(values), "std": np.std(values, ddof=1), "num_folds": 4}
    )
    assert any("not independent" in note for note in found.notes)
    assert math.isnan(evaluate_predictions(simulated(), 20, 20).over_folds["auroc"]["std"])


# --- calibration


def test_the_reliability_curve_is_that_of_scikit_learn():
    made = simulated(200)
    found = evaluate_predictions(made, 20, 20)
    observed, predicted = calibration_curve(made.targets, made.outputs[:, 1], n_bins=10, strategy="quantile")
    assert [part.observed for part in found.reliability] == pytest.approx(observed.tolist())
    assert [part.predicted for part in found.reliability] == pytest.approx(predicted.tolist())
    assert [part.count for part in found.reliability] == [20] * 10
    expected = np.mean(np.abs(observed - predicted))
    assert found.calibration["ece"].value == pytest.approx(expected)


# --- notes, refusals, JSON


def test_notes_on_few_subjects_and_certain_scores():
    notes = " ".join(evaluate_predictions(simulated(12), 50, 10).notes)
    assert "12 subjects" in notes
    assert "sex M: 6" in notes
    assert evaluate_predictions(simulated(100), 50, 10).notes == ()
    (note,) = evaluate_predictions(table([0, 1] * 20, [0.1, 0.9] * 20), 50, 10).notes
    assert "accuracy" in note


def test_without_an_interval_there_is_no_p_value():
    one = evaluate_predictions(table([1], [0.9]), 50, 10)
    assert one.metrics["accuracy"].value == 1
    assert math.isnan(one.metrics["accuracy"].low)
    assert "1 subject" in one.notes[0]
    difference = compare(table([1], [0.9]), table([1], [0.1], method="other"), 50)
    assert difference.main.value == 1
    assert math.isnan(difference.main.low)
    assert math.isnan(difference.p_value)
    numbers = simulated_numbers(20)
    constant = dataclasses.replace(numbers, outputs=np.zeros(20), method="mean")  # has no correlation
    assert math.isnan(compare(numbers, constant, 50).p_value)


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (table([0, 1, 0, 1], [0.1, np.nan, np.inf, 0.2]), "2 of 4"),
        (table([0, 1], [-2.0, 3.0]), "logits"),
        (table([0, 1], [0.2, 0.3], subjects=["s1", "s1"]), "s1"),
    ],
)
def test_unusable_predictions_are_refused(made, word):
    with pytest.raises(InputError, match=word):
        evaluate_predictions(made)


def test_an_evaluation_is_json():
    made = three_classes(60, sites=["A", "B"] * 30)
    content = as_json(evaluate_predictions(made.chosen(made.targets < 2), 50, 50))
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text) == content
    assert content["metrics"]["auroc"]["value"] is None
    assert content["by_site"][0]["name"] == "A"
    assert len(content["confusion"]) == 3
    assert as_json({"a": Estimate(1.0), 2: (np.float32(0.5), np.int64(3), np.array([np.nan]))}) == {
        "a": {"value": 1.0, "low": None, "high": None, "undefined": 0.0},
        "2": [0.5, 3, [None]],
    }


# --- comparison


def test_a_difference_is_paired():
    """Two methods that make nearly the same mistakes differ by little, however much each depends on the subjects."""
    made = simulated(60)
    rng = np.random.default_rng(0)
    positive = np.clip(made.outputs[:, 1] + 0.001 * rng.standard_normal(60), 0, 1)
    found = compare(made, table(made.targets, positive, method="almost TABLeT"), 500)
    alone = evaluate_predictions(made, 500, 1).main
    assert found.main.low <= found.main.value <= found.main.high
    assert found.main.high - found.main.low < 0.1 * (alone.high - alone.low)
    assert (found.first, found.second, found.num_subjects, found.num_left_out) == ("TABLeT", "almost TABLeT", 60, 0)
    same = compare(made, dataclasses.replace(made, method="the same"), 100)
    assert (same.main.value, same.main.low, same.main.high, same.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize("skill", [0.5, 0.9, 1.4])
def test_a_difference_is_that_of_a_slow_loop(skill):
    """Over the same draws; subjects in two folds are drawn with both entries."""
    entries = np.arange(60) % 30
    first, second = simulated(60), simulated(60, skill=skill, seed=1)
    second = table(first.targets, second.outputs, method="other")
    subjects, folds = tuple(f"{number:02}" for number in entries), ("a",) * 30 + ("b",) * 30
    first, second = (dataclasses.replace(each, subjects=subjects, folds=folds) for each in (first, second))
    differences = []
    for counts in np.concatenate(list(bootstrap_counts(30, 400, seed=3))):
        rows = np.repeat(np.arange(60), counts[entries].astype(int))
        aurocs = [auroc_by_pairs(each.targets[rows], each.outputs[rows, 1]) for each in (first, second)]
        differences.append(round(aurocs[0] - aurocs[1], 12))
    rarer = min(np.sum(np.array(differences) <= 0), np.sum(np.array(differences) >= 0))
    found = compare(first, second, 400, seed=3)
    assert (found.main.low, found.main.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]).tolist())
    assert found.p_value == pytest.approx(min(1, 2 * (rarer + 1) / 401))
    assert compare(second, first, 400, seed=3).p_value == found.p_value


def test_subjects_are_matched_whatever_their_order():
    made = simulated(40)
    other = dataclasses.replace(made, method="other")
    found = compare(made, other.chosen(np.random.default_rng(0).permutation(40)[:30]), 50)
    assert (found.num_subjects, found.num_left_out) == (30, 10)
    assert (found.main.value, found.main.low, found.main.high) == (0, 0, 0)


def test_methods_that_cannot_be_compared_are_refused():
    made = simulated(20)
    with pytest.raises(InputError, match="label"):
        compare(made, simulated_numbers(20, method="other"))
    with pytest.raises(InputError, match="subject"):
        compare(made, simulated(20, subjects=[f"t{number}" for number in range(20)], method="other"))
    with pytest.raises(InputError, match="s000"):
        compare(made, table(1 - made.targets, made.outputs, method="other"))
