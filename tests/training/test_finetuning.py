"""Fine-tuning in folds: what is planted is found, what is not there is not, and nothing is done twice."""

import contextlib
import json
import random
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_process import ended, finetune_here, start

from tablet_hf import TabletConfig, TabletForMaskedTokenModeling, TabletForSequenceClassification
from tablet_hf.datasets import EvaluationWindows, Split, average_by, folds, runs_in, subject_ids, write_splits
from tablet_hf.datasets.tasks import Task
from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import Predictions, joined
from tablet_hf.hub.loading import load_model
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.report.evaluation_page import read_predictions
from tablet_hf.training.arguments import Settings, training_arguments
from tablet_hf.training.checkpoints import initial_model, save_model
from tablet_hf.training.experiments import evaluate, finetune
from tablet_hf.training.finetuning import finetune_fold, linear_head
from tablet_hf.training.inference import outputs_of, predict_subjects, task_of_config
from tablet_hf.training.trainer import make_trainer

SETTINGS = Settings(
    window_frames=12, epochs=6, batch_size=8, learning_rate=3e-3, log_steps=3, seed=1, device="cpu", warmup=0.1
)


@pytest.fixture(scope="module")
def tuned(planted_store, planted_split, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    said = []
    options = {"model": tiny, "is_quiet": True, "on_note": said.append}
    return out, finetune_fold(planted_store, planted_split, "group", out, SETTINGS, **options), said


@pytest.fixture(scope="module")
def untrained(planted_store, tiny, tmp_path_factory):
    """The folder of a network that was never trained, as pre-training would leave one."""
    torch.manual_seed(0)
    model, _ = initial_model(TabletForMaskedTokenModeling, None, tiny, planted_store.preprocessing)
    folder = tmp_path_factory.mktemp("untrained")
    arguments = training_arguments(SETTINGS, folder / "work", report_to=[])
    save_model(make_trainer(model, arguments), folder / "model", planted_store.preprocessing, [])
    return folder / "model"


class TestPlantedDifference:
    def test_loss_falls_and_everybody_is_told_apart(self, tuned):
        _, fold, said = tuned
        assert fold.training_loss[-1][1] < 0.3 * fold.training_loss[0][1]
        assert fold.predictions.outputs.argmax(1).tolist() == fold.predictions.targets.tolist()
        assert said == ["split: classification of group: a, b; its values are no numbers."]

    def test_test_part_alone_is_predicted(self, tuned, planted_split, planted_store):
        _, fold, _ = tuned
        predictions = fold.predictions
        assert sorted(predictions.subjects) == planted_split.subjects("test")
        phenotypes = {run.subject: run.phenotypes["group"] for run in planted_store.runs}
        assert [predictions.classes[target] for target in predictions.targets] == [
            phenotypes[subject] for subject in predictions.subjects
        ]

    def test_model_in_the_folder_gives_the_same_predictions(self, tuned, planted_store, planted_split):
        out, fold, _ = tuned
        model = load_model(out / "model")
        assert model.config.id2label == {0: "b"}
        assert (model.config.negative_label, model.config.target_name) == ("a", "group")
        windows = EvaluationWindows(planted_store, 12, runs_in(planted_split, planted_store.runs, "test"))
        with torch.no_grad():
            logits = [
                model(window["input_values"][None].float(), repetition_time=2.0).logits[0].numpy()
                for window in (windows[index] for index in range(len(windows)))
            ]
        people, means = average_by(np.array(logits), windows.subjects)
        assert tuple(people) == fold.predictions.subjects
        np.testing.assert_allclose(1 / (1 + np.exp(-means[:, 0])), fold.predictions.outputs[:, 1], atol=1e-5)

    def test_what_is_done_is_given_back(self, tuned, planted_store, planted_split, tiny):
        out, fold, _ = tuned
        again = finetune_fold(planted_store, planted_split, "group", out, SETTINGS, model=tiny)
        assert again.predictions.to_json() == fold.predictions.to_json()
        assert (again.task, again.learning_rate, again.validation) == (fold.task, fold.learning_rate, fold.validation)
        with pytest.raises(InputError, match="a training with label 'group', not 'strength', was begun there"):
            finetune_fold(planted_store, planted_split, "strength", out, SETTINGS, model=tiny)

    def test_what_it_learnt_from_lies_beside_it(self, tuned, planted_split):
        out, _, _ = tuned
        assert TrainingData.read(out / "model") == (TrainingData("group", (), 24, 8, 24, 24 * 24, False, None),)
        record = (out / "model" / "training_data.json").read_text()
        assert not any(f'"{subject}"' in record for subject in planted_split.assignment)

    def test_checkpoints_are_gone_when_it_is_done(self, tuned):
        out, _, _ = tuned
        assert not list(out.rglob("checkpoint-*"))
        assert not list(out.rglob("*.bin"))


class TestKinds:
    def test_regression_in_its_own_unit(self, planted_store, planted_split, tiny, tmp_path):
        fold = finetune_fold(planted_store, planted_split, "strength", tmp_path, SETTINGS, model=tiny, is_quiet=True)
        errors = np.abs(fold.predictions.outputs - fold.predictions.targets)
        assert errors.mean() < 1  # of values around 10 and 15
        config = load_model(tmp_path / "model").config
        assert (config.target_mean, config.target_std) == ([fold.task.target_mean], [fold.task.target_std])

    def test_three_classes_with_nothing_to_find(self, planted_store, tiny, tmp_path):
        labels = [run.phenotypes["kind"] for run in planted_store.runs]
        (split,) = folds(subject_ids(planted_store.runs), labels, num_folds=1, fractions=(0.5, 0.25, 0.25))
        settings = Settings(window_frames=12, epochs=2, batch_size=8, device="cpu")
        fold = finetune_fold(planted_store, split, "kind", tmp_path, settings, model=tiny, is_quiet=True)
        assert fold.predictions.outputs.shape == (len(fold.predictions), 3)
        np.testing.assert_allclose(fold.predictions.outputs.sum(1), 1)
        assert set(fold.predictions.targets.tolist()) == {0, 1, 2}

    def test_sweep_takes_the_rate_that_the_validation_part_likes(self, planted_store, planted_split, tiny, tmp_path):
        rates = [1e-9, 3e-3]
        fold = finetune_fold(
            planted_store, planted_split, "group", tmp_path, SETTINGS, model=tiny, is_quiet=True, learning_rates=rates
        )
        assert fold.learning_rate == 3e-3
        assert fold.validation["0.003"] < fold.validation["1e-09"]

    def test_patience_ends_it_early(self, planted_store, planted_split, tiny, tmp_path):
        settings = Settings(window_frames=12, epochs=8, batch_size=8, learning_rate=1e-9, device="cpu")
        fold = finetune_fold(
            planted_store, planted_split, "kind", tmp_path, settings, model=tiny, is_quiet=True, metric="auroc",
            patience=1,
        )  # fmt: skip
        assert 1 < len(fold.validation_loss) < 8


class TestFromATrainedNetwork:
    def test_head_alone(self, planted_store, planted_split, untrained, tmp_path):
        """Random states tell the planted patterns apart already, and the network stays as it was."""
        fold = finetune_fold(
            planted_store, planted_split, "group", tmp_path, SETTINGS, init=untrained, mode="head", is_quiet=True
        )
        assert fold.predictions.outputs.argmax(1).tolist() == fold.predictions.targets.tolist()
        tuned = load_model(tmp_path / "model").state_dict()
        for name, weight in TabletForMaskedTokenModeling.from_pretrained(untrained).state_dict().items():
            if name in tuned:
                torch.testing.assert_close(tuned[name], weight, rtol=0, atol=0)
        # Of these weights nothing was recorded but that there were some.
        stage = TrainingData("group", (), 24, 8, 24, 24 * 24, False, "model")
        assert TrainingData.read(tmp_path / "model") == (stage,)

    def test_adapters_are_merged(self, planted_store, planted_split, untrained, tmp_path):
        pytest.importorskip("peft")
        start, out = tmp_path / "start", tmp_path / "out"
        shutil.copytree(untrained, start)
        first = TrainingData("masked token modeling", ("HCP",), 1000, 0, 4000, 4_800_000, True)
        TrainingData.write(start, [first])
        fold = finetune_fold(
            planted_store, planted_split, "group", out, SETTINGS, init=start, mode="lora", is_quiet=True
        )
        assert fold.training_loss[-1][1] < fold.training_loss[0][1]
        assert TrainingData.read(out / "model") == (
            first,
            TrainingData("group", (), 24, 8, 24, 24 * 24, False, "start"),
        )
        model = load_model(out / "model")  # needs no peft
        before = TabletForMaskedTokenModeling.from_pretrained(untrained).tablet.layers[0].mlp.fc1.weight
        change = model.tablet.layers[0].mlp.fc1.weight - before
        assert 1 <= torch.linalg.matrix_rank(change.detach(), atol=1e-6) <= 8

    def test_shapes_that_do_not_fit_are_told(self, planted_store, untrained):
        fields = {"num_labels": 1, "problem_type": "multi_label_classification", "intermediate_size": 96}
        _, said = initial_model(TabletForSequenceClassification, untrained, fields, planted_store.preprocessing)
        assert "of its weights have another shape and start anew, first tablet.layers.0.mlp.fc1.bias" in said[0]

    @pytest.mark.parametrize(
        ("init", "options", "said"),
        [
            (None, {"mode": "head"}, "needs a trained network"),
            (None, {"mode": "half"}, "choose full, head, lora"),
            ("nowhere/at/all", {}, "there is no such folder"),
            (None, {"metric": "kappa"}, "'kappa': group is judged by loss, accuracy"),
        ],
    )
    def test_what_cannot_be(self, planted_store, planted_split, tmp_path, init, options, said):
        with pytest.raises(InputError, match=said):
            finetune_fold(planted_store, planted_split, "group", tmp_path, SETTINGS, init=init, **options)

    def test_weights_are_not_shared_out(self, planted_store, planted_split, tiny, tmp_path, monkeypatch):
        with pytest.raises(InputError, match="in pre-training alone"):
            finetune_fold(planted_store, planted_split, "group", tmp_path, replace(SETTINGS, fsdp=True), model=tiny)
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # of accelerate launch --use_fsdp
        with pytest.raises(InputError, match="in pre-training alone"):
            finetune_fold(planted_store, planted_split, "group", tmp_path, SETTINGS, model=tiny)

    def test_tokens_of_another_shape_are_refused(self, planted_store, planted_split, untrained, tmp_path):
        config = json.loads((untrained / "config.json").read_text()) | {"token_size": 192}
        folder = tmp_path / "other"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="token_size 96 instead of 192"):
            finetune_fold(planted_store, planted_split, "group", tmp_path / "out", SETTINGS, init=folder)


