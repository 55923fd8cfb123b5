"""Windows: which frames they hold, that training sees new ones in each epoch wherever it runs, and their labels."""

import itertools
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from tablet_hf.datasets import TokenStoreWriter
from tablet_hf.datasets.collator import TabletCollator, WindowBatch
from tablet_hf.datasets.split_files import read_splits, write_splits
from tablet_hf.datasets.splits import runs_in, split_subjects, subject_ids
from tablet_hf.datasets.windows import EpochCallback, EvaluationWindows, TrainingWindows, average_by, label_classes
from tablet_hf.errors import InputError
from tablet_hf.sources import ScanRecord
from tablet_hf.tokens import cut_windows


class Store:
    """A token store in memory: each token of frame t of run r is (r, t)."""

    def __init__(self, lengths, phenotypes=None, dataset=None, repetition_time=2.0):
        phenotypes = phenotypes or [{}] * len(lengths)
        self.runs = [
            SimpleNamespace(
                key=f"sub-{place // 2}_run-{place % 2}",
                subject=str(place // 2),
                dataset=dataset,
                num_frames=length,
                repetition_time=repetition_time,
                phenotypes=known,
            )
            for place, (length, known) in enumerate(zip(lengths, phenotypes, strict=True))
        ]

    def window(self, run, start, frames, out=None):
        assert start >= 0
        assert frames >= 1
        assert start + frames <= self.runs[run].num_frames
        numbers = torch.arange(start, start + frames, dtype=torch.float16)
        return torch.stack([torch.full_like(numbers, run), numbers], dim=-1)[:, None].repeat(1, 3, 1)


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
            assert run_of(item) == index
            assert frames == list(range(frames[0], frames[0] + 10))
            assert item["input_values"].shape == (10, 3, 2)
            assert item["input_values"].dtype == torch.float16
            assert item["repetition_time"] == 2.0
            assert set(item) == {"input_values", "repetition_time"}


def test_every_window_of_a_run_is_drawn_and_none_more_often_than_others():
    windows = TrainingWindows(Store([14]), 10)
    drawn = np.zeros(5)
    for epoch in range(500):
        windows.set_epoch(epoch)
        drawn[frames_of(windows[0])[0]] += 1
    assert drawn.min() > 70
    assert drawn.sum() == 500


@pytest.mark.parametrize("length", [3, 10])
def test_a_run_that_is_no_longer_than_a_window_is_given_whole(length):
    assert frames_of(TrainingWindows(Store([length]), 10)[0]) == list(range(length))


def test_no_number_of_frames_gives_whole_runs():
    store = Store([30])
    assert frames_of(TrainingWindows(store, None)[0]) == list(range(30))
    assert [frames_of(item) for item in EvaluationWindows(store, None)] == [list(range(30))]


def test_a_window_follows_from_seed_epoch_and_index():
    def drawn(seed, epoch):
        windows = TrainingWindows(Store([1000] * 6), 10, seed=seed)
        windows.set_epoch(epoch)
        return [frames_of(item)[0] for item in windows]

    first = drawn(0, 0)
    assert first == drawn(0, 0)
    assert len(set(first)) > 3  # runs do not share one draw
    assert first != drawn(0, 1)
    assert first != drawn(1, 0)


def test_places_are_those_of_a_list():
    windows = TrainingWindows(Store([100] * 3), 10)
    assert frames_of(windows[-1]) == frames_of(windows[2])
    with pytest.raises(IndexError):
        windows[3]


def test_epochs_that_nobody_tells_of_are_said():
    windows = TrainingWindows(Store([100] * 4), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(4):
            windows.set_epoch(epoch)
            starts(loader(windows))
        starts(loader(windows))
    with pytest.warns(UserWarning, match="drawn twice in epoch 3.*set_epoch"):
        starts(loader(windows))


# --- random windows where they are used


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_draw_what_the_main_process_draws_and_new_windows_in_each_epoch(persistent):
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


def test_processes_that_accelerate_gives_their_share_draw_no_window_twice():
    """Two processes, played one after the other; accelerate tells the epoch to the sampler and not to the dataset."""
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
    """A model that notes which windows it is given."""

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
        **settings,
    )
    return Trainer(Recorder(), arguments, TabletCollator(), windows, callbacks=callbacks)


@pytest.mark.parametrize("callbacks", [[], [EpochCallback()]])
def test_trainer_tells_the_epoch_and_predicts_in_the_order_of_windows(tmp_path, callbacks):
    store = Store([1000] * 6, [{"age": 20 + place} for place in range(6)])
    windows = TrainingWindows(store, 10, label="age")
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = trainer_of(tmp_path, windows, callbacks, num_train_epochs=3, save_strategy="no", **workers)
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


def test_training_that_is_resumed_within_an_epoch_draws_what_it_would_have_drawn(tmp_path):
    store = Store([1000] * 6, [{"age": 20 + place} for place in range(6)])

    def train(checkpoint=None):
        settings = {"num_train_epochs": 3, "save_steps": 4, "save_strategy": "steps"}
        trainer = trainer_of(tmp_path, TrainingWindows(store, 10, label="age"), [EpochCallback()], **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer.model.seen

    whole = train()
    assert train(str(tmp_path / "checkpoint-4")) == whole[8:]


# --- adjoining windows


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 12))
def test_evaluation_cuts_as_prediction_from_a_scan_does(lengths, num_frames):
    found = {place: [] for place in range(len(lengths))}
    for item in EvaluationWindows(Store(lengths), num_frames):
        assert run_of(item) == item["run_index"]
        found[item["run_index"]].append(frames_of(item))
    for place, length in enumerate(lengths):
        assert found[place] == [list(range(start, start + frames)) for start, frames in cut_windows(length, num_frames)]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4))
