"""Fine-tuning in one fold: planted effects are found, weights are those asked for, and nothing is done twice."""

import contextlib
import copy
import dataclasses
import json
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from training_process import ended, finetune_here, start

from tablet_hf import TabletForMaskedTokenModeling
from tablet_hf.datasets import EvaluationWindows, Split, average_by, random_splits, runs_in, subject_ids, write_splits
from tablet_hf.errors import InputError
from tablet_hf.hub.loading import load_model
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.training.arguments import TabletTrainingArguments
from tablet_hf.training.finetuning import finetune_fold


def arguments(**changes):
    settings = {"window_frames": 12, "num_train_epochs": 6, "per_device_train_batch_size": 8, "learning_rate": 3e-3}
    settings |= {"logging_steps": 3, "seed": 1, "warmup_steps": 0.1, "use_cpu": True, "disable_tqdm": True}
    return TabletTrainingArguments(**settings | changes)


@pytest.fixture(scope="module")
def tuned(planted_store, planted_split, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    return out, finetune_fold(planted_store, planted_split, "group", out, arguments(), model=tiny)


class TestPlantedDifference:
    def test_all_held_out_subjects_are_classified(self, tuned, planted_split, planted_store):
        out, fold = tuned
        assert fold.training_loss[-1][1] < 0.3 * fold.training_loss[0][1]
        predictions = fold.predictions
        assert sorted(predictions.subjects) == planted_split.subjects("test")
        phenotypes = {run.subject: run.phenotypes["group"] for run in planted_store.runs}
        assert [predictions.classes[target] for target in predictions.targets] == [
            phenotypes[subject] for subject in predictions.subjects
        ]
        assert predictions.outputs.argmax(1).tolist() == predictions.targets.tolist()
        assert not list(out.rglob("checkpoint-*"))

    def test_model_in_the_folder_gives_the_same_predictions(self, tuned, planted_store, planted_split):
        out, fold = tuned
        model = load_model(out / "model")
        assert model.config.id2label == {0: "b"}
        assert (model.config.negative_label, model.config.target_name) == ("a", "group")
        windows = EvaluationWindows(planted_store, 12, runs_in(planted_split, planted_store.runs, "test"))
        with torch.no_grad():
            logits = [
                model(window["input_values"][None].float(), repetition_time=2.0).logits[0].numpy()
                for window in (windows[index] for index in range(len(windows)))
            ]
        subjects, means = average_by(np.array(logits), windows.subjects)
        assert tuple(subjects) == fold.predictions.subjects
        np.testing.assert_allclose(1 / (1 + np.exp(-means[:, 0])), fold.predictions.outputs[:, 1], atol=1e-5)

    def test_a_finished_fold_is_not_done_again(self, tuned, planted_store, planted_split, tiny):
        out, fold = tuned
        again = finetune_fold(planted_store, planted_split, "group", out, arguments(), model=tiny)
        assert again.predictions.to_json() == fold.predictions.to_json()
        assert (again.task, again.learning_rate, again.validation) == (fold.task, fold.learning_rate, fold.validation)

    def test_training_data_is_recorded_without_names(self, tuned, planted_split):
        out, _ = tuned
        assert TrainingData.read(out / "model") == (TrainingData("group", (), 24, 8, 24, 24 * 24, False, None),)
        record = (out / "model" / "training_data.json").read_text()
        assert not any(f'"{subject}"' in record for subject in planted_split.assignment)


class TestOtherTrainingsAreRefused:
    @pytest.mark.parametrize("change", ["tokens", "labels"])
    def test_other_data(self, tuned, planted_store, planted_split, tiny, change):
        other, swapped = copy.copy(planted_store), {"a": "b", "b": "a"}
        other.runs = [
            dataclasses.replace(run, sha256="0" * 64)
            if change == "tokens"
            else dataclasses.replace(run, phenotypes={"group": swapped[run.phenotypes["group"]]})
            for run in planted_store.runs
        ]
        with pytest.raises(InputError, match=change):
            finetune_fold(other, planted_split, "group", tuned[0], arguments(), model=tiny)

    def test_other_settings(self, tuned, planted_store, planted_split, tiny):
        with pytest.raises(InputError, match="seed"):
            finetune_fold(planted_store, planted_split, "group", tuned[0], arguments(seed=2), model=tiny)

    def test_another_machine_is_refused_until_training_is_finished(self, tuned, planted_store, planted_split, tiny):
        out, fold = tuned
        training, content = out / "training.json", (out / "training.json").read_text()
        changed = json.loads(content)
        assert changed["carried_out"] == {"processes": 1, "precision": "fp32"}
        changed["carried_out"]["processes"] = 4
        training.write_text(json.dumps(changed))
        options = {"arguments": arguments(), "model": tiny}
        assert finetune_fold(planted_store, planted_split, "group", out, **options).validation == fold.validation
        (out / "fold.json").rename(out / "finished")
        with pytest.raises(InputError, match="processes"):
            finetune_fold(planted_store, planted_split, "group", out, **options)
        (out / "finished").rename(out / "fold.json")
        training.write_text(content)

    def test_weights_that_cannot_be_loaded_leave_no_folder(self, planted_store, planted_split, untrained, tmp_path):
        broken = shutil.copytree(untrained, tmp_path / "broken")
        (broken / "model.safetensors").write_bytes((untrained / "model.safetensors").read_bytes()[:1000])
        with pytest.raises(InputError, match="broken"):
            finetune_fold(planted_store, planted_split, "group", tmp_path / "out", arguments(), init=broken)
        assert not (tmp_path / "out" / "training.json").exists()


class TestKinds:
    def test_regression_in_its_own_unit(self, planted_store, planted_split, tiny, tmp_path):
        fold = finetune_fold(planted_store, planted_split, "strength", tmp_path, arguments(), model=tiny)
        errors = np.abs(fold.predictions.outputs - fold.predictions.targets)
        assert errors.mean() < 1  # of values around 10 and 15
        config = load_model(tmp_path / "model").config
        assert (config.target_mean, config.target_std) == ([fold.task.target_mean], [fold.task.target_std])

    def test_three_classes_without_any_effect(self, planted_store, tiny, tmp_path):
        labels = [run.phenotypes["kind"] for run in planted_store.runs]
        (split,) = random_splits(subject_ids(planted_store.runs), labels, num_splits=1, fractions=(0.5, 0.25, 0.25))
        fold = finetune_fold(planted_store, split, "kind", tmp_path, arguments(num_train_epochs=2), model=tiny)
        assert fold.predictions.outputs.shape == (len(fold.predictions), 3)
        np.testing.assert_allclose(fold.predictions.outputs.sum(1), 1)
        assert set(fold.predictions.targets.tolist()) == {0, 1, 2}

    def test_sweep_takes_the_best_learning_rate(self, planted_store, planted_split, tiny, tmp_path):
        options = arguments(learning_rates=(1e-9, 3e-3))
        fold = finetune_fold(planted_store, planted_split, "group", tmp_path, options, model=tiny)
        assert fold.learning_rate == 3e-3
        assert fold.validation["0.003"] < fold.validation["1e-09"]

    def test_patience_ends_training_early(self, planted_store, planted_split, tiny, tmp_path):
        options = arguments(num_train_epochs=8, learning_rate=1e-9, metric_for_best_model="auroc", patience=1)
        fold = finetune_fold(planted_store, planted_split, "kind", tmp_path, options, model=tiny)
        assert 1 < len(fold.validation_loss) < 8


class TestFromTrainedWeights:
    @pytest.mark.parametrize("label", ["group", "strength"])
    def test_a_head_is_a_linear_model_of_unchanged_states(
        self, planted_store, planted_split, untrained, tmp_path, label
    ):
        """Random states separate the planted patterns."""
        fold = finetune_fold(planted_store, planted_split, label, tmp_path, arguments(mode="head"), init=untrained)
        if label == "group":
            assert fold.predictions.outputs.argmax(1).tolist() == fold.predictions.targets.tolist()
        else:
            assert np.abs(fold.predictions.outputs - fold.predictions.targets).mean() < 1
        model = load_model(tmp_path / "model")
        for name, weight in TabletForMaskedTokenModeling.from_pretrained(untrained).state_dict().items():
            if name in model.state_dict():
                torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)
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
        # Nothing was recorded of these weights but their name.
        assert TrainingData.read(tmp_path / "model") == (TrainingData(label, (), 24, 8, 24, 24 * 24, False, "model"),)

    def test_adapters_are_merged(self, planted_store, planted_split, untrained, tmp_path):
        pytest.importorskip("peft")
        init, out = shutil.copytree(untrained, tmp_path / "start"), tmp_path / "out"
        first = TrainingData("masked token modeling", ("HCP",), 1000, 0, 4000, 4_800_000, True)
        TrainingData.write(init, [first])
        fold = finetune_fold(planted_store, planted_split, "group", out, arguments(mode="lora"), init=init)
        assert fold.training_loss[-1][1] < fold.training_loss[0][1]
        second = TrainingData("group", (), 24, 8, 24, 24 * 24, False, "start")
        assert TrainingData.read(out / "model") == (first, second)
        after = load_model(out / "model").tablet.layers[0].mlp.fc1.weight
        before = TabletForMaskedTokenModeling.from_pretrained(untrained).tablet.layers[0].mlp.fc1.weight
        assert 1 <= torch.linalg.matrix_rank((after - before).detach(), atol=1e-6) <= 8


