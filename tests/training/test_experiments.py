"""Experiments: baselines on the same subjects, and warnings where a model has seen the subjects it is evaluated on."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest

from tablet_hf import TabletConfig
from tablet_hf.datasets import Split, folds, subject_ids
from tablet_hf.datasets.tasks import find_task
from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import read_predictions
from tablet_hf.files import saved_weights_checksum
from tablet_hf.hub.loading import load_model
from tablet_hf.training.arguments import TabletTrainingArguments
from tablet_hf.training.checkpoints import training_subjects
from tablet_hf.training.experiments import evaluate, finetune
from tablet_hf.training.inference import task_of_config

SETTINGS = {"window_frames": 12, "num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 3e-3}
SETTINGS |= {"use_cpu": True, "disable_tqdm": True, "report_to": []}
METHODS = ["TABLeT", "majority class", "mean token"]

pytestmark = pytest.mark.filterwarnings("ignore:functional connectivity")


@pytest.fixture
def arguments():
    return TabletTrainingArguments(**SETTINGS)


@pytest.fixture(scope="module")
def experiment(planted_store, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("experiment") / "out"
    labels = [run.phenotypes["group"] for run in planted_store.runs]
    splits = folds(subject_ids(planted_store.runs), labels, num_folds=2, validation_fraction=0.2)
    return out, splits, finetune(planted_store, splits, "group", out, TabletTrainingArguments(**SETTINGS), model=tiny)


class TestFinetune:
    def test_baselines_predict_the_same_subjects(self, experiment):
        out, splits, results = experiment
        assert list(results["methods"]) == METHODS
        assert results["methods"]["TABLeT"]["metrics"]["accuracy"]["value"] == 1
        assert (results["num_subjects"], results["are_held_out"]) == (40, True)
        assert any("--scans" in warning for warning in results["warnings"])
        tested = {subject for split in splits for subject in split.subjects("test")}
        assert [set(table.subjects) for table in read_predictions(out / "predictions.csv")] == [tested] * 3
        assert "TABLeT" in (out / "index.html").read_text()

    def test_drawn_folds_are_kept(self, planted_store, tiny, arguments, tmp_path):
        done = []
        options = {"model": tiny, "on_fold": lambda fold: done.append(fold.name)}
        arguments.num_train_epochs = 1
        for names in (["fold-2"], []):
            results = finetune(planted_store, 2, "group", tmp_path, arguments, only=names, **options)
        assert done == ["fold-2", "fold-1", "fold-2"]
        assert len(results["about"]["weights"].split(", ")) == 2
        with pytest.raises(InputError, match=r"splits\.csv"):
            finetune(planted_store, 3, "group", tmp_path, arguments, **options)
        with pytest.raises(InputError, match=r"splits\.csv"):
            finetune(planted_store, 2, "kind", tmp_path, arguments, **options)
        with pytest.raises(InputError, match="fold-7"):
            finetune(planted_store, 2, "group", tmp_path, arguments, only=["fold-7"], **options)

    def test_each_fold_can_start_from_a_model_of_its_own(self, planted_store, planted_split, untrained, tmp_path):
        """One of which was trained on the subjects that its fold predicts."""
        turned = {"train": "train", "validation": "test", "test": "validation"}
        other = Split("other", {name: turned[part] for name, part in planted_split.assignment.items()})
        for split, seen in ((planted_split, ["x"]), (other, other.subjects("test")[:2])):
            shutil.copytree(untrained, tmp_path / "start" / split.name / "model")
            record = json.dumps({"split": {"train": seen, "validation": []}})
            (tmp_path / "start" / split.name / "training.json").write_text(record)
        arguments, init = TabletTrainingArguments(**SETTINGS, mode="head"), tmp_path / "start" / "{fold}" / "model"
        with pytest.warns(UserWarning, match="2 of 16"):
            results = finetune(planted_store, [planted_split, other], "group", tmp_path / "out", arguments, init=init)
        assert results["warnings"][0].startswith("2 of 16")
        assert not results["are_held_out"]
        begun = json.loads((tmp_path / "out" / "other" / "training.json").read_text())
        assert begun["init"] == str(tmp_path / "start" / "other" / "model")


class TestEvaluate:
    @pytest.mark.parametrize(
        ("part", "methods"), [("test", METHODS), ("validation", METHODS), ("train", ["TABLeT"]), (None, ["TABLeT"])]
    )
    def test_parts(self, experiment, planted_store, arguments, tmp_path, part, methods):
        out, splits, _ = experiment
        model = out / "fold-1" / "model"
        options = {"training_data": training_subjects(model)}
        options |= {} if part is None else {"part": part}
        split = None if part is None else splits[0]
        results = evaluate(load_model(model), planted_store, split, tmp_path, arguments, **options)
        assert list(results["methods"]) == methods
        assert results["are_held_out"] == (part == "test")
        assert results["num_subjects"] == (40 if part is None else len(splits[0].subjects(part)))
        assert results["about"]["weights"] == saved_weights_checksum(model)
        if part == "test":
            found, known = (read_predictions(folder / "predictions.csv")[0] for folder in (tmp_path, out))
            known = known.chosen([fold == "fold-1" for fold in known.folds])
            assert found.subjects == known.subjects
            np.testing.assert_allclose(found.outputs, known.outputs, atol=1e-5)
        else:
            assert results["warnings"][0] in (tmp_path / "index.html").read_text().replace("&#x27;", "'")

    def test_subjects_that_the_model_has_seen(self, experiment, planted_store, planted_split, arguments, tmp_path):
        """As those of another fold."""
        out, splits, _ = experiment
        model = out / "fold-1" / "model"
        seen = training_subjects(model)
        assert seen == {*splits[0].subjects("train"), *splits[0].subjects("validation")}
        assert training_subjects(tmp_path / "model") == training_subjects("owner/name") == set()
        results = evaluate(load_model(model), planted_store, splits[1], tmp_path, arguments, training_data=seen)
        assert results["warnings"][0].startswith("20 of 20")
        assert not results["are_held_out"]

    def test_tokens_of_another_kind_give_a_warning(self, experiment, planted_store, arguments, tmp_path):
        out, splits, _ = experiment
        other = copy.copy(planted_store)
        other.preprocessing = planted_store.preprocessing | {"signal": "percent_change"}
        results = evaluate(load_model(out / "fold-1" / "model"), other, splits[0], tmp_path, arguments)
        assert "percent_change" in results["warnings"][0]
        assert results["are_held_out"]


class TestClasses:
    def test_are_those_of_the_subjects_of_the_split(self, planted_store):
        without_class_2 = [run for run, record in enumerate(planted_store.runs) if record.phenotypes["kind"] != 2]
        assert find_task(planted_store, "kind", without_class_2[:10], runs=without_class_2).classes == (0, 1)
        with pytest.raises(InputError, match="kind"):
            find_task(planted_store, "kind", without_class_2[:10])

    def test_a_model_knows_its_classes(self, experiment, planted_store):
        config = load_model(experiment[0] / "fold-1" / "model").config
        with pytest.raises(InputError, match="kind"):
            task_of_config(config, planted_store, "kind")
        other = copy.copy(planted_store)
        other.runs = [
            dataclasses.replace(run, phenotypes={"group": "c"}) if number == 5 else run
            for number, run in enumerate(planted_store.runs)
        ]
        assert task_of_config(config, other, runs=[0, 1, 2]).classes == ("a", "b")
        with pytest.raises(InputError, match="'c'"):
            task_of_config(config, other, runs=[4, 5])

    def test_a_number_is_not_predicted_of_text(self, planted_store):
        config = TabletConfig(problem_type="regression", num_labels=1, target_name="strength")
        assert task_of_config(config, planted_store).is_regression
        with pytest.raises(InputError, match="group"):
            task_of_config(config, planted_store, "group")

    @pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
    def test_a_model_of_several_labels(self, planted_store, problem_type):
        names = {0: "strength", 1: "height"}
        config = TabletConfig(problem_type=problem_type, num_labels=2, id2label=names, target_name="strength")
        with pytest.raises(InputError, match="2 labels"):
            task_of_config(config, planted_store, "strength")