def test_with_the_remainder_every_frame_is_in_one_window(length, num_frames, stride):
    windows = EvaluationWindows(Store([length]), num_frames, keep_remainder=True, stride=stride)
    frames = [frames_of(item) for item in windows]
    assert list(itertools.chain(*frames)) == list(range(0, length, stride))
    assert all(len(window) == num_frames for window in frames[:-1])
    assert {item["repetition_time"] for item in windows} == {2.0 * stride}


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 4), st.integers(0, 50))
def test_every_so_many_frames_are_drawn(length, num_frames, stride, epoch):
    windows = TrainingWindows(Store([length], repetition_time=0.72), num_frames, stride=stride)
    windows.set_epoch(epoch)
    frames = frames_of(windows[0])
    assert np.diff(frames).tolist() == [stride] * (len(frames) - 1)
    assert len(frames) == min(num_frames, -(-length // stride)) or (num_frames - 1) * stride + 1 > length
    assert frames[-1] < length
    assert windows[0]["repetition_time"] == pytest.approx(0.72 * stride)


def test_windows_of_a_subject_know_whose_they_are():
    windows = EvaluationWindows(Store([25, 10, 20], dataset="A"), 10)
    assert windows.windows == [(0, 0, 10), (0, 10, 10), (1, 0, 10), (2, 0, 10), (2, 10, 10)]
    assert windows.subjects == ["0", "0", "0", "1", "1"]
    assert windows.run_indices == [0, 0, 1, 2, 2]
    store = Store([10, 10, 10])
    store.runs[2].dataset = "B"
    assert EvaluationWindows(store, 10, [2]).subjects == ["B/1"]  # named by all datasets of the store


# --- which runs, which dtype


def test_runs_are_chosen_by_place_or_key():
    store = Store([10] * 4)
    assert [run_of(item) for item in TrainingWindows(store, 5, [3, "sub-0_run-1", -2])] == [3, 1, 2]
    with pytest.raises(InputError, match=r"sub-9: the store has no run of this key; its first is sub-0_run-0"):
        TrainingWindows(store, 5, ["sub-9"])
    with pytest.raises(InputError, match="No runs"):
        EvaluationWindows(store, 5, [])
    with pytest.raises(IndexError):
        TrainingWindows(store, 5, [4])


def test_tokens_come_in_the_dtype_that_is_asked_for():
    assert TrainingWindows(Store([10]), 5, dtype=torch.float32)[0]["input_values"].dtype == torch.float32


@pytest.mark.parametrize("settings", [{"num_frames": 0}, {"num_frames": 5, "stride": 0}])
def test_sizes_of_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="at least 1"):
        TrainingWindows(Store([10]), **settings)


# --- labels


def test_classes_are_numbered_in_order_and_runs_without_are_left_out():
    store = Store([10] * 4, [{"sex": "M"}, {"sex": None}, {"sex": "F"}, {}])
    assert label_classes(store, "sex") == ["F", "M"]
    windows = TrainingWindows(store, 5, label="sex", classes=["F", "M"])
    assert [(run_of(item), item["labels"]) for item in windows] == [(0, 1), (2, 0)]
    assert all(type(item["labels"]) is int for item in windows)
    assert (windows.runs, windows.left_out) == ([0, 2], [1, 3])
    assert [item["labels"] for item in EvaluationWindows(store, 5, [2, 1, 0], "sex", classes=["M", "F"])] == [
        1,
        1,
        0,
        0,
    ]


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


def test_a_label_may_be_a_number_or_a_function_of_the_run():
    store = Store([10] * 3, [{"age": 30}, {"age": None}, {"age": 22.5}])
    labels = [item["labels"] for item in TrainingWindows(store, 5, label="age")]
    assert labels == [30.0, 22.5]
    assert all(type(label) is float for label in labels)

    def is_old(run):
        return None if run.phenotypes["age"] is None else run.phenotypes["age"] > 25

    assert label_classes(store, is_old) == [False, True]
    windows = EvaluationWindows(store, 5, label=is_old, classes=[False, True])
    assert [item["labels"] for item in windows] == [1, 1, 0, 0]
    assert windows.left_out == [1]


def test_labels_that_cannot_be_learnt_are_refused():
    store = Store([10] * 3, [{"sex": "F", "id": 1}, {"sex": "M"}, {"sex": "D"}])
    with pytest.raises(InputError, match="age: no run of the store has this phenotype; there are id, sex"):
        TrainingWindows(store, 5, label="age")
    with pytest.raises(InputError, match="sub-0_run-0: its sex is 'F', which is no number; give classes"):
        TrainingWindows(store, 5, label="sex")
    with pytest.raises(InputError, match="sub-1_run-0: its sex is 'D', which is none of the classes"):
        TrainingWindows(store, 5, label="sex", classes=["F", "M"])
    with pytest.raises(InputError, match="None of the 2 runs that were asked for has a label \\(id\\)"):
        TrainingWindows(store, 5, [1, 2], label="id")
    with pytest.raises(InputError, match="id: runs differ in nothing to learn, there is 1 only"):
        label_classes(store, "id")
    with pytest.raises(ValueError, match="classes need a label"):
        TrainingWindows(store, 5, classes=["F", "M"])


# --- averages


def test_windows_of_a_subject_are_averaged_alike():
    ids, means = average_by(torch.tensor([[1.0, 0], [2, 0], [6, 3], [5, 5]]), ["b", "b", "b", "a"])
    assert ids == ["b", "a"]
    assert means.tolist() == [[3, 1], [5, 5]]
    assert average_by(np.array([1.0, 3.0]), [7, 7])[1].tolist() == [2.0]
    with pytest.raises(ValueError, match="an id for each window"):
        average_by(np.zeros((3, 1)), ["a"])


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-1e3, 1e3)), min_size=1))
def test_averages_are_those_of_each_group_by_itself(windows):
    ids, values = zip(*windows, strict=True)
    found = dict(zip(*average_by(np.array(values)[:, None], ids), strict=True))
    assert set(found) == set(ids)
    for name, mean in found.items():
        assert mean == pytest.approx(np.mean([value for other, value in windows if other == name]))


