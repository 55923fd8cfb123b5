"""Cards: what a repository says of itself, from what is known and nothing else.

Facts are gathered here, sentences stand in the templates of `hub_cards/`. What is not known is said to be so, and a
number without a source has no place.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tablet_hf.convert_tablet_to_hf import RELEASED_REPO
from tablet_hf.errors import InputError
from tablet_hf.hub.training_data import TRAINING_DATA_FILE, TrainingData

__all__ = [
    "EvaluationFacts",
    "TrainingFacts",
    "autoencoder_card",
    "check_card",
    "dataset_card",
    "facts_of_released",
    "model_card",
    "read_evaluation",
    "shipped_card",
]

TAGS = ["fmri", "neuroimaging", "nifti", "tablet"]
UNKNOWN = "not recorded"
UNORDERED = "It has no positions: the network sees frames as a set, whatever their order."

POOLINGS = {
    "cls": "the CLS state",
    "mean": "the mean of all states",
    "variability": "how much the states of each cell vary over the frames",
}

# What is known of the terms of datasets by the names that the sources give them. Who owns them says more, and decides.
TERMS = {
    "HCP-YA": (
        "[Human Connectome Project, Young Adult](https://www.humanconnectome.org/study/hcp-young-adult)",
        "Its data use terms limit to whom data of single people may be passed on, more strictly for restricted data "
        "(family, exact age, ...). Everybody who uses it agrees to them with the consortium first, and they decide, "
        "not this card.",
    ),
    "UKB": (
        "[UK Biobank](https://www.ukbiobank.ac.uk)",
        "Its material transfer agreement forbids passing on data of single people; approved researchers have access to "
        "it through UK Biobank.",
    ),
    "ADHD-200": (
        "[ADHD-200](https://fcon_1000.projects.nitrc.org/indi/adhd200/)",
        "It is open to everybody who registers, under the terms of the International Neuroimaging Data-sharing "
        "Initiative, which ask for non-commercial use and for naming the source.",
    ),
    "HBN": (
        "[Healthy Brain Network](https://fcon_1000.projects.nitrc.org/indi/cmi_healthy_brain_network/)",
        "Scans are open; phenotypes beyond the basic ones are under a data use agreement.",
    ),
}
PROBLEMS = {
    "regression": "a number (regression)",
    "single_label_classification": "classes (softmax)",
    "multi_label_classification": "classes (one logit each, sigmoid)",
}


def template_file(name: str) -> Path:
    """A file of `hub_cards/`: beside this module where the package is installed, in the repository where it is not."""
    for folder in (Path(__file__).parent / "hub_cards", Path(__file__).parents[3] / "hub_cards"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name}: the templates of cards are not where the package has them; install it again.")


def shipped_card(name: str) -> str | None:
    """The card of an autoencoder that comes with the package."""
    try:
        return template_file(f"{name}.md").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


# --- what is known


@dataclass(frozen=True)
class TrainingFacts:
    """The data that a model was trained on.

    Attributes:
        datasets: names as sources give them, such as "HCP-YA".
        people, runs, frames: how many; None where it is not known.
        is_restricted: see `Cohort`; None where it is not known.
    """

    datasets: tuple[str, ...] = ()
    people: int | None = None
    runs: int | None = None
    frames: int | None = None
    is_restricted: bool | None = None

    @classmethod
    def of_store(cls, store: Any) -> "TrainingFacts":
        names = tuple(sorted({run.dataset for run in store.runs if run.dataset is not None}))
        people = {(run.dataset, run.subject) for run in store.runs}
        frames = sum(run.num_frames for run in store.runs)
        return cls(names, len(people), len(store.runs), frames, bool(store.settings["is_restricted"]))

    def __str__(self) -> str:
        if not self.datasets and self.people is None:
            return "Not recorded."
        names = (
            ", ".join(TERMS[name][0] if name in TERMS else name for name in self.datasets)
            or "a study whose name is not recorded"
        )
        if self.people is None:
            return f"{names}. How many people, runs and frames: {UNKNOWN}."
        return (
            f"{names}: a store of {_counted(self.people, 'person', 'people')}, {_counted(self.runs, 'run')} and "
            f"{_counted(self.frames, 'frame')} (source: the store's table of runs). Who of them was learnt from, and "
            "who was held out, is not recorded."
        )


@dataclass(frozen=True)
class EvaluationFacts:
    """What `tablet-hf evaluate` found: of each method, metrics with their intervals.

    Attributes:
        label: what was predicted.
        people: how many were judged.
        method: the model's name there.
        metrics: names, the main one first.
        found: of each method, `{metric: (value, low, high)}`; None where it is not defined, and for the ends of an
            interval that says nothing.
        notes: what a reader must know.
        are_held_out: whether the model is known to have learnt from none of them; else the figures stand in the text
            with their notes, but not in the header, where nobody would see those.
        weights: checksums of the weights that were judged, see `weights_checksum`; none where it was not recorded.
    """

    label: str
    people: int
    method: str
    metrics: tuple[str, ...]
    found: Mapping[str, Mapping[str, tuple[float | None, float | None, float | None]]]
    notes: tuple[str, ...] = ()
    are_held_out: bool = False
    weights: tuple[str, ...] = ()

    @property
    def has_intervals(self) -> bool:
        return any(low is not None for values in self.found.values() for _, low, _ in values.values())

    @property
    def rows(self) -> list[list[str]]:
        return [[method, *(_estimate(values[name]) for name in self.metrics)] for method, values in self.found.items()]


def read_evaluation(path: str | Path) -> EvaluationFacts:
    """Read results.json of an evaluation, or of the folder that it lies in.

    Raises:
        InputError: there is none, or it is something else.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        method = next(name for name in results["methods"] if name not in results["baselines"])
        # Metrics that are trained for stand first there; the main one is what comparisons are about.
        names = list(results["methods"][method]["metrics"])
        names.sort(key=lambda name: name != results["main_metric"])
        label, people = str(results["label"]), int(results["num_subjects"])
        found = {
            name: {metric: _value(values["metrics"][metric], people) for metric in names}
            for name, values in results["methods"].items()
        }
        notes = (*(str(note) for note in results["warnings"]), *_without_interval(found[method], people))
        are_held_out = results.get("are_held_out") is True
        weights = tuple(str(results.get("about", {}).get("weights") or "").replace(",", " ").split())
        return EvaluationFacts(label, people, method, tuple(names), found, notes, are_held_out, weights)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; give results.json of tablet-hf evaluate.") from error
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise InputError(f"{path}: it is no results.json of tablet-hf evaluate; give one, or leave it out.") from error


