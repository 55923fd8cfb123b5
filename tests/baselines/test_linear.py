"""Baselines find what is there, invent nothing, and learn nothing from the people that they are judged by."""

import shutil
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cohort import write_atlas, write_cohort

from tablet_hf.baselines.connectivity import atlas_regions, fisher_z
from tablet_hf.baselines.features import RegionTimeSeries, RunCache, find_scans
from tablet_hf.baselines.linear import (
    CONNECTIVITY,
    DECODED_CONNECTIVITY,
    MAJORITY,
    MEAN,
    MEAN_TOKEN,
    STRENGTHS,
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


def person(number, group, coupling, **more):
    third, coin = "abc"[number % 3], "HT"[number // 2 % 2]  # which have nothing to do with the group
    phenotypes = {"group": group, "coupling": float(coupling), "third": third, "coin": coin}
    return {"subject": f"{number:02}", "coupling": coupling, "phenotypes": phenotypes, "site": "XY"[number % 2]} | more


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """60 people of two groups that differ in how the first two regions go together, and in nothing else."""
    folder = tmp_path_factory.mktemp("cohort")
    groups = [("control", "patient")[number % 2] for number in range(60)]
    write_cohort(folder, [person(number, group, COUPLINGS[group]) for number, group in enumerate(groups)])
    write_atlas(folder / "atlas.nii.gz")
    return folder


@pytest.fixture(scope="module")
def store(cohort):
    return TokenDataset.load(cohort / "store")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What was computed of runs, for all tests together."""
    return RunCache(tmp_path_factory.mktemp("cache"))


TRAINING, HELD_OUT = range(40), range(40, 60)


# --- the linear model


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
        # All features together have the mean square 1 for a person.
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

    @pytest.mark.parametrize("num_features", [15, 300])
    def test_of_many_people_the_leading_axes_are_learnt_from(self, monkeypatch, num_features):
        monkeypatch.setattr("tablet_hf.baselines.linear.MOST_AXES", 20)
        rng = np.random.default_rng(3)
        spread = np.r_[np.full(10, 30.0), np.full(num_features - 10, 0.1)]
        mixing = np.linalg.qr(rng.standard_normal((num_features, num_features)))[0]
        features, new = (rng.standard_normal((count, num_features)) * spread @ mixing for count in (200, 9))
        values = features @ mixing[0] + rng.standard_normal(200)
        model = LinearModel(None).fit(features, values)
        scaled, new_scaled = ((some - features.mean(0)) / features.std(0) for some in (features, new))
        axes = np.linalg.svd(scaled, full_matrices=False)[2][:20]
        rows, new_rows = scaled @ axes.T, new_scaled @ axes.T
        unit = (rows**2).sum(1).mean() / model.strength
        weights = np.linalg.solve(rows.T @ rows + unit * np.eye(rows.shape[1]), rows.T @ (values - values.mean()))
        assert model.outputs(new) == pytest.approx(values.mean() + new_rows @ weights, rel=0.02, abs=0.5)

    def test_the_penalty_is_the_best_for_people_left_out(self):
        rng = np.random.default_rng(2)
        labels = np.tile([0, 1], 30)
        for features in (features_of(labels, rng, num_informative=60), features_of(labels, rng, num_informative=0)):
            model = LinearModel().fit(features, labels)
            assert sorted(np.concatenate(model.folds)) == list(range(60))
            losses = []
            for strength in STRENGTHS:
                said = np.empty((60, 2))
                for left_out in model.folds:
                    learnt = np.setdiff1d(np.arange(60), left_out)
                    scaled = (features - features.mean(0)) / features.std(0) / np.sqrt(300)
                    from sklearn.linear_model import LogisticRegression

                    plain = LogisticRegression(C=strength, max_iter=5000).fit(scaled[learnt], labels[learnt])
                    said[left_out] = plain.predict_proba(scaled[left_out])
                losses.append(-np.log(said[np.arange(60), labels]).mean())
            assert model.strength == STRENGTHS[np.argmin(losses)]

    def test_it_finds_a_difference_and_invents_none(self):
        labels = np.tile([0, 1], 100)
        accuracies = []
        for num_informative in (30, 0):
            features = features_of(labels, np.random.default_rng(3), num_informative=num_informative)
            said = LinearModel().fit(features[:100], labels[:100]).outputs(features[100:]).argmax(1)
            accuracies.append(np.mean(said == labels[100:]))
        assert accuracies[0] > 0.9
        assert 0.35 < accuracies[1] < 0.65

    @settings(deadline=None, max_examples=20)
    @given(seed=st.integers(0, 10_000), num_families=st.integers(6, 15), is_regression=st.booleans())
    def test_families_stay_together_where_the_penalty_is_chosen(self, seed, num_families, is_regression):
        rng = np.random.default_rng(seed)
        families = rng.integers(0, num_families, 30)
        labels = rng.permutation(np.tile([0, 1], 15))
        features = rng.standard_normal((30, 5))
        targets = rng.standard_normal(30) if is_regression else labels
        model = LinearModel(None if is_regression else 2).fit(features, targets, families)
        fold_of_family = {}
        for number, members in enumerate(model.folds):
            for member in members:
                assert fold_of_family.setdefault(families[member], number) == number

    def test_missing_features_become_the_mean_and_unknown_ones_are_left_out(self):
        rng = np.random.default_rng(4)
        labels = np.tile([0, 1], 20)
        features = features_of(labels, rng, 20, 5)
        filled = features.copy()
        features[3, 2] = np.nan
        filled[3, 2] = np.nanmean(features[:, 2])
        features = np.column_stack([features, np.full(40, np.nan)])
        new = np.column_stack([filled[:5], np.arange(5)])
        expected = LinearModel().fit(filled, labels).outputs(filled[:5])
        assert LinearModel().fit(features, labels).outputs(new) == pytest.approx(expected, abs=1e-6)
        with pytest.raises(ValueError, match="no feature"):
            LinearModel().fit(np.full((40, 3), np.nan), labels)

    def test_rounding_is_no_feature(self):
        rng = np.random.default_rng(6)
        labels = np.tile([0, 1], 20)
        features = features_of(labels, rng, 20, 5)
        # Three thousand columns that would tell all if their last digits were made large.
        rounded = np.full((40, 3000), 1.3, np.float32) + np.float32(2e-7) * labels[:, None]
        assert np.ptp(rounded, axis=0).min() > 0
        both = np.column_stack([features, rounded])
        expected = LinearModel().fit(features, labels).outputs(features)
        assert LinearModel().fit(both, labels).outputs(both) == pytest.approx(expected, abs=1e-6)

    def test_people_who_do_not_differ(self):
        model = LinearModel().fit(np.ones((10, 3)), np.tile([0, 1], 5))
        assert model.outputs(np.ones((1, 3)))[0] == pytest.approx([0.5, 0.5])

    def test_too_few_people_to_choose_by(self):
        rng = np.random.default_rng(5)
        model = LinearModel().fit(rng.standard_normal((3, 4)), np.array([0, 0, 1]))
        assert model.folds == []
        assert model.outputs(np.zeros((1, 4))).sum() == pytest.approx(1)


# --- baselines of a store


class TestMajority:
    def test_classes_are_as_frequent_as_among_the_people_learnt_from(self, store):
        training = [0, 1, 3, 5]
        found = majority_predictions(store, find_task(store, "group", training), training, [10, 11, 12], "fold-1")
        assert (found.method, found.label, found.classes) == (MAJORITY, "group", ("control", "patient"))
        assert found.outputs == pytest.approx(np.tile([0.25, 0.75], (3, 1)))
        assert found.targets.tolist() == [0, 1, 0]
        assert (found.subjects, found.sites, found.folds) == (("10", "11", "12"), ("X", "Y", "X"), ("fold-1",) * 3)

    def test_of_a_number_the_mean(self, store):
        training = [0, 2, 3]
        task = find_task(store, "coupling", training, kind="regression")
        found = majority_predictions(store, task, training, [5, 6], "fold-1")
        assert found.method == MEAN
        assert found.outputs == pytest.approx([0.3, 0.3])
        assert found.targets == pytest.approx([0.7, 0.1])


class TestMeanToken:
    def test_it_finds_what_the_mean_token_holds(self, tmp_path):
        people = [person(number, ("control", "patient")[number % 2], 0, frames=[5]) for number in range(30)]
        shift = {human["subject"]: (human["phenotypes"]["group"] == "patient") * 0.1 for human in people}
        store = write_cohort(tmp_path, people, mean_tokens=shift)
        task = find_task(store, "group", range(20))
        found = mean_token_predictions(store, task, range(20), range(20, 30), "fold-1")
        assert found.method == MEAN_TOKEN
        assert classification_metrics(found.targets, found.outputs[:, 1])["auroc"] == 1

    def test_it_does_not_see_connectivity(self, store, cache):
        task = find_task(store, "group", TRAINING)
        found = mean_token_predictions(store, task, TRAINING, HELD_OUT, "fold-1", cache)
        assert 0.2 < classification_metrics(found.targets, found.outputs[:, 1])["auroc"] < 0.8


class TestConnectivity:
    @pytest.fixture
    def courses(self, cohort, store, cache):
        return RegionTimeSeries(store, find_scans(store, cohort / "scans"), cache=cache)

    @pytest.fixture
    def atlas(self, cohort):
        return atlas_regions(cohort / "atlas.nii.gz")

    @pytest.mark.parametrize("has_atlas", [True, False])
    def test_it_finds_the_groups_that_differ_in_it(self, store, courses, atlas, has_atlas):
        task = find_task(store, "group", TRAINING)
        found = connectivity_predictions(
            store, task, TRAINING, HELD_OUT, "fold-1", courses, atlas if has_atlas else None, num_regions=12
        )
        assert found.method == CONNECTIVITY
        assert found.subjects == tuple(f"{number:02}" for number in HELD_OUT)
        assert classification_metrics(found.targets, found.outputs[:, 1])["auroc"] > (0.95 if has_atlas else 0.85)

    def test_it_invents_no_groups(self, store, courses, atlas):
        aurocs = []
        for first in (0, 20, 40):
            held_out = range(first, first + 20)
            training = [run for run in range(60) if run not in held_out]
            task = find_task(store, "coin", training)
            found = connectivity_predictions(store, task, training, held_out, "fold", courses, atlas)
            aurocs.append(classification_metrics(found.targets, found.outputs[:, 1])["auroc"])
        assert 0.3 < np.mean(aurocs) < 0.7

    def test_it_finds_a_number(self, store, courses, atlas):
        task = find_task(store, "coupling", TRAINING, kind="regression")
        found = connectivity_predictions(store, task, TRAINING, HELD_OUT, "fold-1", courses, atlas)
        assert found.outputs.shape == (20,)
        assert regression_metrics(found.targets, found.outputs)["pearson_r"] > 0.7

    def test_three_classes(self, store, courses, atlas):
        task = find_task(store, "third", TRAINING)
        found = connectivity_predictions(store, task, TRAINING, HELD_OUT, "fold-1", courses, atlas)
        assert found.outputs.shape == (20, 3)
        assert found.outputs.sum(1) == pytest.approx(1)

    def test_runs_of_a_person_are_averaged_by_their_frames(self, tmp_path, atlas, monkeypatch):
        people = [person(number, "ab"[number % 2], 0.5, frames=[12, 30, 3]) for number in range(6)]
        store = write_cohort(tmp_path, people)
        courses = RegionTimeSeries(store, find_scans(store, tmp_path / "scans"))
        learnt, notes = [], []
        fit = LinearModel.fit
        monkeypatch.setattr(
            LinearModel, "fit", lambda self, features, *rest: learnt.append(features) or fit(self, features, *rest)
        )
        task = find_task(store, "group", range(12))
        found = connectivity_predictions(
            store, task, range(12), range(12, 18), "fold-1", courses, atlas, on_note=notes.append
        )
        assert len(found) == 2
        z = [fisher_z(courses.of(run, atlas)) for run in range(2)]
        assert learnt[0].shape == (4, 15)
        assert learnt[0][0] == pytest.approx((9 * z[0] + 27 * z[1]) / 36)
        assert len(notes) == 1
        assert "6 runs have less than 4 frames" in notes[0]

    def test_regions_that_are_missing_in_somebody_are_told(self, tmp_path, atlas):
        import nibabel

        people = [person(number, "ab"[number % 2], 0.5) for number in range(8)]
        write_cohort(tmp_path, people)
        path = next((tmp_path / "scans").rglob("sub-03*.nii"))
        image = nibabel.load(path)
        values = np.asarray(image.dataobj).copy()
        values[atlas.labels == 2] = 7
        values[atlas.labels == 5] = np.nan
        nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), path)
        store = TokenDataset.load(tmp_path / "store")
        notes = []
        courses = RegionTimeSeries(store, find_scans(store, tmp_path / "scans"))
        task = find_task(store, "group", range(6))
        found = connectivity_predictions(store, task, range(6), [6, 7], "f", courses, atlas, on_note=notes.append)
        assert np.isfinite(found.outputs).all()
        assert len(notes) == 1
        assert "In 1 of 8 runs regions are missing or constant, 2 at most (in sub-03_run-1)" in notes[0]

    def test_runs_that_are_all_too_short(self, tmp_path, atlas):
        store = write_cohort(tmp_path, [person(number, "ab"[number % 2], 0, frames=[3]) for number in range(6)])
        courses = RegionTimeSeries(store, find_scans(store, tmp_path / "scans"))
        with pytest.raises(InputError, match="no run that is learnt from has 4 frames"):
            connectivity_predictions(store, find_task(store, "group", range(4)), range(4), [4, 5], "f", courses, atlas)


@pytest.mark.slow
class TestNothingIsLearntFromThoseHeldOut:
    @pytest.mark.parametrize("has_atlas", [True, False])
    def test_a_persons_prediction_is_the_same_whoever_else_is_held_out(self, cohort, store, cache, has_atlas):
        atlas = cohort / "atlas.nii.gz" if has_atlas else None
        task = find_task(store, "group", TRAINING)
        scans = find_scans(store, cohort / "scans")
        alone, together = (
            baseline_predictions(store, task, TRAINING, held_out, "f", scans, atlas, cache=cache.folder)
            for held_out in ([50], HELD_OUT)
        )
        for one, many in zip(alone, together, strict=True):
            place = many.subjects.index("50")
            assert one.outputs[0] == pytest.approx(many.outputs[place], abs=1e-9)

    def test_their_scans_tokens_and_labels_could_be_anything(self, cohort, store, cache, tmp_path):
        """One store in which all who are held out but one are exchanged for others: his predictions stay."""
        groups = ["patient" if number in HELD_OUT else ("control", "patient")[number % 2] for number in range(60)]
        others = [person(number, group, -0.9, frames=[50]) for number, group in enumerate(groups)]
        write_cohort(tmp_path, others, seed=99, mean_tokens={f"{number:02}": 30 for number in HELD_OUT})
        for number in [*TRAINING, 50]:
            for part in ("store/runs", "scans"):
                shutil.rmtree(tmp_path / part / f"sub-{number:02}")
                shutil.copytree(cohort / part / f"sub-{number:02}", tmp_path / part / f"sub-{number:02}")
        (tmp_path / "store" / "runs.parquet").unlink()
        changed = TokenDataset.load(tmp_path / "store")
        of_each = []
        for own_store, folder in ((store, cohort), (changed, tmp_path)):
            task = find_task(own_store, "group", TRAINING)
            tables = baseline_predictions(
                own_store, task, TRAINING, HELD_OUT, "f", folder / "scans", cache=cache.folder
            )
            of_each.append(np.array([table.outputs[10] for table in tables]))
            assert [table.method for table in tables] == [MAJORITY, MEAN_TOKEN, CONNECTIVITY]
        assert of_each[0] == pytest.approx(of_each[1], abs=1e-9)


class TestAllOfThem:
    def test_one_table_a_method_for_the_same_people(self, cohort, store, cache):
        told = []
        task = find_task(store, "group", TRAINING)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            tables = baseline_predictions(
                store,
                task,
                [store.runs[run].key for run in TRAINING],
                HELD_OUT,
                "fold-2",
                scans=[str(cohort / "scans")],
                atlas=cohort / "atlas.nii.gz",
                cache=cache.folder,
                on_progress=lambda done, total: told.append((done, total)),
            )
        assert [table.method for table in tables] == [MAJORITY, MEAN_TOKEN, CONNECTIVITY]
        for table in tables:
            assert table.subjects == tuple(f"{number:02}" for number in HELD_OUT)
            assert table.targets.tolist() == [number % 2 for number in HELD_OUT]
            assert set(table.folds) == {"fold-2"}
        done = [count for count, _ in told]
        assert done == sorted(done)
        assert {total for _, total in told} == {2 * 60 * 40}
        assert done[-1] == 2 * 60 * 40

    def test_a_regression(self, cohort, store, cache):
        task = find_task(store, "coupling", TRAINING, kind="regression")
        tables = baseline_predictions(
            store, task, TRAINING, HELD_OUT, "f", cohort / "scans", cohort / "atlas.nii.gz", cache=cache.folder
        )
        assert [table.method for table in tables] == [MEAN, MEAN_TOKEN, CONNECTIVITY]
        assert all(table.is_regression for table in tables)

    def test_without_scans_and_autoencoder_it_is_said_what_is_missing(self, store, cache):
        notes = []
        task = find_task(store, "group", TRAINING)
        tables = baseline_predictions(store, task, TRAINING, HELD_OUT, "f", cache=cache.folder, on_note=notes.append)
        assert [table.method for table in tables] == [MAJORITY, MEAN_TOKEN]
        assert len(notes) == 1
        assert notes[0].startswith("functional connectivity could not be run in f: natural-f32c32: token_size is 3072")
        with pytest.warns(UserWarning, match="functional connectivity could not be run"):
            baseline_predictions(store, task, TRAINING, HELD_OUT, "f", cache=cache.folder)

    def test_scans_and_decoded_tokens_are_never_mixed(self, cohort, store, cache, tmp_path, monkeypatch):
        for number in range(60):
            if number != 33:
                (tmp_path / f"{number}").symlink_to(cohort / "scans" / f"sub-{number:02}", target_is_directory=True)
        notes, asked = [], []

        def decoded(self, run, regions):
            asked.append((run, self.is_decoded))
            return np.random.default_rng(run).standard_normal((40, len(regions)))

        monkeypatch.setattr(RegionTimeSeries, "prepare", lambda *arguments: None)
        monkeypatch.setattr(RegionTimeSeries, "of", decoded)
        task = find_task(store, "group", TRAINING)
        # The person whose scan is missing is not even in this fold, but may be in the next.
        training = [run for run in TRAINING if run != 33]
        tables = baseline_predictions(
            store,
            task,
            training,
            HELD_OUT,
            "f",
            tmp_path,
            cohort / "atlas.nii.gz",
            cache=cache.folder,
            on_note=notes.append,
        )
        assert tables[-1].method == DECODED_CONNECTIVITY
        assert {is_decoded for _, is_decoded in asked} == {True}
        assert "The scans of 1 of 60 runs were not found" in notes[0]
        assert "sub-33_run-1: no file is called sub-33_run-1_bold.nii." in notes[0]

    def test_nobody_stands_on_both_sides(self, store):
        with pytest.raises(ValueError, match="05 stands among the people to learn from and among those held out"):
            majority_predictions(store, find_task(store, "group", TRAINING), range(10), [5, 12], "f")

    def test_runs_without_the_label_do_not_count(self, tmp_path):
        people = [person(number, "ab"[number % 2] if number != 3 else None, 0, frames=[4]) for number in range(8)]
        store = write_cohort(tmp_path, people)
        task = find_task(store, "group", [0, 1, 2, 4])
        assert majority_predictions(store, task, [0, 1, 2, 4], [3, 5, 6], "f").subjects == ("05", "06")
        with pytest.raises(InputError, match="None of 1 runs has a group"):
            majority_predictions(store, task, [0, 1, 2, 4], [3], "f")
