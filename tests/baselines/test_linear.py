"""Baselines find what is there, invent nothing, and are not trained on the subjects they predict."""

import shutil
import warnings

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cohort import write_atlas, write_cohort

from tablet_hf.baselines.connectivity import atlas_regions, fisher_z
from tablet_hf.baselines.features import RegionTimeSeries, RunCache, match_scans
from tablet_hf.baselines.linear import (
    CONNECTIVITY,
    MAJORITY,
    MEAN,
    MEAN_TOKEN,
    STRENGTHS,
    Fold,
    LinearModel,
    baseline_predictions,
    connectivity_predictions,
    majority_predictions,
    mean_token_predictions,
)
from tablet_hf.datasets import TokenDataset
from tablet_hf.datasets.tasks import find_task
from tablet_hf.errors import InputError
from tablet_hf.evaluation.metrics import classification_metrics, regression_metrics

COUPLINGS = {"control": 0.1, "patient": 0.7}
TRAINING, HELD_OUT = range(40), range(40, 60)


def subject(number, group, coupling, **more):
    third, coin = "abc"[number % 3], "HT"[number // 2 % 2]  # which are unrelated to the group
    phenotypes = {"group": group, "coupling": float(coupling), "third": third, "coin": coin}
    return {"subject": f"{number:02}", "coupling": coupling, "phenotypes": phenotypes, "site": "XY"[number % 2]} | more


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """60 subjects of two groups that differ in the correlation of the first two regions, and in nothing else."""
    folder = tmp_path_factory.mktemp("cohort")
    groups = [("control", "patient")[number % 2] for number in range(60)]
    write_cohort(folder, [subject(number, group, COUPLINGS[group]) for number, group in enumerate(groups)])
    write_atlas(folder / "atlas.nii.gz")
    return folder


@pytest.fixture(scope="module")
def store(cohort):
    return TokenDataset.load(cohort / "store")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Features of runs, for all tests together."""
    return RunCache(tmp_path_factory.mktemp("cache"))


def fold_of(store, label, training=TRAINING, held_out=HELD_OUT, kind=None):
    return Fold(store, find_task(store, label, training, kind), training, held_out, "fold-1")


def auroc(predictions):
    return classification_metrics(predictions.targets, predictions.outputs[:, 1])["auroc"]


def features_of(labels, rng, num_features=300, num_informative=30):
    return rng.standard_normal((len(labels), num_features)) + labels[:, None] * (
        np.arange(num_features) < num_informative
    )


class TestLinearModel:
    def test_it_is_logistic_regression_on_standardised_features(self):
        from sklearn.linear_model import LogisticRegression

        rng = np.random.default_rng(0)
        labels = np.tile([0, 1, 2], 15)
        features = features_of(labels, rng) * rng.uniform(0.1, 10, 300) + 5
        new = features_of(labels[:7], rng)
        model = LinearModel(3).fit(features, labels)
        mean, spread = features.mean(0), features.std(0)
        # All features together have a mean square of 1.
        scaled, new_scaled = ((some - mean) / spread / np.sqrt(300) for some in (features, new))
        plain = LogisticRegression(C=model.strength, max_iter=5000, tol=1e-8).fit(scaled, labels)
        assert model.outputs(new) == pytest.approx(plain.predict_proba(new_scaled), abs=2e-3)
        assert model.outputs(new).sum(1) == pytest.approx(1)

    def test_it_is_ridge_regression_on_standardised_features(self):
        rng = np.random.default_rng(1)
        features, new = rng.standard_normal((2, 30, 100)) * np.linspace(0.1, 10, 100)
        values = features[:, :5].sum(1) * 10 + 300 + rng.standard_normal(30)
        model = LinearModel(None).fit(features, values)
        mean, spread = features.mean(0), features.std(0)
        scaled, new_scaled = ((some - mean) / spread / np.sqrt(100) for some in (features, new))
        kernel = scaled @ scaled.T + np.eye(30) / model.strength
        expected = values.mean() + new_scaled @ scaled.T @ np.linalg.solve(kernel, values - values.mean())
        assert model.outputs(new) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("num_classes", [None, 2, 3])
    def test_coefficients_give_its_outputs(self, num_classes):
        from scipy.special import expit, softmax

        rng = np.random.default_rng(4)
        labels = np.arange(40) % (num_classes or 40)
        features = np.column_stack([features_of(labels, rng, 30, 5) * 3 + 7, np.full(40, 7.0)])  # a constant one too
        model = LinearModel(num_classes).fit(features, labels)
        weight, bias = model.coefficients()
        logits = features @ weight.T + bias
        assert (weight[:, -1] == 0).all()
        if num_classes == 2:
            assert model.outputs(features)[:, 1] == pytest.approx(expit(logits[:, 0]))
        else:
            expected = logits[:, 0] if num_classes is None else softmax(logits, axis=1)
            assert model.outputs(features) == pytest.approx(expected)

    def test_of_many_subjects_the_leading_components_are_used(self, monkeypatch):
        monkeypatch.setattr("tablet_hf.baselines.linear.MAX_COMPONENTS", 20)
        rng = np.random.default_rng(3)
        mixing = np.linalg.qr(rng.standard_normal((300, 300)))[0]
        features, new = (
            rng.standard_normal((count, 300)) * np.r_[np.full(10, 30.0), np.full(290, 0.1)] @ mixing
            for count in (200, 9)
        )
        values = features @ mixing[0] + rng.standard_normal(200)
        model = LinearModel(None).fit(features, values)
        scaled, new_scaled = ((some - features.mean(0)) / features.std(0) for some in (features, new))
        axes = np.linalg.svd(scaled, full_matrices=False)[2][:20]
        rows, new_rows = scaled @ axes.T, new_scaled @ axes.T
        unit = (rows**2).sum(1).mean() / model.strength
        weights = np.linalg.solve(rows.T @ rows + unit * np.eye(20), rows.T @ (values - values.mean()))
        assert model.outputs(new) == pytest.approx(values.mean() + new_rows @ weights, rel=0.02, abs=0.5)

    @pytest.mark.parametrize("num_informative", [60, 0])
    def test_the_penalty_is_the_best_in_cross_validation(self, num_informative):
        from sklearn.linear_model import LogisticRegression

        labels = np.tile([0, 1], 30)
        features = features_of(labels, np.random.default_rng(2), num_informative=num_informative)
        model = LinearModel().fit(features, labels)
        assert sorted(np.concatenate([test for _, test in model.folds])) == list(range(60))
        scaled = (features - features.mean(0)) / features.std(0) / np.sqrt(300)
        losses = []
        for strength in STRENGTHS:
            predicted = np.empty((60, 2))
            for train, test in model.folds:
                plain = LogisticRegression(C=strength, max_iter=5000).fit(scaled[train], labels[train])
                predicted[test] = plain.predict_proba(scaled[test])
            losses.append(-np.log(predicted[np.arange(60), labels]).mean())
        assert model.strength == STRENGTHS[np.argmin(losses)]

    @settings(deadline=None, max_examples=20)
    @given(seed=st.integers(0, 10_000), num_families=st.integers(6, 15), is_regression=st.booleans())
    def test_families_stay_together_in_cross_validation(self, seed, num_families, is_regression):
        rng = np.random.default_rng(seed)
        families, labels = rng.integers(0, num_families, 30), np.tile([0, 1], 15)
        targets = rng.standard_normal(30) if is_regression else labels
        model = LinearModel(None if is_regression else 2).fit(rng.standard_normal((30, 5)), targets, families)
        for train, test in model.folds:
            assert not set(families[train]) & set(families[test])

    def test_missing_and_constant_features(self):
        rng = np.random.default_rng(4)
        labels = np.tile([0, 1], 20)
        features = features_of(labels, rng, 20, 5)
        filled = features.copy()
        features[3, 2] = np.nan
        filled[3, 2] = np.nanmean(features[:, 2])
        # Columns that would separate the classes if their last digits were magnified.
        rounded = np.full((40, 3000), 1.3, np.float32) + np.float32(2e-7) * labels[:, None]
        assert np.ptp(rounded, axis=0).min() > 0
        features = np.column_stack([features, np.full(40, np.nan), rounded])
        new = np.column_stack([filled[:5], np.arange(5), rounded[:5]])
        expected = LinearModel().fit(filled, labels).outputs(filled[:5])
        assert LinearModel().fit(features, labels).outputs(new) == pytest.approx(expected, abs=1e-6)
        with pytest.raises(ValueError, match="missing"):
            LinearModel().fit(np.full((40, 3), np.nan), labels)

    def test_equal_or_few_subjects(self):
        model = LinearModel().fit(np.ones((10, 3)), np.tile([0, 1], 5))
        assert model.outputs(np.ones((1, 3)))[0] == pytest.approx([0.5, 0.5])
        model = LinearModel().fit(np.random.default_rng(5).standard_normal((3, 4)), np.array([0, 0, 1]))
        assert model.folds == []
        assert model.outputs(np.zeros((1, 4))).sum() == pytest.approx(1)


class TestFold:
    def test_majority_is_as_frequent_as_in_the_training_subjects(self, store):
        found = majority_predictions(fold_of(store, "group", [0, 1, 3, 5], [10, 11, 12]))
        assert (found.method, found.label, found.classes) == (MAJORITY, "group", ("control", "patient"))
        assert found.outputs == pytest.approx(np.tile([0.25, 0.75], (3, 1)))
        assert found.targets.tolist() == [0, 1, 0]
        assert (found.subjects, found.sites, found.folds) == (("10", "11", "12"), ("X", "Y", "X"), ("fold-1",) * 3)
        found = majority_predictions(fold_of(store, "coupling", [0, 2, 3], [5, 6], "regression"))
        assert found.method == MEAN
        assert found.outputs == pytest.approx([0.3, 0.3])
        assert found.targets == pytest.approx([0.7, 0.1])

    def test_no_subject_is_on_both_sides(self, store):
        with pytest.raises(ValueError, match="05"):
            fold_of(store, "group", range(10), [5, 12])

    def test_runs_without_the_label_and_families(self, tmp_path):
        subjects = [
            subject(number, "ab"[number % 2] if number != 3 else None, 0, frames=[4], family=family)
            for number, family in enumerate(["f", "f", None, None, None, None, None, None])
        ]
        store = write_cohort(tmp_path, subjects)
        fold = fold_of(store, "group", [0, 1, 2, 4], [3, 5, 6])
        assert majority_predictions(fold).subjects == ("05", "06")
        first, second, *others = fold.training["family"]
        assert first == second
        assert len({first, *others}) == 3
        with pytest.raises(InputError, match="group"):
            fold_of(store, "group", [0, 1, 2, 4], [3])


class TestMeanToken:
    def test_it_finds_what_the_mean_token_holds(self, tmp_path, cache):
        subjects = [subject(number, ("control", "patient")[number % 2], 0, frames=[5]) for number in range(30)]
        shift = {one["subject"]: (one["phenotypes"]["group"] == "patient") * 0.1 for one in subjects}
        store = write_cohort(tmp_path, subjects, mean_tokens=shift)
        found = mean_token_predictions(fold_of(store, "group", range(20), range(20, 30)), cache)
        assert found.method == MEAN_TOKEN
        assert auroc(found) == 1

    def test_it_does_not_see_connectivity(self, store, cache):
        assert 0.2 < auroc(mean_token_predictions(fold_of(store, "group"), cache)) < 0.8


class TestConnectivity:
    @pytest.fixture
    def time_series(self, cohort, store, cache):
        return RegionTimeSeries(store, match_scans(store, cohort / "scans"), cache=cache)

    @pytest.fixture
    def atlas(self, cohort):
        return atlas_regions(cohort / "atlas.nii.gz")

    @pytest.mark.parametrize("has_atlas", [True, False])
    def test_it_finds_the_groups_that_differ_in_it(self, store, time_series, atlas, has_atlas):
        fold = fold_of(store, "group")
        found = connectivity_predictions(fold, time_series, atlas if has_atlas else None, num_regions=12)
        assert found.method == CONNECTIVITY
        assert found.subjects == tuple(f"{number:02}" for number in HELD_OUT)
        assert auroc(found) > (0.95 if has_atlas else 0.85)

    def test_it_invents_no_groups(self, store, time_series, atlas):
        aurocs = []
        for first in (0, 20, 40):
            held_out = range(first, first + 20)
            training = [run for run in range(60) if run not in held_out]
            aurocs.append(
                auroc(connectivity_predictions(fold_of(store, "coin", training, held_out), time_series, atlas))
            )
        assert 0.3 < np.mean(aurocs) < 0.7

    def test_numbers_and_three_classes(self, store, time_series, atlas):
        found = connectivity_predictions(fold_of(store, "coupling", kind="regression"), time_series, atlas)
        assert regression_metrics(found.targets, found.outputs)["pearson_r"] > 0.7
        found = connectivity_predictions(fold_of(store, "third"), time_series, atlas)
        assert found.outputs.shape == (20, 3)
        assert found.outputs.sum(1) == pytest.approx(1)

    def test_runs_of_a_subject_are_averaged_by_their_frames(self, tmp_path, atlas, monkeypatch):
        subjects = [subject(number, "ab"[number % 2], 0.5, frames=[12, 30, 3]) for number in range(6)]
        store = write_cohort(tmp_path, subjects)
        time_series = RegionTimeSeries(store, match_scans(store, tmp_path / "scans"))
        fitted, fit = [], LinearModel.fit
        monkeypatch.setattr(
            LinearModel, "fit", lambda self, features, *rest: fitted.append(features) or fit(self, features, *rest)
        )
        with pytest.warns(UserWarning, match="6 runs are too short"):
            found = connectivity_predictions(fold_of(store, "group", range(12), range(12, 18)), time_series, atlas)
        assert len(found) == 2
        z = [fisher_z(time_series.of(run, atlas)) for run in range(2)]
        assert fitted[0].shape == (4, 15)
        assert fitted[0][0] == pytest.approx((9 * z[0] + 27 * z[1]) / 36)

    def test_missing_regions_give_a_warning(self, tmp_path, atlas):
        write_cohort(tmp_path, [subject(number, "ab"[number % 2], 0.5) for number in range(8)])
        path = next((tmp_path / "scans").rglob("sub-03*.nii"))
        image = nibabel.load(path)
        values = np.asarray(image.dataobj).copy()
        values[atlas.labels == 2] = 7
        values[atlas.labels == 5] = np.nan
        nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), path)
        store = TokenDataset.load(tmp_path / "store")
        time_series = RegionTimeSeries(store, match_scans(store, tmp_path / "scans"))
        with pytest.warns(UserWarning, match="sub-03_run-1"):
            found = connectivity_predictions(fold_of(store, "group", range(6), [6, 7]), time_series, atlas)
        assert np.isfinite(found.outputs).all()

    def test_runs_that_are_all_too_short(self, tmp_path, atlas):
        store = write_cohort(tmp_path, [subject(number, "ab"[number % 2], 0, frames=[3]) for number in range(6)])
        time_series = RegionTimeSeries(store, match_scans(store, tmp_path / "scans"))
        with pytest.raises(InputError, match="frames"):
            connectivity_predictions(fold_of(store, "group", range(4), [4, 5]), time_series, atlas)


class TestAllBaselines:
    @pytest.fixture
    def options(self, cohort, store, cache):
        scans = match_scans(store, cohort / "scans")
        return {"scans": scans, "atlas": cohort / "atlas.nii.gz", "cache": cache.folder}

    def test_one_table_per_method_for_the_same_subjects(self, store, options):
        progress = []
        fold = fold_of(store, "group", [store.runs[run].key for run in TRAINING])
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            tables = baseline_predictions(fold, **options, on_progress=lambda *done: progress.append(done))
        assert [table.method for table in tables] == [MAJORITY, MEAN_TOKEN, CONNECTIVITY]
        for table in tables:
            assert table.subjects == tuple(f"{number:02}" for number in HELD_OUT)
            assert table.targets.tolist() == [number % 2 for number in HELD_OUT]
            assert set(table.folds) == {"fold-1"}
        assert progress == sorted(progress)
        assert progress[-1] == (60 * 40, 60 * 40)

    def test_without_scans_and_autoencoder_there_is_a_warning(self, store, cache):
        with pytest.warns(UserWarning, match="token_size"):
            tables = baseline_predictions(fold_of(store, "group"), cache=cache.folder)
        assert [table.method for table in tables] == [MAJORITY, MEAN_TOKEN]

    def test_scans_and_decoded_tokens_are_never_mixed(self, store, options):
        """Also where the subject without a scan is not in this fold, as it may be in the next."""
        del options["scans"]["sub-33_run-1"]
        fold = fold_of(store, "group", [run for run in TRAINING if run != 33])
        with pytest.warns(UserWarning, match="functional connectivity|not found") as caught:  # and nothing decodes
            tables = baseline_predictions(fold, **options)
        assert [table.method for table in tables] == [MAJORITY, MEAN_TOKEN]
        assert "sub-33_run-1" in str(caught[0].message)

    @pytest.mark.slow
    def test_scans_tokens_and_labels_of_held_out_subjects_are_not_used(self, cohort, store, options, tmp_path):
        """All held-out subjects but one are exchanged for others, which leaves the prediction of that one."""
        groups = ["patient" if number in HELD_OUT else ("control", "patient")[number % 2] for number in range(60)]
        others = [subject(number, group, -0.9, frames=[50]) for number, group in enumerate(groups)]
        write_cohort(tmp_path, others, seed=99, mean_tokens={f"{number:02}": 30 for number in HELD_OUT})
        for number in [*TRAINING, 50]:
            for part in ("store/runs", "scans"):
                shutil.rmtree(tmp_path / part / f"sub-{number:02}")
                shutil.copytree(cohort / part / f"sub-{number:02}", tmp_path / part / f"sub-{number:02}")
        (tmp_path / "store" / "runs.parquet").unlink()
        changed = TokenDataset.load(tmp_path / "store")
        outputs = []
        for own_store, folder in ((store, cohort), (changed, tmp_path)):
            options |= {"scans": match_scans(own_store, folder / "scans"), "atlas": None}
            tables = baseline_predictions(fold_of(own_store, "group"), **options)
            outputs.append(np.array([table.outputs[10] for table in tables]))
            assert [table.method for table in tables] == [MAJORITY, MEAN_TOKEN, CONNECTIVITY]
        assert outputs[0] == pytest.approx(outputs[1], abs=1e-9)