# --- with a store on disk


@pytest.fixture(scope="module")
def people():
    """By subject: two runs of 30 and 12 frames, the token of frame t of subject n being (n, t, 0, ...)."""
    tokens = torch.zeros(6, 30, 8, 24)
    tokens[..., 0] = torch.arange(6.0)[:, None, None]
    tokens[..., 1] = torch.arange(30.0)[None, :, None]
    return tokens


@pytest.fixture(scope="module")
def stored(people, tmp_path_factory):
    preprocessing = {"autoencoder": "none", "volume_size": 4, "token_size": 24, "grid_size": 2}
    writer = TokenStoreWriter(tmp_path_factory.mktemp("windows") / "store", preprocessing)
    for number, tokens in enumerate(people):
        for run, frames in (("1", 30), ("2", 12)):
            record = ScanRecord(
                f"{number:02d}",
                Path("scan.nii.gz"),
                run=run,
                phenotypes={"sex": "FM"[number % 2], "age": 20.5 + number},
            )
            writer.write(record, tokens[:frames], 0.8, {"name": "scan.nii.gz", "bytes": 1, "modified_ns": 1})
    return writer.finish()


def test_from_a_store_and_its_split_to_batches_in_workers(stored, people):
    subjects = subject_ids(stored.runs)
    split = split_subjects(subjects, [run.phenotypes["sex"] for run in stored.runs], fractions=(2 / 3, 0, 1 / 3))
    write_splits([split], stored.folder / "splits" / "sex.csv")
    (split,) = read_splits(stored.folder / "splits" / "sex.csv", subjects)
    classes = label_classes(stored, "sex")
    windows = TrainingWindows(stored, 20, runs_in(split, stored.runs, "train"), "sex", classes=classes)
    batches = DataLoader(windows, 4, shuffle=True, num_workers=2, collate_fn=TabletCollator())
    drawn = []
    for epoch in range(3):
        windows.set_epoch(epoch)
        for batch in batches:
            lengths = batch["attention_mask"].sum(1) if "attention_mask" in batch else [20] * 4
            for values, length, label in zip(batch["input_values"], lengths, batch["labels"], strict=True):
                number, start = (int(place) for place in values[0, 0, :2])
                assert torch.equal(values[:length], people[number, start : start + length].half())
                assert label == number % 2
                assert length in (12, 20)
                assert f"{number:02d}" in split.subjects("train")
                drawn.append((number, int(length), start))
    assert len(drawn) == 3 * 8
    assert len({window for window in drawn if window[1] == 20}) > 4  # four runs are long enough to draw from

    held_out = EvaluationWindows(stored, 10, runs_in(split, stored.runs, "test"), "age")
    batches = DataLoader(held_out, 3, num_workers=2, collate_fn=TabletCollator("regression", keep_run_index=True))
    batches = list(batches)
    assert all("attention_mask" not in batch for batch in batches)
    assert torch.cat([batch["run_index"] for batch in batches]).tolist() == held_out.run_indices
    ages = torch.cat([batch["labels"] for batch in batches])
    found = dict(zip(*average_by(ages, held_out.subjects), strict=True))
    assert found == {subject: 20.5 + int(subject) for subject in split.subjects("test")}
    assert len(held_out) == 2 * (3 + 1)


