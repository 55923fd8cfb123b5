"""What is published of subjects: pseudonyms, and an allow-list of what is written of a run.

runs = published_runs(store, Pseudonyms.next_to("STORE"), ["sex", "age"])
export_parquet(store, "to-upload", published=runs)
"""

import hashlib
import hmac
import json
import math
import os
import re
import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tablet_hf.datasets.export import without_paths
from tablet_hf.datasets.split_files import DELIMITERS, read_splits, write_splits
from tablet_hf.datasets.splits import Split, subject_ids
from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import IDENTITY, SPLITS_FOLDER, StoredRun, file_of_key
from tablet_hf.errors import InputError
from tablet_hf.hub.training_data import UNNAMED
from tablet_hf.sources.records import store_key

__all__ = ["Pseudonyms", "holds_ages", "publish_splits", "published_classes", "published_runs", "published_study"]

OLDEST = 90
"""Ages of 90 and over are one category: safe harbour of the US privacy rule, 45 CFR 164.514(b)(2)(i)(C)."""
MOST_CATEGORIES = 20
FIRST_IDENTIFIER = 10_000
"""Numbers from here on can be identifiers, phone numbers, or dates as spreadsheets and UK Biobank write them."""
# A category has one line, few signs, and neither an e-mail address, a path, a date nor a long number.
CATEGORY = re.compile(r"[\w<>=+-][\w <>=+.,()&%'/-]{0,39}")
NO_CATEGORY = re.compile(r"\d{4}|/.*/|\d[./-]\d+[./-]\d|(?<!\d)\d{1,2}[ .-]{1,2}[^\W\d_]{3,9}[ .-]{1,2}\d\d")
# Names of columns and studies, and labels of tasks and runs, which are published as they are.
NAME = re.compile(r"(?!.*(?:\d{6}|\d{4}-\d\d-\d\d))[\w .,+()%-]{1,60}")
PLAIN_LABEL = re.compile(r"[A-Za-z]{1,24}\d{0,2}|\d{1,3}")
# 21003 is UK Biobank's field of the age at a visit.
AGE = re.compile(r"(?:ages?(?:(?:in|at)?(?:y(?:ea)?rs?|months?|mos?|weeks?|wks?|days?))?|21003)")
FINER_THAN_YEARS = re.compile(r"month|week|day|(?:^|_)(?:mos?|wks?)(?:_|$)|agemo|agewk|interview", re.IGNORECASE)
SITE = re.compile(r"cent(?:er|re)s?|city|clinic|hospital|institut(?:e|ion)|scanner|sites?")


class Pseudonyms:
    """Names for subjects that depend on a secret salt, since all subject ids of seven digits can be tried.

    Args:
        salt: at least 16 random bytes.
    """

    def __init__(self, salt: bytes):
        if len(salt) < 16:
            raise ValueError(f"a salt has at least 16 bytes, not {len(salt)}.")
        self._salt = salt

    @classmethod
    def next_to(cls, store: Path) -> "Pseudonyms":
        """Pseudonyms of a store; their salt is `STORE.salt` next to its folder, made if it does not exist.

        Raises:
            InputError: a file of that name that is not a salt.
        """
        path = store.resolve().with_name(store.resolve().name + ".salt")
        # Readable by its owner only, and never over one that another process made meanwhile.
        with suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        try:
            return cls(bytes.fromhex(path.read_text(encoding="ascii")))
        except (ValueError, OSError) as error:
            raise InputError(
                f"{path}: not a salt of pseudonyms; restore it, or delete it to give all subjects new pseudonyms."
            ) from error

    def of(self, *words: str | None) -> str:
        """`p` and 16 hexadecimal digits."""
        return f"p{hmac.new(self._salt, json.dumps(words).encode(), hashlib.sha256).hexdigest()[:16]}"

    def numbered(self, labels: Sequence[Any]) -> list[str | None]:
        """`site-1`, `site-2`, ... for labels of sites, in an order that depends on the salt; None stays None."""
        ordered = sorted(set(labels) - {None}, key=lambda label: self.of("site", str(label)))
        return [None if label is None else f"site-{ordered.index(label) + 1}" for label in labels]


