"""To the Hub: a saved model, an autoencoder or a token dataset, with its card, and nothing that must not leave.

    prepared = prepare("sex-model/fold-1/model", "to-be-sent", repo="lab/sex", evaluation="evaluated/results.json")
    publish(prepared, "lab/sex", is_private=True)

First a folder is made of all that will be sent, and looked through; then it is sent in one commit, so that a repository
is as it was or as it shall be. Large files that arrived before a connection broke are not sent again.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tablet_hf.datasets.export import export_parquet, without_paths
from tablet_hf.datasets.parquet import DATA_FOLDER
from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import INDEX_FILE, RUNS_FOLDER, STORE_FILE
from tablet_hf.errors import InputError
from tablet_hf.files import file_checksum, saved_weights_checksum
from tablet_hf.hub.cards import (
    EvaluationFacts,
    TrainingFacts,
    autoencoder_card,
    check_card,
    check_license,
    dataset_card,
    facts_of_released,
    model_card,
    read_evaluation,
    shipped_card,
)
from tablet_hf.hub.files import count_parameters
from tablet_hf.hub.privacy import (
    LABELS,
    OLDEST_TOLD,
    OPEN_STUDIES,
    Pseudonyms,
    Secrets,
    check_may_be_published,
    find_leaks,
    holds_ages,
    leaks_of_words,
    people_alone,
    published_runs,
    sounds_restricted,
)
from tablet_hf.hub.training_data import TRAINING_DATA_FILE, TrainingData

__all__ = ["Prepared", "Published", "Sharing", "check_may_write", "kind_of", "prepare", "publish"]

CARD = "README.md"
CONFIG, EXTRACTOR, INDEX = "config.json", "preprocessor_config.json", "model.safetensors.index.json"
OF_DIFFUSERS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Sharing:
    """Under which conditions something is published.

    Attributes:
        is_private: whether only its owner sees it.
        is_gated: whether its owner is asked by each who wants it; None for whatever is restricted.
        is_restricted: whether the terms of the data forbid passing on what concerns single subjects, where that is not
            recorded; a store that is marked so stays so.
        right_to_share: why it may be shared all the same; it will stand in the card.
        license: as the Hub names it; tokens without one are under the terms of their source.
    """

    is_private: bool = True
    is_gated: bool | None = None
    is_restricted: bool | None = None
    right_to_share: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Prepared:
    """What is to be sent, and under which conditions.

    Attributes:
        folder: holds all that is sent, and nothing else.
        kind: "model" or "dataset".
        what: "model", "autoencoder" or "token dataset", for sentences.
        sharing: with `is_gated` and `is_restricted` decided.
        left_behind: files of the source that are not sent, in the order of their names.
        notes: what whoever publishes should know, a sentence each.
        checksums: of the files that were looked through, SHA-256 by name; nothing else is sent.
        secrets: what neither a file nor the words of the commit may hold.
    """

    folder: Path
    kind: str
    what: str
    sharing: Sharing
    left_behind: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    checksums: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: Secrets = field(default=Secrets(), repr=False)

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each file, by its name in the repository."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}


@dataclass(frozen=True)
class Published:
    """Where it is now: its address, the commit, and whether there was something in the repository before."""

    url: str
    commit: str
    was_there: bool
    notes: tuple[str, ...] = field(default=())


# --- what it is


def kind_of(path: str | Path) -> str:
    """What is in a folder: "model", "autoencoder", "store" or "export".

    Raises:
        InputError: nothing that can be published.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{path}: there is no such folder; give a saved model, an autoencoder or a token dataset.")
    if (folder / STORE_FILE).is_file():
        return "store" if (folder / RUNS_FOLDER).is_dir() else "export"
    if (folder / CONFIG).is_file():
        config = _read_json(folder / CONFIG)
        if "_class_name" in config:
            return "autoencoder"
        if config.get("model_type") == "tablet":
            return "model"
        if "input_feature_size" in config:
            raise InputError(
                f"{path}: it has the layout of the released code; convert it first (tablet-hf convert {path} --out "
                "FOLDER)."
            )
        found = f"is of a {config['model_type']!r}" if "model_type" in config else "names no model_type"
        raise InputError(f"{path}: its {CONFIG} {found}, so it is not of a TABLeT; give the folder of one.")
    inner = next((path for path in sorted(folder.glob("**/model")) if (path / CONFIG).is_file()), None)
    hint = "" if inner is None else f"; {inner} holds one"
    raise InputError(f"{path}: it holds neither a saved model nor an autoencoder nor a token dataset{hint}.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: it cannot be read as JSON ({error}); save it again.") from error
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# --- what is sent


