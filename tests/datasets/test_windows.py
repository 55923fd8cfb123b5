"""Windows: their frames and labels, and that training draws new ones in each epoch wherever it runs."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from tablet_hf.datasets.collator import TabletCollator, WindowBatch
from tablet_hf.datasets.windows import EpochCallback, EvaluationWindows, TrainingWindows, average_by, label_classes
from tablet_hf.errors import InputError


class Store:
    """A token store in memory: each token of frame t of run r is (r, t)."""

    def __init__(self, lengths, phenotypes=None):
        phenotypes = phenotypes or [{}] * len(lengths)
        self.folder, self.geometry = "folder", SimpleNamespace(shape=(3, 2))
        self.runs = [
            SimpleNamespace(
                key=f"sub-{number // 2}_run-{number % 2}",
                subject=str(number // 2),
                dataset=None,
                num_frames=length,
                repetition_time=2.0,
                phenotypes=values,
            )
            for number, (length, values) in enumerate(zip(lengths, phenotypes, strict=True))
        ]

    def index(self, run):
        return range(len(self.runs))[run]

    def window(self, run, start, frames, out=None):
        assert start >= 0
        assert frames >= 1
        assert start + frames <= self.runs[run].num_frames
        numbers = torch.arange(start, start + frames, dtype=torch.float16)
        tokens = torch.stack([torch.full_like(numbers, run), numbers], dim=-1)[:, None].repeat(1, 3, 1)
        return tokens if out is None else out.copy_(tokens)


def run_of(item):
    return int(item["input_values"][0, 0, 0])


def frames_of(item):
    return item["input_values"][:, 0, 1].int().tolist()


def starts(batches):
    """Run and first frame of each window in batches."""
    return [(int(window[0, 0, 0]), int(window[0, 0, 1])) for batch in batches for window in batch["input_values"]]


def loader(windows, workers=0, persistent=False, **settings):
    return DataLoader(
        windows, 2, num_workers=workers, persistent_workers=persistent, collate_fn=TabletCollator(), **settings
    )


# --- random windows


def test_a_training_window_is_contiguous_and_of_its_run():
    windows = TrainingWindows(Store([40, 50, 60]), 10)
    for epoch in range(20):
        windows.set_epoch(epoch)
        for index in range(3):
            item = windows[index]
            frames = frames_of(item)
            assert run_of(item) == item["run_index"] == index
            assert frames == list(range(frames[0], frames[0] + 10))
            assert item["input_values"].shape == (10, 3, 2)
            assert item["input_values"].dtype == torch.float16
            assert item["repetition_time"] == 2.0
            assert "labels" not in item


@pytest.mark.parametrize("num_frames", [30, 40, None])
def test_a_run_that_is_no_longer_than_a_window_is_one_window(num_frames):
    store = Store([30])
    assert frames_of(TrainingWindows(store, num_frames)[0]) == list(range(30))
    assert [frames_of(item) for item in EvaluationWindows(store, num_frames)] == [list(range(30))]


def test_a_window_follows_from_seed_epoch_and_index():
    def drawn(seed, epoch):
        windows = TrainingWindows(Store([1000] * 6), 10, seed=seed)
        windows.set_epoch(epoch)
        assert frames_of(windows[-1]) == frames_of(windows[5])
        return [frames_of(item)[0] for item in windows]

    first = drawn(0, 0)
    assert first == drawn(0, 0)
    assert len(set(first)) > 3  # runs do not share one draw
    assert first != drawn(0, 1)
    assert first != drawn(1, 0)


def test_a_forgotten_epoch_gives_a_warning():
    windows = TrainingWindows(Store([100] * 4), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(4):
            windows.set_epoch(epoch)
            starts(loader(windows))
        starts(loader(windows))
    with pytest.warns(UserWarning, match="set_epoch"):
        starts(loader(windows))


# --- random windows in loaders and in Trainer


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_draw_as_the_main_process_does_and_anew_in_each_epoch(persistent):
    windows = TrainingWindows(Store([1000] * 8), 10)
    batches = loader(windows, workers=2, persistent=persistent)
    alone = TrainingWindows(Store([1000] * 8), 10)
    seen = []
    for epoch in range(3):
        windows.set_epoch(epoch)
        alone.set_epoch(epoch)
        drawn = starts(batches)
        assert drawn == [(run_of(item), frames_of(item)[0]) for item in alone]
        seen += drawn
    assert len(set(seen)) == len(seen) == 24


def test_processes_of_accelerate_draw_no_window_twice():
    """Two processes, played one after the other; accelerate sets the epoch of the sampler and not of the dataset."""
    seen = {}
    for process in range(2):
        windows, callback = TrainingWindows(Store([1000] * 8), 10), EpochCallback()
        batches = prepare_data_loader(
            loader(windows, sampler=torch.utils.data.RandomSampler(windows)),
            num_processes=2,
            process_index=process,
            use_seedable_sampler=True,
            data_seed=0,
        )
        callback.on_train_begin(None, SimpleNamespace(epoch=0), None)
        for epoch in range(4):
            callback.on_epoch_begin(None, None, None, train_dataloader=batches)
            batches.set_epoch(epoch)
            seen[process, epoch] = starts(batches)
    for epoch in range(4):
        assert sorted(run for process in range(2) for run, _ in seen[process, epoch]) == list(range(8))
    drawn = [window for windows in seen.values() for window in windows]
    assert len(set(drawn)) == len(drawn) == 32


class Recorder(torch.nn.Module):
    """A model that records the windows it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, input_values, repetition_time, labels):
        self.seen += starts([{"input_values": input_values}])
        return {"loss": self.weight * labels.float().mean(), "logits": input_values[:, 0, 0, :1].float()}


