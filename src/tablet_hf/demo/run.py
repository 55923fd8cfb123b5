"""The demo from end to end: cohort, tokens, fine-tuning, baselines, pictures, and the page that holds them.

    result = run_demo(Path("tablet-demo"))

Stages run in that order, and each is a function of what stands before it. The cohort and the tokens of each person stay
in the folder and serve the next run with the same settings; everything after them is done anew.
"""

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME, SAFE_WEIGHTS_NAME, logging

from tablet_hf.demo.cohort import GROUPS, CohortDesign, Person, is_cohort, read_cohort, write_cohort
from tablet_hf.demo.finetune import FinetuneResult, FinetuneSettings, finetune, small_config
from tablet_hf.demo.pages import draw_demo
from tablet_hf.demo.results import TABLET, DemoResult, Split, judge, split_people, write_results
from tablet_hf.demo.terminal import OnProgress, Terminal
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor, TokenizedRun
from tablet_hf.files import folder_written_whole, scan_identity
from tablet_hf.token_files import load_tokens, read_record, save_tokens, token_file_name
from tablet_hf.training.metrics import chance_accuracy

__all__ = ["DemoSettings", "run_demo"]


@dataclass(frozen=True)
class DemoSettings:
    """The sizes of a demo; the defaults fit into five minutes on two processor cores.

    Attributes:
        cohort: who is simulated; the seed is that of the demo.
        finetune: the model and its training.
        held_out: people that are predicted and never learnt from.
    """

    cohort: CohortDesign = field(default_factory=CohortDesign)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    held_out: int = 18


def run_demo(out: Path, device: str = "cpu", seed: int = 0, settings: DemoSettings | None = None) -> DemoResult:
    """Run the whole demo and tell about it on the terminal.

    Args:
        out: a folder, made if need be. A cohort and tokens that an earlier run with the same settings finished there
            are used again, everything else is made anew.
        device: where slices are encoded and the model is trained.
        seed: draws the cohort, the split and the weights.
        settings: other sizes than the default ones; their cohort's seed is replaced by `seed`.

    Raises:
        InputError: `out` cannot be written, or something else is in the way.
    """
    settings = settings or DemoSettings()
    design = replace(settings.cohort, seed=seed)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: this folder cannot be made ({error.strerror}); choose another --out.") from error
    if (out / "model").exists() and not _is_demo_model(out / "model"):
        raise InputError(f"{out / 'model'}: this is in the way and holds no model of the demo; choose another --out.")
    terminal = Terminal()

    with terminal.stage("cohort", "Simulating people") as on_progress:
        people, is_reused = _make_cohort(out / "cohort", design, on_progress)
    size = f"{len(people)} people, {design.num_frames} frames each"
    terminal.say(f"Cohort: {size}, in {out / 'cohort'}{' (kept from an earlier run)' if is_reused else ''}.")

    # The dynamics are a few per cent of the intensity: as a change about the mean they are what tokens hold.
    extractor = TabletFeatureExtractor(signal="percent_change")
    extractor.to(device, torch.float16 if device.startswith("cuda") else torch.float32)
    with terminal.stage("tokens", "Tokenizing frames") as on_progress:
        runs, num_reused = _tokenize(people, extractor, out / "tokens", on_progress)
    kept = f" ({num_reused} kept from an earlier run)" if num_reused else ""
    geometry = f"{extractor.grid_size**3} tokens of {extractor.token_size:,} numbers for each frame"
    terminal.say(f"Tokens: {len(runs)} runs{kept}, {geometry}.")

    split = split_people([person.label for person in people], settings.held_out, seed)
    with terminal.stage("training", "Fine-tuning TABLeT") as on_progress:
        tuned = _finetune(runs, people, split, extractor, settings.finetune, out / "model", device, seed, on_progress)
    parameters = f"{tuned.model.num_parameters() / 1000:,.0f} thousand parameters"
    terminal.say(f"Model:  {parameters}, {len(split.train)} people to learn from, in {out / 'model'}.")

    with terminal.stage("baselines", "Functional connectivity") as on_progress:
        baselines = _baselines(runs, people, split, seed, on_progress)
    labels = np.array([people[index].label for index in split.held_out])
    methods = {
        name: judge(labels, probabilities) for name, probabilities in {TABLET: tuned.probabilities, **baselines}.items()
    }

    chance = chance_accuracy(labels)
    with terminal.stage("pictures", "Drawing pictures") as on_progress:
        page = draw_demo(out, design, people, runs, extractor, split, tuned, methods, chance, on_progress)
    result = DemoResult(out, page, out / "model", people, split, chance, methods, terminal.seconds)
    write_results(result, seed)
    terminal.conclude(result)
    return result


