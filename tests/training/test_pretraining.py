"""Masked token modeling with Trainer: it learns, goes on where it was killed, and shows what it learnt."""

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
from safetensors.torch import save_file
from small_autoencoders import save_f32
from training_process import ended, pretrain_here, start

from tablet_hf import TabletConfig, TabletForMaskedTokenModeling, TabletForSequenceClassification
from tablet_hf.datasets import StreamedWindows, export_parquet, runs_in, write_splits
from tablet_hf.errors import InputError
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.training.arguments import Settings
from tablet_hf.training.checkpoints import initial_model, last_checkpoint
from tablet_hf.training.pretraining import MaskedWindows, _windows, mean_predictor_loss, pretrain
from tablet_hf.training.pretraining_page import hidden_frame, write_pretraining_page

SETTINGS = Settings(
    window_frames=12, epochs=25, batch_size=8, learning_rate=3e-3, log_steps=5, seed=1, device="cpu", warmup=0.1
)


@pytest.fixture(scope="module")
def pretrained(planted_store, planted_split, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained")
    return out, pretrain(planted_store, out, SETTINGS, split=planted_split, model=tiny, is_quiet=True)


def with_all_runs_of(store, study):
    """The same tokens, but of people of a study whose terms forbid to pass them on."""
    changed = copy.copy(store)
    changed.runs = [dataclasses.replace(run, dataset=study) for run in store.runs]
    changed.settings = store.settings | {"is_restricted": True}
    return changed


class TestLearning:
    def test_loss_falls_below_that_of_naming_the_mean(self, pretrained):
        _, result = pretrained
        (first_step, before), (_, after) = result.validation_loss[0], result.validation_loss[-1]
        assert first_step == 0
        assert after < 0.7 * before
        assert after < 0.8 * result.mean_predictor_loss
        assert result.loss[-1][1] < result.loss[0][1]

    def test_model_is_ready_for_fine_tuning(self, pretrained, planted_store):
        out, result = pretrained
        fields = {"num_labels": 1, "problem_type": "multi_label_classification"}
        model, said = initial_model(TabletForSequenceClassification, result.folder, fields, planted_store.preprocessing)
        loaded = TabletForMaskedTokenModeling.from_pretrained(result.folder)
        torch.testing.assert_close(model.tablet.layers[0].mlp.fc1.weight, loaded.tablet.layers[0].mlp.fc1.weight)
        assert said == [f"{result.folder}: it has no classifier.bias, classifier.weight, which start anew."]
        assert model.config.signal == "intensity"
        assert sorted(path.name for path in (out / "model").iterdir()) == [
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "training_data.json",
        ]

    def test_what_is_done_is_given_back(self, pretrained, planted_store, planted_split, tiny):
        out, result = pretrained
        weights = (out / "model" / "model.safetensors").stat().st_mtime_ns
        again = pretrain(planted_store, out, SETTINGS, split=planted_split, model=tiny)
        assert again == result
        assert (out / "model" / "model.safetensors").stat().st_mtime_ns == weights

    def test_what_it_learnt_from_lies_beside_it(self, pretrained):
        _, result = pretrained
        (stage,) = TrainingData.read(result.folder)
        assert stage == TrainingData("masked token modeling", (), 24, 8, 24, 24 * 24, False, None)

    def test_what_weights_had_learnt_from_stands_before(self, pretrained, planted_store, planted_split, tiny, tmp_path):
        _, before = pretrained
        settings = Settings(window_frames=8, max_steps=1, batch_size=4, device="cpu")
        options = {"split": planted_split, "init": before.folder, "is_quiet": True}
        result = pretrain(with_all_runs_of(planted_store, "LAB"), tmp_path, settings, **options)
        first, second = TrainingData.read(result.folder)
        assert (first,) == TrainingData.read(before.folder)
        assert second == TrainingData("masked token modeling", ("LAB",), 24, 8, 24, 24 * 24, True, "model")

    def test_another_training_is_refused_there(self, pretrained, planted_store, planted_split, tiny):
        out, _ = pretrained
        with pytest.raises(InputError, match=r"a training with mask_ratio 0\.5, not 0\.25, was begun there"):
            pretrain(planted_store, out, SETTINGS, split=planted_split, model=tiny | {"mask_ratio": 0.25})

    @pytest.mark.parametrize("fields", [{"norm_target": True, "mask_strategy": "tube"}, {"mask_strategy": "frame"}])
    def test_other_objectives(self, planted_store, planted_split, tiny, tmp_path, fields):
        settings = Settings(window_frames=8, max_steps=3, batch_size=4, device="cpu", log_steps=1)
        result = pretrain(planted_store, tmp_path, settings, split=planted_split, model=tiny | fields, is_quiet=True)
        assert all(math.isfinite(loss) for _, loss in result.loss)
        if fields.get("norm_target"):
            assert result.mean_predictor_loss == pytest.approx(1, abs=0.05)

    def test_streamed_windows(self, planted_store, planted_split, tiny, tmp_path):
        windows = StreamedWindows(planted_store.folder, 8)
        with pytest.raises(InputError, match="max_steps"):
            pretrain(windows, tmp_path / "no", SETTINGS, model=tiny)
        settings = Settings(window_frames=8, max_steps=4, batch_size=8, device="cpu", log_steps=1)
        result = pretrain(windows, tmp_path / "out", settings, split=planted_split, model=tiny, is_quiet=True)
        assert len(windows.runs) == len(planted_store.runs)  # what was given stays as it is, for other folds
        training, _ = _windows(windows, settings, planted_split, TabletConfig())
        assert {run.subject for run in training.runs.values()} == set(planted_split.subjects("train"))
        assert [step for step, _ in result.loss] == [1, 2, 3, 4]
        (stage,) = TrainingData.read(result.folder)
        assert (stage.people, stage.runs, stage.frames, stage.is_restricted) == (24, 24, 24 * 24, False)

    @pytest.mark.parametrize("is_exported", [False, True])
    def test_a_stream_is_judged_as_its_store_is(self, planted_store, planted_split, tiny, tmp_path, is_exported):
        source = planted_store.folder
        if is_exported:
            source = export_parquet(planted_store, tmp_path / "export", shard_bytes=1_000_000)
        settings = Settings(window_frames=5, max_steps=2, batch_size=8, device="cpu", learning_rate=1e-12, seed=4)
        options = {"split": planted_split, "model": tiny, "is_quiet": True, "evaluations": 2}
        notes = []
        streamed = StreamedWindows(source, 5)
        found = pretrain(streamed, tmp_path / "streamed", settings, on_note=notes.append, **options)
        known = pretrain(planted_store, tmp_path / "store", settings, **options)
        assert [step for step, _ in found.validation_loss] == [0, 1, 2]
        for (_, streamed_loss), (_, loss) in zip(found.validation_loss, known.validation_loss, strict=True):
            assert streamed_loss == pytest.approx(loss, rel=1e-6)
        assert found.mean_predictor_loss == known.mean_predictor_loss
        assert notes == ["Reading 32 windows of the validation part of split ..."]  # 8 people of 24 frames
        assert TrainingData.read(found.folder) == TrainingData.read(known.folder)

    def test_of_a_long_stream_as_many_windows_judge_as_go_into_memory(
        self, planted_store, planted_split, tiny, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("tablet_hf.training.pretraining.KEPT_BYTES", 9 * 5 * 27 * 96 * 2 + 1)
        streamed = StreamedWindows(planted_store.folder, 5)
        settings = Settings(window_frames=5, max_steps=1, device="cpu", seed=4)
        _, found = _windows(streamed, settings, planted_split, TabletConfig())
        found.store.read(found.windows)
        held_out = runs_in(planted_split, planted_store.runs, "validation")
        known = MaskedWindows(planted_store, 5, held_out, TabletConfig(), seed=4, most=9)
        assert len(found) == len(known) == len(found.store.tokens) == 9
        assert found.windows == known.windows
        for index in range(9):
            for name, value in known[index].items():
                assert torch.equal(torch.as_tensor(found[index][name]), torch.as_tensor(value)), name

    def test_weights_are_shared_out_over_several_gpus_or_not_at_all(self, planted_store, tiny, tmp_path):
        with pytest.raises(InputError, match="start them with torchrun"):
            pretrain(planted_store, tmp_path, dataclasses.replace(SETTINGS, fsdp=True), model=tiny)
        assert not list(tmp_path.iterdir())

    def test_tensorboard_has_the_loss(self, pretrained):
        out, _ = pretrained
        pytest.importorskip("tensorboardX")
        (events,) = (out / "checkpoints").rglob("events.out.tfevents*")
        assert b"train/loss" in events.read_bytes()
        assert b"eval/loss" in events.read_bytes()


class TestMasks:
    def test_are_the_same_in_every_pass_and_differ_between_windows(self, planted_store, planted_split, pretrained):
        _, result = pretrained
        config = TabletForMaskedTokenModeling.from_pretrained(result.folder).config
        windows = MaskedWindows(planted_store, 12, None, config, seed=3)
        first, second = windows[0]["bool_masked_pos"], windows[1]["bool_masked_pos"]
        assert first.shape == (12, 27)
        assert first.float().mean() == pytest.approx(0.5, abs=0.01)
        assert torch.equal(first, windows[0]["bool_masked_pos"])
        assert not torch.equal(first, second)

    def test_mean_predictor_by_a_slow_count(self, planted_store, pretrained):
        _, result = pretrained
        config = TabletForMaskedTokenModeling.from_pretrained(result.folder).config
        windows = MaskedWindows(planted_store, 12, [0, 1], config, seed=3)
        errors = []
        for item in (windows[index] for index in range(len(windows))):
            tokens, hidden = item["input_values"].double(), item["bool_masked_pos"]
            means = [tokens[~hidden[:, cell], cell].mean(0) for cell in range(27)]
            places = [(t, cell) for t in range(12) for cell in range(27)]
            visible = [tokens[t, cell] - means[cell] for t, cell in places if not hidden[t, cell]]
            std = torch.stack(visible).square().mean().sqrt()
            left = [(tokens[t, cell] - means[cell]) / std for t, cell in places if hidden[t, cell]]
            errors += [float(each.square().mean()) for each in left]
        assert mean_predictor_loss(windows, config) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


@pytest.fixture
def begin(planted_store, planted_split, tiny, tmp_path):
    """A function that begins pre-training into a folder of this name, see `start`."""
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
        with contextlib.suppress(EOFError):  # which it would be without having come so far
            while steps.recv() < last_step:
                pass
        time.sleep(random_kill.random() * 0.3)
        process.kill()
        kills += ended(process, tmp_path / "killed") == -signal.SIGKILL
    assert kills == 2
    # What a kill in the middle of writing a checkpoint leaves behind.
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


def test_half_a_checkpoint_is_deleted_and_the_one_before_taken(tmp_path):
    for step, state in ((10, "{}"), (20, None), (30, "{ha")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10"]
    assert last_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_checkpoint_is_told_and_kept(tmp_path, name, share):
    newest = tmp_path / "checkpoint-20"
    for folder in (tmp_path / "checkpoint-10", newest):
        folder.mkdir()
        save_file({"weight": torch.ones(100)}, folder / "model.safetensors")
        torch.save({"state": torch.ones(100)}, folder / "optimizer.pt")
        torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
        (folder / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == newest
    whole = (newest / name).read_bytes()
    (newest / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=f"{name}: this part of a checkpoint is damaged.*delete .*checkpoint-20"):
        last_checkpoint(tmp_path)
    assert newest.is_dir()


@pytest.mark.slow
def test_two_processes_train_one_model(begin, tmp_path):
    """As a launcher such as torchrun or accelerate starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    running = [begin("out", 0.0, place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    for process, _ in running:
        assert ended(process, tmp_path / "out") == 0, (tmp_path / "out.txt").read_text()
    result = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert json.loads((tmp_path / "out" / "training.json").read_text())["carried_out"]["processes"] == 2
    assert result["loss"][-1][0] == 12  # six epochs of 24 windows in batches of 2 x 8: a last batch of 8
    assert result["validation_loss"][-1][1] < result["validation_loss"][0][1]
    assert [step for step, _ in result["validation_loss"]] == [0, 3, 6, 9, 12]
    TabletForMaskedTokenModeling.from_pretrained(tmp_path / "out" / "model")


class TestPage:
    def test_hidden_tokens_are_explained_in_part(self, pretrained, planted_store):
        _, result = pretrained
        model = TabletForMaskedTokenModeling.from_pretrained(result.folder)
        windows = MaskedWindows(planted_store, 12, None, model.config)
        frame = hidden_frame(model, windows[0], frame=2)
        hidden = windows[0]["bool_masked_pos"][2]
        tokens = windows[0]["input_values"][2].float()
        assert torch.equal(frame.hidden, hidden)
        torch.testing.assert_close(frame.original, tokens)
        torch.testing.assert_close(frame.predicted[~hidden], tokens[~hidden])
        torch.testing.assert_close(frame.visible[hidden], frame.mean[hidden])
        assert 0.2 < frame.explained < 1

    def test_page_says_why_frames_are_missing(self, pretrained, planted_store, planted_split):
        out, result = pretrained
        page = write_pretraining_page(out, result, planted_store, planted_split, SETTINGS).read_text()
        assert "They cannot be decoded to be looked at: natural-f32c32: its weights are sha256:" in page
        assert "data:image/png;base64" in page
        assert "give --splits" in write_pretraining_page(out, result, None, None, SETTINGS).read_text()

    def test_frames_are_decoded_where_the_autoencoder_is_to_be_had(self, tmp_path, tiny):
        from tablet_hf import TabletFeatureExtractor
        from tablet_hf.datasets import Split, TokenStoreWriter
        from tablet_hf.sources import ScanRecord

        extractor = TabletFeatureExtractor(str(save_f32(tmp_path / "autoencoder")))
        extractor.slice_autoencoder  # noqa: B018
        writer = TokenStoreWriter(tmp_path / "store", extractor.to_dict())
        tokens = torch.randn(6, 27, 384, generator=torch.Generator().manual_seed(0))
        for name in ("01", "02"):
            scan = {"name": name, "bytes": 1, "modified_ns": 1}
            writer.write(ScanRecord(name, Path(name)), tokens, 2.0, scan)
        store = writer.finish()
        split = Split("split", {"01": "train", "02": "validation"})
        settings = Settings(window_frames=6, max_steps=1, batch_size=1, device="cpu")
        result = pretrain(store, tmp_path / "out", settings, split=split, model=tiny, is_quiet=True)
        page = write_pretraining_page(tmp_path / "out", result, store, split, settings).read_text()
        assert "tokens hidden" not in page  # that stands in the picture
        assert (tmp_path / "out" / "pictures" / "hidden-1.png").stat().st_size > 20_000
        assert "whom the model has not learnt from" in page
