"""ScanPredictor: windows, averages over a subject, and what is refused."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tablet_hf import InputError, TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification, TokenizedRun
from tablet_hf.datasets.token_files import save_tokens
from tablet_hf.hub.loading import ScanPredictor, cut_windows, load_extractor

CELLS, TOKEN_SIZE, WINDOW = 8, 12, 3
RECORD = {"autoencoder": "lab/vae", "autoencoder_subfolder": "vae", "signal": "intensity", "scaling": "max"}
EXTRACTOR = SimpleNamespace(to_dict=lambda: RECORD | {"token_size": TOKEN_SIZE, "grid_size": 2})


def make_run(num_frames, repetition_time=2.0, stride=1, seed=0, name="run"):
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randn(num_frames, CELLS, TOKEN_SIZE, generator=random)
    return TokenizedRun(tokens, np.arange(num_frames) * stride, repetition_time, 1.0, None, 0.0, name)


def make_model(**settings):
    torch.manual_seed(0)
    sizes = {"token_size": TOKEN_SIZE, "grid_size": 2, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.2}
    task = {"problem_type": "multi_label_classification", "id2label": {0: "female"}, "label2id": {"female": 0}}
    return TabletForSequenceClassification(TabletConfig(**sizes | task | RECORD | {"num_frames": WINDOW} | settings))


@pytest.fixture
def predictor():
    return ScanPredictor(make_model(), EXTRACTOR)


@torch.no_grad()
def logits_by_hand(model, run):
    """Logits of each whole window of a run: released evaluation, said again."""
    windows = [run.tokens[start : start + WINDOW] for start in range(0, len(run.tokens) - WINDOW + 1, WINDOW)]
    return [
        model.eval()(window[None], repetition_time=torch.tensor([run.repetition_time])).logits[0] for window in windows
    ]


def test_windows_do_not_overlap_and_leave_out_the_remainder():
    tokens = torch.arange(8)[:, None, None]
    assert [window.flatten().tolist() for window in cut_windows(tokens, 3)] == [[0, 1, 2], [3, 4, 5]]
    assert [len(window) for window in cut_windows(tokens, 8)] == [8]
    assert [len(window) for window in cut_windows(tokens, 9)] == [8]
    assert [len(window) for window in cut_windows(tokens, None)] == [8]


def test_the_logits_of_a_run_are_averaged_before_they_are_read(predictor):
    run = make_run(7)
    prediction = predictor.predict_tokens(run)

    logits = logits_by_hand(predictor.model, run)
    assert prediction.scores["female"] == pytest.approx(torch.stack(logits).mean().sigmoid().item(), rel=1e-5)
    assert prediction.scores["female"] != pytest.approx(torch.stack(logits).sigmoid().mean().item(), rel=1e-5)
    assert (prediction.num_frames, prediction.num_windows, prediction.repetition_time) == (6, 2, 2.0)


def test_the_logits_of_a_subject_are_averaged_over_the_windows_of_all_runs(predictor):
    runs = [make_run(10, seed=1), make_run(3, 0.72, seed=2)]
    prediction = predictor.predict_subject(runs, "sub-01")

    logits = [logit for run in runs for logit in logits_by_hand(predictor.model, run)]
    assert len(logits) == prediction.num_windows == 4
    assert prediction.scores["female"] == pytest.approx(torch.stack(logits).mean().sigmoid().item(), rel=1e-5)
    assert (prediction.scan, prediction.num_frames, prediction.repetition_time) == ("sub-01", 12, None)
    assert predictor.predict_subject(runs[:1], "run") == predictor.predict_tokens(runs[0])


def test_a_regression_is_averaged_in_its_own_unit():
    task = {"problem_type": "regression", "target_mean": [50.0], "target_std": [10.0], "id2label": {0: "age"}}
    predictor = ScanPredictor(make_model(**task, label2id={"age": 0}), EXTRACTOR)
    run = make_run(6)

    expected = torch.stack(logits_by_hand(predictor.model, run)).mean().item()
    assert predictor.predict_tokens(run).prediction == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("not_finite", [float("nan"), float("inf")])
def test_tokens_that_are_no_numbers_do_not_become_a_class(predictor, not_finite):
    run = make_run(4)
    run.tokens[1, 2, 3] = not_finite

    with pytest.raises(InputError, match="run: no finite prediction comes from it"):
        predictor.predict_tokens(run)


@pytest.mark.parametrize("repetition_time", [float("nan"), 0.0, -2.0, None, "2"])
def test_impossible_repetition_times_are_refused(predictor, repetition_time):
    with pytest.raises(InputError, match="run: its repetition time is"):
        predictor.predict_tokens(make_run(4, repetition_time))


def test_no_frames_and_no_runs_are_refused(predictor):
    with pytest.raises(InputError, match="run: there are no frames"):
        predictor.predict_tokens(make_run(0))
    with pytest.raises(InputError, match="sub-01: there are no runs"):
        predictor.predict_subject([], "sub-01")


@pytest.mark.parametrize("num_frames", [0, -3])
def test_windows_of_no_frames_are_refused(num_frames):
    with pytest.raises(ValueError, match=f"num_frames={num_frames}"):
        ScanPredictor(make_model(), EXTRACTOR, num_frames)


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "sub-01_tokens.safetensors"
    save_tokens(make_run(6, repetition_time=4.0, stride=2), RECORD, path)
    return path


def test_a_repetition_time_that_is_given_overrides_that_of_a_token_file(predictor, token_file):
    assert predictor(token_file).repetition_time == 4.0
    assert predictor(token_file, repetition_time=0.72).repetition_time == pytest.approx(1.44)
    assert predictor(token_file, repetition_time=0.72).scores != predictor(token_file).scores


@pytest.mark.parametrize("option", ["mask", "add_mean"])
def test_what_comes_too_late_for_tokens_is_refused(predictor, token_file, option, tmp_path):
    with pytest.raises(InputError, match=r"holds tokens.*tokenize it again"):
        predictor(token_file, **{option: tmp_path / "image.nii.gz"})


def test_tokens_that_are_no_cube_are_refused(predictor, tmp_path):
    run = make_run(3)
    run.tokens = run.tokens[:, :7]
    save_tokens(run, RECORD, tmp_path / "bad_tokens.safetensors")

    with pytest.raises(InputError, match="its 7 tokens a frame are no cube"):
        predictor(tmp_path / "bad_tokens.safetensors")


def test_tokens_made_otherwise_are_warned_of_file_by_file(predictor, tmp_path):
    made = {"autoencoder_subfolder": "vae_1_0", "signal": "percent_change"}
    for name in ("sub-01", "sub-02"):
        path = tmp_path / f"{name}_tokens.safetensors"
        save_tokens(make_run(3), RECORD | made, path)
        with pytest.warns(UserWarning, match=f"{name}_tokens.safetensors: its tokens were not made") as caught:
            predictor(path)
        said = str(caught[0].message)
        assert "autoencoder_subfolder 'vae_1_0' instead of 'vae', signal 'percent_change' instead of" in said
    save_tokens(make_run(3), RECORD, path)
    with warnings.catch_warnings(action="error"):
        predictor(path)


def test_a_model_alone_tells_which_extractor_it_needs(tmp_path):
    make_model().save_pretrained(tmp_path)

    extractor = load_extractor(tmp_path, TabletForSequenceClassification.from_pretrained(tmp_path))
    assert type(extractor) is TabletFeatureExtractor
    assert {name: getattr(extractor, name) for name in RECORD} == RECORD


@pytest.mark.parametrize("size", ["x", 0, -96])
def test_an_extractor_of_an_impossible_volume_is_told_by_its_file(size, tmp_path):
    settings = {"autoencoder": "natural-f32c32", "volume_size": size}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        InputError, match=r"preprocessor_config\.json cannot be used; volume_size must be .* not"
    ) as told:
        load_extractor(tmp_path)
    assert str(tmp_path) in str(told.value)
