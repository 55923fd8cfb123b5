"""The pipelines for scans: windows, batches, classes and values, and embeddings of the right frames."""

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline

import tablet_hf
from tablet_hf import InputError, TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification, TabletModel
from tablet_hf.pipeline_tablet import choose_windows, gather_windows
from tablet_hf.tokens import cut_windows
from tablet_hf.volumes import open_run

CELLS, TOKEN_SIZE, HIDDEN, WINDOW = 8, 12, 32, 3
SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SIZES |= {"intermediate_size": 16, "initializer_range": 0.2}
ONE_LOGIT = {"problem_type": "multi_label_classification", "id2label": {0: "F"}, "label2id": {"F": 0}}
CLASSES = {"problem_type": "single_label_classification", "id2label": {0: "a", 1: "b", 2: "c"}}
VALUES = {"problem_type": "regression", "id2label": {0: "age", 1: "score"}}
VALUES |= {"target_mean": [50.0, 100.0], "target_std": [10.0, 15.0]}


def make_model(model_class=TabletForSequenceClassification, **settings):
    """A model of small tokens, which no scan has: for runs that are tokenized already."""
    torch.manual_seed(0)
    tokens = {"token_size": TOKEN_SIZE, "grid_size": 2, "num_frames": WINDOW, "autoencoder": "natural-f32c32"}
    return model_class(TabletConfig(**SIZES, **tokens | settings)).eval()


def make_run(num_frames, repetition_time=2.0, seed=0, name="run"):
    tokens = torch.randn(num_frames, CELLS, TOKEN_SIZE, generator=torch.Generator().manual_seed(seed))
    return tablet_hf.TokenizedRun(tokens, np.arange(num_frames), repetition_time, 1.0, None, 0.0, name)


def make_pipeline(task, model, **settings):
    return pipeline(task, model=model, feature_extractor=TabletFeatureExtractor(), device="cpu", **settings)


@torch.no_grad()
def logits_by_hand(model, run, window=WINDOW):
    """The mean of the logits of all whole windows, or those of a run that is shorter than one."""
    starts = range(0, max(1, len(run.tokens) - window + 1), window)
    windows = [run.tokens[None, start : start + window] for start in starts]
    logits = [model(tokens, repetition_time=torch.tensor([run.repetition_time])).logits[0] for tokens in windows]
    return torch.stack(logits).mean(0)


# --- windows


@given(st.integers(1, 40), st.integers(1, 12))
def test_windows_that_cover_all_frames_are_full_and_only_the_last_overlaps(num_frames, window):
    windows = choose_windows(num_frames, window, covers_all_frames=True)
    assert sorted({frame for one in windows for frame in range(*one)}) == list(range(num_frames))
    assert {stop - start for start, stop in windows} == {min(window, num_frames)}
    assert [start for start, _ in windows[:-1]] == list(range(0, num_frames - window, window))


@pytest.mark.parametrize(
    ("num_frames", "window", "windows"),
    [
        (11, 3, [(0, 3), (3, 3), (6, 3)]),
        (9, 3, [(0, 3), (3, 3), (6, 3)]),
        (2, 3, [(0, 2)]),
        (7, None, [(0, 7)]),
    ],
)
def test_runs_are_cut_without_overlap(num_frames, window, windows):
    assert cut_windows(num_frames, window) == windows


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9))
def test_windows_are_gathered_from_blocks_of_any_size(num_frames, window, block):
    frames = torch.arange(num_frames)[:, None, None]
    windows = choose_windows(num_frames, window, covers_all_frames=True)
    gathered = list(gather_windows(iter(frames.split(block)), windows))
    assert [one.flatten().tolist() for one in gathered] == [list(range(*one)) for one in windows]


def test_a_window_is_given_out_before_the_frames_behind_it_are_read():
    read = []

    def blocks():
        for block in torch.arange(100)[:, None, None].split(4):
            read.append(len(block))
            yield block

    windows = choose_windows(100, 10, covers_all_frames=True)
    for (_, stop), _ in zip(windows, gather_windows(blocks(), windows), strict=True):
        assert stop <= sum(read) < stop + 4


# --- predictions


@pytest.mark.parametrize("inputs", [[], (run for run in ())], ids=["list", "generator"])
@pytest.mark.parametrize("task", ["fmri-classification", "fmri-feature-extraction"])
def test_no_scans_give_no_results(task, inputs):
    model = make_model(TabletModel) if "feature" in task else make_model(**ONE_LOGIT)
    assert list(make_pipeline(task, model)(inputs)) == []


