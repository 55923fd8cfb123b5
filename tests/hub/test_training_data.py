"""The record of a model's training data: counts and studies of runs, written, read, and fetched from a Hub."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from tablet_hf.errors import InputError
from tablet_hf.hub.files import fetch
from tablet_hf.hub.training_data import TRAINING_DATA_FILE, UNNAMED, TrainingData

FIRST = TrainingData("masked token modeling", ("ADHD-200",), 112, 12, 224, 40_000, False)
SECOND = TrainingData("sex", ("ADHD-200", "HCP"), 1_024, 100, 1_500, 1_800_000, True, "lab/tablet")


def runs(*who):
    return [SimpleNamespace(dataset=dataset, subject=subject, num_frames=10) for dataset, subject in who]


class TestRuns:
    def test_subjects_are_counted_once_and_runs_each(self):
        training = runs(("A", "01"), ("A", "01"), ("B", "01"), ("B", "02"))
        record = TrainingData.of_runs("age", training, runs(("A", "03"), ("A", "03")), True)
        assert record == TrainingData("age", ("A", "B"), 3, 1, 4, 40, True, None)

    def test_a_study_without_a_name(self):
        assert TrainingData.of_runs("age", runs((None, "01")), [], False).studies == ()
        record = TrainingData.of_runs("age", runs((None, "01"), ("A", "01")), [], False)
        assert (record.studies, record.num_subjects) == (("A", UNNAMED), 2)

    def test_the_path_of_a_folder_is_not_recorded(self, tmp_path):
        folder = tmp_path / "hospital-7" / "model"
        folder.mkdir(parents=True)
        for name in (folder, str(folder)):
            assert TrainingData.of_runs("age", runs((None, "01")), [], False, name).started_from == "model"
        assert TrainingData.of_runs("age", runs((None, "01")), [], False, "lab/tablet").started_from == "lab/tablet"

    def test_in_words(self):
        assert str(replace(FIRST, studies=(), num_subjects=1)) == "masked token modeling (1 subject)"
        assert str(SECOND) == "sex (1,024 subjects of ADHD-200, HCP, restricted)"


class TestFile:
    def test_round_trip(self, tmp_path):
        assert TrainingData.read(tmp_path) == TrainingData.of_model(tmp_path) == ()
        TrainingData.write(tmp_path, [FIRST, SECOND])
        assert TrainingData.read(tmp_path) == TrainingData.of_model(tmp_path) == (FIRST, SECOND)
        assert [path.name for path in tmp_path.iterdir()] == [TRAINING_DATA_FILE]

    @pytest.mark.parametrize(
        "content",
        [b"{", [], {}, {"stages": [{}]}, {"stages": [1]}, {"stages": 1}, b"\xff",
         *({"stages": [asdict(FIRST) | wrong]} for wrong in (
             {"num_subjects": "Ann"}, {"num_runs": -1}, {"num_frames": 1.5}, {"studies": [1]}, {"studies": "ADHD-200"},
             {"is_restricted": "no"}, {"task": None}, {"started_from": 3}))],
    )  # fmt: skip
    def test_damaged_ones(self, tmp_path, content):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / TRAINING_DATA_FILE).write_bytes(content)
        with pytest.raises(InputError, match=r"training_data\.json"):
            TrainingData.of_model(tmp_path)


class TestHub:
    @pytest.fixture
    def hub(self, hub):
        for name, stages in (("with", [FIRST, SECOND]), ("without", [])):
            folder = hub.folder / "models" / "lab" / name
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
            if stages:
                TrainingData.write(folder, stages)
        return hub

    def test_a_record_is_fetched_where_there_is_one(self, hub):
        assert TrainingData.of_model("lab/with") == (FIRST, SECOND)
        assert TrainingData.of_model("lab/without") == ()
        assert TrainingData.of_model("lab/nothing") == ()

    def test_a_hub_that_cannot_be_reached_is_a_warning(self, hub, monkeypatch):
        fetch("lab/with", "config.json")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.warns(UserWarning, match="lab/with"):
            assert TrainingData.of_model("lab/with") == ()