def test_windows_of_a_store_can_be_sent_to_another_process(stored):
    windows = TrainingWindows(stored, 20)
    windows.set_epoch(3)
    sent = pickle.loads(pickle.dumps(windows))
    assert all(torch.equal(a["input_values"], b["input_values"]) for a, b in zip(sent, windows, strict=True))


class TestBatches:
    """A loader asks for all items of a batch at once."""

    def test_windows_of_one_length_lie_in_one_tensor(self, store):
        windows = EvaluationWindows(store, 50)
        batch = windows.__getitems__([2, 0])
        assert isinstance(batch, WindowBatch)
        for item, index in zip(batch, (2, 0), strict=True):
            alone = windows[index]
            assert item.keys() == alone.keys()
            torch.testing.assert_close(item["input_values"], alone["input_values"], rtol=0, atol=0)
            assert item["run_index"] == alone["run_index"]
            assert item["input_values"].untyped_storage().data_ptr() == batch.input_values.untyped_storage().data_ptr()
        assert TabletCollator()(batch)["input_values"] is batch.input_values

    @pytest.mark.parametrize("settings", [{"stride": 2}, {"dtype": torch.float32}, {"num_frames": 200}])
    def test_others_come_one_by_one_and_are_the_same(self, store, settings):
        windows = EvaluationWindows(store, **({"num_frames": 50} | settings))
        loaded = next(iter(DataLoader(windows, batch_size=len(windows), collate_fn=TabletCollator())))
        expected = TabletCollator()([windows[index] for index in range(len(windows))])
        assert loaded.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)

    def test_a_random_window_is_the_same_in_a_batch(self, store):
        windows = TrainingWindows(store, 4, seed=3)
        windows.set_epoch(5)
        batch = windows.__getitems__([1, 0])
        for item, index in zip(batch, (1, 0), strict=True):
            torch.testing.assert_close(item["input_values"], windows[index]["input_values"], rtol=0, atol=0)

    def test_workers_that_were_forked_read_as_well(self, store):
        windows = EvaluationWindows(store, 4)
        here = [batch["input_values"] for batch in DataLoader(windows, 8, collate_fn=TabletCollator())]
        there = [batch["input_values"] for batch in DataLoader(windows, 8, collate_fn=TabletCollator(), num_workers=2)]
        assert len(here) == len(there)
        for first, second in zip(here, there, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)
