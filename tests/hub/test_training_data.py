"""The record of what a model learnt from: counts and studies of runs, written, read, and fetched from a Hub."""

import dataclasses
import json
import warnings
from types import SimpleNamespace

import pytest
from loopback_hub import LoopbackHub

from tablet_hf.errors import InputError
from tablet_hf.hub.files import fetch
from tablet_hf.hub.training_data import TRAINING_DATA_FILE, UNNAMED, TrainingData

FIRST = TrainingData("masked token modeling", ("ADHD-200",), 112, 12, 224, 40_000, False)
SECOND = TrainingData("sex", ("ADHD-200", "HCP"), 1_024, 100, 1_500, 1_800_000, True, "lab/tablet")


def runs(*who):
    return [SimpleNamespace(dataset=dataset, subject=subject, num_frames=10) for dataset, subject in who]


class TestRuns:
    def test_people_are_counted_once_and_runs_each(self):
        learnt = runs(("A", "01"), ("A", "01"), ("B", "01"), ("B", "02"))
        record = TrainingData.of_runs("age", learnt, runs(("A", "03"), ("A", "03")), True)
        assert record == TrainingData("age", ("A", "B"), 3, 1, 4, 40, True, None)

    def test_a_study_without_a_name_is_none_alone(self):
        assert TrainingData.of_runs("age", runs((None, "01")), [], False).studies == ()
        beside = TrainingData.of_runs("age", runs((None, "01"), ("A", "01")), [], False)
        assert (beside.studies, beside.people) == (("A", UNNAMED), 2)

    def test_where_a_folder_lies_is_not_told(self, tmp_path):
        folder = tmp_path / "hospital-7" / "model"
        folder.mkdir(parents=True)
        for name in (folder, str(folder)):
            assert TrainingData.of_runs("age", runs((None, "01")), [], False, name).started_from == "model"
        assert TrainingData.of_runs("age", runs((None, "01")), [], False, "lab/tablet").started_from == "lab/tablet"


class TestFile:
    def test_goes_to_a_folder_and_back(self, tmp_path):
        assert TrainingData.read(tmp_path) == TrainingData.of_model(tmp_path) == ()
        TrainingData.write(tmp_path, [FIRST, SECOND])
        assert TrainingData.read(tmp_path) == TrainingData.of_model(tmp_path) == (FIRST, SECOND)
        assert [path.name for path in tmp_path.iterdir()] == [TRAINING_DATA_FILE]

    def test_fields_of_a_later_version_are_passed_over(self, tmp_path):
        stage = dataclasses.asdict(FIRST) | {"scanners": 3}
        (tmp_path / TRAINING_DATA_FILE).write_text(json.dumps({"stages": [stage], "made": "later"}))
        assert TrainingData.read(tmp_path) == (FIRST,)

    @pytest.mark.parametrize("text", ["{", "[]", '{"stages": [{}]}', '{"stages": [1]}', "{}"])
    def test_what_is_none_is_told(self, tmp_path, text):
        (tmp_path / TRAINING_DATA_FILE).write_text(text)
        for read in (TrainingData.read, TrainingData.of_model):
            with pytest.raises(InputError, match=r"training_data\.json: it does not say what a model learnt from"):
                read(tmp_path)

    def test_in_words(self):
        assert str(FIRST) == "masked token modeling (112 people of ADHD-200)"
        assert str(SECOND) == "sex (1,024 people of ADHD-200, HCP, restricted)"
        assert str(dataclasses.replace(FIRST, studies=())) == "masked token modeling (112 people)"


class TestHub:
    @pytest.fixture
    def hub(self, tmp_path, monkeypatch):
        """A Hub that this process asks."""
        for owner in ("with", "without"):
            folder = tmp_path / "hub" / "models" / "lab" / owner
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
        TrainingData.write(tmp_path / "hub" / "models" / "lab" / "with", [FIRST, SECOND])
        hub = LoopbackHub(tmp_path / "hub")
        hub.answer_here(monkeypatch, tmp_path / "cache")
        yield hub
        hub.stop()

    def test_a_record_is_fetched_where_there_is_one(self, hub):
        assert TrainingData.of_model("lab/with") == (FIRST, SECOND)
        assert TrainingData.of_model("lab/without") == ()
        assert TrainingData.of_model("lab/nothing") == ()

    def test_that_the_hub_could_not_be_asked_is_told(self, hub, monkeypatch):
        assert TrainingData.of_model("lab/without") == ()
        fetch("lab/with", "config.json")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.warns(UserWarning, match="lab/with: the Hub cannot be asked what it learnt from"):
            assert TrainingData.of_model("lab/with") == ()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert TrainingData.of_model("lab/without") == ()  # known from when it was asked