def _value(estimate: Mapping[str, Any], people: int) -> tuple[float | None, float | None, float | None]:
    """A figure, and its interval where that says something: drawn anew, one person is always the same person."""
    value, low, high = (None if estimate[name] is None else float(estimate[name]) for name in ("value", "low", "high"))
    return (value, None, None) if people < 2 or low is None or high is None or low == high else (value, low, high)


def _without_interval(found: Mapping[str, tuple[float | None, float | None, float | None]], people: int) -> list[str]:
    """Why some of a method's figures stand without an interval, and not in the header."""
    if people < 2:
        return ["Nobody can tell from one person how far off these figures are; so they have no interval."]
    if names := [name for name, (value, low, _) in found.items() if value is not None and low is None]:
        return [
            f"No interval is given for {', '.join(names)}: drawn anew, these people always give the same figure, or "
            "none, which does not tell how far off it is."
        ]
    return []


def _estimate(estimate: tuple[float | None, float | None, float | None]) -> str:
    value, low, high = estimate
    if value is None:
        return "undefined"
    return f"{value:.3g}" if low is None or high is None else f"{value:.3g} ({low:.3g} to {high:.3g})"


def _counted(number: int | None, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def trainings_in_words(stages: Sequence[TrainingData]) -> str:
    """A list of the trainings that a model went through, the first one first."""
    lines = []
    for number, stage in enumerate(stages, 1):
        studies = ", ".join(TERMS[name][0] if name in TERMS else _in_a_line(name) for name in stage.studies)
        start = "new weights" if stage.started_from is None else f"`{_in_a_line(stage.started_from)}`"
        chosen = _counted(stage.people_chosen_by, "other person", "other people")
        counts = (
            f"{_counted(stage.people, 'person', 'people')}, {_counted(stage.runs, 'run')} and "
            f"{_counted(stage.frames, 'frame')}"
        )
        lines.append(
            f"{number}. {_in_a_line(stage.task)}: {studies or 'a study whose name is not recorded'}, "
            f"{counts if stage.people else 'people, runs and frames ' + UNKNOWN}, starting from {start}"
            + (f"; {chosen} decided when to stop." if stage.people_chosen_by else ".")
        )
    first = stages[0].started_from
    if first is not None:
        before = f"{UNKNOWN}."
        if first == RELEASED_REPO:
            before = f"{UNKNOWN} beside it; its authors say it. {_released()['training_text']}"
        lines.append(f"\nWhat `{_in_a_line(first)}` had learnt from before: {before}")
    return f"Source: `{TRAINING_DATA_FILE}` in this repository.\n\n" + "\n".join(lines)


def base_model_of(stages: Sequence[TrainingData]) -> str | None:
    """The last repository of the Hub that weights came from."""
    names = [stage.started_from or "" for stage in stages]
    return next((name for name in reversed(names) if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)), None)


