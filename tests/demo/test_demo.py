"""The demo from end to end, on a few people: every stage for real, with the autoencoder that ships."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tablet_hf.datasets import TokenDataset
from tablet_hf.demo import DemoSettings, run_demo
from tablet_hf.demo.finetune import MODEL, TRAINING
from tablet_hf.demo.results import judge, next_command, result_rows, split_people, verdict
from tablet_hf.demo.run import _is_demo_model, _make_cohort, _tokenize
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor
from tablet_hf.hub.loading import ScanPredictor
from tablet_hf.sources.simulated import GROUPS, CohortDesign

SETTINGS = DemoSettings(
    cohort=CohortDesign(num_subjects=4, num_frames=2),
    model=MODEL | {"hidden_size": 32, "num_hidden_layers": 1},
    training=replace(TRAINING, window_frames=2, epochs=2, batch_size=4),
    held_out=2,
)


def ignore(done, in_all):
    pass


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("demo"), seed=1, settings=SETTINGS)


def test_everything_it_promises_lies_in_its_folder(demo):
    assert demo.page.is_file()
    pictures = {path.name for path in (demo.out / "pictures").iterdir()}
    assert {"reconstruction_change.png", "learning_curve.png", "predictions.png", "results.png"} <= pictures
    page = demo.page.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "http" not in page.split("</style>")[1]
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {p.name for p in demo.model.iterdir()}
    assert set(demo.seconds) == {"cohort", "tokens", "training", "baselines", "pictures"}


def test_results_are_those_of_the_people_held_out(demo):
    results = json.loads((demo.out / "results.json").read_text(encoding="utf-8"))
    held_out = [demo.people[index] for index in demo.split.held_out]
    assert set(results["predictions"]) == {person.name for person in held_out}
    assert not set(demo.split.train) & set(demo.split.held_out)
    labels = np.array([person.label for person in held_out])
    for name, method in demo.methods.items():
        right = (method.probabilities >= 0.5) == labels
        assert results["methods"][name]["accuracy"] == method.metrics["accuracy"] == right.mean()
    assert results["chance_accuracy"] == demo.chance == 0.5


def test_the_saved_model_says_of_a_scan_what_the_demo_said(demo):
    person = demo.people[demo.split.held_out[0]]
    predictor = ScanPredictor.from_pretrained(demo.model)
    config = predictor.model.config
    assert config.autoencoder == predictor.extractor.autoencoder == "natural-f32c32"
    assert config.autoencoder_revision is not None
    assert (config.signal, config.scaling, config.volume_size) == ("percent_change", "max", 96)
    prediction = predictor(person.scan)
    assert set(prediction.scores) == set(GROUPS)
    # Tokens on disk are float16, those of a fresh scan float32.
    assert prediction.scores[GROUPS[1]] == pytest.approx(demo.methods["TABLeT"].probabilities[0], abs=5e-3)


def test_what_was_finished_is_kept_and_what_was_cut_short_is_not(demo):
    design = CohortDesign(num_subjects=4, num_frames=2, seed=1)
    people, is_reused = _make_cohort(demo.out / "cohort", design, ignore)
    assert is_reused
    assert people == demo.people

    extractor = TabletFeatureExtractor(signal="percent_change")
    store, num_reused = _tokenize(demo.out / "cohort", 2, extractor, demo.out / "tokens", ignore)
    assert num_reused == len(store) == len(people)
    assert [run.phenotypes["group"] for run in store.runs] == [GROUPS[person.label] for person in people]

    cut = store.folder / store.runs[3].file
    part = cut.with_name("part")
    part.write_bytes(cut.read_bytes()[:5000])
    os.replace(part, cut)  # in place, the tokens above would lose the pages that they are mapped to
    told = []
    again, num_reused = _tokenize(
        demo.out / "cohort", 2, extractor, demo.out / "tokens", lambda *work: told.append(work)
    )
    assert num_reused == len(people) - 1
    assert told[-1] == (8, 8)
    assert again.check() == []


def test_tokens_of_people_who_are_in_the_cohort_no_more_are_not_kept(demo, tmp_path):
    shutil.copytree(demo.out / "tokens", tmp_path / "tokens")
    _make_cohort(tmp_path / "cohort", CohortDesign(num_subjects=2, num_frames=2, seed=1), ignore)
    extractor = TabletFeatureExtractor(signal="percent_change")
    store, num_reused = _tokenize(tmp_path / "cohort", 2, extractor, tmp_path / "tokens", ignore)
    assert num_reused == 0  # the groups of fewer people are drawn otherwise
    assert [run.subject for run in store.runs] == ["01", "02"]
    assert [run.subject for run in TokenDataset.load(tmp_path / "tokens").runs] == ["01", "02"]


def test_the_same_seed_is_the_same_result(demo, tmp_path, monkeypatch):
    monkeypatch.setattr("tablet_hf.demo.run.draw_demo", lambda *_: tmp_path / "index.html")  # nothing depends on it
    for name in ("cohort", "tokens"):
        shutil.copytree(demo.out / name, tmp_path / name)
    again = run_demo(tmp_path, seed=1, settings=SETTINGS)
    for name, method in demo.methods.items():
        assert np.array_equal(again.methods[name].probabilities, method.probabilities)


@pytest.mark.minutes
def test_the_demo_beats_chance(tmp_path):
    """At the size that people see, on a seed that no setting was chosen by."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # it has the machine to itself, unlike the rest of the suite
    try:
        demo = run_demo(tmp_path, seed=0)
    finally:
        torch.set_num_threads(threads)
    assert len(demo.split.held_out) == 18
    assert demo.methods["TABLeT"].accuracy_p < 0.05
    assert demo.methods["TABLeT"].metrics["accuracy"] > demo.chance + 0.25