@pytest.mark.parametrize("task", [ONE_LOGIT, ONE_LOGIT | {"negative_label": "M"}, CLASSES, VALUES])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_logits_of_all_windows_are_averaged_in_every_batch_size(task, batch_size):
    model = make_model(**task)
    runs = [make_run(7, seed=1), make_run(2, 0.72, seed=2), make_run(13, 3.0, seed=3)]
    results = make_pipeline("fmri-classification", model)(runs, batch_size=batch_size)
    for run, entries in zip(runs, results, strict=True):
        logits = logits_by_hand(model, run)
        expected = logits.tolist()
        if task["problem_type"] == "single_label_classification":
            expected = logits.softmax(-1).tolist()
        elif task["problem_type"] == "multi_label_classification":
            expected = [logits.sigmoid().item(), 1 - logits.sigmoid().item()]
        labels = [*task["id2label"].values(), task.get("negative_label", "not F")]
        found = {entry["label"]: entry["score"] for entry in entries}
        assert found == pytest.approx(dict(zip(labels, expected, strict=False)), abs=1e-4)


def test_the_most_probable_classes_come_first():
    classify = make_pipeline("fmri-classification", make_model(**CLASSES))
    everything = classify(make_run(4))
    scores = [entry["score"] for entry in everything]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1)
    assert classify(make_run(4), top_k=2) == everything[:2]
    assert classify([make_run(4)], top_k=1) == [everything[:1]]
    assert make_pipeline("fmri-classification", make_model(**CLASSES), top_k=1)(make_run(4)) == everything[:1]


def test_windows_may_have_another_length():
    model, run, seen = make_model(**CLASSES), make_run(21), []
    classify = make_pipeline("fmri-classification", model)
    for num_frames in (2, 21):
        seen.clear()
        entries = classify(run, num_frames=num_frames, on_progress=lambda *done: seen.append(done))
        assert seen == [(8, 21), (16, 21), (21, 21)][: len(seen)]
        scores = {entry["label"]: entry["score"] for entry in entries}
        expected = logits_by_hand(model, run, num_frames).softmax(-1).tolist()
        assert [scores[name] for name in CLASSES["id2label"].values()] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="num_frames=0"):
        classify(run, num_frames=0)
    with pytest.raises(TypeError, match="no parameter 'num_frame'"):
        classify(run, num_frame=2)


def test_a_model_without_a_problem_type_is_refused():
    with pytest.raises(InputError, match="problem_type"):
        make_pipeline("fmri-classification", make_model())


@pytest.mark.parametrize("task", ["fmri-classification", "fmri-feature-extraction"])
def test_runs_that_hold_nothing_or_no_numbers_are_refused(task):
    model_class = TabletModel if "feature" in task else TabletForSequenceClassification
    run_pipeline = make_pipeline(task, make_model(model_class, **CLASSES))
    broken, narrow = make_run(3), make_run(3)
    broken.tokens[1, 2, 3] = float("nan")
    narrow.tokens = narrow.tokens[:, 1:]
    for run, word in (
        (make_run(0), r"\(0, 8, 12\)"),
        (make_run(3, repetition_time=0.0), "repetition time"),
        (broken, "not finite"),
        (narrow, r"\(3, 7, 12\).*\(frames, 8, 12\)"),
    ):
        with pytest.raises(InputError, match=f"run: .*{word}"):
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


def test_embeddings_have_windows_of_256_frames_where_nothing_else_is_recorded():
    embed = make_pipeline("fmri-feature-extraction", make_model(TabletModel, num_frames=None))
    embeddings = embed(make_run(300), return_tokens=False)
    assert (embeddings.num_windows, embeddings.frames.shape, embeddings.tokens) == (2, (300, HIDDEN), None)


# --- scans


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved classifier of tokens that scans have, without an extractor."""
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
    run = TabletFeatureExtractor.from_config(classify.model.config).tokenize(path)
    expected = {entry["label"]: entry["score"] for entry in classify(run)}

    pair = {"scan": (image.get_fdata(dtype=np.float32), image.affine), "repetition_time": 1.5}
    for entries in classify([path, image, pair, open_run(path)], batch_size=2):
        assert {entry["label"]: entry["score"] for entry in entries} == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match=r"keys are .*'path'"):
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
    with pytest.raises(InputError, match=r"natural-f32c32: .*token_size"):
        classify(make_scan(tmp_path / "sub-01_bold.nii.gz"))
