"""What an evaluation leaves behind: results.json, predictions.csv, and a page with pictures, index.html.

    write_results("results", [tablet, connectivity, mean_token])   # the method in question first, then baselines
    tablet, connectivity, mean_token = read_predictions("results/predictions.csv")

All methods are evaluated on the same subjects: those whom every one of them predicted.
"""

import csv
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.evaluation.resampling import predicted_classes
from tablet_hf.evaluation.statistics import (
    Comparison,
    Estimate,
    Evaluation,
    as_json,
    compare,
    evaluate_predictions,
)
from tablet_hf.files import atomic_write
from tablet_hf.sources.records import typed_value
from tablet_hf.version import __version__

__all__ = ["read_predictions", "write_predictions", "write_results"]

NO_BASELINE = (
    "No baseline stands beside this method. Functional connectivity with a linear model often does as well as a large "
    "model does, so what this result is worth is not known."
)
FIRST_COLUMNS = ("subject", "site", "fold")
PICTURES = ("methods", "confusion", "scatter", "roc", "calibration", "sites")
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "transformers")


def write_results(
    folder: str | Path,
    methods: Sequence[Predictions],
    baselines: Collection[str] | None = None,
    about: Mapping[str, Any] | None = None,
    num_bootstraps: int = 2000,
    num_permutations: int = 2000,
    seed: int = 0,
    remarks: Sequence[str] = (),
    are_held_out: bool = True,
) -> dict[str, Any]:
    """Judge methods on the subjects that all of them predicted, and write what came out.

    Args:
        folder: made where it is not there; results.json, predictions.csv, index.html and pictures in it are replaced.
        methods: the one in question first; each other is compared with it.
        baselines: names of those methods that are baselines; by default all but the first.
        about: what else a reader needs, such as model, store and split: kept in results.json and shown on the page.
        remarks: what else a reader must know before believing the numbers, a sentence each.
        are_held_out: whether no method trained on these subjects, which the page says.

    Returns:
        What stands in results.json.

    Raises:
        InputError: no method, two of one name, methods that predict different things, no one predicted by all, or
            what `evaluate_predictions` refuses.
    """
    folder = Path(folder)
    shared, left_out = _on_shared_people(methods)
    warnings = [*remarks, *left_out]
    evaluations = [evaluate_predictions(each, num_bootstraps, num_permutations, seed) for each in shared]
    comparisons = [compare(shared[0], other, num_bootstraps, seed) for other in shared[1:]]
    names = [each.method for each in methods]
    baselines = names[1:] if baselines is None else [name for name in names if name in baselines]
    if not baselines:
        warnings.append(NO_BASELINE)
    warnings += _notes(evaluations)
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
            "about": about or {},
            "software": _software(),
        }
    )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: this is a file; choose a folder for the results.")
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", methods)
    with atomic_write(folder / "results.json") as unfinished:
        unfinished.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _write_page(folder, shared, evaluations, comparisons, warnings, about or {}, are_held_out)
    return results


# --- the table of predictions


def write_predictions(path: str | Path, methods: Sequence[Predictions]) -> Path:
    """One row a subject and fold: who, where, the truth, and each method's prediction and scores.

    Columns: subject, site, fold, `true LABEL`, and of each method `METHOD: predicted LABEL` and, of classes,
    `METHOD: probability of CLASS`. A method that did not predict a subject has empty cells. Text that a spreadsheet
    would take for a formula has an apostrophe in front; `read_predictions` takes it away.
    """
    _check_methods(methods)
    first, path = methods[0], Path(path)
    label = first.label
    columns: list[str] = [*FIRST_COLUMNS, f"true {label}"]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for each in methods:
        predicted, scores = f"{each.method}: predicted {label}", _score_columns(each.method, each.classes)
        columns += [predicted, *scores]
        for place, key in enumerate(zip(each.subjects, each.folds, strict=True)):
            target, output = each.targets[place], each.outputs[place]
            row = rows.setdefault(key, {"subject": key[0], "site": each.sites[place], "fold": key[1]})
            row[f"true {label}"] = float(target) if each.is_regression else each.classes[target]
            if each.is_regression:
                row[predicted] = float(output)
            else:
                row |= dict(zip(scores, output.tolist(), strict=True))
        if not each.is_regression:
            numbers = predicted_classes(each.outputs)
            for number, key in zip(numbers, zip(each.subjects, each.folds, strict=True), strict=True):
                rows[key][predicted] = each.classes[number]
    with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(_cell, columns))
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows.values())
    return path