class TestRefused:
    @pytest.mark.parametrize(
        ("init", "options", "word"),
        [
            (None, {"mode": "head"}, "--init"),
            ("nowhere/at/all", {}, "nowhere/at/all"),
            (None, {"metric_for_best_model": "kappa"}, "kappa"),
        ],
    )
    def test_what_a_fold_cannot_do(self, planted_store, planted_split, tmp_path, init, options, word):
        with pytest.raises(InputError, match=word):
            finetune_fold(planted_store, planted_split, "group", tmp_path, arguments(**options), init=init)

    def test_fsdp(self, planted_store, planted_split, tiny, tmp_path, monkeypatch):
        with pytest.raises(InputError, match="torchrun"):
            arguments(fsdp=True)
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # of accelerate launch --use_fsdp
        with pytest.raises(InputError, match="FSDP"):
            finetune_fold(planted_store, planted_split, "group", tmp_path, arguments(), model=tiny)

    def test_a_metric_that_the_validation_part_does_not_define(self, planted_store, planted_split, tiny, tmp_path):
        groups = {run.subject: run.phenotypes["group"] for run in planted_store.runs}
        assignment = {
            subject: "train" if part == "validation" and groups[subject] == "b" else part
            for subject, part in planted_split.assignment.items()
        }
        options = arguments(metric_for_best_model="auroc")
        with pytest.raises(InputError, match="auroc"):
            finetune_fold(planted_store, Split("split", assignment), "group", tmp_path, options, model=tiny)
        assert not (tmp_path / "training.json").exists()

    @pytest.mark.parametrize("part", ["validation", "test"])
    def test_a_split_without_a_part(self, planted_store, planted_split, tiny, tmp_path, part):
        assignment = {name: "train" if own == part else own for name, own in planted_split.assignment.items()}
        with pytest.raises(InputError, match=part):
            finetune_fold(planted_store, Split("split", assignment), "group", tmp_path, arguments(), model=tiny)

    @pytest.mark.parametrize(
        "wrong",
        [{"weight_decay": -0.1}, {"weight_decay": np.nan}, {"seed": -1}, {"num_train_epochs": 0}, {"precision": "int4"},
         {"mode": "half"}, {"mode": "head", "patience": 2}, {"mode": "head", "learning_rates": (1e-3,)}],
    )  # fmt: skip
    def test_arguments_out_of_range(self, wrong):
        with pytest.raises(InputError, match=next(iter(wrong))):
            arguments(**wrong)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_figures_and_weights(planted_store, planted_split, tiny, tmp_path):
    """Also where the first learning rate has stopped early, and the second one is tried."""
    write_splits([planted_split], tmp_path / "splits.csv")
    sizes = tiny | {"hidden_dropout_prob": 0.1}

    def begin(name, seconds=0.0):
        return start(finetune_here, planted_store.folder, tmp_path / "splits.csv", tmp_path / name, sizes, seconds)

    undisturbed, steps = begin("undisturbed")
    assert ended(undisturbed, tmp_path / "undisturbed") == 0, (tmp_path / "undisturbed.txt").read_text()
    whole = rest(steps)
    first = whole.index(1, 1)  # steps with the first learning rate
    assert first in (6, 9, 12, 15)  # of six epochs of three steps
    random_kill = random.Random(7)
    received = []
    for num_steps in (5, first - 3 + 2):  # in the second epoch, and with the second learning rate
        process, steps = begin("killed", 0.05)
        received.append([steps.recv() for _ in range(num_steps)])
        time.sleep(random_kill.random() * 0.15)
        process.kill()
        assert ended(process, tmp_path / "killed") == -signal.SIGKILL
        received[-1] += rest(steps)
    finished, steps = begin("killed")
    assert ended(finished, tmp_path / "killed") == 0, (tmp_path / "killed.txt").read_text()
    # The first learning rate, once it had stopped early, did not begin again.
    in_both = [steps for steps in (*received, rest(steps)) if 1 in steps[1:]]
    assert len(in_both) == 1
    assert in_both[0][in_both[0].index(1, 1) - 1] == first
    results = [json.loads((tmp_path / name / "fold.json").read_text()) for name in ("undisturbed", "killed")]
    assert results[0] == results[1]
    models = [load_model(tmp_path / name / "model").state_dict() for name in ("undisturbed", "killed")]
    for name, weight in models[0].items():
        assert torch.equal(models[1][name], weight), name


def rest(steps):
    """Return the steps that an ended process still sent."""
    received = []
    with contextlib.suppress(EOFError):
        while True:
            received.append(steps.recv())
    return received