# --- stages


def _make_cohort(folder: Path, design: CohortDesign, on_progress: OnProgress) -> tuple[list[Person], bool]:
    """The people, and whether an earlier run had made them."""
    if is_cohort(folder, design):
        return read_cohort(folder), True
    return write_cohort(folder, design, on_progress=on_progress), False


def _tokenize(
    people: list[Person], extractor: TabletFeatureExtractor, folder: Path, on_progress: OnProgress
) -> tuple[list[TokenizedRun], int]:
    """The tokens of everybody, read back from files that remember their scan and extractor; and how many were there."""
    folder.mkdir(exist_ok=True)
    _ = extractor.slice_autoencoder  # fills in revision and geometry, which are part of the record
    runs, num_reused, num_frames = [], 0, 0
    for person in people:
        path = folder / token_file_name(person.scan)
        record = extractor.to_dict() | {"scan": scan_identity(person.scan)}
        if _holds(path, record):
            num_reused += 1
        else:
            before = num_frames

            def tell(done: int, total: int, before: int = before) -> None:
                on_progress(before + done, len(people) * total)

            save_tokens(extractor.tokenize(person.scan, on_progress=tell), record, path)
        runs.append(load_tokens(path)[0])
        num_frames += len(runs[-1].tokens)
        on_progress(num_frames, len(people) * len(runs[-1].tokens))
    return runs, num_reused


def _holds(path: Path, record: dict) -> bool:
    try:
        return read_record(path) == record
    except InputError:
        return False


def _is_demo_model(folder: Path) -> bool:
    """Whether a folder is empty, or holds what the demo saves, for its two groups, and nothing else."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if not names:
        return True
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        groups = tuple(config["id2label"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False
    return names <= {CONFIG_NAME, SAFE_WEIGHTS_NAME, FEATURE_EXTRACTOR_NAME} and groups == GROUPS


def _finetune(
    runs: list[TokenizedRun],
    people: list[Person],
    split: Split,
    extractor: TabletFeatureExtractor,
    settings: FinetuneSettings,
    folder: Path,
    device: str,
    seed: int,
    on_progress: OnProgress,
) -> FinetuneResult:
    """Train, and save the model with its extractor into one folder, from which `tablet-hf predict` reads both."""
    sides = [([runs[i] for i in part], [people[i].label for i in part]) for part in (split.train, split.held_out)]
    config = small_config(extractor, GROUPS, settings)
    with tempfile.TemporaryDirectory() as scratch:
        tuned = finetune(config, *sides, settings, Path(scratch), device, seed, on_progress)
    _save_model(tuned.model, extractor, folder)
    return tuned


def _save_model(model: PreTrainedModel, extractor: TabletFeatureExtractor, folder: Path) -> None:
    with _no_bars_of_the_library(), folder_written_whole(folder) as unfinished:
        model.save_pretrained(unfinished)
        extractor.save_pretrained(unfinished)


@contextmanager
def _no_bars_of_the_library() -> Iterator[None]:
    """Keep `save_pretrained` from drawing a bar of its own across ours."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _baselines(
    runs: list[TokenizedRun], people: list[Person], split: Split, seed: int, on_progress: OnProgress
) -> dict[str, np.ndarray]:
    """Linear models on functional connectivity and on the average token: probabilities of the people held out."""
    from tablet_hf.training.baselines import LinearModel
    from tablet_hf.training.connectivity import connectivity_features, power_regions, region_time_courses

    scans = [person.scan for person in people]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the regions lie beside the brain
        courses = region_time_courses(scans, power_regions(scans[0]), lambda done: on_progress(done, len(people)))
        connectivity = connectivity_features(courses)
    average_token = np.stack([run.tokens.float().mean(0).flatten().numpy() for run in runs])
    labels = np.array([person.label for person in people])

    def predict(features: np.ndarray) -> np.ndarray:
        model = LinearModel(seed=seed).fit(features[split.train], labels[split.train])
        return model.outputs(features[split.held_out])[:, 1]

    return {
        "linear model of functional connectivity": predict(connectivity),
        "linear model of the average token": predict(average_token),
    }
