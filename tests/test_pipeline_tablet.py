"""The pipelines for scans: windows, batches, what is told of classes and values, and embeddings of the right frames."""

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline
from transformers.utils import logging

from tablet_hf import (
    InputError,
    TabletConfig,
    TabletFeatureExtractor,
    TabletForMaskedTokenModeling,
    TabletForSequenceClassification,
    TabletModel,
    TokenizedRun,
)
from tablet_hf.auto_classes import enter_pipelines
from tablet_hf.hub.loading import ScanPredictor
from tablet_hf.pipeline_tablet import (
    FmriClassificationPipeline,
    gather_windows,
    windows_of_all_frames,
    windows_without_remainder,
)

CELLS, TOKEN_SIZE, HIDDEN, WINDOW = 8, 12, 32, 3
SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SIZES |= {"intermediate_size": 16, "initializer_range": 0.2}
ONE_LOGIT = {"problem_type": "multi_label_classification", "id2label": {0: "F"}, "label2id": {"F": 0}}
CLASSES = {
    "problem_type": "single_label_classification",
    "id2label": {0: "a", 1: "b", 2: "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
}
VALUES = {
    "problem_type": "regression",
    "id2label": {0: "age", 1: "score"},
    "label2id": {"age": 0, "score": 1},
    "target_mean": [50.0, 100.0],
    "target_std": [10.0, 15.0],
}


def make_model(model_class=TabletForSequenceClassification, **settings):
    """A model of small tokens, which no scan has: for runs that are tokenized already."""
    torch.manual_seed(0)
    tokens = {"token_size": TOKEN_SIZE, "grid_size": 2, "num_frames": WINDOW, "autoencoder": "natural-f32c32"}
    return model_class(TabletConfig(**SIZES, **tokens | settings)).eval()


def make_run(num_frames, repetition_time=2.0, seed=0, name="run"):
    tokens = torch.randn(num_frames, CELLS, TOKEN_SIZE, generator=torch.Generator().manual_seed(seed))
    return TokenizedRun(tokens, np.arange(num_frames), repetition_time, 1.0, None, 0.0, name)


def make_pipeline(task, model, **settings):
    return pipeline(task, model=model, feature_extractor=TabletFeatureExtractor(), device="cpu", **settings)


# --- windows


@given(st.integers(1, 40), st.integers(1, 12))
def test_windows_of_all_frames_are_full_and_add_each_frame_once(num_frames, window):
    windows = windows_of_all_frames(num_frames, window)
    added = [frame for one in windows for frame in range(one.new_from, one.stop)]
    assert added == list(range(num_frames))
    assert {one.stop - one.start for one in windows} == {min(window, num_frames)}


def test_windows_without_remainder():
    spans = [(one.start, one.stop) for one in windows_without_remainder(11, 3)]
    assert spans == [(0, 3), (3, 6), (6, 9)]
    assert [(one.start, one.stop) for one in windows_without_remainder(2, 3)] == [(0, 2)]
    assert [(one.start, one.stop) for one in windows_without_remainder(7, None)] == [(0, 7)]


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9))
def test_windows_are_gathered_from_blocks_of_any_size(num_frames, window, block):
    frames = torch.arange(num_frames)[:, None, None]
    windows = windows_of_all_frames(num_frames, window)
    gathered = list(gather_windows(iter(frames.split(block)), windows))
    assert [one.flatten().tolist() for one in gathered] == [list(range(one.start, one.stop)) for one in windows]


def test_a_window_is_given_out_before_the_frames_behind_it_are_read():
    read = []

    def blocks():
        for block in torch.arange(100)[:, None, None].split(4):
            read.append(len(block))
            yield block

    for window, _ in zip(windows := windows_of_all_frames(100, 10), gather_windows(blocks(), windows), strict=True):
        assert window.stop <= sum(read) < window.stop + 4


# --- predictions


@pytest.mark.parametrize("inputs", [[], (run for run in ())], ids=["list", "generator"])
@pytest.mark.parametrize("task", ["fmri-classification", "fmri-feature-extraction"])
def test_no_scans_give_no_results(task, inputs):
    model = make_model(TabletModel) if "feature" in task else make_model(**ONE_LOGIT)
    assert list(make_pipeline(task, model)(inputs)) == []


@pytest.mark.parametrize("model_class", [TabletForSequenceClassification, TabletForMaskedTokenModeling])
def test_a_head_that_embeddings_do_not_want_is_nothing_to_report(model_class, tmp_path, caplog):
    make_model(model_class).save_pretrained(tmp_path)
    logging.get_logger("transformers").addHandler(caplog.handler)
    try:
        TabletModel.from_pretrained(tmp_path)
    finally:
        logging.get_logger("transformers").removeHandler(caplog.handler)
    assert "LOAD REPORT" not in caplog.text


