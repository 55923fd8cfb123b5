"""
Does order matter? Tasks that a bag of frames cannot solve, for each `position_embedding_type` of the model.

    python benchmarks/order_matters.py [--timeseries FILE.npz] [--out positions.png] [--jobs 2]

A small `TabletForSequenceClassification` is trained by `Trainer` for each task, kind of positions and seed, on
simulated runs: a few patterns over the tokens whose strengths come and go, and noise. What is to be told apart is made
so that frames without their order, or without a clock, cannot tell it:

- direction: patterns follow each other as in a travelling wave, and half of the runs are played backwards. A run and
  its reversal are the same set of frames.
- speed: half of the runs visit the same frames in strides of three, which makes every oscillation three times as fast.
  Again the two are the same set of frames, so single frames, the spatial covariance of a run, and all else that can be
  said of the set are the same.
- mixed TR: slow or fast in Hz. Each run has its own repetition time, 0.7 to 3 s, drawn without regard to the label, so
  that it tells nothing by itself. In the held-out runs called "matched" the rates in cycles a frame are drawn without
  regard to the label, so that whoever counts frames sees two classes with one distribution.
- unseen TR: the same, learnt at 0.7 to 1.5 s and asked at 2 to 3 s.
- real direction (`--timeseries`): runs of real people, forwards or backwards, a quarter of the people in turn held out.
  Whether there is anything to be found is not known beforehand.

Beside the model stand classifiers of scikit-learn that see the frames of a run as a set, and, to show whether there is
anything to be found, others that see its lagged covariances and its repetition time. Learning rate, steps and size of
the model were chosen on seeds 100 and 101, before any other was looked at.

The FILE holds one array (frames, regions) for each person, as `numpy.savez` writes it.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # trainings run side by side, a core each

import argparse
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn
import torch
import transformers
from joblib import Parallel, delayed
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.datasets.collator import TabletCollator
from tablet_hf.errors import InputError
from tablet_hf.evaluation.metrics import accuracy_interval
from tablet_hf.modeling_tablet import TabletForSequenceClassification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSITIONS = ("none", "rope", "spatiotemporal_rope")

NUM_FRAMES = 32
NUM_PATTERNS = 8
TOKEN_SIZE = 16
NOISE = 0.5  # standard deviation in each number of a token, where that of the patterns together is about 1.4
STRIDE = 3
SLOW_HZ, FAST_HZ = 0.045, 0.09
MIXED_TR, SHORT_TR, LONG_TR = (0.7, 3.0), (0.7, 1.5), (2.0, 3.0)
TRAINING_RUNS, HELD_OUT_RUNS = 4096, 1000

HIDDEN_SIZE = 64
NUM_LAYERS = 2
BATCH_SIZE = 64
STEPS = 500
LEARNING_RATE = 1e-3

FOLDS = 4
WINDOWS_A_PERSON = 40


# --- runs


@dataclass(frozen=True)
class Runs:
    """Runs of one length with a label each.

    Attributes:
        tokens: `(runs, frames, cells, token_size)` float32.
        repetition_time: `(runs,)` seconds between frames.
        labels: `(runs,)` 0 or 1.
        people: `(runs,)` whose they are. All runs of a person have one label; the answers to them are averaged.
    """

    tokens: np.ndarray
    repetition_time: np.ndarray
    labels: np.ndarray
    people: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "input_values": torch.from_numpy(self.tokens[index]),
            "repetition_time": float(self.repetition_time[index]),
            "labels": int(self.labels[index]),
        }


def oscillations(random: np.random.Generator, frequencies: np.ndarray) -> np.ndarray:
    """Complex Gaussian processes, each a sum of tones of random strength and phase.

    Args:
        frequencies: `(..., tones)` in cycles a frame.

    Returns:
        `(..., NUM_FRAMES)` complex128. At any one frame the real and the imaginary part are independent standard normal
        numbers, whatever the frequencies. A positive frequency turns from the real towards the imaginary part.
    """
    strengths = random.standard_normal((*frequencies.shape, 2)) @ (1, 1j) / np.sqrt(frequencies.shape[-1])
    turning = np.exp(2j * np.pi * frequencies[..., None] * np.arange(NUM_FRAMES))
    return (strengths[..., None] * turning).sum(axis=-2)


def random_patterns(random: np.random.Generator, num_cells: int) -> np.ndarray:
    """What all runs of a seed have in common: `(patterns, cells, token_size)`."""
    patterns = random.standard_normal((NUM_PATTERNS, num_cells, TOKEN_SIZE))
    return patterns / np.sqrt((patterns**2).mean(axis=(1, 2), keepdims=True)) / 2


def seen_tokens(random: np.random.Generator, strengths: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """Tokens `(runs, frames, cells, token_size)` float32 of strengths `(runs, patterns, frames)`, with noise."""
    tokens = np.einsum("rpt,pcf->rtcf", strengths, patterns)
    return (tokens + NOISE * random.standard_normal(tokens.shape)).astype(np.float32)


def strangers(tokens: np.ndarray, repetition_time: np.ndarray, labels: np.ndarray) -> Runs:
    """Runs of as many people."""
    return Runs(tokens, repetition_time, labels, np.arange(len(labels)))


def random_labels(random: np.random.Generator, number: int) -> np.ndarray:
    return random.integers(0, 2, number)


def direction_runs(random: np.random.Generator, number: int, patterns: np.ndarray) -> Runs:
    """Travelling waves, 1 s a frame; those with label 1 are played backwards."""
    waves = oscillations(random, random.uniform(0.03, 0.12, (number, NUM_PATTERNS // 2, 3)))
    tokens = seen_tokens(random, np.concatenate((waves.real, waves.imag), axis=1), patterns)
    labels = random_labels(random, number)
    tokens[labels == 1] = tokens[labels == 1, ::-1]
    return strangers(tokens, np.ones(number), labels)


def speed_runs(random: np.random.Generator, number: int, patterns: np.ndarray) -> Runs:
    """One to three cycles a run, 1 s a frame; runs with label 1 visit their frames in strides.

    Cycles are whole, so strides that go round the end of a run meet no seam there. The stride has no divisor in common
    with the number of frames, so each frame is visited once.
    """
    cycles = np.broadcast_to(np.arange(1, 4) / NUM_FRAMES, (number, NUM_PATTERNS, 3))
    tokens = seen_tokens(random, oscillations(random, cycles).real, patterns)
    labels = random_labels(random, number)
    tokens[labels == 1] = tokens[labels == 1][:, STRIDE * np.arange(NUM_FRAMES) % NUM_FRAMES]
    return strangers(tokens, np.ones(number), labels)


def runs_at_rate(
    random: np.random.Generator, patterns: np.ndarray, cycles_a_frame: np.ndarray, labels: np.ndarray
) -> Runs:
    """Oscillations about so many cycles a frame, with the repetition time at which that is `SLOW_HZ` for label 0 and
    `FAST_HZ` for label 1."""
    spread = random.uniform(0.85, 1.15, (len(labels), NUM_PATTERNS, 3))
    strengths = oscillations(random, cycles_a_frame[:, None, None] * spread).real
    return strangers(seen_tokens(random, strengths, patterns), cycles_a_frame / hertz(labels), labels)


def hertz(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == 1, FAST_HZ, SLOW_HZ)


def log_uniform(random: np.random.Generator, between: tuple[float, float], number: int) -> np.ndarray:
    return np.exp(random.uniform(*np.log(between), number))


def runs_of_tr(
    random: np.random.Generator, number: int, patterns: np.ndarray, between: tuple[float, float] = MIXED_TR
) -> Runs:
    """Slow and fast runs with one distribution of repetition times: these tell nothing without the frames."""
    labels = random_labels(random, number)
    return runs_at_rate(random, patterns, hertz(labels) * log_uniform(random, between, number), labels)


def runs_of_matched_rates(random: np.random.Generator, number: int, patterns: np.ndarray) -> Runs:
    """Slow and fast runs with one distribution of cycles a frame: frames tell nothing without the clock. Repetition
    times lie within `MIXED_TR`."""
    labels = random_labels(random, number)
    cycles_a_frame = log_uniform(random, (FAST_HZ * MIXED_TR[0], SLOW_HZ * MIXED_TR[1]), number)
    return runs_at_rate(random, patterns, cycles_a_frame, labels)


def best_without_clock() -> float:
    """The accuracy that no one can pass on runs of any TR who knows cycles a frame, but not the repetition time."""
    return 0.5 + 0.5 * np.log(FAST_HZ / SLOW_HZ) / np.log(MIXED_TR[1] / MIXED_TR[0])


# --- tasks


@dataclass(frozen=True)
class Task:
    """`draw(seed)` gives the runs to learn from, and held-out ones for each name in `held_out`."""

    name: str
    held_out: tuple[str, ...]
    draw: Callable[[int], tuple[Runs, dict[str, Runs]]]
    seeds: Sequence[int]


RunMaker = Callable[[np.random.Generator, int, np.ndarray], Runs]


def simulated(seed: int, training: RunMaker, held_out: Mapping[str, RunMaker], num_cells: int = 1):
    """Runs to learn from and held-out ones, with the patterns of one seed."""
    random = np.random.default_rng(seed)
    patterns = random_patterns(random, num_cells)
    return (
        training(random, TRAINING_RUNS, patterns),
        {name: make(random, HELD_OUT_RUNS, patterns) for name, make in held_out.items()},
    )


def simulated_tasks(seeds: Sequence[int], num_cells: int = 1) -> list[Task]:
    short, long = partial(runs_of_tr, between=SHORT_TR), partial(runs_of_tr, between=LONG_TR)
    parts = {
        "direction": (direction_runs, {"direction": direction_runs}),
        "speed": (speed_runs, {"speed": speed_runs}),
        "mixed TR": (runs_of_tr, {"mixed TR, matched": runs_of_matched_rates, "mixed TR, all": runs_of_tr}),
        "unseen TR": (short, {"unseen TR": long}),
    }
    return [
        Task(
            name,
            tuple(held_out),
            partial(simulated, training=training, held_out=held_out, num_cells=num_cells),
            seeds,
        )
        for name, (training, held_out) in parts.items()
    ]


def read_courses(path: Path) -> list[np.ndarray]:
    """Time courses `(frames, regions)` float32 of each person; a region without signal is 0."""
    try:
        archive = np.load(path)
        courses = [np.nan_to_num(archive[name].astype(np.float32)) for name in archive.files]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: it cannot be read as an .npz archive ({error}); write one array (frames, regions) for each "
            "person with numpy.savez."
        ) from error
    shapes = {course.shape[1:] for course in courses}
    if len(courses) < 2 * FOLDS or len(shapes) > 1 or len(shapes.pop()) != 1:
        raise InputError(
            f"{path}: it must hold an array (frames, regions) for each of at least {2 * FOLDS} people, all of the same "
            f"regions, but holds {len(courses)} arrays such as {courses[0].shape if courses else 'none'}."
        )
    if min(map(len, courses)) < NUM_FRAMES:
        raise InputError(
            f"{path}: its shortest run has {min(map(len, courses))} frames, under the {NUM_FRAMES} of a window; leave "
            "out short runs."
        )
    return courses


def direction_of_courses(fold: int, courses: Sequence[np.ndarray], repetition_time: float, num_cells: int = 1):
    """Real windows, forwards or backwards (label 1): random ones of three quarters of the people, each in a direction
    of its own, and all of the others', each person in one direction."""
    random = np.random.default_rng(fold)
    dealt = np.array_split(np.random.default_rng(0).permutation(len(courses)), FOLDS)
    held_out = set(dealt[fold].tolist())
    windows = {"training": [], "held out": []}
    for person, course in enumerate(courses):
        if person in held_out:
            label = int(random_labels(random, 1)[0])
            for start in range(0, len(course) - NUM_FRAMES + 1, NUM_FRAMES):
                windows["held out"].append((person, label, course[start : start + NUM_FRAMES]))
        else:
            for _ in range(WINDOWS_A_PERSON):
                start = random.integers(len(course) - NUM_FRAMES + 1)
                label = int(random_labels(random, 1)[0])
                windows["training"].append((person, label, course[start : start + NUM_FRAMES]))

    def runs(side: str) -> Runs:
        people, labels, frames = zip(*windows[side], strict=True)
        tokens = np.stack([part[::-1] if label else part for label, part in zip(labels, frames, strict=True)])
        tokens = tokens.reshape(*tokens.shape[:2], num_cells, -1)
        return Runs(tokens, np.full(len(labels), repetition_time), np.array(labels), np.array(people))

    return runs("training"), {"real direction": runs("held out")}