class TestLinearHead:
    def test_of_a_regression_is_ridge_of_standardised_states(self):
        from sklearn.linear_model import RidgeCV

        random = np.random.default_rng(0)
        states, people = random.normal(3, 2, (60, 5)), np.repeat(np.arange(30), 2)
        labels = states @ [1, 2, 0, 0, -1] + 40 + 0.01 * random.normal(size=60)
        task = Task("x", None, None, float(labels.mean()), float(labels.std()))
        weight, bias = linear_head(states, labels, people, task)
        predicted = (states @ weight.T + bias)[:, 0] * task.target_std + task.target_mean
        np.testing.assert_allclose(predicted, labels, atol=0.1)
        assert np.corrcoef(predicted, RidgeCV().fit(states, labels).predict(states))[0, 1] > 0.9999

    def test_a_state_that_never_moves_weighs_nothing(self):
        random = np.random.default_rng(0)
        states = np.column_stack([random.normal(size=40), np.full(40, 7.0)])
        labels = (states[:, 0] > 0).astype(int)
        weight, bias = linear_head(states, labels, np.arange(40), Task("x", ("a", "b"), (1, 1)))
        assert weight[0, 1] == 0
        assert ((states @ weight.T + bias)[:, 0] > 0).astype(int).tolist() == labels.tolist()