def published_runs(
    store: TokenDataset, pseudonyms: Pseudonyms, phenotypes: Collection[str] = (), keep_subjects: bool = False
) -> list[StoredRun]:
    """The runs of a store as they are published, in the order of the store.

    Subjects have pseudonyms and sites have numbers; the sessions of a subject are numbered in the order of their
    labels. Nothing of the source's files is written.

    Args:
        store: the store.
        pseudonyms: of this store.
        phenotypes: names of the columns to publish; "family" publishes pseudonyms of families.
        keep_subjects: whether to keep the subject ids, of open data only.

    Raises:
        InputError: a column that does not exist or may not be published; subject ids of restricted data.
    """
    if keep_subjects and store.settings["is_restricted"]:
        raise InputError(f"{store.folder}: its data are restricted; leave out --keep-subjects.")
    columns = {name: _published_column(store, name, pseudonyms) for name in phenotypes if name != "family"}
    labels = {name: _numbered(store.runs, name) for name in ("session", "task", "run")}
    labels["site"] = pseudonyms.numbered([run.site for run in store.runs])
    runs: list[StoredRun] = []
    for index, run in enumerate(store.runs):
        has_family = run.family is not None and "family" in phenotypes
        made = without_paths(run.made.get("tokens", {}))
        published = replace(
            run,
            **{name: numbers[index] for name, numbers in labels.items()},
            dataset=run.dataset and published_study(run.dataset),
            subject=run.subject if keep_subjects else pseudonyms.of(run.dataset, run.subject),
            family=pseudonyms.of(run.dataset, "family", run.family) if has_family else None,
            # A checksum without the salt would identify the scan.
            scan={"sha256": pseudonyms.of("scan", json.dumps(run.scan, sort_keys=True))},
            made={"tokens": {name: made[name] for name in (*IDENTITY, "dtype") if name in made}},
            companions=None,
            phenotypes={name: values[index] for name, values in columns.items()},
        )
        key = store_key(published)
        runs.append(replace(published, key=key, file=file_of_key(key).as_posix()))
    if len({run.key for run in runs}) < len(runs):
        raise InputError(f"{store.folder}: two of its runs have the same labels when published; tokenize them apart.")
    return runs


def _numbered(runs: Sequence[StoredRun], name: str) -> list[str | None]:
    """The labels of one kind as 1, 2, ... within a subject, in their order; plain labels of tasks and runs stay."""
    labels = [getattr(run, name) for run in runs]
    if name != "session" and all(PLAIN_LABEL.fullmatch(label or "1") for label in labels):
        return labels
    pairs = list(zip(subject_ids(runs), labels, strict=True))
    own: dict[str, set[str]] = {subject: set() for subject, _ in pairs}
    for subject, label in pairs:
        if label:
            own[subject].add(label)
    return [str(sorted(own[subject]).index(label) + 1) if label else None for subject, label in pairs]


def _published_column(store: TokenDataset, name: str, pseudonyms: Pseudonyms) -> list[Any]:
    """The values of a phenotype as they are published, run by run.

    Raises:
        InputError: no such phenotype, or values that may not be published.
    """
    if name not in (kinds := store.phenotype_types()):
        raise InputError(f"{store.folder}: no phenotype {name!r}; it has {', '.join(sorted(kinds)) or 'none'}.")
    values = [run.phenotypes.get(name) for run in store.runs]
    if holds_sites(name):
        return pseudonyms.numbered(values)
    found = {(run.dataset, run.subject, value) for run, value in zip(store.runs, values, strict=True)}
    if fault := _fault_of_column(name, [(who, value) for _, who, value in found if value is not None]):
        raise InputError(f"{store.folder}: the phenotype {name!r} is not published: {fault}.")
    return list(map(_in_whole_years, values)) if holds_ages(name) else values


