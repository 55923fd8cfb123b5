"""In `benchmarks/order_matters.py`, sets of frames, or frames without a clock, hold no information on the label."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

LOCATION = Path(__file__).parents[1] / "benchmarks" / "order_matters.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("order_matters", LOCATION)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def made(benchmark, monkeypatch):
    """The same runs with label 0 everywhere and with label 1 everywhere: all else is drawn before the labels are."""

    def make(kind, number=40):
        both = []
        for label in (0, 1):
            monkeypatch.setattr(benchmark, "random_labels", lambda random, number, label=label: np.full(number, label))
            random = np.random.default_rng(3)
            both.append(getattr(benchmark, kind)(random, number, benchmark.random_patterns(random, 1)))
        return both

    return make


def in_one_order(frames):
    """The frames `(frames, numbers)` of a run as a set: sorted by their first number, then the second and so on."""
    return frames[np.lexsort(frames.T[::-1])]


@pytest.mark.parametrize("kind", ["direction_runs", "speed_runs"])
def test_the_two_classes_hold_the_same_sets_of_frames(made, kind):
    zeros, ones = made(kind)
    assert not np.array_equal(zeros.tokens, ones.tokens)
    assert (zeros.repetition_time == ones.repetition_time).all()
    for first, second in zip(zeros.tokens[:, :, 0], ones.tokens[:, :, 0], strict=True):
        assert np.array_equal(in_one_order(first), in_one_order(second))
        np.testing.assert_allclose(np.cov(first.T), np.cov(second.T), atol=1e-5)


def test_matched_runs_do_not_differ_in_rate_and_all_runs_not_in_repetition_time(benchmark):
    random = np.random.default_rng(4)
    patterns = benchmark.random_patterns(random, 1)
    matched = benchmark.runs_of_matched_rates(random, 3000, patterns)
    of_any = benchmark.runs_of_tr(random, 3000, patterns)
    for runs in (matched, of_any):
        assert benchmark.MIXED_TR[0] <= runs.repetition_time.min() < runs.repetition_time.max() <= benchmark.MIXED_TR[1]
        assert 0.45 < runs.labels.mean() < 0.55

    def same_in_both_classes(runs, values):
        return ks_2samp(values[runs.labels == 0], values[runs.labels == 1]).pvalue > 0.01

    def rate(runs):
        return runs.repetition_time * np.where(runs.labels == 1, benchmark.FAST_HZ, benchmark.SLOW_HZ)

    assert same_in_both_classes(matched, rate(matched))
    assert not same_in_both_classes(matched, matched.repetition_time)
    assert same_in_both_classes(of_any, of_any.repetition_time)
    assert not same_in_both_classes(of_any, rate(of_any))


def test_without_positions_the_order_of_frames_changes_no_logit_and_only_seconds_know_the_repetition_time(benchmark):
    random = np.random.default_rng(7)
    runs = benchmark.direction_runs(random, 16, benchmark.random_patterns(random, 1))
    shuffled = random.permutation(benchmark.NUM_FRAMES)

    def but(tokens=runs.tokens, repetition_time=runs.repetition_time):
        return benchmark.Runs(np.ascontiguousarray(tokens), repetition_time, runs.labels, runs.people)

    for position_type in benchmark.POSITIONS:
        answer = benchmark.train_tablet(position_type, runs, seed=0, steps=2)
        logits = answer(runs)
        same = dict(rtol=0, atol=1e-4 * logits.std())
        sees_order = position_type != "none"
        assert np.allclose(answer(but(runs.tokens[:, ::-1])), logits, **same) != sees_order
        assert np.allclose(answer(but(runs.tokens[:, shuffled])), logits, **same) != sees_order
        sees_seconds = position_type == "spatiotemporal_rope"
        assert np.allclose(answer(but(repetition_time=3 * runs.repetition_time)), logits, **same) != sees_seconds


def test_subjects_are_counted_by_the_mean_of_the_answers_to_their_runs(benchmark):
    runs = benchmark.Runs(
        np.zeros((5, 1, 1, 1), np.float32), np.ones(5), np.array([1, 1, 0, 0, 1]), np.array([7, 7, 3, 3, 5])
    )
    assert benchmark.right_answers(np.array([3.0, -1.0, 1.0, -0.5, -2.0]), runs) == (1, 3)  # only person 7


# --- real time series


@pytest.fixture
def courses_file(tmp_path):
    random = np.random.default_rng(9)
    path = tmp_path / "courses.npz"
    np.savez(path, **{f"person-{person}": random.standard_normal((70, 4)) for person in range(10)})
    return path


def test_held_out_subjects_are_not_trained_on_and_every_subject_is_held_out_once(benchmark, courses_file):
    courses = benchmark.read_courses(courses_file)
    asked = []
    for fold in range(benchmark.FOLDS):
        training, held_out = benchmark.direction_of_courses(fold, courses, 2.0)
        (held_out,) = held_out.values()
        assert not set(training.people) & set(held_out.people)
        assert set(training.people) | set(held_out.people) == set(range(10))
        asked += sorted(set(held_out.people))
        for runs in (training, held_out):
            assert runs.tokens.shape[1:] == (benchmark.NUM_FRAMES, 1, 4)
            assert (runs.repetition_time == 2.0).all()
            for tokens, label, person in zip(runs.tokens[:, :, 0], runs.labels, runs.people, strict=True):
                forwards = tokens[::-1] if label else tokens
                starts = range(len(courses[person]) - benchmark.NUM_FRAMES + 1)
                assert any(np.array_equal(courses[person][s : s + benchmark.NUM_FRAMES], forwards) for s in starts)
        for person in set(held_out.people):
            assert len(set(held_out.labels[held_out.people == person])) == 1
    assert sorted(asked) == list(range(10))