def prepare(
    path: str | Path,
    out: str | Path,
    repo: str,
    sharing: Sharing | None = None,
    *,
    dataset: str | Path | TokenDataset | None = None,
    evaluation: str | Path | None = None,
    with_code: bool = False,
    phenotypes: Sequence[str] | None = None,
    keep_subjects: bool = False,
    without: Sequence[str] = (),
    keep_sites: bool = False,
    exact_ages: bool = False,
    token: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Make a folder of what will be sent, with its card, and look through all of it.

    Args:
        path: folder of a saved model (with its feature extractor and `training_data.json`, if they are there), of an
            autoencoder, of a store or of its Parquet export.
        out: folder to make; it must not hold anything yet.
        repo: where it will lie, `owner/name`.
        sharing: the conditions; private by default, and gated where it is restricted.
        dataset: of a model, the store it was trained on, for the card and for the names that must not be sent.
        evaluation: of a model, results.json of `tablet-hf evaluate`.
        with_code: put the code next to a model, so that it loads where this package is not installed.
        phenotypes, keep_subjects, without, keep_sites, exact_ages: of tokens, see `published_runs`.
        token: an access token that must not stand in any file.
        on_progress: of tokens, is reported runs done and runs in all.

    Raises:
        InputError: nothing that can be published, conditions that forbid it, or a file that says what must not be
            told; nothing is left at `out` then.
    """
    path, out, sharing = Path(path), Path(out), sharing or Sharing()
    check_repo(repo)
    sharing = replace(sharing, license=None if sharing.license is None else sharing.license.lower())
    check_license(sharing.license)
    kind = kind_of(path)
    of_kind = {"dataset": dataset, "evaluation": evaluation, "with_code": with_code or None}
    of_kind = {f"--{name.replace('_', '-')}": value for name, value in of_kind.items()}
    choices = {"phenotypes": phenotypes, "without": without}
    choices |= {"keep_subjects": keep_subjects, "keep_sites": keep_sites, "exact_ages": exact_ages}
    if kind not in ("store", "export"):
        of_tokens = {f"--{name.replace('_', '-')}": value for name, value in choices.items()}
        if unfit := [name for name, value in of_tokens.items() if value]:
            raise InputError(f"{unfit[0]} belongs to token datasets, and {path} holds a {kind}; leave it out.")
    if kind != "model" and (unfit := [name for name, value in of_kind.items() if value is not None]):
        raise InputError(f"{unfit[0]} belongs to models, and {path} holds a {kind}; leave it out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: it is there already; choose another folder.")
    was_there = out.exists()
    secrets = Secrets(
        tokens=frozenset(filter(None, [token])),
        allowed=tuple(filter(None, [sharing.right_to_share])),
    )
    try:
        if kind == "model":
            prepared, more = _prepare_model(path, out, repo, sharing, dataset, evaluation, with_code)
        elif kind == "autoencoder":
            prepared, more = _prepare_autoencoder(path, out, repo, sharing)
        else:
            prepared, more = _prepare_tokens(path, out, repo, sharing, choices, on_progress)
        check_card((out / CARD).read_text(encoding="utf-8"))
        own_code = _checksums_of_code() if with_code else {}
        # Before they are looked through: weights are the same file as at the source, and it may change meanwhile.
        checksums = {name: file_checksum(out / name) for name in prepared.files}
        prepared = replace(prepared, secrets=secrets | more, checksums=checksums)
        if leaks := find_leaks(out, prepared.secrets, own_code):
            told = " ".join(leaks[:5]) + (f" And {len(leaks) - 5} more." if leaks[5:] else "")
            raise InputError(f"{path}: nothing was sent, since it would tell what must not leave. {told}")
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        if was_there:
            out.mkdir(exist_ok=True)
        raise
    return prepared


def check_repo(repo: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        InputError: it says how repositories are called.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("no owner")
    except HFValidationError as error:
        raise InputError(
            f"{repo}: repositories on the Hub are called owner/name, of letters, digits, - _ and ."
        ) from error


def _checksums_of_code() -> dict[str, str]:
    package = Path(__file__).parents[1]
    return {path.name: file_checksum(path) for path in package.glob("*.py")}


def _link(source: Path, target: Path) -> None:
    """The same content under another name, which takes no room where the disk allows it."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def _left_behind(path: Path, out: Path) -> tuple[str, ...]:
    sent = {file.relative_to(out).as_posix() for file in out.rglob("*")}
    names = sorted(
        file.relative_to(path).as_posix() + ("/" if file.is_dir() else "")
        for file in path.iterdir()
        if file.relative_to(path).as_posix() not in sent
    )
    return tuple(names)


def _whose_figures(judged: EvaluationFacts, model: Path, evaluation: Path) -> list[str]:
    """What is to be said of figures before they stand on a model's card."""
    if judged.weights and saved_weights_checksum(model) not in judged.weights:
        raise InputError(
            f"{evaluation}: these figures are of other weights than those in {model}; judge this model by tablet-hf "
            "evaluate, or give results.json of its own."
        )
    notes = []
    if not judged.weights:
        notes.append(f"{evaluation} does not say of which weights its figures are; nothing compared them with {model}.")
    if not judged.has_intervals:
        notes.append("Its figures have no interval that says anything, so they stand in the card's text alone.")
    if not judged.are_held_out:
        notes.append(
            "The model may have learnt from people whom it is judged on, so the figures stand in the card's text with "
            "that said, and not in its header; give tablet-hf evaluate a split and the fold of the model."
        )
    return notes


def _prepare_model(
    path: Path,
    out: Path,
    repo: str,
    sharing: Sharing,
    dataset: str | Path | TokenDataset | None,
    evaluation: str | Path | None,
    with_code: bool,
) -> tuple[Prepared, Secrets]:
    from huggingface_hub.errors import StrictDataclassError

    from tablet_hf.configuration_tablet import TabletConfig
    from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor
    from tablet_hf.hub import conversion

    store = TokenDataset.load(dataset) if isinstance(dataset, str | Path) else dataset
    training = TrainingFacts() if store is None else TrainingFacts.of_store(store)
    training_data = _trainings(path)
    is_restricted = restriction_of(path, sharing, store, training_data)
    sharing = _decided(sharing, is_restricted)
    check_may_be_published(str(path), "model", is_restricted, sharing.is_private, sharing.right_to_share)
    settings = _read_json(path / CONFIG)
    try:
        TabletConfig.from_dict(dict(settings))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"{path / CONFIG}: it does not describe a TABLeT; save the model again.") from error
    weights = _weights(path, "model")
    out.mkdir(parents=True, exist_ok=True)
    notes, secrets = [], Secrets() if store is None else Secrets.of_store(store)
    # Only what a configuration has: others may have written anything next to it, and `_name_or_path` tells folders.
    known = {*TabletConfig.__dataclass_fields__, *TabletConfig().to_dict(), "model_type", "num_labels"}
    config = {name: value for name, value in settings.items() if name in known and not name.startswith("_")}
    config |= _named(config, notes)
    for name in ("auto_map", "custom_pipelines"):
        config.pop(name, None)
    _write_json(out / CONFIG, config)
    if (path / EXTRACTOR).is_file():
        import inspect

        extractor = _read_json(path / EXTRACTOR)
        fields = {*inspect.signature(TabletFeatureExtractor).parameters, "feature_extractor_type"}
        extractor = {name: value for name, value in extractor.items() if name in fields}
        _write_json(out / EXTRACTOR, extractor | _named(extractor, []))
    else:
        notes.append(f"No {EXTRACTOR} lies in {path}: whoever loads the model has to know how its tokens are made.")
    for file in weights:
        _link(file, out / file.name)
    if (path / INDEX).is_file():
        index = _read_json(path / INDEX)
        total = {"total_size": int(index.get("metadata", {}).get("total_size", 0))}
        _write_json(out / INDEX, {"metadata": total, "weight_map": index["weight_map"]})
    if with_code:
        from tablet_hf.hub.custom_code import write_custom_code

        write_custom_code(out)
    if training_data:
        TrainingData.write(out, training_data)
    # Noted by `convert_checkpoint`, of a model that was not trained since.
    converted_from = None if training_data else conversion.converted_from(path)
    if store is None and converted_from is not None:
        notes.append(f"Which data {converted_from} was trained on nothing here records; the card says what is known.")
    elif store is None and not training_data:
        notes.append(
            f"No {TRAINING_DATA_FILE} lies in {path}, so the card does not say which data it was trained on, and "
            "whether these are restricted is not known; --dataset STORE says it."
        )
    elif store is None:
        notes.append("Names of the people whom it learnt from are looked for in its files only with --dataset STORE.")
    if evaluation is None and "SequenceClassification" in str(config.get("architectures")):
        notes.append("No figures are given, so the card says that nothing was measured; --evaluation does.")
    judged = None if evaluation is None else read_evaluation(evaluation)
    if judged is not None:
        notes += _whose_figures(judged, path, Path(evaluation))
    facts: dict[str, Any] = {"training": replace(training, is_restricted=is_restricted)}
    if converted_from is not None:
        facts |= facts_of_released(converted_from, config)
    card = model_card(
        repo,
        config,
        parameters=sum(map(count_parameters, weights)),
        training_data=training_data,
        datasets=[str(dataset)] if isinstance(dataset, str) and not Path(dataset).exists() else [],
        **facts,
        evaluation=judged,
        license=sharing.license,
        right_to_share=sharing.right_to_share,
        is_gated=bool(sharing.is_gated),
        with_code=with_code,
    )
    (out / CARD).write_text(card, encoding="utf-8")
    prepared = Prepared(out, "model", "model", sharing, _left_behind(path, out), tuple(notes))
    return prepared, secrets