def _fault_of_column(name: str, found: Sequence[tuple[str, Any]]) -> str | None:
    """Why a column may not be published: it must hold numbers or categories, neither dates nor identifiers.

    Args:
        name: of the column.
        found: subjects and their values, each pair once.
    """
    times = Counter(value for _, value in found if isinstance(value, str))
    numbers = [value for _, value in found if not isinstance(value, str | bool)]
    if not NAME.fullmatch(name):
        return "its name could be a date, an identifier or a path"
    if sum(str(value).lstrip("0") == who.lstrip("0") for who, value in found) > len(found) / 2:
        return "it holds subject ids"
    if not all(map(_is_category, times)):
        return "it holds dates, identifiers, addresses or long texts"
    if len(times) > MOST_CATEGORIES or min(times.values(), default=2) < 2:
        return f"a category must be shared by two subjects, and {MOST_CATEGORIES} categories are the most"
    if any(abs(number) >= FIRST_IDENTIFIER for number in numbers):
        return f"numbers from {FIRST_IDENTIFIER:,} on can be dates or identifiers; use another unit"
    if numbers and all(1900 <= number <= 2100 for number in numbers):
        return "it holds years"
    if holds_ages(name) and numbers and (FINER_THAN_YEARS.search(name) or not 0 <= min(numbers) <= max(numbers) <= 130):
        return "ages must be in years"
    return None


def _is_category(text: str) -> bool:
    return bool(CATEGORY.fullmatch(text)) and not NO_CATEGORY.search(text)


def holds_sites(name: str) -> bool:
    """Whether a phenotype of this name is a site."""
    return any(map(SITE.fullmatch, _words(name)))


def holds_ages(name: str) -> bool:
    """Whether a phenotype of this name is an age."""
    return any(map(AGE.fullmatch, _words(name)))


def _words(name: str) -> set[str]:
    """The words in the name of a column, in lower case: Age_in_Yrs is {"age", "in", "yrs"}."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)}


def _in_whole_years(age: Any) -> Any:
    """The same type, so that the column keeps its own; a category such as "26-30" stays."""
    is_number = isinstance(age, int | float) and not isinstance(age, bool)
    return type(age)(min(math.floor(age), OLDEST)) if is_number else age


def published_classes(label: str, classes: Sequence[str]) -> list[str]:
    """The names of a model's classes as they are published; sites are numbered.

    Raises:
        InputError: names that could be dates, identifiers or paths.
    """
    if holds_sites(label):
        return [f"site-{number}" for number in range(1, len(classes) + 1)]
    if not NAME.fullmatch(label) or not all(map(_is_category, classes)):
        raise InputError(f"{label[:40]!r}: it or its classes could be dates, identifiers or paths; rename them.")
    return list(classes)


def published_study(name: str) -> str:
    """The name of a study, unless it could be a date, an identifier or a path."""
    return name if NAME.fullmatch(name) else UNNAMED


def publish_splits(store: TokenDataset, runs: Sequence[StoredRun], folder: str | Path) -> None:
    """Write the splits of a store for `runs` of `published_runs`, without the settings that they were made with.

    The files are called splits-1.csv, splits-2.csv, ... in `folder`; splits of one site have its number.
    """
    subjects = dict(zip(subject_ids(store.runs), subject_ids(runs), strict=True))
    sites = {f"site-{run.site}": other.site for run, other in zip(store.runs, runs, strict=True) if run.site}
    source = store.folder / SPLITS_FOLDER
    files = [path for path in sorted(source.glob("*")) if path.suffix.lower() in DELIMITERS]
    for number, path in enumerate(files, 1):
        splits = []
        for index, split in enumerate(read_splits(path, runs=store.runs), 1):
            name = sites.get(split.name) or f"split-{index}"
            if re.fullmatch(r"split|fold-\d{1,3}", split.name):
                name = split.name
            parts = {subjects[subject]: part for subject, part in split.assignment.items()}
            left_out = tuple(subjects[subject] for subject in split.left_out)
            splits.append(Split(name, parts, split.seed, {}, left_out))
        write_splits(splits, Path(folder) / SPLITS_FOLDER / f"splits-{number}.csv")
