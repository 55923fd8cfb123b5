"""The demo from end to end: cohort, tokens, fine-tuning, baselines, pictures, and the page that holds them.

    result = run_demo(Path("tablet-demo"))

Stages run in that order, and each is a function of what stands before it. The cohort and the tokens of each subject
stay in the folder and serve the next run with the same settings; everything after them is done again. All but the
cohort and the page is what one's own scans go through: a source, a token dataset, and `tablet_hf.training`.
"""

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME, SAFE_WEIGHTS_NAME, logging

from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import forget_people
from tablet_hf.datasets.tokenization import Outcome, Resources, tokenize_scans
from tablet_hf.datasets.writer import TokenStoreWriter
from tablet_hf.demo.finetune import MODEL, TRAINING, FinetuneResult, finetune
from tablet_hf.demo.pages import draw_demo
from tablet_hf.demo.results import TABLET, DemoResult, Split, judge, split_people, write_results
from tablet_hf.demo.terminal import OnProgress, Terminal
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor
from tablet_hf.hub.training_data import TRAINING_DATA_FILE
from tablet_hf.sources import find_scans
from tablet_hf.sources.simulated import GROUPS, CohortDesign, Person, is_cohort, read_cohort, write_cohort
from tablet_hf.training.arguments import Settings

__all__ = ["DemoSettings", "run_demo"]


@dataclass(frozen=True)
class DemoSettings:
    """The sizes of a demo; the defaults fit into five minutes on two processor cores.

    Attributes:
        cohort: who is simulated; the seed is that of the demo.
        model: fields of its `TabletConfig`.
        training: how it is trained; seed and device are those of the demo.
        held_out: subjects that are predicted and never trained on.
    """

    cohort: CohortDesign = field(default_factory=CohortDesign)
    model: Mapping[str, Any] = field(default_factory=lambda: dict(MODEL))
    training: Settings = TRAINING
    held_out: int = 18


def run_demo(out: Path, device: str = "cpu", seed: int = 0, settings: DemoSettings | None = None) -> DemoResult:
    """Run the whole demo and tell about it on the terminal.

    Args:
        out: a folder, made if need be. A cohort and tokens that an earlier run with the same settings finished there
            are used again, everything else is made again.
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
        store, num_reused = _tokenize(out / "cohort", design.num_frames, extractor, out / "tokens", on_progress)
    kept = f" ({num_reused} kept from an earlier run)" if num_reused else ""
    geometry = f"{extractor.grid_size**3} tokens of {extractor.token_size:,} numbers for each frame"
    terminal.say(f"Tokens: {len(store)} runs{kept}, {geometry}.")

    split = split_people([person.label for person in people], settings.held_out, seed)
    with terminal.stage("training", "Fine-tuning TABLeT") as on_progress:
        training = replace(settings.training, seed=seed, device=device)
        tuned = _finetune(store, people, split, settings.model, training, out / "model", on_progress)
    parameters = f"{tuned.model.num_parameters() / 1000:,.0f} thousand parameters"
    terminal.say(f"Model:  {parameters}, {len(split.train)} people to learn from, in {out / 'model'}.")

    with terminal.stage("baselines", "Functional connectivity") as on_progress:
        baselines = _baselines(store, people, split, seed, on_progress)
    labels = np.array([people[index].label for index in split.held_out])
    methods = {
        name: judge(labels, probabilities) for name, probabilities in {TABLET: tuned.probabilities, **baselines}.items()
    }

    chance = np.bincount(labels).max() / len(labels)
    with terminal.stage("pictures", "Drawing pictures") as on_progress:
        page = draw_demo(out, design, people, store, extractor, split, tuned, methods, chance, on_progress)
    result = DemoResult(out, page, out / "model", people, split, chance, methods, terminal.seconds)
    write_results(result, seed)
    terminal.conclude(result)
    return result


# --- stages


def _make_cohort(folder: Path, design: CohortDesign, on_progress: OnProgress) -> tuple[list[Person], bool]:
    """The subjects, and whether an earlier run had made them."""
    if is_cohort(folder, design):
        return read_cohort(folder), True
    return write_cohort(folder, design, on_progress=on_progress), False


def _tokenize(
    cohort: Path, num_frames: int, extractor: TabletFeatureExtractor, folder: Path, on_progress: OnProgress
) -> tuple[TokenDataset, int]:
    """The tokens of everyone in a store, of which an earlier run may have left some; and how many runs were there."""
    _ = extractor.slice_autoencoder  # fills in revision and geometry, which are part of the record
    records = find_scans("bids", cohort, dataset="demo").records
    writer = TokenStoreWriter(folder, extractor.to_dict())

    def tell(outcome: Outcome, num_runs: int) -> None:
        on_progress(outcome.frames + num_frames * len(outcome.kept), num_frames * num_runs)

    # To compile the encoder takes longer than so few frames do.
    resources = replace(Resources.of_device(extractor.device), is_compiled=False)
    outcome = tokenize_scans(records, extractor, writer, resources, on_progress=tell)
    if outcome.failed:
        raise InputError(str(outcome.failed[0]))
    store = writer.finish()
    if others := {run.subject for run in store.runs} - {record.subject for record in records}:
        forget_people(folder, others)  # of an earlier cohort, a larger one
        store = writer.finish()
    return store, len(outcome.kept)


def _runs_of(people: Sequence[Person], store: TokenDataset) -> list[int]:
    """The place in the store of each subject's run."""
    places = {f"sub-{run.subject}": place for place, run in enumerate(store.runs)}
    return [places[person.name] for person in people]


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
    saved = {CONFIG_NAME, SAFE_WEIGHTS_NAME, FEATURE_EXTRACTOR_NAME, TRAINING_DATA_FILE}
    return names <= saved and groups == GROUPS


def _finetune(
    store: TokenDataset,
    people: list[Person],
    split: Split,
    model: Mapping[str, Any],
    settings: Settings,
    folder: Path,
    on_progress: OnProgress,
) -> FinetuneResult:
    """Train, and save the model with the settings of its extractor, from which `tablet-hf predict` reads both."""
    train, held_out = (_runs_of([people[i] for i in part], store) for part in (split.train, split.held_out))
    with tempfile.TemporaryDirectory() as scratch, _no_bars_of_the_library():
        return finetune(store, "group", GROUPS[1], train, held_out, model, settings, folder, Path(scratch), on_progress)


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
    store: TokenDataset, people: list[Person], split: Split, seed: int, on_progress: OnProgress
) -> dict[str, np.ndarray]:
    """Linear models on functional connectivity and on the average token: probabilities of the subjects held out."""
    from tablet_hf.baselines.connectivity import connectivity_features, power_regions, region_time_series
    from tablet_hf.baselines.linear import LinearModel

    scans = [person.scan for person in people]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the regions are next to the brain
        courses = region_time_series(scans, power_regions(scans[0]), lambda done: on_progress(done, len(people)))
        connectivity = connectivity_features(courses)
    average_token = np.stack([store.window(run).float().mean(0).flatten().numpy() for run in _runs_of(people, store)])
    labels = np.array([person.label for person in people])

    def predict(features: np.ndarray) -> np.ndarray:
        model = LinearModel(seed=seed).fit(features[split.train], labels[split.train])
        return model.outputs(features[split.held_out])[:, 1]

    return {
        "linear model of functional connectivity": predict(connectivity),
        "linear model of the average token": predict(average_token),
    }