def _trainings(path: Path) -> tuple[TrainingData, ...]:
    """What a model trained on, as it is recorded next to it; of a folder that it started from, the name alone."""

    def plain(name: str | None) -> str | None:
        is_path = name is not None and (name.count("/") > 1 or name.startswith((".", "~", "/")) or "\\" in name)
        return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name

    return tuple(replace(stage, started_from=plain(stage.started_from)) for stage in TrainingData.read(path))


def restriction_of(
    what: str | Path, sharing: Sharing, store: TokenDataset | None, training_data: Sequence[TrainingData] = ()
) -> bool | None:
    """Whether the terms of data forbid passing on what concerns single subjects.

    As it is marked, said, or to be concluded from the names of studies, in this order; None where that tells nothing,
    since scans that came as a table or as BIDS may be anybody's, and so may what the first weights trained on.

    Args:
        what: path, for the sentence.
        sharing: what is said.
        store: of tokens, or the one that a model is said to have trained on.
        training_data: all trainings of a model. One of restricted data makes it restricted for good, whatever came
            later and whichever store is named.

    Raises:
        InputError: it is marked, and the contrary is said.
    """
    marks = [stage.is_restricted for stage in training_data]
    studies = [set(stage.studies) for stage in training_data]
    if store is not None:
        marks.append(bool(store.settings["is_restricted"]))
        studies.append({run.dataset for run in store.runs})
    is_marked = any(marks)
    if is_marked and sharing.is_restricted is False:
        raise InputError(
            f"{what}: its data are marked as restricted, and --source-open does not change that; leave it out."
        )
    if is_marked or sharing.is_restricted is not None:
        return is_marked or sharing.is_restricted
    if sounds_restricted(set().union(*studies)):
        return True
    is_known_from_the_start = not training_data or training_data[0].started_from is None
    is_open = bool(studies) and all(names and names <= OPEN_STUDIES for names in studies)
    return False if is_open and is_known_from_the_start else None


