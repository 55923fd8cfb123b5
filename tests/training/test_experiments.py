"""Whom a result is about: whoever is judged by what knows him is told of, and no folder mixes two trainings."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from tablet_hf import TabletConfig, TabletForMaskedTokenModeling
from tablet_hf.datasets import EvaluationWindows, Split, runs_in
from tablet_hf.datasets.tasks import find_task
from tablet_hf.errors import InputError
from tablet_hf.files import saved_weights_checksum
from tablet_hf.hub.loading import load_model
from tablet_hf.training.arguments import Settings, training_arguments
from tablet_hf.training.checkpoints import checksums, initial_model, save_model, training_subjects
from tablet_hf.training.experiments import _known_before, evaluate, finetune
from tablet_hf.training.finetuning import _stopping, finetune_fold
from tablet_hf.training.inference import task_of_config
from tablet_hf.training.pretraining import pretrain
from tablet_hf.training.trainer import make_trainer

SETTINGS = Settings(window_frames=12, epochs=1, batch_size=8, learning_rate=3e-3, device="cpu")


@pytest.fixture(scope="module")
def tuned(planted_store, planted_split, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "fold"
    return out, finetune_fold(planted_store, planted_split, "group", out, SETTINGS, model=tiny, is_quiet=True)


@pytest.fixture(scope="module")
def untrained(planted_store, tiny, tmp_path_factory):
    torch.manual_seed(0)
    model, _ = initial_model(TabletForMaskedTokenModeling, None, tiny, planted_store.preprocessing)
    folder = tmp_path_factory.mktemp("untrained")
    trainer = make_trainer(model, training_arguments(SETTINGS, folder / "work", report_to=[]))
    save_model(trainer, folder / "model", planted_store.preprocessing, [])
    return folder / "model"


def with_runs(store, **changes):
    """The same store, but that its runs differ in these fields."""
    changed = copy.copy(store)
    changed.runs = [dataclasses.replace(run, **changes) for run in store.runs]
    return changed


class TestOneTrainingInOneFolder:
    def test_checksums_tell_tokens_and_labels_from_others(self, planted_store):
        known = checksums(planted_store.runs, "group")
        assert checksums(planted_store.runs[::-1], "group") == known
        others = checksums(with_runs(planted_store, sha256="0" * 64).runs, "group")
        assert others["tokens"] != known["tokens"]
        assert others["labels"] == known["labels"]
        relabelled = checksums(with_runs(planted_store, phenotypes={"group": "a"}).runs, "group")
        assert relabelled["tokens"] == known["tokens"]
        assert relabelled["labels"] != known["labels"]
        assert checksums(planted_store.runs).keys() == {"tokens"}

    def test_results_of_other_tokens_are_not_given_out(self, tuned, planted_store, planted_split, tiny):
        out, _ = tuned
        other = with_runs(planted_store, sha256="0" * 64)
        with pytest.raises(InputError, match="a training on other tokens was begun there"):
            finetune_fold(other, planted_split, "group", out, SETTINGS, model=tiny)

    def test_results_of_other_labels_are_not_given_out(self, tuned, planted_store, planted_split, tiny):
        out, _ = tuned
        other = copy.copy(planted_store)
        swapped = {"a": "b", "b": "a"}
        other.runs = [
            dataclasses.replace(run, phenotypes={"group": swapped[run.phenotypes["group"]]})
            for run in planted_store.runs
        ]
        with pytest.raises(InputError, match="with other labels of the same people was begun there"):
            finetune_fold(other, planted_split, "group", out, SETTINGS, model=tiny)

    def test_what_was_begun_goes_on_by_as_many_processes_in_the_same_precision(
        self, planted_store, planted_split, tiny, tmp_path
    ):
        def train(**changes):
            settings = dataclasses.replace(SETTINGS, precision="fp32", **changes)
            return pretrain(planted_store, tmp_path, settings, split=planted_split, model=tiny, is_quiet=True)

        def begun_with(**changes):
            begun = json.loads((tmp_path / "training.json").read_text())
            begun["carried_out"] |= changes
            (tmp_path / "training.json").write_text(json.dumps(begun))

        train()
        assert json.loads((tmp_path / "training.json").read_text())["carried_out"] == {
            "processes": 1,
            "precision": "fp32",
        }
        train(device="auto")  # on a GPU, if there is one
        (tmp_path / "pretraining.json").unlink()  # as if it had not come to its end
        begun_with(processes=4)
        with pytest.raises(
            InputError, match=r"with processes 4, not 1, was begun there; go on with processes 4, choose another --out"
        ):
            train()
        begun_with(processes=1, precision="bf16")
        with pytest.raises(
            InputError, match=r"with precision 'bf16', not 'fp32', was begun .* go on with precision bf16"
        ):
            train()
        (tmp_path / "pretraining.json").write_text(
            '{"folder": "model", "loss": [], "validation_loss": [], "mean_predictor_loss": null, "said": []}'
        )
        assert train().folder == tmp_path / "model"  # nothing is left to be trained

    def test_auto_is_what_it_becomes_here(self, planted_store, planted_split, tiny, tmp_path):
        finetune_fold(planted_store, planted_split, "group", tmp_path, SETTINGS, model=tiny, is_quiet=True)
        training = json.loads((tmp_path / "training.json").read_text())
        assert training["carried_out"]["precision"] == "fp32"  # of the CPU
        assert "precision" not in training["settings"]

    def test_what_cannot_start_leaves_nothing_that_refuses_the_next_try(
        self, planted_store, planted_split, untrained, tmp_path
    ):
        broken = shutil.copytree(untrained, tmp_path / "broken")
        (broken / "model.safetensors").write_bytes((untrained / "model.safetensors").read_bytes()[:1000])
        with pytest.raises(InputError, match="no training can start from it"):
            finetune_fold(planted_store, planted_split, "group", tmp_path / "out", SETTINGS, init=broken)
        assert not (tmp_path / "out" / "training.json").exists()


class TestWhoIsJudged:
    def test_folder_of_a_training_tells_whom_its_model_knows(self, tuned, planted_split, tmp_path):
        out, _ = tuned
        known = {*planted_split.subjects("train"), *planted_split.subjects("validation")}
        assert training_subjects(out / "model") == known
        assert training_subjects(tmp_path / "model") == training_subjects("owner/name") == set()

    @pytest.mark.parametrize(
        ("part", "said", "methods"),
        [
            ("test", None, ["TABLeT", "majority class", "mean token"]),
            ("validation", "These people chose among epochs", ["TABLeT", "majority class", "mean token"]),
            ("train", "These people were learnt from", ["TABLeT"]),
        ],
    )
    def test_parts(self, tuned, planted_store, planted_split, tmp_path, part, said, methods):
        out, _ = tuned
        options = {"part": part, "settings": SETTINGS, "training_data": training_subjects(out / "model")}
        model = load_model(out / "model")
        results = evaluate(model, planted_store, planted_split, tmp_path, on_note=lambda _: None, **options)
        assert list(results["methods"]) == methods
        assert results["are_held_out"] == (said is None)
        assert results["about"]["weights"] == saved_weights_checksum(out / "model")
        page = (tmp_path / "index.html").read_text()
        assert ("none of whom the models had learnt from" in page) == (said is None)
        if said is not None:
            assert results["warnings"][0].startswith(said)
            assert said in page

    def test_a_test_part_of_people_whom_the_model_knows(self, tuned, planted_store, planted_split, tmp_path):
        """As that of another fold is."""
        out, _ = tuned
        parts = {"train": "test", "validation": "validation", "test": "train"}
        turned = Split("fold-2", {name: parts[part] for name, part in planted_split.assignment.items()})
        options = {"settings": SETTINGS, "training_data": training_subjects(out / "model")}
        model = load_model(out / "model")
        results = evaluate(model, planted_store, turned, tmp_path, on_note=lambda _: None, **options)
        assert results["warnings"][0].startswith("24 of 24 people of the test part of fold-2 are called like people")
        assert "none of whom the models had learnt from" not in (tmp_path / "index.html").read_text()

    def test_tokens_of_another_kind_are_told_in_the_results(self, tuned, planted_store, planted_split, tmp_path):
        out, _ = tuned
        other = copy.copy(planted_store)
        other.preprocessing = planted_store.preprocessing | {"signal": "percent_change"}
        options = {"settings": SETTINGS, "on_note": lambda _: None}
        results = evaluate(load_model(out / "model"), other, planted_split, tmp_path, **options)
        said = "The tokens were not made as those the model was trained on (signal 'percent_change' instead of"
        assert results["warnings"][0].startswith(said)
        assert results["are_held_out"]
        assert "were not made as those the model was trained on" in (tmp_path / "index.html").read_text()

    def test_people_whom_pre_training_saw_are_told(self, planted_split, tmp_path):
        assert _known_before([None], [planted_split]) == []
        tested = planted_split.subjects("test")
        for split, count in (({"train": ["x"], "validation": []}, 0), ({"train": tested[:3], "validation": ["x"]}, 3)):
            (tmp_path / "training.json").write_text(json.dumps({"split": split}))
            said = _known_before([str(tmp_path / "model")], [planted_split])
            assert len(said) == (count > 0)
            assert all(sentence.startswith(f"{count} of {len(tested)} people who are predicted") for sentence in said)

    def test_each_fold_can_start_from_a_model_of_its_own(self, planted_store, planted_split, untrained, tmp_path):
        """Of which one learnt from the people whom its fold predicts."""
        turned = {"train": "train", "validation": "test", "test": "validation"}
        other = Split("other", {name: turned[part] for name, part in planted_split.assignment.items()})
        for split, known in ((planted_split, ["x"]), (other, other.subjects("test")[:2])):
            shutil.copytree(untrained, tmp_path / "start" / split.name / "model")
            described = json.dumps({"split": {"train": known, "validation": []}})
            (tmp_path / "start" / split.name / "training.json").write_text(described)
        options = {"init": tmp_path / "start" / "{fold}" / "model", "mode": "head", "on_note": lambda _: None}
        results = finetune(
            planted_store, [planted_split, other], "group", tmp_path / "out", SETTINGS, is_quiet=True, **options
        )
        assert results["warnings"][0].startswith("2 of 16 people who are predicted are called like people")
        begun = json.loads((tmp_path / "out" / "other" / "training.json").read_text())
        assert begun["init"] == str(tmp_path / "start" / "other" / "model")
        assert "none of whom the models had learnt from" not in (tmp_path / "out" / "index.html").read_text()


class TestClasses:
    def test_are_those_of_the_people_of_the_split(self, planted_store):
        """Whoever is of a class too rare to learn can be taken out of a split."""
        without_class_2 = [run for run, known in enumerate(planted_store.runs) if known.phenotypes["kind"] != 2]
        task = find_task(planted_store, "kind", without_class_2[:10], runs=without_class_2)
        assert task.classes == (0, 1)
        with pytest.raises(InputError, match="take such people out of the table of the split"):
            find_task(planted_store, "kind", without_class_2[:10])

    def test_a_number_is_not_predicted_of_texts(self, planted_store):
        config = TabletConfig(problem_type="regression", num_labels=1, target_name="strength")
        assert task_of_config(config, planted_store).is_regression
        with pytest.raises(InputError, match="group: 'a' is no number, but the model predicts one; name another"):
            task_of_config(config, planted_store, "group")

    def test_people_of_other_classes_matter_where_they_are_asked_about(self, tuned, planted_store):
        config = load_model(tuned[0] / "model").config
        other = copy.copy(planted_store)
        other.runs = [
            dataclasses.replace(run, phenotypes={"group": "c"}) if number == 5 else run
            for number, run in enumerate(planted_store.runs)
        ]
        assert task_of_config(config, other, runs=[0, 1, 2]).classes == ("a", "b")
        with pytest.raises(InputError, match="'c' is none of the classes"):
            task_of_config(config, other, runs=[4, 5])


class TestChoosing:
    def test_a_metric_that_the_validation_part_cannot_have(self, planted_store, planted_split, tiny, tmp_path):
        groups = {run.subject: run.phenotypes["group"] for run in planted_store.runs}
        assignment = {
            subject: "train" if part == "validation" and groups[subject] == "b" else part
            for subject, part in planted_split.assignment.items()
        }
        options = {"model": tiny, "metric": "auroc"}
        with pytest.raises(InputError, match=r"auroc is not defined on its validation part.*--metric loss"):
            finetune_fold(planted_store, Split("split", assignment), "group", tmp_path, SETTINGS, **options)
        assert not (tmp_path / "training.json").exists()

    @pytest.mark.parametrize("part", ["validation", "test"])
    def test_a_split_that_lacks_a_part(self, planted_store, planted_split, tiny, tmp_path, part):
        assignment = {name: "train" if its == part else its for name, its in planted_split.assignment.items()}
        with pytest.raises(InputError, match=f"nobody stands in its {part} part"):
            finetune_fold(planted_store, Split("split", assignment), "group", tmp_path, SETTINGS, model=tiny)

    @pytest.mark.parametrize("label", ["group", "strength"])
    def test_loss_of_a_head_is_that_of_the_model_it_becomes(
        self, planted_store, planted_split, untrained, tmp_path, label
    ):
        fold = finetune_fold(
            planted_store, planted_split, label, tmp_path, SETTINGS, init=untrained, mode="head", is_quiet=True
        )
        model = load_model(tmp_path / "model")
        held_out = runs_in(planted_split, planted_store.runs, "validation")
        windows = EvaluationWindows(planted_store, 12, held_out, label, classes=fold.task.classes)
        items = [windows[index] for index in range(len(windows))]
        with torch.no_grad():
            loss = model(
                torch.stack([item["input_values"].float() for item in items]),
                repetition_time=2.0,
                labels=torch.tensor([float(item["labels"]) for item in items]),
            ).loss
        assert fold.validation["head"] == pytest.approx(float(loss), rel=1e-3)
        json.loads((tmp_path / "fold.json").read_text(), parse_constant=pytest.fail)

    def test_patience_goes_on_counting_where_training_was_interrupted(self, tmp_path):
        stopping = _stopping(3)
        arguments = training_arguments(
            SETTINGS, tmp_path, eval_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="loss",
            greater_is_better=False,
        )  # fmt: skip
        losses = [(3, 0.9), (6, 0.5), (9, 0.6), (12, 0.7)]
        state = TrainerState(best_metric=0.5, best_global_step=6)
        state.log_history = [{"step": step, "eval_loss": loss} for step, loss in losses]
        control = TrainerControl()
        stopping.on_train_begin(arguments, state, control)
        stopping.on_evaluate(arguments, state, control, {"eval_loss": 0.8})
        assert control.should_training_stop
        fresh, control = _stopping(3), TrainerControl()
        fresh.on_train_begin(arguments, TrainerState(), control)
        fresh.on_evaluate(arguments, TrainerState(best_metric=0.5), control, {"eval_loss": 0.8})
        assert not control.should_training_stop


@pytest.mark.parametrize(
    ("setting", "value"),
    [("weight_decay", -0.1), ("weight_decay", np.nan), ("seed", -1), ("max_steps", 0), ("save_steps", -3)],
)
def test_settings_that_cannot_be(setting, value):
    with pytest.raises(InputError, match=f"{setting} is {value}, but must be"):
        Settings(**{setting: value})