def trainer_of(folder, windows, callbacks, **settings):
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        remove_unused_columns=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        num_train_epochs=3,
        **settings,
    )
    return Trainer(Recorder(), arguments, TabletCollator(), windows, callbacks=callbacks)


@pytest.mark.parametrize("callbacks", [[], [EpochCallback()]])
def test_trainer_sets_the_epoch_and_predicts_in_the_order_of_windows(tmp_path, callbacks):
    store = Store([1000] * 6, [{"age": 20 + number} for number in range(6)])
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = trainer_of(tmp_path, TrainingWindows(store, 10, label="age"), callbacks, save_strategy="no", **workers)
    trainer.train()
    seen = trainer.model.seen
    expected = TrainingWindows(store, 10)
    for epoch in range(3):
        expected.set_epoch(epoch)
        assert sorted(seen[6 * epoch : 6 * epoch + 6]) == [(run, frames_of(expected[run])[0]) for run in range(6)]
    assert len(seen) == len(set(seen)) == 18
    held_out = EvaluationWindows(store, 400, [5, 0, 1], label="age")
    found = trainer.predict(held_out)
    assert found.predictions[:, 0].tolist() == held_out.run_indices == [5, 5, 0, 0, 1, 1]
    assert found.label_ids.tolist() == [25, 25, 20, 20, 21, 21]


def test_training_resumed_within_an_epoch_draws_the_same_windows(tmp_path):
    store = Store([1000] * 6, [{"age": 20 + number} for number in range(6)])

    def train(checkpoint=None):
        windows = TrainingWindows(store, 10, label="age")
        trainer = trainer_of(tmp_path, windows, [EpochCallback()], save_steps=4, save_strategy="steps")
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer.model.seen

    whole = train()
    assert train(str(tmp_path / "checkpoint-4")) == whole[8:]