def terms_of(datasets: Iterable[str], is_restricted: bool | None) -> str:
    """What is known of the terms of datasets, in sentences."""
    known = [f"{TERMS[name][0]}: {TERMS[name][1]}" for name in datasets if name in TERMS]
    other = [name for name in datasets if name not in TERMS]
    if other:
        known.append(f"Terms of {', '.join(other)}: {UNKNOWN} here; ask its owner.")
    if not known:
        known.append(f"Terms of the data: {UNKNOWN} here.")
    if is_restricted:
        known.append(
            "They are marked as restricted: their terms forbid or limit passing on what concerns single people."
        )
    return "\n\n".join(known)


# --- cards


def model_card(
    repo: str,
    config: Mapping[str, Any],
    *,
    parameters: int | None = None,
    training: TrainingFacts | None = None,
    training_text: str | None = None,
    training_data: Sequence[TrainingData] = (),
    datasets: Sequence[str] = (),
    evaluation: EvaluationFacts | None = None,
    title: str | None = None,
    summary: str | None = None,
    facts_source: str = "`config.json` and the weights in this repository",
    license: str | None = None,
    base_model: str | None = None,
    right_to_share: str | None = None,
    is_gated: bool = False,
    with_code: bool = False,
    limits: Sequence[str] = (),
) -> str:
    """The card of a TABLeT.

    Args:
        repo: where it will lie.
        config: what its config.json says; what it does not say is told as not recorded.
        parameters: how many.
        training: the data it was trained on; `training_text` says it in words of one's own.
        training_data: its trainings, where they were recorded; they say more than `training` and stand in its place.
        datasets: Hub ids of the token datasets that it was trained on.
        evaluation: figures, see `read_evaluation`.
        title, summary: of words that are not the usual ones.
        facts_source: where the facts of the table come from.
        license: of the weights, as the Hub names it.
        base_model: Hub id of what it was fine-tuned from; by default as `training_data` says.
        right_to_share: why restricted data may be shared, in words of whoever shares them.
        is_gated: whether people are asked before they get it.
        with_code: whether the package's code lies beside it.
        limits: further ones.

    Raises:
        InputError: the figures are of another label.
    """
    from huggingface_hub import ModelCard, ModelCardData

    architecture = (config.get("architectures") or ["TabletModel"])[0]
    label = config.get("target_name")
    if evaluation is not None and label is not None and evaluation.label != label:
        raise InputError(
            f"the figures are of {evaluation.label}, but the model predicts {label}; give results.json of its own."
        )
    is_head = _predicts(config)
    if config.get("position_embedding_type") == "none":
        limits = [UNORDERED, *limits]
    training = training or TrainingFacts()
    if training_data:
        studies = dict.fromkeys(name for stage in training_data for name in stage.studies)
        if training_data[0].started_from == RELEASED_REPO:
            studies = dict.fromkeys((*_released()["datasets"], *studies))
        training = replace(training, datasets=tuple(dict.fromkeys((*studies, *training.datasets))))
        training_text = training_text or trainings_in_words(training_data)
    name = repo.split("/")[-1]
    results = _eval_results(evaluation)
    card_data = ModelCardData(
        library_name="transformers",
        license=license,
        tags=[*TAGS, "dc-ae"] if "dc-ae" in str(config.get("autoencoder")) else list(TAGS),
        pipeline_tag="other" if is_head else "feature-extraction",
        base_model=base_model or base_model_of(training_data),
        datasets=list(datasets) or None,
        model_name=name if results else None,
        eval_results=results or None,
        **_gate(is_gated),
    )
    auto_classes = {
        "TabletForSequenceClassification": "AutoModelForSequenceClassification",
        "TabletForMaskedTokenModeling": "AutoModelForPreTraining",
    }
    card = ModelCard.from_template(
        card_data,
        template_path=str(template_file("model.md.jinja")),
        title=title or name,
        summary=summary or _summary_of_model(architecture, config),
        repo=repo,
        predicts=is_head,
        auto_class=auto_classes.get(architecture, "AutoModel"),
        with_code=with_code,
        facts=_in_lines(model_facts(config, parameters)),
        facts_source=facts_source,
        training_text=training_text or str(training),
        terms=terms_of(training.datasets, training.is_restricted),
        evaluation=evaluation,
        license=license,
        right_to_share=right_to_share,
        limits=limits,
    )
    return _tidy(str(card))


