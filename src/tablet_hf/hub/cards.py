"""Cards of repositories on the Hub: templates of `hub_cards/`, filled with what is recorded."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tablet_hf.convert_tablet_to_hf import RELEASED_REPO
from tablet_hf.errors import InputError
from tablet_hf.hub.sharing import Sharing
from tablet_hf.hub.training_data import TrainingData

__all__ = ["CardFacts", "EvaluationFacts", "read_evaluation", "template_file", "write_card"]

TAGS = ["fmri", "neuroimaging", "nifti", "tablet"]


def template_file(name: str) -> Path:
    """A file of `hub_cards/`: in the package where it is installed, at the top of the repository otherwise."""
    for folder in (Path(__file__).parent / "hub_cards", Path(__file__).parents[3] / "hub_cards"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name}: the card templates of the package are missing; install it again.")


@dataclass(frozen=True)
class EvaluationFacts:
    """Figures of `tablet-hf evaluate`.

    Attributes:
        label: phenotype that is predicted.
        num_subjects: how many subjects were evaluated.
        figures: by method, the model first, `{metric: (value, low, high)}` with the main metric first; None for what
            is not defined, and for the ends of a degenerate interval.
        is_held_out: whether the model is known not to have been trained on these subjects.
        weights: checksums of the evaluated weights, see `weights_checksum`; empty where they were not recorded.
    """

    label: str
    num_subjects: int
    figures: Mapping[str, Mapping[str, tuple[float | None, float | None, float | None]]]
    is_held_out: bool = False
    weights: tuple[str, ...] = ()


def read_evaluation(path: str | Path) -> EvaluationFacts:
    """Read the results.json of an evaluation, or of the folder that holds it.

    Raises:
        InputError: no such file, or not a results.json of `tablet-hf evaluate`.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        methods = sorted(results["methods"], key=lambda name: name in results["baselines"])
        if methods[0] in results["baselines"]:  # no model
            raise ValueError
        names = sorted(results["methods"][methods[0]]["metrics"], key=lambda name: name != results["main_metric"])

        def figure(found: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
            value, low, high = (None if found[key] is None else float(found[key]) for key in ("value", "low", "high"))
            return (value, None, None) if None in (low, high) or low == high else (value, low, high)

        metrics = {method: results["methods"][method]["metrics"] for method in methods}
        return EvaluationFacts(
            str(results["label"]),
            int(results["num_subjects"]),
            {method: {name: figure(found[name]) for name in names} for method, found in metrics.items()},
            results.get("are_held_out") is True,
            tuple(str(results.get("about", {}).get("weights") or "").replace(",", " ").split()),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: not a results.json of tablet-hf evaluate; give one, or leave it out.") from error


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        repo: `owner/name`.
        sharing: the conditions.
        settings: config.json of a model or an autoencoder, or the preprocessing of tokens.
        parameters: number of parameters.
        rows: more rows of the table of facts.
        stages: trainings of a model, the first one first.
        store: what a token dataset holds, or the one that a model was trained on.
        evaluation: figures of a model.
        converted_from: released checkpoint that a model was converted from.
        datasets: Hub ids of the token datasets that a model was trained on.
        with_code: whether the repository has the code of the model.
        keeps_subjects: whether a token dataset has the subject ids of its source.
    """

    repo: str
    sharing: Sharing = field(default_factory=Sharing)
    settings: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    rows: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[TrainingData] = ()
    store: TrainingData | None = None
    evaluation: EvaluationFacts | None = None
    converted_from: str | None = None
    datasets: Sequence[str] = ()
    with_code: bool = False
    keeps_subjects: bool = False

    @property
    def architecture(self) -> str:
        """Name of the class of the network."""
        return str((self.settings.get("architectures") or [self.settings.get("_class_name") or "TabletModel"])[0])

    @property
    def predicts(self) -> bool:
        """Whether pipelines can predict with it: a head of a released checkpoint does not record its task."""
        return "SequenceClassification" in self.architecture and self.settings.get("problem_type") is not None

    @property
    def is_released(self) -> bool:
        """Whether it is, or starts from, the checkpoint that the authors of the paper released."""
        return RELEASED_REPO in (self.converted_from, self.stages[0].started_from if self.stages else None)


def write_card(kind: str, facts: CardFacts) -> str:
    """Text of the card of a "model", "dataset" or "autoencoder".

    Raises:
        InputError: figures of another label than the one that the model predicts.
    """
    from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

    texts = json.loads(template_file("texts.json").read_text(encoding="utf-8"))
    name, label = facts.repo.split("/")[-1], facts.settings.get("target_name")
    if facts.evaluation is not None and label is not None and facts.evaluation.label != label:
        raise InputError(f"--evaluation: its figures are of {facts.evaluation.label}, but the model predicts {label}.")
    tags = TAGS + ["dc-ae"] * ("dc-ae" in str(facts.settings.get("autoencoder")))
    data_of = [*facts.stages, *filter(None, [facts.store])]
    studies = ["UKB"] * facts.is_released + [name for each in data_of for name in each.studies]
    header = {"license": facts.sharing.license, "tags": tags} | (texts["gate"] if facts.sharing.is_gated else {})
    data: Any
    if kind == "dataset":
        if facts.sharing.license is None:
            header |= {"license": "other", "license_name": "terms-of-the-source"}
        configs = [{"config_name": "default", "data_files": "data/*.parquet"}]
        data = DatasetCardData(pretty_name=name, configs=configs, **header)
    elif kind == "autoencoder":
        data = ModelCardData(library_name="diffusers", **header)
    else:
        results = _eval_results(facts.evaluation)
        starts = [facts.converted_from or "", *(stage.started_from or "" for stage in facts.stages)]
        on_hub = [name for name in starts if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)]
        data = ModelCardData(
            library_name="transformers",
            pipeline_tag="other" if facts.predicts else "feature-extraction",
            base_model=on_hub[-1] if on_hub else None,
            datasets=list(facts.datasets) or None,
            model_name=name if results else None,
            eval_results=results or None,
            **header,
        )
    card = (DatasetCard if kind == "dataset" else ModelCard).from_template(
        data,
        template_path=str(template_file(f"{kind}.md.jinja")),
        name=name,
        facts=facts,
        settings=facts.settings,
        studies=list(dict.fromkeys(studies)),
        texts=texts,
        cell=_cell,
    )
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", str(card))).strip() + "\n"


def _eval_results(evaluation: EvaluationFacts | None) -> list[Any]:
    """Figures for the header of the card: of held-out subjects, of these weights, and with an interval."""
    from huggingface_hub import EvalResult

    if evaluation is None or not evaluation.is_held_out or not evaluation.weights:
        return []
    results = []
    for name, figure in next(iter(evaluation.figures.values())).items():
        if None in figure:
            continue
        value, low, high = (float(f"{number:.4g}") for number in figure)
        result = EvalResult(
            task_type="other",
            task_name=f"{evaluation.label} from fMRI",
            dataset_type="fmri",
            dataset_name="fMRI runs of held-out subjects",
            metric_type=name,
            metric_name=name,
            metric_value=value,
            metric_args={"subjects": evaluation.num_subjects, "interval": "95%", "low": low, "high": high},
        )
        results.append(result)
    return results


def _cell(value: Any) -> str:
    """Text that stays in its line and in its cell of a table: labels and columns can have any name."""
    if not value and value != 0:  # also the undefined value of a template
        return "not recorded"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