def test_a_file_in_the_way_is_an_input_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="choose another --out"):
        run_demo(tmp_path / "taken", settings=SETTINGS)


@pytest.mark.parametrize("labels", [{"0": "control", "1": "patient"}, None])
def test_a_foreign_model_in_the_way_is_left_alone(tmp_path, labels):
    (tmp_path / "model").mkdir()
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({"model_type": "tablet", "id2label": labels}))
    with pytest.raises(InputError, match=r"model: this is in the way.*choose another --out"):
        run_demo(tmp_path, settings=SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads(config.read_text())["id2label"] == labels


def test_only_a_folder_with_nothing_but_the_model_of_the_demo_is_replaced(demo):
    assert _is_demo_model(demo.model)
    (demo.model / "notes.txt").touch()
    assert not _is_demo_model(demo.model)
    (demo.model / "notes.txt").unlink()


def test_people_are_held_out_group_by_group():
    labels = [0, 1] * 10
    split = split_people(labels, 6, seed=0)
    assert sorted([*split.train, *split.held_out]) == list(range(20))
    assert sum(labels[index] for index in split.held_out) == 3
    assert split_people(labels, 6, seed=1).held_out.tolist() != split.held_out.tolist()


def test_the_verdict_follows_the_figures():
    labels = np.repeat([0, 1], 6)
    good = judge(labels, np.where(labels == 1, 0.9, 0.1))
    bad = judge(labels, np.tile([0.9, 0.1], 6))
    assert "12 of 12" in verdict({"TABLeT": good}, 0.5)
    assert "+50 points" in verdict({"TABLeT": good}, 0.5)
    assert "clearly better than chance" in verdict({"TABLeT": good}, 0.5)
    assert "not clearly different from chance" in verdict({"TABLeT": bad, "rival": good}, 0.5)
    assert "A rival is right about 12 of them." in verdict({"TABLeT": bad, "rival": good}, 0.5)
    rows = result_rows({"TABLeT": good}, 0.5)
    assert rows[0][:3] == ("TABLeT", "100% (74% to 100%)", "1.00")
    assert float(rows[0][3]) < 0.01
    assert rows[-1][1] == "50%"


def test_the_next_command_can_be_typed(tmp_path):
    assert next_command(tmp_path / "my model", tmp_path / "a.nii.gz").endswith(
        f"'{tmp_path}/my model' {tmp_path}/a.nii.gz"
    )