def facts_of_released(source: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of a converted checkpoint of the released code, as arguments of `model_card`.

    Args:
        source: Hub id, folder or file that was converted.
        config: of the converted model.
    """
    if source == RELEASED_REPO:
        facts = _released()
        training = TrainingFacts(datasets=tuple(facts.pop("datasets")))
        return facts | {"training": training, "base_model": source}
    is_on_hub = source.count("/") == 1 and not Path(source).exists()
    named = f" (`{source}`)" if is_on_hub else ""
    return {
        "summary": f"Weights in the layout of the code released with arXiv 2604.03619{named}, renamed so that "
        "`from_pretrained` loads them.",
        "base_model": source if is_on_hub else None,
    }


def _released() -> dict[str, Any]:
    return json.loads(template_file("released.json").read_text(encoding="utf-8"))


def _predicts(config: Mapping[str, Any]) -> bool:
    """Whether it says what it predicts; a head whose task nothing tells, as released ones, is refused by pipelines."""
    is_head = (config.get("architectures") or [""])[0] == "TabletForSequenceClassification"
    return is_head and config.get("problem_type") is not None


def _summary_of_model(architecture: str, config: Mapping[str, Any]) -> str:
    if _predicts(config):
        return f"Predicts {_in_a_line(config.get('target_name') or 'a phenotype')} of a person from an fMRI run."
    if architecture == "TabletForMaskedTokenModeling":
        return "Pre-trained on fMRI runs by masked token modeling: it predicts tokens that are hidden from it."
    return "Gives states of fMRI runs, to be fine-tuned or read by simpler models."


def model_facts(config: Mapping[str, Any], parameters: int | None) -> dict[str, str]:
    """The table of a model's card."""

    def known(*names: str) -> bool:
        return all(config.get(name) is not None for name in names)

    def said(name: str) -> str:
        value = config.get(name)
        return UNKNOWN if value is None else str(value)

    facts = {}
    if _predicts(config):
        facts["predicts"] = f"{said('target_name')}, {PROBLEMS.get(config.get('problem_type') or '', UNKNOWN)}"
        names = [str(value) for value in (config.get("id2label") or {}).values()]
        if config.get("negative_label") is not None and len(names) == 1:
            facts["classes"] = f"{names[0]} (logit above 0), {config['negative_label']}"
        elif config.get("problem_type") != "regression" and names:
            facts["classes"] = ", ".join(names)
        if known("target_mean", "target_std"):
            mean, std = config["target_mean"][0], config["target_std"][0]
            facts["target in training"] = f"mean {mean:.4g}, standard deviation {std:.4g}"
    facts["parameters"] = UNKNOWN if parameters is None else f"{parameters:,}"
    network = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
    facts["network"] = UNKNOWN
    if known(*network):
        layers, width, heads, key_heads = (config[name] for name in network)
        facts["network"] = (
            f"{_counted(layers, 'layer')} of width {width}, {_counted(heads, 'head')} ({key_heads} for keys and values)"
        )
    facts["positions"] = said("position_embedding_type")
    if known("pooling_type"):
        facts["read from the network"] = POOLINGS.get(config["pooling_type"], UNKNOWN)
    if config.get("standardize_tokens"):
        facts["windows"] = "standardised over time"
    facts["window"] = f"{config['num_frames']} frames" if known("num_frames") else UNKNOWN
    facts["tokens"] = UNKNOWN
    if known("grid_size", "token_size"):
        facts["tokens"] = f"{config['grid_size'] ** 3} of {config['token_size']:,} numbers a frame"
    return facts | preprocessing_facts(config)


def preprocessing_facts(made: Mapping[str, Any]) -> dict[str, str]:
    """How tokens were made, as the tables of cards have it."""
    name, revision = made.get("autoencoder"), made.get("autoencoder_revision")
    link = f"[`{name}`](https://huggingface.co/{name})" if name and name.count("/") == 1 else f"`{name}`"
    return {
        "autoencoder": UNKNOWN if name is None else f"{link}, revision {revision or UNKNOWN}",
        "signal": made.get("signal") or UNKNOWN,
        "scaling": made.get("scaling") or UNKNOWN,
        "volume": f"{made['volume_size']} x {made['volume_size']} x {made['volume_size']} voxels, MNI152 space"
        if made.get("volume_size")
        else UNKNOWN,
    }


def _eval_results(evaluation: EvaluationFacts | None) -> list[Any]:
    from huggingface_hub import EvalResult

    if evaluation is None or not evaluation.are_held_out:
        return []
    results = []
    for name in evaluation.metrics:
        value, low, high = evaluation.found[evaluation.method][name]
        if value is None or low is None or high is None:  # a header has no room to say why
            continue
        arguments = {"people": evaluation.people, "interval": "95%", "low": _rounded(low), "high": _rounded(high)}
        results.append(
            EvalResult(
                task_type="other",
                task_name=f"{evaluation.label} from fMRI",
                dataset_type="fmri",
                # Of which study they are results.json does not say; it may be another than that of the training.
                dataset_name="fMRI runs of held-out people",
                metric_type=name,
                metric_name=name,
                metric_value=_rounded(value),
                metric_args=arguments,
            )
        )
    return results


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _gate(is_gated: bool) -> dict[str, Any]:
    if not is_gated:
        return {}
    return {
        "extra_gated_prompt": "What lies here concerns people who were scanned. Say who you are and what for; use "
        "it for research only, do not pass it on, and do not try to find out who somebody is.",
        "extra_gated_fields": {
            "Affiliation": "text",
            "Purpose": "text",
            "I have agreed to the terms of the data with their owner": "checkbox",
            "I will not try to find out who somebody is": "checkbox",
        },
    }


def dataset_card(
    repo: str,
    preprocessing: Mapping[str, Any],
    *,
    training: TrainingFacts,
    facts: Mapping[str, str] | None = None,
    phenotypes: Mapping[str, str] | None = None,
    are_renamed: bool = True,
    left_out: Mapping[str, str] | None = None,
    license: str | None = None,
    right_to_share: str | None = None,
    is_gated: bool = False,
    limits: Sequence[str] = (),
) -> str:
    """The card of a token dataset.

    Args:
        repo: where it will lie.
        preprocessing: how its tokens were made.
        training: what it holds: datasets, people, runs, frames, and whether it is restricted.
        facts: further rows of the table.
        phenotypes: that go along, each with what is to be said of it.
        are_renamed: whether people have other names than at the source.
        left_out: what stays behind, and why.
        right_to_share, is_gated, license, limits: as for `model_card`.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    name = repo.split("/")[-1]
    card_data = DatasetCardData(
        license=license or "other",
        license_name=None if license else "terms-of-the-source",
        tags=[*TAGS, *(["dc-ae"] if "dc-ae" in str(preprocessing.get("autoencoder")) else [])],
        pretty_name=name,
        configs=[{"config_name": "default", "data_files": "data/*.parquet"}],
        **_gate(is_gated),
    )
    counts = {"people": training.people, "runs": training.runs, "frames": training.frames}
    table = {name: UNKNOWN if value is None else f"{value:,}" for name, value in counts.items()} | dict(facts or {})
    table |= preprocessing_facts(preprocessing)
    told = [f"`{name}`" + (f" ({how})" if how else "") for name, how in (phenotypes or {}).items()]
    table["phenotypes"] = ", ".join(told) or "none"
    people = "People have the names that they have at the source, which is open."
    if are_renamed:
        people = (
            "Names of people, and of families where they are there, were replaced by salted hashes; the salt stays "
            "with who published this. Names, sizes and times of scans, and where they lay, are not told."
        )
    card = DatasetCard.from_template(
        card_data,
        template_path=str(template_file("dataset.md.jinja")),
        title=name,
        summary=f"Tokens of fMRI runs of {', '.join(training.datasets) or 'a study'}, to train TABLeT models on.",
        repo=repo,
        is_restricted=training.is_restricted,
        right_to_share=right_to_share,
        facts=_in_lines(table),
        facts_source="`store.json` and `runs.parquet` in this repository",
        terms=terms_of(training.datasets, training.is_restricted),
        people=people,
        left_out=_in_lines(left_out or {}),
        limits=limits,
    )
    return _tidy(str(card))


def autoencoder_card(
    repo: str,
    config: Mapping[str, Any],
    *,
    parameters: int | None,
    revision: str | None,
    training: Mapping[str, Any] | None = None,
    license: str | None = None,
    right_to_share: str | None = None,
    is_gated: bool = False,
) -> str:
    """The card of an autoencoder that does not come with the package.

    Args:
        repo: where it will lie.
        config: its config.json.
        parameters: how many.
        revision: what tells its weights.
        training: what `training.json` beside it says, where it was trained by this package.
        license, right_to_share, is_gated: as for `model_card`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    architecture = str(config.get("_class_name"))
    facts = {
        "class": f"`{architecture}` of diffusers",
        "parameters": UNKNOWN if parameters is None else f"{parameters:,}",
        "latent channels": str(config.get("latent_channels", UNKNOWN)),
        "weights": revision or UNKNOWN,
    }
    trained = "Not recorded."
    if training is not None:
        trained = (
            f"By `tablet_hf.slice_autoencoder.train` on {training.get('training_photographs', UNKNOWN)} natural "
            f"photographs, {len(training.get('stages', []))} stages (source: `training.json` in this repository)."
        )
    card = ModelCard.from_template(
        ModelCardData(library_name="diffusers", license=license, tags=["autoencoder", *TAGS], **_gate(is_gated)),
        template_path=str(template_file("autoencoder.md.jinja")),
        title=repo.split("/")[-1],
        summary="A 2D autoencoder of images that carries fMRI.",
        repo=repo,
        architecture=architecture,
        facts=facts,
        facts_source="`config.json` and the weights in this repository",
        training=trained,
        license=license,
        right_to_share=right_to_share,
    )
    return _tidy(str(card))


def _in_lines(facts: Mapping[str, str]) -> dict[str, str]:
    return {_in_a_line(name): _in_a_line(value) for name, value in facts.items()}


def _in_a_line(text: str) -> str:
    """In one line and one cell of a table: labels and columns are called as whoever made the data liked."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _tidy(text: str) -> str:
    """Without blank lines in a row, and ending in one line's end."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip() + "\n"


# --- whether the Hub will read it

# Those that are not of one model alone, of the list in the Hub's documentation of repositories ("Licenses").
# fmt: off
LICENSES = frozenset((
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigscience-openrail-m", "bsd", "bsd-2-clause",
    "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0",
    "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m", "ecl-2.0",
    "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl",
    "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail",
    "openrail++", "osl-3.0", "other", "pddl", "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
))
# fmt: on
KNOWN_FIELDS = {
    "library_name": str,
    "license": str,
    "license_name": str,
    "license_link": str,
    "tags": list,
    "pipeline_tag": str,
    "base_model": str,
    "model-index": list,
    "configs": list,
    "pretty_name": str,
    "extra_gated_prompt": str,
    "extra_gated_fields": dict,
    "datasets": list,
}


def check_license(name: str | None) -> None:
    """Refuse a licence that the Hub does not know; it says nothing and shows none.

    Raises:
        InputError: it names those that resemble it, and how to name one that is none of them.
    """
    if name is not None and name not in LICENSES:
        resembling = get_close_matches(name.lower(), LICENSES, n=3, cutoff=0.5) or ["apache-2.0", "mit", "cc-by-4.0"]
        raise InputError(
            f"--license {name}: the Hub knows no licence of this name; choose one that it does, such as "
            f'{", ".join(resembling)}, or "other".'
        )


def check_card(text: str) -> dict[str, Any]:
    """Read the header of a card as the Hub does, without asking it: `RepoCard.validate` would call the network.

    Returns:
        What the header says.

    Raises:
        InputError: a header that the Hub would not take.
    """
    import yaml
    from huggingface_hub.repocard_data import model_index_to_eval_results

    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if found is None:
        raise InputError("the card has no header between two lines of three dashes; the Hub would not know what it is.")
    try:
        header = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise InputError(f"the card's header is no YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(header, dict):
        raise InputError("the card's header has no fields.")
    for name, value in header.items():
        if name not in KNOWN_FIELDS or not isinstance(value, KNOWN_FIELDS[name]):
            raise InputError(f"the card's header has {name}: {value!r}, which the Hub would not understand.")
    check_license(header.get("license"))
    if not all(isinstance(tag, str) for tag in header.get("tags", [])):
        raise InputError("the card's tags are not all text.")
    if "model-index" in header:
        _, results = model_index_to_eval_results(header["model-index"])
        if not results:
            raise InputError("the card's model-index has no results; leave it out.")
    return header