def test_predictions_leave_out_a_remainder_that_embeddings_have():
    run = make_run(5)
    whole_windows = TokenizedRun(run.tokens[:3], run.frames[:3], 2.0, 1.0, None, 0.0, "run")
    classify = make_pipeline("fmri-classification", make_model(**CLASSES))
    assert classify(run) == classify(whole_windows)
    embed = make_pipeline("fmri-feature-extraction", make_model(TabletModel))
    assert len(embed(run).frames) == 5


@pytest.mark.parametrize("task", [ONE_LOGIT, ONE_LOGIT | {"negative_label": "M"}, CLASSES, VALUES])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_every_batch_size_says_what_the_predictor_says(task, batch_size):
    model = make_model(**task)
    runs = [make_run(7, seed=1), make_run(2, 0.72, seed=2), make_run(13, 3.0, seed=3)]
    predictor = ScanPredictor(model, TabletFeatureExtractor())
    expected = [predictor.predict_tokens(run).scores for run in runs]

    told = make_pipeline("fmri-classification", model)(runs, batch_size=batch_size)
    for scores, entries in zip(expected, told, strict=True):
        found = {entry["label"]: entry["score"] for entry in entries}
        if task["problem_type"] == "multi_label_classification":
            assert found.pop(task.get("negative_label", "not F")) == pytest.approx(1 - scores["F"], abs=1e-5)
        assert found == pytest.approx(scores, abs=1e-4)


def test_the_most_probable_classes_come_first():
    classify = make_pipeline("fmri-classification", make_model(**CLASSES))
    everything = classify(make_run(4))
    scores = [entry["score"] for entry in everything]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1)
    assert classify(make_run(4), top_k=2) == everything[:2]
    assert classify([make_run(4)], top_k=1) == [everything[:1]]
    assert make_pipeline("fmri-classification", make_model(**CLASSES), top_k=1)(make_run(4)) == everything[:1]
    with pytest.raises(ValueError, match="top_k=0"):
        classify(make_run(4), top_k=0)


def test_values_keep_the_order_of_the_targets_and_are_never_left_out():
    entries = make_pipeline("fmri-classification", make_model(**VALUES))(make_run(4), top_k=1)
    assert [entry["label"] for entry in entries] == ["age", "score"]


def test_windows_may_have_another_length():
    model, run = make_model(**CLASSES), make_run(12)
    classify = make_pipeline("fmri-classification", model)
    for num_frames in (2, 12):
        scores = ScanPredictor(model, TabletFeatureExtractor(), num_frames).predict_tokens(run).scores
        assert {entry["label"]: entry["score"] for entry in classify(run, num_frames=num_frames)} == pytest.approx(
            scores, abs=1e-5
        )
    with pytest.raises(ValueError, match="num_frames=0"):
        classify(run, num_frames=0)
    with pytest.raises(TypeError, match="no parameter 'num_frame'"):
        classify(run, num_frame=2)


def test_a_model_that_does_not_say_what_it_predicts_is_refused():
    with pytest.raises(InputError, match="does not say what it predicts"):
        make_pipeline("fmri-classification", make_model())


@pytest.mark.parametrize("task", ["fmri-classification", "fmri-feature-extraction"])
def test_runs_that_hold_nothing_or_no_numbers_are_refused(task):
    model_class = TabletModel if "feature" in task else TabletForSequenceClassification
    run_pipeline = make_pipeline(task, make_model(model_class, **CLASSES))
    with pytest.raises(InputError, match="run: there are no frames"):
        run_pipeline(make_run(0))
    with pytest.raises(InputError, match="run: its repetition time is not between"):
        run_pipeline(make_run(3, repetition_time=0.0))
    run = make_run(3)
    run.tokens[1, 2, 3] = float("nan")
    with pytest.raises(InputError, match="run: no finite"):
        run_pipeline(run)
    run = make_run(3)
    run.tokens = run.tokens[:, 1:]
    with pytest.raises(InputError, match=r"run: its tokens have the shape \(frames, 7, 12\).*reads \(frames, 8, 12\)"):
        run_pipeline(run)


# --- embeddings