# --- adjacent windows


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 12))
def test_evaluation_windows_are_adjacent_and_whole(lengths, num_frames):
    windows = EvaluationWindows(Store(lengths), num_frames)
    for run, length in enumerate(lengths):
        frames = [frames_of(item) for item in windows if run_of(item) == item["run_index"] == run]
        count = max(length // num_frames, 1)
        assert [len(window) for window in frames] == [min(num_frames, length)] * count
        assert [frame for window in frames for frame in window] == list(range(min(count * num_frames, length)))


def test_runs_and_subjects_of_windows():
    windows = EvaluationWindows(Store([25, 10, 20]), 10)
    assert windows.windows == [(0, 0, 10), (0, 10, 10), (1, 0, 10), (2, 0, 10), (2, 10, 10)]
    assert windows.subjects == ["0", "0", "0", "1", "1"]
    assert windows.run_indices == [0, 0, 1, 2, 2]
    store = Store([10, 10, 10])
    store.runs[2].dataset = "B"
    assert EvaluationWindows(store, 10, [2]).subjects == ["B/1"]  # all datasets of the store decide the names
    assert [run_of(item) for item in TrainingWindows(Store([10] * 4), 5, [3, -2])] == [3, 2]


# --- labels


def test_classes_are_numbered_in_order_and_runs_without_a_label_are_left_out():
    store = Store([10] * 4, [{"sex": "M"}, {"sex": None}, {"sex": "F"}, {}])
    assert label_classes(store, "sex") == ["F", "M"]
    windows = TrainingWindows(store, 5, label="sex", classes=["F", "M"])
    assert [(run_of(item), item["labels"]) for item in windows] == [(0, 1), (2, 0)]
    assert all(type(item["labels"]) is int for item in windows)
    assert windows.runs == [0, 2]
    windows = EvaluationWindows(store, 5, [2, 1, 0], "sex", classes=["M", "F"])
    assert [item["labels"] for item in windows] == [1, 1, 0, 0]
    labels = [item["labels"] for item in TrainingWindows(Store([10] * 2, [{"age": 30}, {"age": 22.5}]), 5, label="age")]
    assert labels == [30.0, 22.5]
    assert all(type(label) is float for label in labels)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([10, 9, 2.5, 9], [2.5, 9, 10]),
        (["10", "9", None], ["10", "9"]),
        ([True, False, True], [False, True]),
        (["b", 1, "a", 0], [0, 1, "a", "b"]),
    ],
)
def test_the_order_of_classes(values, classes):
    assert label_classes(Store([5] * len(values), [{"x": value} for value in values]), "x") == classes


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"label": "age"}, InputError, "age"),
        ({"label": "sex"}, InputError, "sub-0_run-0"),
        ({"label": "sex", "classes": ["F", "M"]}, InputError, "sub-1_run-0"),
        ({"label": "id", "runs": [1, 2]}, InputError, "id"),
        ({"runs": []}, InputError, "runs"),
        ({"runs": [4]}, IndexError, "range"),
        ({"classes": ["F", "M"]}, ValueError, "label"),
        ({"num_frames": 0}, ValueError, "num_frames"),
    ],
)
def test_impossible_windows_are_refused(options, error, word):
    store = Store([10] * 3, [{"sex": "F", "id": 1}, {"sex": "M"}, {"sex": "D"}])
    for kind in (TrainingWindows, EvaluationWindows):
        with pytest.raises(error, match=word):
            kind(**{"store": store, "num_frames": 5} | options)
    with pytest.raises(InputError, match="id: "):
        label_classes(store, "id")


# --- averages


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-1e3, 1e3)), min_size=1))
def test_averages_are_those_of_each_group(windows):
    ids, values = zip(*windows, strict=True)
    found = dict(zip(*average_by(torch.tensor(values, dtype=torch.float64)[:, None], ids), strict=True))
    assert list(found) == list(dict.fromkeys(ids))
    for name, mean in found.items():
        assert mean == pytest.approx(np.mean([value for other, value in windows if other == name]))
    assert average_by(np.array([1.0, 3.0]), [7, 7])[1].tolist() == [2.0]
    with pytest.raises(ValueError, match="id for each window"):
        average_by(np.zeros((len(ids) + 1, 1)), ids)


# --- with a store on disk


class TestStore:
    def test_windows_of_one_length_are_one_tensor(self, store, known_tokens):
        windows = EvaluationWindows(store, 50)
        batch = windows.__getitems__([2, 0])
        assert isinstance(batch, WindowBatch)
        for item, index in zip(batch, (2, 0), strict=True):
            run, start, frames = windows.windows[index]
            expected = known_tokens[store.runs[run].subject][start : start + frames].half()
            torch.testing.assert_close(item["input_values"], expected, rtol=0, atol=0)
            assert item["run_index"] == run
            assert item["input_values"].untyped_storage().data_ptr() == batch.input_values.untyped_storage().data_ptr()
        assert TabletCollator()(batch)["input_values"] is batch.input_values

    @pytest.mark.parametrize("num_frames", [4, 200])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_are_their_items(self, store, num_frames, workers):
        """Also those of several lengths, and those of forked workers."""
        windows = EvaluationWindows(store, num_frames)
        loaded = list(DataLoader(windows, 8, collate_fn=TabletCollator(), num_workers=workers))
        expected = [
            TabletCollator()([windows[index] for index in range(start, min(start + 8, len(windows)))])
            for start in range(0, len(windows), 8)
        ]
        assert len(loaded) == len(expected)
        for found, batch in zip(loaded, expected, strict=True):
            assert found.keys() == batch.keys()
            for name, value in batch.items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=0)