class TestExperiments:
    @pytest.fixture(scope="class")
    def experiment(self, planted_store, tiny, tmp_path_factory):
        out = tmp_path_factory.mktemp("experiment") / "out"
        labels = [run.phenotypes["group"] for run in planted_store.runs]
        splits = folds(subject_ids(planted_store.runs), labels, num_folds=2, fractions=(0.6, 0.2, 0.2))
        notes = []
        results = finetune(
            planted_store, splits, "group", out, SETTINGS, model=tiny, is_quiet=True, on_note=notes.append
        )
        return out, splits, results, notes

    def test_baselines_stand_beside_it_on_the_same_people(self, experiment):
        out, splits, results, notes = experiment
        assert list(results["methods"]) == ["TABLeT", "majority class", "mean token"]
        assert results["methods"]["TABLeT"]["metrics"]["accuracy"]["value"] == 1
        assert results["num_subjects"] == 16
        assert any("functional connectivity could not be run in fold-1" in note for note in notes)
        tables = read_predictions(out / "predictions.csv")
        assert [set(table.subjects) for table in tables] == [
            {subject for split in splits for subject in split.subjects("test")}
        ] * 3
        assert "TABLeT" in (out / "index.html").read_text()

    def test_evaluation_of_one_fold_says_the_same(self, experiment, planted_store, tmp_path):
        out, splits, _, _ = experiment
        results = evaluate(load_model(out / "fold-1" / "model"), planted_store, splits[0], tmp_path, settings=SETTINGS)
        assert list(results["methods"]) == ["TABLeT", "majority class", "mean token"]
        found = read_predictions(tmp_path / "predictions.csv")[0]
        known = read_predictions(out / "predictions.csv")[0]
        first = known.chosen([fold == "fold-1" for fold in known.folds])
        assert found.subjects == first.subjects
        np.testing.assert_allclose(found.outputs, first.outputs, atol=1e-5)

    def test_without_a_split_there_are_no_baselines_and_it_is_said(self, experiment, planted_store, tmp_path):
        out, _, _, _ = experiment
        notes = []
        model = load_model(out / "fold-1" / "model")
        results = evaluate(model, planted_store, None, tmp_path, settings=SETTINGS, on_note=notes.append)
        assert results["num_subjects"] == 40
        assert "none stand beside the model" in notes[0]
        assert any("No baseline stands beside" in warning for warning in results["warnings"])

    def test_classes_that_a_model_does_not_know(self, experiment, planted_store):
        out, _, _, _ = experiment
        config = load_model(out / "fold-1" / "model").config
        with pytest.raises(InputError, match="'0' is none of the classes that the model knows, which are a, b"):
            task_of_config(config, planted_store, "kind")

    @pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
    def test_a_model_of_several_labels(self, planted_store, problem_type):
        names = {0: "strength", 1: "height"}
        config = TabletConfig(problem_type=problem_type, num_labels=2, id2label=names, target_name="strength")
        with pytest.raises(
            InputError, match=r"predicts 2 things at once \(strength, height\); judged are models of one"
        ):
            task_of_config(config, planted_store, "strength")