@pytest.mark.parametrize("pooling_type", ["cls", "mean"])
@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_embeddings_are_the_states_of_the_window_that_adds_the_frame(pooling_type, batch_size):
    model = make_model(TabletModel, pooling_type=pooling_type)
    runs = [make_run(8, 0.8, seed=1, name="long"), make_run(2, seed=2, name="short")]
    found = make_pipeline("fmri-feature-extraction", model)(runs, batch_size=batch_size)

    long, spans = found[0], [(0, 3, 0), (3, 6, 0), (5, 8, 1)]  # start, stop, frames that were there before
    states = [model(runs[0].tokens[None, start:stop], repetition_time=0.8) for start, stop, _ in spans]
    tokens = torch.cat(
        [
            output.last_hidden_state[0, 1:].view(WINDOW, CELLS, HIDDEN)[before:]
            for output, (_, _, before) in zip(states, spans, strict=True)
        ]
    )
    run = (3 * states[0].pooler_output + 3 * states[1].pooler_output + 2 * states[2].pooler_output)[0] / 8
    torch.testing.assert_close(long.tokens, tokens)
    torch.testing.assert_close(long.frames, tokens.mean(1))
    torch.testing.assert_close(long.run, run)
    assert (long.scan, long.repetition_time, long.num_windows) == ("long", 0.8, 3)

    short = found[1]
    assert (short.run.shape, short.frames.shape, short.tokens.shape) == ((HIDDEN,), (2, HIDDEN), (2, CELLS, HIDDEN))
    torch.testing.assert_close(short.run, model(runs[1].tokens[None], repetition_time=2.0).pooler_output[0])


def test_token_states_are_left_out_when_asked():
    embed = make_pipeline("fmri-feature-extraction", make_model(TabletModel))
    with_tokens, without = embed(make_run(5)), embed(make_run(5), return_tokens=False)
    assert without.tokens is None
    assert torch.equal(without.frames, with_tokens.frames)


def test_embeddings_have_windows_of_256_frames_where_nothing_else_is_recorded():
    embed = make_pipeline("fmri-feature-extraction", make_model(TabletModel, num_frames=None))
    embeddings = embed(make_run(300), return_tokens=False)
    assert (embeddings.num_windows, embeddings.frames.shape) == (2, (300, HIDDEN))


# --- scans


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved classifier of tokens that scans have, without an extractor beside it."""
    torch.manual_seed(0)
    tokens = {"autoencoder": "natural-f32c32", "signal": "intensity", "scaling": "percentile", "volume_size": 96}
    model = TabletForSequenceClassification(TabletConfig(**SIZES, **tokens, **CLASSES, num_frames=2))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def test_scans_come_as_paths_images_arrays_and_mappings(folder, make_scan, tmp_path):
    path = make_scan(tmp_path / "sub-01_bold.nii.gz", frames=1, repetition_time=1.5)
    image = nibabel.load(path)
    classify = pipeline("fmri-classification", model=str(folder), device="cpu")
    assert classify.feature_extractor.scaling == "percentile"
    expected = ScanPredictor.from_pretrained(folder)(path).scores

    pair = {"scan": (image.get_fdata(dtype=np.float32), image.affine), "repetition_time": 1.5}
    for told in classify([path, image, pair], batch_size=2):
        assert {entry["label"]: entry["score"] for entry in told} == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match="but its keys are 'path'"):
        classify({"path": path})


@pytest.mark.parametrize(("given", "found"), [({}, 1.5), ({"repetition_time": 0.72}, 0.72)])
def test_the_repetition_time_is_that_of_the_scan_unless_it_is_given(given, found, folder, make_scan, tmp_path):
    path = make_scan(tmp_path / "sub-01_bold.nii.gz", frames=1, repetition_time=1.5)
    embed = pipeline("fmri-feature-extraction", model=str(folder), device="cpu", **given)
    embeddings = embed(path)
    assert (embeddings.repetition_time, embeddings.scan) == (found, str(path))
    assert (embeddings.frames.shape, embeddings.tokens.shape) == ((1, HIDDEN), (1, 27, HIDDEN))


def test_tokens_of_another_shape_are_refused_by_the_autoencoder(make_scan, tmp_path):
    classify = make_pipeline("fmri-classification", make_model(**CLASSES))
    with pytest.raises(InputError, match=r"natural-f32c32: These tokens do not fit this model"):
        classify(make_scan(tmp_path / "sub-01_bold.nii.gz"))


def test_the_tasks_are_known_to_the_library():
    from transformers.pipelines import PIPELINE_REGISTRY

    tasks = PIPELINE_REGISTRY.get_supported_tasks()
    assert {"fmri-classification", "fmri-feature-extraction"} <= set(tasks)


def test_a_release_that_takes_classes_alone_gets_them():
    from transformers import AutoModel, AutoModelForSequenceClassification
    from transformers.pipelines.base import PipelineRegistry

    tasks = {}
    classes = {"AutoModel": AutoModel, "AutoModelForSequenceClassification": AutoModelForSequenceClassification}
    release = SimpleNamespace(**classes, SUPPORTED_TASKS=tasks, PIPELINE_REGISTRY=PipelineRegistry(tasks, {}))
    enter_pipelines(release)
    assert tasks["fmri-classification"]["impl"] is FmriClassificationPipeline
    assert tasks["fmri-feature-extraction"]["pt"] == (AutoModel,)
