"""Masked token modeling with Trainer: the loss falls, training resumes, and the page shows predictions."""

import contextlib
import copy
import dataclasses
import json
import math
import random
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from small_autoencoders import save_f32
from training_process import ended, pretrain_here, start

from tablet_hf import TabletFeatureExtractor, TabletForMaskedTokenModeling, TabletForSequenceClassification
from tablet_hf.datasets import (
    EvaluationWindows,
    Split,
    StreamedWindows,
    TokenStoreWriter,
    export_parquet,
    write_splits,
)
from tablet_hf.errors import InputError
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.sources import ScanRecord
from tablet_hf.training.arguments import TabletTrainingArguments
from tablet_hf.training.checkpoints import initial_model, last_checkpoint
from tablet_hf.training.pretraining import MaskedWindows, mean_predictor_loss, pretrain
from tablet_hf.training.pretraining_page import predict_masked_frame, write_pretraining_page


def arguments(**changes):
    settings = {"window_frames": 12, "num_train_epochs": 25, "per_device_train_batch_size": 8, "learning_rate": 3e-3}
    settings |= {"logging_steps": 5, "seed": 1, "use_cpu": True, "warmup_steps": 0.1, "disable_tqdm": True}
    return TabletTrainingArguments(**settings | changes)


def short(**changes):
    return arguments(**{"window_frames": 8, "max_steps": 3, "logging_steps": 1} | changes)