class TestPredictions:
    TABLE = Predictions(
        "m", "x", ("a", "b"), ("1", "2"), np.array([0, 1]), np.array([[0.9, 0.1], [0.3, 0.7]]), ("A", None), ("f", "f")
    )

    def test_go_to_json_and_back(self):
        again = Predictions.from_json(json.loads(json.dumps(self.TABLE.to_json())))
        assert again.to_json() == self.TABLE.to_json()
        assert again.targets.dtype == np.int64

    def test_folds_are_joined_and_chosen_again(self):
        both = joined([self.TABLE, self.TABLE.chosen([1])])
        assert both.subjects == ("1", "2", "2")
        assert both.chosen([False, True, True]).targets.tolist() == [1, 1]
        with pytest.raises(ValueError, match="one method"):
            joined([])

    def test_outputs_of_logits(self):
        binary = outputs_of(np.array([[0.0], [100.0], [-1000.0]]), Task("x", ("a", "b"), (1, 1)))
        np.testing.assert_allclose(binary, [[0.5, 0.5], [0, 1], [1, 0]], atol=1e-12)
        three = outputs_of(np.log([[1.0, 2, 1]]), Task("x", ("a", "b", "c"), (1, 1, 1)))
        np.testing.assert_allclose(three, [[0.25, 0.5, 0.25]])


def test_several_runs_and_windows_of_a_person_count_as_one(planted_store, planted_split, tuned):
    out, fold, _ = tuned
    model = load_model(out / "model")
    arguments = training_arguments(SETTINGS, out / "elsewhere", report_to=[], save_strategy="no")
    runs = runs_in(planted_split, planted_store.runs, "test")
    predictions = predict_subjects(model, planted_store, runs, fold.task, arguments, window_frames=5)
    assert len(predictions) == 8  # of 24 frames each, so four windows a person
    assert isinstance(planted_split, Split)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_figures_and_weights(planted_store, planted_split, tiny, tmp_path):
    """Also where the first learning rate has come to its early end, and the second one is tried."""
    write_splits([planted_split], tmp_path / "splits.csv")
    sizes = tiny | {"hidden_dropout_prob": 0.1}

    def begin(name, seconds=0.0):
        return start(finetune_here, planted_store.folder, tmp_path / "splits.csv", tmp_path / name, sizes, seconds)

    undisturbed, undisturbed_steps = begin("undisturbed")
    random_kill = random.Random(7)
    kills, told = 0, []
    for num_steps in (5, 8):
        process, steps = begin("killed", 0.05)
        told.append([steps.recv() for _ in range(num_steps)])
        time.sleep(random_kill.random() * 0.15)
        process.kill()
        kills += ended(process, tmp_path / "killed") == -signal.SIGKILL
        told[-1] += rest(steps)
    finished, finished_steps = begin("killed")
    for process, name in ((finished, "killed"), (undisturbed, "undisturbed")):
        assert ended(process, tmp_path / name) == 0, (tmp_path / f"{name}.txt").read_text()
    assert kills == 2
    # Of six epochs of three steps the first learning rate had three; when that was over, it did not begin again.
    whole = rest(undisturbed_steps)
    assert whole[:10] == [*range(1, 10), 1]
    in_second = [steps for steps in (*told, rest(finished_steps)) if 1 in steps[1:]]
    assert len(in_second) == 1
    assert in_second[0][in_second[0].index(1, 1) - 1] == 9
    results = [json.loads((tmp_path / name / "fold.json").read_text()) for name in ("undisturbed", "killed")]
    assert results[0] == results[1]
    models = [load_model(tmp_path / name / "model").state_dict() for name in ("undisturbed", "killed")]
    for name, weight in models[0].items():
        assert torch.equal(models[1][name], weight), name


def rest(steps):
    """What a process that has ended still told."""
    told = []
    with contextlib.suppress(EOFError):
        while True:
            told.append(steps.recv())
    return told