# --- methods


Answering = Callable[[Runs], np.ndarray]
"""Gives the log odds `(runs,)` of label 1."""


def train_tablet(position_type: str, runs: Runs, seed: int, steps: int = STEPS) -> Answering:
    """A small TABLeT, trained from scratch."""
    num_cells, token_size = runs.tokens.shape[2:]
    torch.manual_seed(seed)
    config = TabletConfig(
        token_size=token_size,
        grid_size=round(num_cells ** (1 / 3)),
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=2 * HIDDEN_SIZE,
        hidden_act="gelu",
        position_embedding_type=position_type,
        num_labels=1,
        problem_type="multi_label_classification",
        num_frames=NUM_FRAMES,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=256,
            learning_rate=LEARNING_RATE,
            weight_decay=0.01,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
        )
        trainer = Trainer(
            model=TabletForSequenceClassification(config),
            args=arguments,
            train_dataset=runs,
            data_collator=TabletCollator(config.problem_type),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return lambda asked: trainer.predict(asked).predictions[:, 0]


def summaries(tokens: np.ndarray, components: PCA, repetition_time: np.ndarray | None = None) -> np.ndarray:
    """What can be said of each run's frames: as a set, or with repetition times also of their order.

    Args:
        tokens: `(runs, frames, cells, token_size)`.
        components: fitted to frames of the training runs.

    Returns:
        `(runs, summaries)`: the mean, the covariance, and quantiles of the logarithms of the distances between frames
        and of each frame to the nearest. With repetition times instead their logarithm, the covariance of frames with
        the next frame, and the logarithms of the mean squared distances of frames 1 to 8 apart.
    """
    frames = tokens.reshape(*tokens.shape[:2], -1)
    strengths = components.transform(frames.reshape(-1, frames.shape[-1])).reshape(*frames.shape[:2], -1)
    if repetition_time is not None:
        lagged = np.einsum("rti,rtj->rij", strengths[:, :-1], strengths[:, 1:]).reshape(len(frames), -1)
        steps = [
            ((frames[:, lag:] - frames[:, :-lag]) ** 2).mean(axis=(1, 2)) for lag in range(1, min(9, frames.shape[1]))
        ]
        return np.column_stack((np.log(repetition_time), lagged, np.log(steps).T))

    size = strengths.shape[-1]
    centred = strengths - strengths.mean(axis=1, keepdims=True)
    covariance = np.einsum("rti,rtj->rij", centred, centred)[:, *np.triu_indices(size)]
    norms = (frames**2).sum(axis=-1)
    squares = norms[:, :, None] + norms[:, None, :] - 2 * np.einsum("rtf,rsf->rts", frames, frames)
    pairs = np.log(np.maximum(squares[:, *np.triu_indices(frames.shape[1], 1)], 1e-12))
    # Every frame is at no distance from itself.
    nearest = np.log(np.maximum(np.sort(squares, axis=-1)[:, :, 1], 1e-12))
    quantiles = [np.quantile(part, np.linspace(0, 1, 9), axis=1).T for part in (pairs, nearest)]
    return np.concatenate((strengths.mean(axis=1), covariance, *quantiles), axis=1)


BASELINES = {
    "set of frames, linear": False,
    "set of frames, boosted trees": False,
    "order and TR, linear": True,
    "order and TR, boosted trees": True,
}
"""Classifiers, and whether they are told of order and repetition time."""


def train_baseline(name: str, training: Runs, seed: int) -> Answering:
    """A classifier in `BASELINES`."""
    frames = training.tokens.reshape(-1, training.tokens[0, 0].size)
    components = PCA(min(40, frames.shape[1]), random_state=seed).fit(frames[::4])

    def seen(runs: Runs) -> np.ndarray:
        return summaries(runs.tokens, components, runs.repetition_time if BASELINES[name] else None)

    if name.endswith("linear"):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    else:
        classifier = HistGradientBoostingClassifier(max_iter=100, random_state=seed)
    classifier.fit(seen(training), training.labels)
    return lambda runs: classifier.decision_function(seen(runs))


def right_answers(logits: np.ndarray, runs: Runs) -> tuple[int, int]:
    """People who were told right, and people, by the mean of the logits `(runs,)` of each."""
    people, firsts, places = np.unique(runs.people, return_index=True, return_inverse=True)
    means = np.bincount(places, weights=logits) / np.bincount(places)
    return int(((means > 0) == (runs.labels[firsts] == 1)).sum()), len(people)


@dataclass(frozen=True)
class Answers:
    """How a method fared on held-out runs of one seed."""

    held_out: str
    method: str
    seed: int
    right: int
    people: int
    core_seconds: float


def measure(task: Task, seed: int, method: str, steps: int = STEPS) -> list[Answers]:
    """Train one method on a task and ask it."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    training, held_out = task.draw(seed)
    started = time.process_time()
    if method in POSITIONS:
        answer = train_tablet(method, training, seed, steps)
    else:
        answer = train_baseline(method, training, seed)
    right = {name: right_answers(answer(runs), runs) for name, runs in held_out.items()}
    seconds = time.process_time() - started
    return [Answers(name, method, seed, *counts, seconds) for name, counts in right.items()]


# --- results


def together(answers: Iterable[Answers]) -> tuple[int, int]:
    answers = list(answers)
    return sum(one.right for one in answers), sum(one.people for one in answers)


def table(answers: Sequence[Answers]) -> str:
    """Accuracy of each method on each kind of held-out runs, all seeds together, as Markdown."""
    lines = [
        "| held out | method | accuracy (95% interval) | by seed or part | core-seconds each |",
        "| --- | --- | --- | --- | --- |",
    ]
    for held_out in dict.fromkeys(one.held_out for one in answers):
        for method in (*POSITIONS, *BASELINES):
            of_method = [one for one in answers if (one.held_out, one.method) == (held_out, method)]
            if not of_method:
                continue
            right, people = together(of_method)
            low, high = accuracy_interval(right, people)
            each = ", ".join(f"{100 * one.right / one.people:.1f}" for one in of_method)
            seconds = np.mean([one.core_seconds for one in of_method])
            name = f"`{method}`" if method in POSITIONS else method
            lines.append(
                f"| {held_out} ({people:,}) | {name} | {100 * right / people:.1f}% ({100 * low:.1f} to "
                f"{100 * high:.1f}) | {each} | {seconds:.0f} |"
            )
    return "\n".join(lines)


def figure(answers: Sequence[Answers], seeds: int) -> "Figure":
    """Accuracies with their intervals: a row for each kind of held-out runs, a mark for each kind of positions."""
    from matplotlib.figure import Figure

    from tablet_hf.report.pictures import BLUE, GREEN, GREY, ORANGE

    kinds = list(dict.fromkeys(one.held_out for one in answers))
    looks = {
        "set of frames, boosted trees": (GREY, "x", "set of frames (boosted trees)"),
        "none": (ORANGE, "s", "none"),
        "rope": (BLUE, "^", "rope"),
        "spatiotemporal_rope": (GREEN, "o", "spatiotemporal_rope"),
        "order and TR, linear": ("black", "+", "order and TR (linear)"),
    }
    drawing = Figure(figsize=(8.0, 1.9 + 0.75 * len(kinds)), layout="constrained", facecolor="white")
    panel = drawing.subplots()
    panel.axvline(50, color=GREY, linestyle=":")
    for row, kind in enumerate(reversed(kinds)):
        for place, (method, (colour, marker, name)) in enumerate(looks.items()):
            of_method = [one for one in answers if (one.held_out, one.method) == (kind, method)]
            if not of_method:
                continue
            right, people = together(of_method)
            low, high = accuracy_interval(right, people)
            y = row + 0.32 - 0.16 * place
            panel.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2)
            panel.plot(
                100 * right / people, y, marker, color=colour, markersize=7, label=None if row else name, linestyle=""
            )
        if row:
            panel.axhline(row - 0.5, color=GREY, linewidth=0.4)
    panel.set_yticks(range(len(kinds)), list(reversed(kinds)))
    panel.set_ylim(-0.55, len(kinds) - 0.45)
    panel.set_xlim(30, 101)
    panel.set_xlabel("accuracy on held-out runs (%), 95% interval; dotted: chance")
    panel.set_title(f"What each kind of positions can tell ({seeds} seeds)", loc="left")
    panel.spines[["top", "right"]].set_visible(False)
    drawing.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeseries", type=Path, metavar="FILE", help="real runs for the task real direction")
    parser.add_argument("--repetition-time", type=float, default=2.0, help="of the real runs, in seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="some of the tasks only")
    parser.add_argument(
        "--grid-size", type=int, default=1, help="cells along an edge: each frame is so many cubed tokens"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time, a core each")
    parser.add_argument("--out", type=Path, metavar="PICTURE.png")
    arguments = parser.parse_args()

    num_cells = arguments.grid_size**3
    tasks = simulated_tasks(arguments.seeds, num_cells)
    if arguments.timeseries:
        try:
            courses = read_courses(arguments.timeseries)
        except InputError as error:
            sys.exit(str(error))
        if courses[0].shape[1] % num_cells:
            sys.exit(f"{courses[0].shape[1]} regions cannot be shared out among {num_cells} cells; use --grid-size 1.")
        draw = partial(
            direction_of_courses,
            courses=courses,
            repetition_time=arguments.repetition_time,
            num_cells=num_cells,
        )
        tasks.append(Task("real direction", ("real direction",), draw, range(FOLDS)))
    if arguments.tasks:
        unknown = set(arguments.tasks) - {task.name for task in tasks}
        if unknown:
            sys.exit(f"No task {', '.join(sorted(unknown))}; there are {', '.join(task.name for task in tasks)}.")
        tasks = [task for task in tasks if task.name in arguments.tasks]

    print(f"{platform.platform()}, {os.cpu_count()} cores, {arguments.jobs} trainings at a time")
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"scikit-learn {sklearn.__version__}"
    )
    print(
        f"{NUM_FRAMES} frames of {num_cells} cells; {TRAINING_RUNS} runs to learn from; {HIDDEN_SIZE} wide, "
        f"{NUM_LAYERS} layers; {arguments.steps} steps of {BATCH_SIZE}, learning rate {LEARNING_RATE:g}; "
        f"seeds {arguments.seeds}"
    )
    print(f"on mixed TR, all, nobody without a clock can pass {100 * best_without_clock():.1f}%\n", flush=True)

    started = time.perf_counter()
    work = [
        (task, seed, method, arguments.steps)
        for task in tasks
        for seed in task.seeds
        for method in (*POSITIONS, *BASELINES)
    ]
    answers = []
    for of_one in Parallel(n_jobs=arguments.jobs, return_as="generator")(delayed(measure)(*one) for one in work):
        answers += of_one
        for one in of_one:
            print(
                f"{one.held_out}, seed {one.seed}, {one.method}: {one.right} of {one.people}, {one.core_seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    print(table(answers))
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    if arguments.out:
        from tablet_hf.report.pictures import save_figure

        save_figure(figure(answers, len(arguments.seeds)), arguments.out)


if __name__ == "__main__":
    main()