@pytest.fixture(scope="module")
def pretrained(planted_store, planted_split, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained")
    return out, pretrain(planted_store, out, arguments(), split=planted_split, model=tiny)


@pytest.fixture
def model(pretrained):
    return TabletForMaskedTokenModeling.from_pretrained(pretrained[1].folder)


class TestTraining:
    def test_loss_falls_below_that_of_predicting_the_mean(self, pretrained):
        out, result = pretrained
        (first_step, before), (_, after) = result.validation_loss[0], result.validation_loss[-1]
        assert first_step == 0
        assert after < 0.7 * before
        assert after < 0.8 * result.mean_predictor_loss
        assert result.loss[-1][1] < result.loss[0][1]
        pytest.importorskip("tensorboardX")
        (events,) = (out / "checkpoints").rglob("events.out.tfevents*")
        assert b"train/loss" in events.read_bytes()
        assert b"eval/loss" in events.read_bytes()

    def test_model_is_ready_for_fine_tuning(self, pretrained, planted_store, model):
        out, result = pretrained
        fields = {"num_labels": 1, "problem_type": "multi_label_classification"}
        tuned = initial_model(TabletForSequenceClassification, result.folder, fields, planted_store.preprocessing)
        torch.testing.assert_close(tuned.tablet.layers[0].mlp.fc1.weight, model.tablet.layers[0].mlp.fc1.weight)
        assert tuned.config.signal == "intensity"
        files = ["config.json", "model.safetensors", "preprocessor_config.json", "training_data.json"]
        assert sorted(path.name for path in (out / "model").iterdir()) == files
        (stage,) = TrainingData.read(result.folder)
        assert stage == TrainingData("masked token modeling", (), 24, 8, 24, 24 * 24, False, None)

    def test_what_is_finished_is_returned(self, pretrained, planted_store, planted_split, tiny):
        out, result = pretrained
        weights = (out / "model" / "model.safetensors").stat().st_mtime_ns
        assert pretrain(planted_store, out, arguments(), split=planted_split, model=tiny) == result
        assert (out / "model" / "model.safetensors").stat().st_mtime_ns == weights
        with pytest.raises(InputError, match="mask_ratio"):
            pretrain(planted_store, out, arguments(), split=planted_split, model=tiny | {"mask_ratio": 0.25})

    def test_training_data_of_starting_weights_is_recorded_first(
        self, pretrained, planted_store, planted_split, tmp_path
    ):
        _, before = pretrained
        restricted = copy.copy(planted_store)
        restricted.runs = [dataclasses.replace(run, dataset="LAB") for run in planted_store.runs]
        restricted.settings = planted_store.settings | {"is_restricted": True}
        result = pretrain(restricted, tmp_path, short(max_steps=1), split=planted_split, init=before.folder)
        first, second = TrainingData.read(result.folder)
        assert (first,) == TrainingData.read(before.folder)
        assert second == TrainingData("masked token modeling", ("LAB",), 24, 8, 24, 24 * 24, True, "model")

    @pytest.mark.parametrize("fields", [{"norm_target": True, "mask_strategy": "tube"}, {"mask_strategy": "frame"}])
    def test_other_objectives(self, planted_store, planted_split, tiny, tmp_path, fields):
        result = pretrain(planted_store, tmp_path, short(), split=planted_split, model=tiny | fields)
        assert all(math.isfinite(loss) for _, loss in result.loss)
        if fields.get("norm_target"):
            assert result.mean_predictor_loss == pytest.approx(1, abs=0.05)


class TestStreams:
    def test_need_a_number_of_steps(self, planted_store, tiny, tmp_path):
        with pytest.raises(InputError, match="--max-steps"):
            pretrain(StreamedWindows(planted_store.folder, 8), tmp_path, arguments(), model=tiny)

    @pytest.mark.parametrize(("is_exported", "max_bytes"), [(False, 2**30), (True, 2**30), (False, 1)])
    def test_a_stream_is_evaluated_as_its_store(
        self, planted_store, planted_split, tiny, tmp_path, monkeypatch, is_exported, max_bytes
    ):
        monkeypatch.setattr("tablet_hf.training.pretraining.MAX_STREAMED_BYTES", max_bytes)
        source = planted_store.folder
        if is_exported:
            source = export_parquet(planted_store, tmp_path / "export", shard_bytes=1_000_000)
        options = short(window_frames=5, max_steps=2, learning_rate=1e-12, seed=4, eval_steps=1)
        stream = StreamedWindows(source, 5)
        found = pretrain(stream, tmp_path / "streamed", options, split=planted_split, model=tiny)
        assert len(stream.runs) == len(planted_store.runs)  # the stream itself is not changed
        assert [step for step, _ in found.loss] == [1, 2]
        assert [step for step, _ in found.validation_loss] == [0, 1, 2]
        (stage,) = TrainingData.read(found.folder)
        assert stage == TrainingData("masked token modeling", (), 24, 8, 24, 24 * 24, False, None)
        if max_bytes == 1:
            assert math.isfinite(found.mean_predictor_loss)  # of one window
            return
        known = pretrain(planted_store, tmp_path / "store", options, split=planted_split, model=tiny)
        assert dict(found.validation_loss) == pytest.approx(dict(known.validation_loss), rel=1e-6)
        assert found.mean_predictor_loss == known.mean_predictor_loss


class TestMasks:
    def test_are_the_same_in_every_pass_and_differ_between_windows(self, planted_store, model):
        all_windows = EvaluationWindows(planted_store, 12)
        windows = MaskedWindows(all_windows, model.config, seed=3)
        first, second = windows[0]["bool_masked_pos"], windows[1]["bool_masked_pos"]
        assert first.shape == (12, 27)
        assert first.float().mean() == pytest.approx(0.5, abs=0.01)
        assert torch.equal(first, windows[0]["bool_masked_pos"])
        assert not torch.equal(first, second)
        some = MaskedWindows(all_windows, model.config, max_windows=3)
        assert [some[index]["run_index"] for index in range(len(some))] == [0, 20, 39]

    def test_mean_predictor_by_a_slow_count(self, planted_store, model):
        windows = MaskedWindows(EvaluationWindows(planted_store, 12, [0, 1]), model.config, seed=3)
        errors = []
        for item in (windows[index] for index in range(len(windows))):
            tokens, masked = item["input_values"].double(), item["bool_masked_pos"]
            means = [tokens[~masked[:, cell], cell].mean(0) for cell in range(27)]
            pairs = [(t, cell) for t in range(12) for cell in range(27)]
            visible = [tokens[t, cell] - means[cell] for t, cell in pairs if not masked[t, cell]]
            std = torch.stack(visible).square().mean().sqrt()
            rest = [(tokens[t, cell] - means[cell]) / std for t, cell in pairs if masked[t, cell]]
            errors += [float(each.square().mean()) for each in rest]
        assert mean_predictor_loss(windows, model.config) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


@pytest.fixture
def begin(planted_store, planted_split, tiny, tmp_path):
    """A function that starts pre-training into a folder of this name, see `start`."""
    write_splits([planted_split], tmp_path / "splits.csv")
    return lambda name, *options: start(
        pretrain_here, planted_store.folder, tmp_path / "splits.csv", tmp_path / name, tiny, *options
    )


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_on_the_same_curve(begin, tmp_path):
    undisturbed, _undisturbed_steps = begin("undisturbed")
    random_kill = random.Random(5)
    kills = 0
    for last_step in (7, 14):
        process, steps = begin("killed", 0.05)
        with contextlib.suppress(EOFError):  # where it ended before
            while steps.recv() < last_step:
                pass
        time.sleep(random_kill.random() * 0.3)
        process.kill()
        kills += ended(process, tmp_path / "killed") == -signal.SIGKILL
    assert kills == 2
    # What a kill while writing a checkpoint leaves.
    broken = tmp_path / "killed" / "checkpoints" / "checkpoint-9999"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    finished, _finished_steps = begin("killed")
    for process, name in ((finished, "killed"), (undisturbed, "undisturbed")):
        assert ended(process, tmp_path / name) == 0, (tmp_path / f"{name}.txt").read_text()
    results = [json.loads((tmp_path / name / "pretraining.json").read_text()) for name in ("undisturbed", "killed")]
    for name in ("loss", "validation_loss"):
        expected, found = (dict(map(tuple, result[name])) for result in results)
        assert found == pytest.approx(expected, rel=1e-5), name


def test_an_incomplete_checkpoint_is_deleted_and_the_one_before_used(tmp_path):
    for step, state in ((10, "{}"), (20, None), (30, "{ha")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10"]
    assert last_checkpoint(tmp_path / "nothing") is None


@pytest.mark.slow
def test_two_processes_train_one_model(begin, tmp_path):
    """As a launcher such as torchrun or accelerate starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    running = [begin("out", 0.0, environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    for process, _ in running:
        assert ended(process, tmp_path / "out") == 0, (tmp_path / "out.txt").read_text()
    result = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert json.loads((tmp_path / "out" / "training.json").read_text())["carried_out"]["processes"] == 2
    assert result["loss"][-1][0] == 12  # six epochs of 24 windows in batches of 2 x 8: a last batch of 8
    assert result["validation_loss"][-1][1] < result["validation_loss"][0][1]
    assert [step for step, _ in result["validation_loss"]] == [0, 3, 6, 9, 12]
    TabletForMaskedTokenModeling.from_pretrained(tmp_path / "out" / "model")


class TestPage:
    def test_masked_tokens_are_explained_in_part(self, planted_store, model):
        item = MaskedWindows(EvaluationWindows(planted_store, 12), model.config)[0]
        frame = predict_masked_frame(model, item)
        masked, tokens = item["bool_masked_pos"][6], item["input_values"][6].float()
        assert torch.equal(frame.masked, masked)
        torch.testing.assert_close(frame.original, tokens)
        torch.testing.assert_close(frame.predicted[~masked], tokens[~masked])
        torch.testing.assert_close(frame.visible[masked], frame.mean[masked])
        assert 0.2 < frame.explained < 1

    def test_page_says_why_frames_are_missing(self, pretrained, planted_store, planted_split):
        out, result = pretrained
        page = write_pretraining_page(out, result, planted_store, planted_split, arguments()).read_text()
        assert "cannot be decoded: natural-f32c32" in page
        assert "data:image/png;base64" in page
        assert "--splits" in write_pretraining_page(out, result, None, None, arguments()).read_text()

    def test_frames_are_decoded_by_the_autoencoder(self, tmp_path, tiny):
        extractor = TabletFeatureExtractor(str(save_f32(tmp_path / "autoencoder")))
        extractor.slice_autoencoder  # noqa: B018
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        tokens = torch.randn(6, 27, 384, generator=torch.Generator().manual_seed(0))
        for name in ("01", "02"):
            scan = {"name": name, "bytes": 1, "modified_ns": 1}
            writer.write(ScanRecord(name, Path(name)), tokens, 2.0, scan)
        store, split = writer.finish(), Split("split", {"01": "train", "02": "validation"})
        options = short(window_frames=6, max_steps=1)
        result = pretrain(store, tmp_path / "out", options, split=split, model=tiny)
        assert "02" in write_pretraining_page(tmp_path / "out", result, store, split, options).read_text()
        assert (tmp_path / "out" / "pictures" / "hidden-1.png").stat().st_size > 20_000