def read_predictions(path: str | Path) -> list[Predictions]:
    """Read what `write_predictions` wrote; numbers come back to the last bit.

    Classes that are written as whole numbers come back as int, True and False as bool, others as text.

    Raises:
        InputError: no such file, or not such a table.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [[_text_of(cell) for cell in row] for row in csv.reader(file) if row] or [[]]
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: it is no CSV file of predictions; give predictions.csv of an evaluation.") from error
    if tuple(header[:3]) != FIRST_COLUMNS or len(header) < 5 or not header[3].startswith("true "):
        raise InputError(f"{path}: it is no table of predictions; give predictions.csv of an evaluation.")
    if not rows or any(len(row) != len(header) for row in rows):
        raise InputError(f"{path}: it has no rows, or rows of another length than its first line; evaluate again.")
    label = header[3].removeprefix("true ")
    starts = [place for place, name in enumerate(header) if place > 3 and name.endswith(f": predicted {label}")]
    if not starts or starts[0] != 4:
        raise InputError(f"{path}: it has no column of a method's predicted {label}; evaluate again.")
    return [
        _method_in(path, label, header, rows, start, end)
        for start, end in zip(starts, [*starts[1:], len(header)], strict=True)
    ]


def _method_in(
    path: Path, label: str, header: Sequence[str], rows: Sequence[Sequence[str]], start: int, end: int
) -> Predictions:
    method = header[start].removesuffix(f": predicted {label}")
    names = [name.removeprefix(f"{method}: probability of ") for name in header[start + 1 : end]]
    is_regression = end == start + 1
    rows = [row for row in rows if row[start]]
    try:
        values = [row[start : start + 1] if is_regression else row[start + 1 : end] for row in rows]
        outputs = np.array([[float(cell) for cell in row] for row in values])
        targets = [float(row[3]) if is_regression else names.index(row[3]) for row in rows]
        return Predictions(
            method,
            label,
            None if is_regression else _typed_classes(names),
            tuple(row[0] for row in rows),
            np.array(targets, dtype=np.float64 if is_regression else np.int64),
            outputs[:, 0] if is_regression else outputs,
            tuple(row[1] or None for row in rows),
            tuple(row[2] for row in rows),
        )
    except (ValueError, IndexError) as error:
        raise InputError(
            f"{path}: what {method} predicts are not all numbers, or a true {label} is none of its classes; evaluate "
            "again."
        ) from error


def _score_columns(method: str, classes: Sequence[Any] | None) -> list[str]:
    return [f"{method}: probability of {name}" for name in classes or ()]


def _typed_classes(names: Sequence[str]) -> tuple[Any, ...]:
    if set(names) <= {"True", "False"}:
        return tuple(name == "True" for name in names)
    values = tuple(typed_value(name) for name in names)
    # Only what is written back as it was read is a number: not "01", and not 1.50.
    if all(not isinstance(value, str) and str(value) == name for value, name in zip(values, names, strict=True)):
        return values
    return tuple(names)


def _cell(value: Any) -> Any:
    """Spreadsheets run cells that begin so; an apostrophe makes them text (OWASP, CSV injection)."""
    if isinstance(value, str) and re.match(r"'*[=+\-@\t\r\n]", value):
        return f"'{value}"
    return value


def _text_of(cell: str) -> str:
    return cell[1:] if re.match(r"'+[=+\-@\t\r\n]", cell) else cell


# --- the subjects all methods are evaluated on


def _check_methods(methods: Sequence[Predictions]) -> None:
    if not methods:
        raise InputError("there are no predictions to judge; give those of one method at least.")
    names = [each.method for each in methods]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{twice[0]}: two methods have this name; give each its own.")
    first = methods[0]
    for each in methods[1:]:
        if (each.label, each.classes) != (first.label, first.classes):
            raise InputError(
                f"{each.method}: it predicts other things than {first.method}; all methods must predict one label with "
                "the same classes in the same order."
            )


def _on_shared_people(methods: Sequence[Predictions]) -> tuple[list[Predictions], list[str]]:
    """Each method on the subjects and folds that all have, in the order of the first; and who was left out."""
    _check_methods(methods)
    places = [{key: place for place, key in enumerate(zip(each.subjects, each.folds, strict=True))} for each in methods]
    shared = [key for key in places[0] if all(key in of_method for of_method in places)]
    if not shared:
        raise InputError("nobody was predicted by all methods; predict the same folds by each of them.")
    warnings = []
    for each, of_method in zip(methods, places, strict=True):
        if left_out := len(of_method) - len(shared):
            warnings.append(
                f"{left_out} of {len(of_method)} predictions of {each.method} are left out, since not all methods "
                "predicted these people; predictions.csv has them."
            )
    if any(len(of_method) < len(each) for each, of_method in zip(methods, places, strict=True)):
        return list(methods), warnings  # a subject stands twice, which evaluate_predictions refuses
    return [
        each.chosen([of_method[key] for key in shared]) for each, of_method in zip(methods, places, strict=True)
    ], warnings


def _notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """What was noted of each method, with its name where it is not true of all."""
    notes = dict.fromkeys(note for each in evaluations for note in each.notes)
    found = []
    for note in notes:
        noted = [each.method for each in evaluations if note in each.notes]
        found.append(note if len(noted) == len(evaluations) else f"{', '.join(noted)}: {note}")
    return found


def _software() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"tablet_hf": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# --- the page


def _write_page(
    folder: Path,
    methods: Sequence[Predictions],
    evaluations: Sequence[Evaluation],
    comparisons: Sequence[Comparison],
    warnings: Sequence[str],
    about: Mapping[str, Any],
    are_held_out: bool,
) -> Path:
    from tablet_hf.report import evaluation_pictures as pictures
    from tablet_hf.report.page import Picture, Section, Table, write_page
    from tablet_hf.report.pictures import save_figure

    first = evaluations[0]
    drawn = folder / "pictures"
    drawn.mkdir(exist_ok=True)
    for name in PICTURES:
        (drawn / f"{name}.png").unlink(missing_ok=True)  # of an older evaluation of another kind

    def picture(name: str, figure: Any, caption: str) -> Picture:
        return Picture(save_figure(figure, drawn / f"{name}.png"), caption)

    sections = [
        Section(
            "What came out",
            [*_verdict(evaluations, comparisons, are_held_out), *(f"Note: {warning}" for warning in warnings)],
            Table(*_metric_table(evaluations)),
            [
                picture(
                    "methods",
                    pictures.methods_figure(evaluations),
                    "Points are values on all people together, lines are 95% intervals over people. Dotted is what the "
                    "best constant guess reaches on these people.",
                )
            ],
        )
    ]
    if comparisons:
        sections.append(
            Section(
                f"{first.method} against the others",
                [
                    "Differences on the same people: each bootstrap draw is used for both methods. An interval that "
                    "holds 0 means that these people do not tell the two apart. The p value is two-sided: twice the "
                    "share of draws that say otherwise than most. Nothing is corrected for the number of comparisons."
                ],
                Table(*_comparison_table(comparisons)),
            )
        )
    if first.classes is None:
        sections.append(
            Section(
                "True and predicted values",
                [
                    "Slope and intercept are those of the true value on the predicted one: 1 and 0 where predictions "
                    "can be taken at their word, a slope under 1 where they say more than they know."
                ],
                Table(*_calibration_table(evaluations)),
                [
                    picture(
                        "scatter",
                        pictures.scatter_figure(methods, evaluations),
                        "A point is a person in a fold. Dotted: prediction and truth are the same.",
                    )
                ],
            )
        )
    else:
        sections += [
            Section(
                "Who was taken for what",
                pictures=[
                    picture(
                        "confusion",
                        pictures.confusion_figure(evaluations),
                        "Counts, and percent of those who truly are of the class (a row sums to 100%).",
                    ),
                    picture(
                        "roc",
                        pictures.roc_figure(methods, evaluations),
                        "What share of each class is found, at each share of false alarms.",
                    ),
                ],
            ),
            Section(
                "Can probabilities be taken at their word?",
                [
                    "Entries are sorted by their predicted probability and cut into bins of equally many. The "
                    "expected calibration error is the mean distance of a bin from the diagonal. With few subjects it "
                    "is never 0, even if all probabilities are right."
                ],
                Table(*_calibration_table(evaluations)),
                [
                    picture(
                        "calibration",
                        pictures.reliability_figure(methods, evaluations),
                        "Above: how often predictions came true, with exact 95% intervals. Below: how many entries "
                        "have which probability.",
                    )
                ],
            ),
        ]
    if first.by_site:
        sections.append(
            Section(
                "By site",
                [
                    "The same people, site by site. A method that only knows the site does well on all people "
                    "together wherever sites differ in the label, and not within a site."
                ],
                Table(*_site_table(evaluations)),
                [
                    picture(
                        "sites",
                        pictures.sites_figure(evaluations),
                        f"{pictures.METRIC_NAMES[first.main_metric]} of the people of each site.",
                    )
                ],
            )
        )
    if len(first.by_fold) > 1:
        sections.append(
            Section(
                "By fold",
                [
                    "Means and standard deviations over folds. Folds share most of the people that they learnt from, "
                    "so the standard deviation is no standard error of anything."
                ],
                Table(*_fold_table(evaluations)),
            )
        )
    sections.append(Section("How this was computed", _method_paragraphs(first), Table(*_about_table(about))))
    return write_page(folder / "index.html", f"Prediction of {first.label}", sections)


def _verdict(evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison], are_held_out: bool) -> list[str]:
    """What a hurried reader shall know, as it came out."""
    first = evaluations[0]
    name = _name(first.main_metric)
    chance = first.chance[first.main_metric]
    sentences = [
        f"{each.method}: {name} {_interval(each.main, first.main_metric)}, {_p(each.p_value)}; chance is "
        f"{_figure_text(chance, first.main_metric)}."
        for each in evaluations
    ]
    people = f"Predicted: {first.label} of {first.num_subjects} people"
    people += ", none of whom the models had learnt from." if are_held_out else "."
    against = []
    for each in comparisons:
        main = each.main
        if not math.isfinite(main.low):
            word = "which cannot be judged"
        elif main.low > 0:
            word = "so it does better"
        elif main.high < 0:
            word = "so it does worse"
        else:
            word = "so these people do not tell the two apart"
        against.append(
            f"Against {each.second}, the {name} of {each.first} differs by {_interval(main, each.main_metric, True)}, "
            f"{_p(each.p_value)}: {word}."
        )
    return [people, *sentences, *against]


def _metric_table(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    first = evaluations[0]
    header = ["method", *(_name(name) for name in first.metrics), f"p of {_name(first.main_metric)}"]
    rows = [
        [each.method, *(_interval(value, name) for name, value in each.metrics.items()), _p(each.p_value, "")]
        for each in evaluations
    ]
    guess = [_figure_text(first.chance[name], name) if name in first.chance else "" for name in first.metrics]
    return header, [*rows, ["best constant guess", *guess, ""]]


def _comparison_table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    names = list(comparisons[0].metrics)
    rows = [
        [
            f"{each.first} − {each.second}",
            *(_interval(each.metrics[name], name, True) for name in names),
            _p(each.p_value, ""),
        ]
        for each in comparisons
    ]
    return ["difference", *map(_name, names), f"p of {_name(comparisons[0].main_metric)}"], rows


def _calibration_table(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    first = evaluations[0]
    header = ["method", *(_name(name) for name in first.calibration)]
    rows = [
        [each.method, *(_interval(value, name) for name, value in each.calibration.items())] for each in evaluations
    ]
    if first.classes is None:
        return header, rows
    return header, [*rows, ["best constant guess", _figure_text(first.chance["brier"], "brier"), ""]]


def _site_table(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    name = evaluations[0].main_metric
    rows = []
    for place, site in enumerate(evaluations[0].by_site):
        there = [each.by_site[place] for each in evaluations]
        cells = [_interval(each.metrics[name], name) if name in each.metrics else "" for each in there]
        rows.append([site.name or "not known", str(site.num_subjects), *cells, site.note])
    return ["site", "people", *(f"{_name(name)}, {each.method}" for each in evaluations), "note"], rows


def _fold_table(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    name = evaluations[0].main_metric
    rows = []
    for place, fold in enumerate(evaluations[0].by_fold):
        values = [each.by_fold[place].metrics[name] for each in evaluations]
        rows.append([fold.name, str(fold.num_subjects), *(_figure_text(value, name) for value in values)])
    over = [each.over_folds[name] for each in evaluations]
    rows.append(["mean ± standard deviation", "", *(_mean_and_std(each, name) for each in over)])
    return ["fold", "people", *(f"{_name(name)}, {each.method}" for each in evaluations)], rows


def _mean_and_std(over: Mapping[str, float], name: str) -> str:
    text = f"{_figure_text(over['mean'], name)} ± {_figure_text(over['std'], name)}"
    return f"{text} ({over['num_folds']} folds)"


def _method_paragraphs(first: Evaluation) -> list[str]:
    settings = first.settings
    return [
        f"Each person counts once in a fold. Intervals are percentile bootstraps: people were drawn "
        f"{settings['num_bootstraps']:,} times with replacement, each with all entries, and the middle 95% of the "
        "draws is the interval. Models and splits are held fixed, so an interval does not tell how another training, "
        "another split or another cohort would come out; relatives count as if they were strangers.",
        f"The p value is one-sided: {settings['num_permutations']:,} times people exchanged their true values with "
        "others who stood in the same folds, and it is the share of exchanges, the truth counted in, that suit the "
        "predictions as well (Phipson & Smyth 2010). It says whether the predictions go with the label at all, not "
        "why: head motion, age or the scanner may do it.",
        f"The seed is {settings['seed']}. Figures of all methods are in results.json, what each said of everybody in "
        "predictions.csv; that table tells of single people, so mind the terms of the data before passing it on.",
    ]


def _about_table(about: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    versions = ", ".join(f"{name} {number}" for name, number in _software().items())
    return ["what", "is"], [*([str(name), str(value)] for name, value in about.items()), ["software", versions]]


# --- words


def _name(metric: str) -> str:
    from tablet_hf.report.evaluation_pictures import METRIC_NAMES

    return METRIC_NAMES[metric]


def _figure_text(value: float, metric: str, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "not defined"
    sign = "+" if signed else ""
    if metric in ("mae", "mse", "intercept"):  # in units of their own
        decimals = min(max(2 - math.floor(math.log10(abs(value))), 0), 6) if value else 0
    else:
        decimals = 3 if metric == "brier" else 2
    return f"{value:{sign},.{decimals}f}".replace("-", "−")


def _interval(estimate: Estimate, metric: str, signed: bool = False) -> str:
    text = _figure_text(estimate.value, metric, signed)
    if not math.isfinite(estimate.low):
        return text
    low, high = (_figure_text(end, metric, signed) for end in (estimate.low, estimate.high))
    return f"{text} ({low} to {high})"


def _p(value: float, before: str = "p = ") -> str:
    return f"{before}{value:.2g}" if math.isfinite(value) else "no p value"
