"""Write an evaluation: results.json, predictions.csv, and index.html with tables and pictures.

    write_results("results", [tablet, connectivity, mean_token])   # the method in question first, then baselines

All methods are evaluated on the same subjects: those that every one of them predicted.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import Predictions, write_predictions
from tablet_hf.evaluation.statistics import (
    Comparison,
    Estimate,
    Evaluation,
    as_json,
    compare,
    evaluate_predictions,
    on_shared_subjects,
)
from tablet_hf.files import write_json
from tablet_hf.report.evaluation_pictures import (
    METRIC_NAMES,
    calibration_figure,
    confusion_figure,
    methods_figure,
    roc_figure,
    scatter_figure,
    sites_figure,
)
from tablet_hf.report.page import Picture, Section, Table, write_page
from tablet_hf.report.pictures import save_figure
from tablet_hf.version import __version__

__all__ = ["write_results"]

NO_BASELINE = (
    "There is no baseline to compare with. Functional connectivity with a linear model often does as well as a large "
    "model."
)
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "transformers")


def write_results(
    folder: str | Path,
    methods: Sequence[Predictions],
    baselines: Collection[str] | None = None,
    about: Mapping[str, Any] | None = None,
    num_bootstraps: int = 2000,
    num_permutations: int = 2000,
    seed: int = 0,
    warnings: Sequence[str] = (),
    are_held_out: bool = True,
) -> dict[str, Any]:
    """Evaluate methods on the subjects that all of them predicted, and write results, predictions and a page.

    Args:
        folder: created if needed; results.json, predictions.csv, index.html and pictures in it are replaced.
        methods: the one in question first; each other is compared with it.
        baselines: names of the methods that are baselines (default: all but the first).
        about: provenance, such as model, store and split: stored in results.json and shown on the page.
        warnings: what a reader must know before trusting the numbers; further ones are added.
        are_held_out: whether no method was trained on these subjects.

    Returns:
        The content of results.json.

    Raises:
        InputError: no method, two of one name, methods for different labels, no subject predicted by all, or what
            `evaluate_predictions` refuses.
    """
    folder, about = Path(folder), dict(about or {})
    shared, left_out = _on_shared_subjects(methods)
    evaluations = [evaluate_predictions(each, num_bootstraps, num_permutations, seed) for each in shared]
    comparisons = [compare(shared[0], other, num_bootstraps, seed) for other in shared[1:]]
    names = [each.method for each in methods]
    baselines = names[1:] if baselines is None else [name for name in names if name in baselines]
    warnings = [*warnings, *left_out, *([] if baselines else [NO_BASELINE]), *_notes(evaluations)]
    first = evaluations[0]
    results = as_json(
        {
            "label": first.label,
            "task": "regression" if first.classes is None else "classification",
            "classes": first.classes,
            "num_subjects": first.num_subjects,
            "num_entries": first.num_entries,
            "are_held_out": are_held_out,
            "main_metric": first.main_metric,
            "warnings": warnings,
            "baselines": baselines,
            "methods": {each.method: each for each in evaluations},
            "comparisons": comparisons,
            "settings": first.settings,
            "about": about,
            "software": _software(),
        }
    )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: it is a file; choose a folder for the results.")
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", methods)
    write_json(folder / "results.json", results, indent=2, allow_nan=False)
    pictures = _draw(folder / "pictures", shared, evaluations)
    sections = [
        _overview(evaluations, comparisons, warnings, are_held_out, pictures),
        *_comparison_section(comparisons),
        *_label_sections(evaluations, pictures),
        *_site_section(evaluations, pictures),
        *_fold_section(evaluations),
        _method_section(first, about),
    ]
    write_page(folder / "index.html", f"Prediction of {first.label}", sections)
    return results


# --- the subjects that all methods are evaluated on


def _on_shared_subjects(methods: Sequence[Predictions]) -> tuple[list[Predictions], list[str]]:
    """Each method on the subjects and folds that all predicted, in the order of the first; and a warning for others."""
    shared = on_shared_subjects(methods)
    warnings = [
        f"{len(each) - len(shared[0])} of {len(each)} predictions of {each.method} are left out, since not all methods "
        "predicted these subjects; predictions.csv has them."
        for each in methods
        if len(each) > len(shared[0])
    ]
    return shared, warnings


def _notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """The notes of all methods, each once, with the name of the method where it does not hold for all."""
    found = []
    for note in dict.fromkeys(note for each in evaluations for note in each.notes):
        names = [each.method for each in evaluations if note in each.notes]
        found.append(note if len(names) == len(evaluations) else f"{', '.join(names)}: {note}")
    return found


def _software() -> dict[str, str]:
    from importlib.metadata import version

    return {"tablet_hf": __version__} | {name: version(name) for name in LIBRARIES}


# --- the page


def _draw(folder: Path, methods: Sequence[Predictions], evaluations: Sequence[Evaluation]) -> dict[str, Picture]:
    """Write the pictures into a folder, from which those of an earlier evaluation are removed."""
    first = evaluations[0]
    drawn = {"methods": (methods_figure(evaluations), "Metrics on all subjects with 95% intervals.")}
    if first.classes is None:
        figure = scatter_figure(methods, evaluations)
        drawn["scatter"] = (figure, "True and predicted values; a point is a subject in a fold.")
    else:
        drawn["confusion"] = (confusion_figure(evaluations), "Number of subjects by true and predicted class.")
        drawn["roc"] = (roc_figure(methods), "Receiver operating characteristic.")
        figure = calibration_figure(evaluations)
        drawn["calibration"] = (figure, "Observed share by predicted probability, with exact 95% intervals.")
    if first.by_site:
        drawn["sites"] = (sites_figure(evaluations), f"{METRIC_NAMES[first.main_metric]} by site.")
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.png"):
        path.unlink()
    return {
        name: Picture(save_figure(figure, folder / f"{name}.png"), caption) for name, (figure, caption) in drawn.items()
    }


def _overview(
    evaluations: Sequence[Evaluation],
    comparisons: Sequence[Comparison],
    warnings: Sequence[str],
    are_held_out: bool,
    pictures: Mapping[str, Picture],
) -> Section:
    first = evaluations[0]
    main = first.main_metric
    subjects = f"{first.label} of {first.num_subjects} {'held-out ' if are_held_out else ''}subjects."
    sentences = [subjects if are_held_out else f"{subjects} They are not all held out."]
    sentences += [
        f"{each.method}: {METRIC_NAMES[main]} {_interval(each.main, main)}, {_p(each.p_value)}." for each in evaluations
    ]
    for each in comparisons:
        difference = f"{METRIC_NAMES[main]} {_interval(each.main, main, '+')}, {_p(each.p_value)}"
        sentences.append(f"{each.first} minus {each.second}: {difference}: {_verdict(each.main)}.")
    header = ["method", *(METRIC_NAMES[name] for name in first.metrics), f"p of {METRIC_NAMES[main]}"]
    rows = [
        [each.method, *(_interval(value, name) for name, value in each.metrics.items()), _p(each.p_value, "")]
        for each in evaluations
    ]
    guess = [_number(first.chance[name], name) if name in first.chance else "" for name in first.metrics]
    table = Table(header, [*rows, ["best constant guess", *guess, ""]])
    return Section(
        "Results", [*sentences, *(f"Warning: {warning}" for warning in warnings)], table, [pictures["methods"]]
    )


def _verdict(difference: Estimate) -> str:
    if not math.isfinite(difference.low):
        return "no interval"
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "no clear difference"


def _comparison_section(comparisons: Sequence[Comparison]) -> list[Section]:
    if not comparisons:
        return []
    names, main = list(comparisons[0].metrics), comparisons[0].main_metric
    rows = []
    for each in comparisons:
        cells = [_interval(each.metrics[name], name, "+") for name in names]
        rows.append([f"{each.first} − {each.second}", *cells, _p(each.p_value, "")])
    text = (
        "Paired bootstrap: each draw of subjects is used for both methods. The p value is two-sided and not corrected "
        "for the number of comparisons."
    )
    header = ["difference", *(METRIC_NAMES[name] for name in names), f"p of {METRIC_NAMES[main]}"]
    return [Section("Comparison", [text], Table(header, rows))]


def _label_sections(evaluations: Sequence[Evaluation], pictures: Mapping[str, Picture]) -> list[Section]:
    names = list(evaluations[0].calibration)
    rows = [[each.method, *(_interval(each.calibration[name], name) for name in names)] for each in evaluations]
    table = Table(["method", *(METRIC_NAMES[name] for name in names)], rows)
    if evaluations[0].classes is None:
        text = "Slope and intercept of the true on the predicted value: 1 and 0 for calibrated predictions."
        return [Section("True and predicted values", [text], table, [pictures["scatter"]])]
    text = (
        "Entries are sorted by predicted probability into bins of equal size. The expected calibration error is the "
        "mean distance of the bins from the diagonal; with few subjects it is never 0."
    )
    return [
        Section("Confusion matrix", pictures=[pictures["confusion"]]),
        Section("Receiver operating characteristic", pictures=[pictures["roc"]]),
        Section("Calibration", [text], table, [pictures["calibration"]]),
    ]


def _site_section(evaluations: Sequence[Evaluation], pictures: Mapping[str, Picture]) -> list[Section]:
    if not evaluations[0].by_site:
        return []
    name, rows = evaluations[0].main_metric, []
    for sites in zip(*(each.by_site for each in evaluations), strict=True):
        cells = [_interval(site.metrics[name], name) if name in site.metrics else "" for site in sites]
        rows.append([sites[0].name or "unknown", sites[0].num_subjects, *cells, sites[0].note])
    header = ["site", "subjects", *(f"{METRIC_NAMES[name]}, {each.method}" for each in evaluations), "note"]
    text = (
        "Where sites differ in the label, a method that only recognises the site does well on all subjects together, "
        "and not within a site."
    )
    return [Section("Sites", [text], Table(header, rows), [pictures["sites"]])]


def _fold_section(evaluations: Sequence[Evaluation]) -> list[Section]:
    if len(evaluations[0].by_fold) < 2:
        return []
    name, rows = evaluations[0].main_metric, []
    for folds in zip(*(each.by_fold for each in evaluations), strict=True):
        cells = [_number(fold.metrics[name], name) for fold in folds]
        rows.append([folds[0].name, folds[0].num_subjects, *cells])
    over = [each.over_folds[name] for each in evaluations]
    spread = [f"{_number(each['mean'], name)} ± {_number(each['std'], name)}" for each in over]
    rows.append(["mean ± standard deviation", "", *spread])
    text = "Folds share training subjects, so their standard deviation is not a standard error."
    header = ["fold", "subjects", *(f"{METRIC_NAMES[name]}, {each.method}" for each in evaluations)]
    return [Section("Folds", [text], Table(header, rows))]


def _method_section(first: Evaluation, about: Mapping[str, Any]) -> Section:
    settings = first.settings
    paragraphs = [
        f"Intervals are percentile bootstraps over subjects ({settings['num_bootstraps']:,} draws, seed "
        f"{settings['seed']}), with models and splits held fixed: they do not cover another training, split or cohort, "
        "and treat relatives as independent.",
        f"The p value of a method is one-sided, from {settings['num_permutations']:,} permutations of the true values "
        "within folds (Phipson & Smyth 2010). It tests whether predictions go with the label, for whatever reason: "
        "head motion, age or the scanner included.",
        "predictions.csv has a row for each subject: check the terms of the data before you share it.",
    ]
    software = ", ".join(f"{name} {number}" for name, number in _software().items())
    rows = [*([name, value] for name, value in about.items()), ["software", software]]
    return Section("Methods", paragraphs, Table(["setting", "value"], rows))


def _number(value: float, metric: str, sign: str = "") -> str:
    if not math.isfinite(value):
        return "undefined"
    if metric in ("mae", "mse", "intercept"):  # in the unit of the label: three significant digits
        decimals = min(max(2 - math.floor(math.log10(abs(value))), 0), 6) if value else 0
    else:
        decimals = 3 if metric == "brier" else 2
    return f"{value:{sign},.{decimals}f}".replace("-", "−")


def _interval(estimate: Estimate, metric: str, sign: str = "") -> str:
    text = _number(estimate.value, metric, sign)
    if not math.isfinite(estimate.low):
        return text
    return f"{text} ({_number(estimate.low, metric, sign)} to {_number(estimate.high, metric, sign)})"


def _p(value: float, before: str = "p = ") -> str:
    return f"{before}{value:.2g}" if math.isfinite(value) else "no p value"