def _decided(sharing: Sharing, is_restricted: bool | None) -> Sharing:
    is_gated = bool(is_restricted) if sharing.is_gated is None else sharing.is_gated
    return Sharing(sharing.is_private, is_gated, is_restricted, sharing.right_to_share, sharing.license)


def _named(settings: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Of an autoencoder in a folder, the folder's name alone."""
    if not settings.get("autoencoder"):
        return {}
    named = without_paths(settings)["autoencoder"]
    if named != settings["autoencoder"]:
        notes.append(
            f"Its autoencoder lies in a folder here, of which only the name {named!r} is sent: push the autoencoder "
            "too, so that others can tokenize scans for it."
        )
    return {"autoencoder": named}


def _weights(path: Path, stem: str) -> list[Path]:
    """The safetensors files of a folder, which are in it and nowhere else."""
    index = path / f"{stem}.safetensors.index.json"
    names = [f"{stem}.safetensors"]
    if index.is_file():
        names = sorted(set(map(str, _read_json(index).get("weight_map", {}).values())))
        if any(Path(name).name != name for name in names):
            raise InputError(f"{index}: it names files outside of its folder; save the model again.")
    files = [path / name for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(
            f"{missing[0]}: there is no such file; weights are sent as safetensors alone, so save the model with "
            "save_pretrained."
        )
    return files


def _prepare_autoencoder(path: Path, out: Path, repo: str, sharing: Sharing) -> tuple[Prepared, Secrets]:
    from tablet_hf.slice_autoencoder import SHIPPED_WEIGHTS, weights_fingerprint

    is_shipped = path.resolve().parent == SHIPPED_WEIGHTS.resolve()
    card = shipped_card(path.resolve().name) if is_shipped else None
    # What was shown to others is not known: scans of subjects are images too.
    is_restricted = False if is_shipped and sharing.is_restricted is None else sharing.is_restricted
    sharing = _decided(sharing, is_restricted)
    check_may_be_published(str(path), "autoencoder", is_restricted, sharing.is_private, sharing.right_to_share)
    if card is not None and sharing.license not in (None, own := check_card(card)["license"]):
        raise InputError(f"--license {sharing.license}: {path.name} comes with the package, under {own}; leave it out.")
    config, weights = _read_json(path / CONFIG), _weights(path, OF_DIFFUSERS)
    out.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in config.items() if not name.startswith("_") or name in _OF_DIFFUSERS}
    _write_json(out / CONFIG, config)
    for file in weights:
        _link(file, out / file.name)
    if (path / f"{OF_DIFFUSERS}.safetensors.index.json").is_file():
        shutil.copyfile(path / f"{OF_DIFFUSERS}.safetensors.index.json", out / f"{OF_DIFFUSERS}.safetensors.index.json")
    training = None
    if (path / "training.json").is_file():
        training = _read_json(path / "training.json")
        _write_json(out / "training.json", training)
    if card is None:
        card = autoencoder_card(
            repo,
            config,
            parameters=sum(map(count_parameters, weights)),
            revision=weights_fingerprint(path),
            training=training,
            license=sharing.license,
            right_to_share=sharing.right_to_share,
            is_gated=bool(sharing.is_gated),
        )
    (out / CARD).write_text(card, encoding="utf-8")
    return Prepared(out, "model", "autoencoder", sharing, _left_behind(path, out)), Secrets()


_OF_DIFFUSERS = ("_class_name", "_diffusers_version")


def _prepare_tokens(
    path: Path,
    out: Path,
    repo: str,
    sharing: Sharing,
    choices: Mapping[str, Any],
    on_progress: Callable[[int, int], None] | None,
) -> tuple[Prepared, Secrets]:
    store = TokenDataset.load(path)
    is_restricted = restriction_of(path, sharing, store)
    sharing = _decided(sharing, is_restricted)
    check_may_be_published(str(path), "dataset", is_restricted, sharing.is_private, sharing.right_to_share)
    store.settings["is_restricted"] = bool(is_restricted)
    keep_subjects = choices["keep_subjects"]
    published, left_out = published_runs(store, Pseudonyms.beside(path), **choices)
    export_parquet(store, out, on_progress=on_progress, published=published)
    kept = {name: "" for name in published[0].phenotypes}
    if not choices["exact_ages"]:
        kept |= {name: f"in whole years, {OLDEST_TOLD} from {OLDEST_TOLD} on" for name in kept if holds_ages(name)}
    seconds = sorted({round(run.repetition_time, 4) for run in published})
    frames = [run.num_frames for run in published]
    facts = {
        "frames of a run": f"{min(frames)} to {max(frames)}" if len(set(frames)) > 1 else f"{frames[0]}",
        "repetition time": ", ".join(f"{value:g} s" for value in seconds[:6]) + (", ..." if seconds[6:] else ""),
        "tokens": f"{store.geometry.num_cells} of {store.geometry.token_size:,} numbers a frame, kept as {store.dtype}",
    }
    num_alone, told = (0, []) if keep_subjects else people_alone(published)
    training = TrainingFacts.of_store(store)
    is_or_are = "is the only one" if num_alone == 1 else "are the only ones"
    alone = f"{num_alone:,} of {training.people:,} people {is_or_are} with this {', '.join(told)}"
    card = dataset_card(
        repo,
        without_paths(store.preprocessing),
        training=training,
        facts=facts,
        phenotypes=kept,
        are_renamed=not keep_subjects,
        # Which option sends it is nothing for who reads a card.
        left_out={name: why.split("; --")[0] for name, why in left_out.items()},
        license=sharing.license,
        right_to_share=sharing.right_to_share,
        is_gated=bool(sharing.is_gated),
        limits=[f"{alone}: other names do not hide them from who knows as much (source: `{INDEX_FILE}`)."]
        * bool(num_alone),
    )
    (out / CARD).write_text(card, encoding="utf-8")
    named = [name + (f" ({how})" if how else "") for name, how in kept.items()]
    named += ["families"] * any(run.family is not None for run in published)
    notes = [f"Of phenotypes go along: {', '.join(named) or 'none'}; --phenotypes and --without choose others."]
    if keep_subjects:
        notes.append("People keep the names that they have at the source.")
    else:
        notes.append(f"People have other names; {path.name}.salt, which tells them, stays here.")
    if num_alone:
        notes.append(f"{alone}: who knows as much of somebody finds them; --phenotypes sends along only what it names.")
    notes += [f"{name}{':' if name in LABELS else ' stays behind:'} {why}." for name, why in left_out.items()]
    known = {RUNS_FOLDER, DATA_FOLDER, INDEX_FILE}
    left_behind = tuple(name for name in _left_behind(path, out) if name.rstrip("/") not in known)
    prepared = Prepared(out, "dataset", "token dataset", sharing, left_behind, tuple(notes))
    return prepared, Secrets.of_store(store, published)


# --- sending


def check_may_write(repo: str, token: str | None = None, endpoint: str | None = None) -> None:
    """Ask the Hub whose access token it is, before the long work: whether it is one for writing, and for this owner.

    What a fine-grained token and the roles of an organisation allow is only told when something is sent.

    Args:
        repo: `owner/name`.
        token, endpoint: see `publish`.

    Raises:
        InputError: no or a refused token, one for reading only, another owner, or no way to the Hub.
    """
    from huggingface_hub import HfApi

    check_repo(repo)
    with _told(repo, token):
        known = HfApi(endpoint=endpoint, token=token, library_name="tablet_hf").whoami()
    owner, user = repo.split("/")[0], known["name"]
    if known.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(
            f"{repo}: your access token may not write there, it is one for reading; make one for writing, and log in "
            "with it (hf auth login)."
        )
    organisations = [each.get("name") for each in known.get("orgs") or ()]
    if owner.lower() not in {name.lower() for name in (user, *organisations) if name}:
        others = f", or of {', '.join(sorted(organisations))}" if organisations else ""
        raise InputError(
            f"{repo}: your access token may not write there, it is that of {user}; choose a name of {user}{others}."
        )


def publish(
    prepared: Prepared,
    repo: str,
    *,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Published:
    """Send what was prepared, in one commit.

    A repository that is there already is updated: files that are not sent any more are deleted from it. What is
    private or gated there stays so. Sent again after a connection broke, only what had not arrived is sent.

    Args:
        prepared: of `prepare`.
        repo: `owner/name`.
        revision: a branch, made where it is not there; main by default.
        tag: to put on the commit.
        message: of the commit.
        token: an access token; by default that of `hf auth login` or of the environment variable HF_TOKEN.
        endpoint: of the Hub; by default HF_ENDPOINT or the public one.

    Raises:
        InputError: files that are not as they were looked through, words that tell what must not be told, no or a wrong
            token, no right to write there, a repository that everyone can see though this must not be, a tag that is
            there, or no way to the Hub.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_repo(repo)
    for what, words in {"--message": message, "--tag": tag, "--revision": revision, repo: repo}.items():
        if faults := leaks_of_words(words or "", prepared.secrets):
            raise InputError(f"{what}: it holds {faults[0]}, which others would see; choose other words.")
    found = {name: file_checksum(prepared.folder / name) for name in prepared.files}
    if changed := sorted(dict(found.items() ^ prepared.checksums.items())):
        raise InputError(
            f"{prepared.folder / changed[0]}: it is not as it was when it was looked through, so nothing was sent; "
            "prepare it again."
        )
    api = HfApi(endpoint=endpoint, token=token, library_name="tablet_hf")
    kind, sharing = prepared.kind, prepared.sharing
    with _told(repo, token):
        was_there = api.repo_exists(repo, repo_type=kind)
        if not was_there:
            api.create_repo(repo, repo_type=kind, private=sharing.is_private, exist_ok=True)
            if sharing.is_gated:
                # Gated before anything is in it.
                api.update_repo_settings(repo, repo_type=kind, gated="manual")
        notes = _checked_repository(api, repo, kind, sharing, tag) if was_there else []
        was_empty = set(api.list_repo_files(repo, repo_type=kind)) <= {".gitattributes"}
        if was_there:
            state = "with nothing in it, and is filled now" if was_empty else "and is updated"
            notes.insert(0, f"{repo} was there already, {state}.")
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True)
        there = set(api.list_repo_files(repo, repo_type=kind, revision=revision))
        operations: list[Any] = [CommitOperationAdd(name, str(prepared.folder / name)) for name in found]
        for operation in operations:
            # A large file is stored under this name, which the Hub compares with what arrives.
            operation.upload_info.sha256 = bytes.fromhex(found[operation.path_in_repo])
        gone = there - set(found) - {".gitattributes"}
        operations += [CommitOperationDelete(name, is_folder=False) for name in sorted(gone)]
        if gone:
            names = ", ".join(sorted(gone)[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
            notes.append(f"Deleted there, since nothing of these names is sent: {names}; its history keeps them.")
        commit = api.create_commit(
            repo,
            operations,
            commit_message=message or f"{prepared.what.capitalize()} by tablet-hf",
            repo_type=kind,
            revision=revision,
        )
    if tag is not None:
        with _told(repo, token, f"it was sent, but its tag {tag} was not set"):
            api.create_tag(repo, tag=tag, revision=commit.oid, repo_type=kind)
    prefix = "datasets/" if kind == "dataset" else ""
    return Published(f"{api.endpoint}/{prefix}{repo}", commit.oid, was_there and not was_empty, tuple(notes))


def _checked_repository(api: Any, repo: str, kind: str, sharing: Sharing, tag: str | None) -> list[str]:
    """What to say of a repository that is there already.

    Raises:
        InputError: everyone can see it, and this must not be seen by everyone; or it has the tag.
    """
    info = api.repo_info(repo, repo_type=kind)
    if tag is not None and tag in {known.name for known in api.list_repo_refs(repo, repo_type=kind).tags}:
        raise InputError(f"{repo}: it has a tag {tag} already; choose another --tag.")
    if sharing.is_private and not info.private:
        if sharing.is_restricted:
            raise InputError(
                f"{repo}: it is there already and everybody can see it, which restricted data must not be; choose "
                "another name."
            )
        raise InputError(f"{repo}: it is there already and everybody can see it; say --public, or choose another name.")
    notes = []
    if not sharing.is_private and info.private:
        notes.append(f"{repo} stays private; make it public on its page of the Hub if it shall be.")
    if sharing.is_gated and not info.gated:
        api.update_repo_settings(repo, repo_type=kind, gated="manual")
        notes.append(f"{repo} is gated from now on.")
    return notes


class _told:
    """What went wrong on the way to the Hub as one sentence, without the token and without addresses."""

    def __init__(self, repo: str, token: str | None, state: str = "nothing there was changed"):
        self.repo, self.has_token, self.state = repo, bool(token), state

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from huggingface_hub import get_token
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        if error is None or isinstance(error, InputError):
            return
        repo = self.repo
        # What went wrong with a large file comes wrapped.
        known = (LocalTokenNotFoundError, OfflineModeIsEnabled, HfHubHTTPError)
        while error.__cause__ is not None and not isinstance(error, known) and not _is_of_network(error):
            error = error.__cause__
        no_token = (_REFUSED if self.has_token or get_token() else _NO_TOKEN).format(repo=repo)
        if isinstance(error, LocalTokenNotFoundError):
            raise InputError(no_token) from None
        if isinstance(error, OfflineModeIsEnabled):
            raise InputError(f"{repo}: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it.") from None
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            if status == 401:
                raise InputError(no_token) from None
            if status in (403, 404):
                raise InputError(
                    f"{repo}: your access token may not write there; check the owner's name, and that the token is one "
                    "for writing (hf auth login)."
                ) from None
            said = (error.server_message or f"answer {status}").strip().splitlines()[0].rstrip(".")
            raise InputError(f"{repo}: the Hub did not take it ({said}); {self.state}. Try again later.") from None
        if _is_of_network(error):
            raise InputError(
                f"{repo}: the connection to the Hub was lost or not to be had ({type(error).__name__}); {self.state}. "
                "Run the same again: what had arrived is not sent twice."
            ) from None


_NO_TOKEN = (
    "{repo}: the Hub wants an access token, and none is here; log in with `hf auth login`, or set the environment "
    "variable HF_TOKEN to a token for writing."
)
_REFUSED = (
    "{repo}: the Hub does not know the access token that it was given; it may be mistyped, expired or taken back: make "
    "one for writing, and log in with it (hf auth login)."
)


def _is_of_network(error: BaseException) -> bool:
    # Versions of huggingface_hub come with different clients: httpx, and later httpx2.
    kinds = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(kinds & {"httpx.HTTPError", "httpx2.HTTPError"})
