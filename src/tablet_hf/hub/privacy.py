"""What may leave a machine: who may publish what, other names for subjects, and a look at every file before it is sent.

Terms of HCP and UK Biobank forbid passing on what concerns single subjects, and tokens concern them, since scans can be
decoded from them. Nothing here can decide whether somebody has the right to share; it asks, and writes down what was
said. What it can do is to leave behind what no one else needs, and to look for the rest.
"""

import hashlib
import hmac
import json
import math
import os
import re
import secrets as random_secrets
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import StoredRun, file_of_key
from tablet_hf.errors import InputError
from tablet_hf.hub.training_data import TRAINING_DATA_FILE
from tablet_hf.sources.records import store_key

__all__ = [
    "Pseudonyms",
    "Secrets",
    "check_may_be_published",
    "find_leaks",
    "holds_ages",
    "leaks_of_words",
    "people_alone",
    "published_runs",
    "sounds_restricted",
]

# --- who may publish what


def check_may_be_published(
    what: str, kind: str, is_restricted: bool | None, is_private: bool, right: str | None
) -> None:
    """Refuse what the terms of the data forbid, or may forbid.

    Args:
        what: the path, for the sentence.
        kind: "model", "autoencoder" or "dataset".
        is_restricted: whether the terms of the data forbid passing on what concerns single subjects; None where it is
            not known.
        is_private: whether only its owner will see the repository.
        right: why it may be shared all the same, in words of whoever shares it.

    Raises:
        InputError: restricted tokens in public; anything restricted without a right; in public, what comes of data
            whose terms are not known.
    """
    if right is not None and len(right.split()) < 3:
        raise InputError(
            '--i-have-the-right-to-share: say in a sentence what gives you the right, such as "Our data use agreement '
            'with the consortium names this project"; it will stand in the card.'
        )
    if is_restricted and right is None:
        raise InputError(
            f"{what}: {'its tokens' if kind == 'dataset' else 'it'} come{'' if kind == 'dataset' else 's'} of data "
            "whose terms forbid passing on what concerns single people (such as HCP and UK Biobank); if you have the "
            'right to share it, say what gives it to you with --i-have-the-right-to-share "...".'
        )
    if is_restricted and not is_private and kind == "dataset":
        raise InputError(
            f"{what}: tokens of restricted data are never published for everybody, since scans can be decoded from "
            "them; leave out --public."
        )
    if is_restricted is None and not is_private and (right is None or kind == "dataset"):
        by_name = "name them with --dataset STORE, " if kind == "model" else ""
        raise InputError(
            f"{what}: it is not recorded whether the terms of its data forbid passing on what concerns single people, "
            f"so whether it may be public is not known; {by_name}say --source-open or --source-restricted, or leave "
            "out --public."
        )


# Names that sources give to studies which everyone may have. Not HBN, whose phenotypes have terms that its scans lack.
OPEN_STUDIES = frozenset({"ADHD-200"})


def sounds_restricted(datasets: Iterable[str | None]) -> str | None:
    """The first name of a study that is known to forbid passing on, whichever way its scans came here."""
    pattern = r"(?<![a-z])(?:hcp|human ?connectome|ukb|uk[ _-]?biobank|(?:abcd|adni)(?![a-z]))"
    return next((name for name in datasets if name and re.search(pattern, name, re.IGNORECASE)), None)


# --- other names for subjects


class Pseudonyms:
    """Names for subjects that say nothing to those without the salt, and are the same whenever it is the same.

    A checksum alone would not do: who knows that subjects are numbers of seven digits has tried them all in a minute.

    Args:
        salt: at least 16 random bytes.
    """

    def __init__(self, salt: bytes):
        if len(salt) < 16:
            raise ValueError(f"a salt has at least 16 bytes, not {len(salt)}.")
        self._salt = salt

    @classmethod
    def beside(cls, store: Path) -> "Pseudonyms":
        """Those of a store: their salt is next to its folder as `STORE.salt`, and is made where there is none yet.

        Raises:
            InputError: a file of that name that is no salt.
        """
        store = store.resolve()
        path = store.with_name(store.name + ".salt")
        try:
            # Only for its owner, and never over one that another process made meanwhile.
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            try:
                return cls(bytes.fromhex(path.read_text(encoding="ascii").strip()))
            except (ValueError, OSError) as error:
                raise InputError(
                    f"{path}: it is no salt of pseudonyms; restore it, or delete it to give everybody new names."
                ) from error
        with os.fdopen(handle, "w", encoding="ascii") as file:
            salt = random_secrets.token_bytes(32)
            file.write(salt.hex() + "\n")
        return cls(salt)

    def of(self, *words: str | None) -> str:
        """`p` and 16 hexadecimal digits."""
        message = json.dumps(words).encode()
        return f"p{hmac.new(self._salt, message, hashlib.sha256).hexdigest()[:16]}"


# --- what of a store goes along

# As many different texts are a category, more are what somebody wrote.
MOST_CATEGORIES, LONGEST_CATEGORY = 20, 40
# Names of columns that hold what leads to a subject, or what was written about one.
# fmt: off
TELLING_NAMES = frozenset((
    "address", "birth", "birthdate", "birthday", "comment", "comments", "date", "dates", "day", "description",
    "diary", "dob", "eid", "email", "file", "filename", "free", "guid", "id", "ids", "initials", "mrn", "name",
    "names", "note", "notes", "participant", "path", "phone", "postcode", "remark", "remarks", "sub", "subject",
    "text", "time", "uuid", "yob", "zip",
))
PLACE_NAMES = frozenset((
    "center", "centers", "centre", "centres", "city", "clinic", "hospital", "institute", "institution", "site", "sites",
))
# fmt: on
# 21003 is UK Biobank's field of the age at a visit; agedays is written as one word.
AGE_NAME = re.compile(r"ages?(?:(?:in|at)?(?:years?|yrs?|months?|mos?|weeks?|wks?|days?|scan|visit|test))?|21003")
FINER_THAN_YEARS = re.compile(r"(?:age(?:in)?)?(?:months?|mos?|weeks?|wks?|days?)")
# "Age in months at the time of the interview": the data dictionary of the NIMH Data Archive.
AGE_IN_MONTHS = frozenset({"interview", "age"})
# "All ages over 89 [...] may be aggregated into a single category of age 90 or older": the safe harbour of the US
# privacy rule for health data, 45 CFR 164.514(b)(2)(i)(C).
OLDEST_TOLD, OLDEST = 90, 130
LABELS_OF = {name: f"labels of {name}s" for name in ("session", "task", "run", "site")}
LABELS = frozenset(LABELS_OF.values())


def published_runs(
    store: TokenDataset,
    pseudonyms: Pseudonyms,
    phenotypes: Collection[str] | None = None,
    keep_subjects: bool = False,
    *,
    without: Collection[str] = (),
    keep_sites: bool = False,
    exact_ages: bool = False,
) -> tuple[list[StoredRun], dict[str, str]]:
    """The runs of a store as others may see them, in the order of the store.

    Subjects, families and runs get other names; sites are called site-1, site-2 and so on; sessions, tasks and runs
    whose labels are no plain ones get other names too. Of phenotypes go along numbers and categories, but neither
    dates, nor numbers that tell a subject, nor texts; ages in whole years, and as 90 from 90 on. Of restricted data
    none goes along unless it is named.

    Args:
        store: the store.
        pseudonyms: the other names.
        phenotypes: which go along; None for all that may.
        keep_subjects: subjects and families keep the names that they have, of data that are open.
        without: phenotypes that stay behind, "family" too.
        keep_sites: sites whose labels are plain words keep these.
        exact_ages: ages go along as they are, of data that are open.

    Returns:
        The runs, and of each phenotype or label that is left out why.

    Raises:
        InputError: a phenotype that the store does not have, or that tells of single subjects though it was asked for;
            names of subjects or exact ages are to be kept, though the data are restricted.
    """
    is_restricted = bool(store.settings["is_restricted"])
    if is_restricted and keep_subjects:
        raise InputError(
            f"{store.folder}: its data are restricted; people do not keep their names; leave out --keep-subjects."
        )
    if is_restricted and exact_ages:
        raise InputError(f"{store.folder}: its data are restricted; ages go in whole years; leave out --exact-ages.")
    kinds = store.phenotype_types()
    if unknown := sorted({*(phenotypes or ()), *without} - {*kinds, "family"}):
        known = ", ".join(sorted(kinds)) or "none"
        raise InputError(f"{store.folder}: it has no phenotype {unknown[0]!r}; there are {known}.")
    left_out, kept = {}, []
    for name in kinds:
        is_named = name in (phenotypes or ())
        why = _why_left_out(store, name, is_named, keep_sites, exact_ages)
        if name in without:
            why = why or "it was not wanted"
        elif phenotypes is not None and name not in phenotypes:
            why = why or "it was not asked for"
        elif phenotypes is not None and why is not None:
            raise InputError(
                f"{store.folder}: the phenotype {name!r} is not sent: {why}; leave it out of --phenotypes."
            )
        elif phenotypes is None and is_restricted:
            why = why or "the data are restricted; --phenotypes sends it along"
        if why is None:
            kept.append(name)
        else:
            left_out[name] = why
    labels = {name: _Labels(store.runs, name) for name in LABELS_OF if name != "site"}
    labels["site"] = _Labels(store.runs, "site") if keep_sites else _Numbered(store.runs, "site", pseudonyms)
    keeps_families = (not is_restricted or "family" in (phenotypes or ())) and "family" not in without
    in_years = set() if exact_ages else {name for name in kept if holds_ages(name)}
    runs = []
    for run in store.runs:
        told = {name: label.of(getattr(run, name), pseudonyms) for name, label in labels.items()}
        if not keep_subjects:
            told |= {"subject": pseudonyms.of(run.dataset, run.subject)}
            family = pseudonyms.of(run.dataset, "family", run.family) if run.family is not None else None
            told |= {"family": family if keeps_families else None}
        made = {name: value for name, value in run.made.items() if name in _MADE}
        scan = json.dumps(run.scan, sort_keys=True)
        # A bare checksum of what is known elsewhere would lead back to it.
        mark = pseudonyms.of("scan", scan)
        published = replace(
            run,
            **told,
            scan={"sha256": mark},
            made=made,
            companions=None,
            phenotypes={
                name: _in_whole_years(run.phenotypes.get(name)) if name in in_years else run.phenotypes.get(name)
                for name in kept
            },
        )
        key = store_key(published)
        runs.append(replace(published, key=key, file=file_of_key(key).as_posix()))
    if twice := len(runs) - len({run.key for run in runs}):
        raise InputError(f"{store.folder}: {twice} of its runs would be called as others are; give runs plain labels.")
    for name, label in labels.items():
        if label.is_renamed:
            left_out[LABELS_OF[name]] = label.why
    return runs, left_out


def holds_ages(name: str) -> bool:
    """Whether a phenotype of this name is subjects' age."""
    return any(map(AGE_NAME.fullmatch, _words(name)))


def _words(name: str) -> set[str]:
    """Of the name of a column, in lower case: Age_in_Yrs is {"age", "in", "yrs"}."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)}


def _in_whole_years(age: Any) -> Any:
    """The same type, so that the column keeps its own; a group such as "26-30" is one already."""
    is_number = isinstance(age, int | float) and not isinstance(age, bool)
    return type(age)(min(math.floor(age), OLDEST_TOLD)) if is_number else age


def people_alone(runs: Sequence[StoredRun]) -> tuple[int, list[str]]:
    """How many subjects are the only ones with their site and phenotypes, and what of these is reported.

    Whoever knows as much of somebody finds them, whatever name they have here.
    """
    told: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for run in runs:
        told.setdefault((run.dataset, run.subject), (run.dataset, run.site, *sorted(run.phenotypes.items())))
    times = Counter(told.values())
    names = sorted({name for run in runs for name in run.phenotypes})
    if any(run.site is not None for run in runs):
        names.insert(0, "site")
    return sum(times[each] == 1 for each in told.values()) if names else 0, names


_MADE = ("tokens", "software", "space", "voxel_size", "shape", "is_resampled", "mask", "encoder")


class _Labels:
    """The labels of one kind: plain words that many share go along, others get names of their own."""

    why = "some are no plain ones and get other names"
    PLAIN = r"[A-Za-z][A-Za-z_ -]{0,23}\d{0,3}[A-Za-z]{0,8}\d{0,2}|\d{1,3}"

    def __init__(self, runs: Sequence[StoredRun], name: str):
        labels = {getattr(run, name) for run in runs} - {None}
        people = {run.subject for run in runs}
        is_few = len(labels) <= max(MOST_CATEGORIES, len(people) // 2)
        self._kept = {label for label in labels if is_few and self._is_plain(label, people)}
        self.is_renamed = self._kept < labels

    def _is_plain(self, label: str, people: Collection[str]) -> bool:
        if not re.fullmatch(self.PLAIN, label) or any(_faults_of_text(label)) or DATE_IN_A_CELL.search(label):
            return False
        return not any(len(subject) > 3 and subject.lower() in label.lower() for subject in people)

    def of(self, label: str | None, pseudonyms: Pseudonyms) -> str | None:
        if label is None or label in self._kept:
            return label
        return pseudonyms.of("label", label)[:9]


class _Numbered:
    """The labels of one kind get numbers, in an order that the salt decides."""

    why = "they are numbered; --keep-sites sends them as they are"

    def __init__(self, runs: Sequence[StoredRun], name: str, pseudonyms: Pseudonyms):
        labels = sorted({getattr(run, name) for run in runs} - {None}, key=lambda label: pseudonyms.of(name, label))
        self._names: dict[str | None, str | None] = {label: f"{name}-{place}" for place, label in enumerate(labels, 1)}
        self.is_renamed = bool(labels)

    def of(self, label: str | None, pseudonyms: Pseudonyms) -> str | None:
        return self._names.get(label)


def _why_left_out(
    store: TokenDataset, name: str, is_named: bool, keep_sites: bool = False, exact_ages: bool = False
) -> str | None:
    words = _words(name)
    if not is_named and (telling := {word for word in words if word in TELLING_NAMES or word.endswith("date")}):
        return f"columns called {min(telling)} lead to people"
    by_person = {(run.dataset, run.subject): run.phenotypes.get(name) for run in store.runs}
    values = [value for value in by_person.values() if value is not None]
    different = set(values)
    people = {run.subject.lstrip("0") for run in store.runs if len(run.subject) > 3}
    if {str(value).lstrip("0") for value in different} & people:
        return "it holds names of people"
    texts = [value for value in different if isinstance(value, str)]
    if holds_ages(name) and not exact_ages and not texts:
        is_finer = words >= AGE_IN_MONTHS or any(map(FINER_THAN_YEARS.fullmatch, words))
        if is_finer or not all(0 <= value <= OLDEST for value in different):
            return "it holds ages that are not in years; --exact-ages sends ages as they are"
    if words & PLACE_NAMES and not keep_sites and not is_named:
        return "it tells where people were scanned; --keep-sites sends it along"
    if texts:
        if any(fault for text in texts for fault in _faults_of_text(text)) or any(map(DATE_IN_A_CELL.search, texts)):
            return "it holds dates, paths or addresses"
        if len(different) > min(MOST_CATEGORIES, max(2, len(values) // 2)):
            return f"it has {len(different)} different texts of {len(values)} people, and may be what somebody wrote"
        if any(len(text) > LONGEST_CATEGORY for text in texts):
            return "it holds sentences"
        if not is_named and _are_of_single_people(values, num_subjects=len(by_person)):
            return "it has words of one person alone, and may be what somebody wrote; --phenotypes sends it along"
    whole = [value for value in different if isinstance(value, int | float) and float(value).is_integer()]
    if whole and len(whole) == len(different):
        if all(_is_day(int(value)) for value in whole):
            return "it holds dates"
        if len(values) > 2 and len(different) == len(values) and min(map(abs, whole)) >= 10_000:
            return "it has another long number for everybody, which tells who it is"
    return None


def _are_of_single_people(values: Sequence[Any], num_subjects: int) -> bool:
    """Whether texts, of those subjects who have one, are more than the names of groups: several words of one subject,
    or texts that are another for each of a few."""
    times = Counter(value for value in values if isinstance(value, str))
    alone = [text for text, number in times.items() if number == 1]
    return any(len(text.split()) > 1 for text in alone) or (len(alone) == len(values) < num_subjects)


def _is_day(number: int) -> bool:
    """Whether a number is a day as 20190304, or a moment in seconds since 1970 after 1990."""
    is_day = 1900 <= number // 10_000 <= 2100 and 1 <= number // 100 % 100 <= 12 and 1 <= number % 100 <= 31
    return is_day or 631_152_000 <= number <= 4_102_444_800


# --- what must not be in any file


@dataclass(frozen=True)
class Secrets:
    """What no file that is sent may hold.

    Attributes:
        ids: names of subjects and families.
        texts: what was written of them, names of scans, and the like; of six letters or more.
        tokens: access tokens.
        allowed: texts of whoever publishes, in which dates and addresses may stand.
    """

    # Not in what is shown of it, which may come into a log.
    ids: frozenset[str] = field(default=frozenset(), repr=False)
    texts: frozenset[str] = field(default=frozenset(), repr=False)
    tokens: frozenset[str] = field(default=frozenset(), repr=False)
    allowed: tuple[str, ...] = ()

    @classmethod
    def of_store(cls, store: TokenDataset, published: Sequence[StoredRun] | None = None) -> "Secrets":
        """What the runs of a store say, and their published forms do not."""
        told = published if published is not None else [None] * len(store.runs)
        ids, texts = set(), set()
        for run, other in zip(store.runs, told, strict=True):
            for name in ("subject", "family"):
                value = getattr(run, name)
                if value is not None and (other is None or getattr(other, name) != value):
                    ids.add(value)
            for name in ("session", "task", "run", "site"):
                value = getattr(run, name)
                is_renamed = value is not None and other is not None and getattr(other, name) != value
                # A study may be called after its place.
                if is_renamed and not (name == "site" and value in (run.dataset or "")):
                    texts.add(value)
            for known in (run.scan, *_identities(run.companions)):
                texts.add(str(known.get("name") or ""))
            kept = {} if other is None else other.phenotypes
            for name, value in run.phenotypes.items():
                # A category that stays behind, such as "female", is no secret as a word.
                if (
                    isinstance(value, str)
                    and kept.get(name) != value
                    and (" " in value or re.search(r"\d|.{17}", value))
                ):
                    texts.add(value)
        return cls(frozenset(ids), frozenset(text for text in texts if len(text) >= 6))

    def __or__(self, other: "Secrets") -> "Secrets":
        return Secrets(
            self.ids | other.ids, self.texts | other.texts, self.tokens | other.tokens, self.allowed + other.allowed
        )


def _identities(beside: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    for value in (beside or {}).values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                yield each


MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
PATTERNS = {
    "a path of a machine": re.compile(
        r"(?<![\w:/.<])/(?:home|[Uu]sers|Volumes|mnt|media|data|scratch|work|workspace|tmp|var|run|root|private|srv|opt|"
        r"nfs|gpfs|lustre|beegfs|ceph|cephfs|afs|cluster|hpc|groups?|labs?|shared?|projects?|storage|archive|export|net|"
        r"content|kaggle)/[^\s\"'`<>)]+"
        r"|(?<![A-Za-z])[A-Za-z]:\\[^\s\"'`]+|\\\\[A-Za-z][\w-]*\\[\w$]+|(?<![\w/])~/\w+|file://\S+"
    ),
    "a date": re.compile(
        r"(?<![\w.-])(?:19|20)\d\d([-/.])(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?!\d)"
        r"|(?<![\w.-])(?:0?[1-9]|[12]\d|3[01])([./-])(?:0?[1-9]|1[0-2])\2(?:19|20)\d\d(?![\w.])"
        r"|(?<![\w.-])(?:0?[1-9]|1[0-2])([./-])(?:0?[1-9]|[12]\d|3[01])\3(?:19|20)\d\d(?![\w.])"
        r"|(?<![A-Za-z0-9.])(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?![A-Za-z0-9])"
        rf"|(?<!\w)(?i:(?:0?[1-9]|[12]\d|3[01])[. -]{{0,2}}{MONTH}[., -]{{1,2}}(?:19|20)\d\d)(?!\d)"
        rf"|(?<!\w)(?i:{MONTH}[. -]{{0,2}}(?:0?[1-9]|[12]\d|3[01]),? ?(?:19|20)\d\d)(?!\d)"
    ),
    "an e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.[A-Za-z]{2,}"),
}
# What is a date in a table of subjects, and may be a version or a ratio in a sentence: 4.3.19, 04-Mar-19, 2019-03.
DATE_IN_A_CELL = re.compile(
    r"(?<![\w./-])(?:0?[1-9]|[12]\d|3[01])([./-])(?:0?[1-9]|[12]\d|3[01])\1\d\d(?![\w./-])"
    rf"|(?<!\w)(?i:\d\d?[ -]?{MONTH}[ -]?\d\d)(?!\d)"
    r"|(?<![\w./-])(?:19|20)\d\d-(?:0[1-9]|1[0-2])(?![\w./-])"
)
ACCESS_TOKEN = re.compile(r"(?<![A-Za-z0-9])hf_(?:[a-z]+_)?[A-Za-z0-9]{20,}")
TEXT_ENDINGS = frozenset({".md", ".csv", ".tsv", ".txt"})


def _faults_of_text(text: str, allowed: Iterable[str] = ()) -> Iterator[str]:
    if ACCESS_TOKEN.search(text):
        yield "an access token"
    for known in allowed:
        text = text.replace(known, "")
    for what, pattern in PATTERNS.items():
        if found := pattern.search(text):
            yield f"{what} ({_hinted(found[0])})"


def find_leaks(folder: str | Path, secrets: Secrets, own_code: Mapping[str, str] | None = None) -> list[str]:
    """Look into every file of a folder that is to be sent; a sentence for each thing that must not be in it.

    Looked at are the names of files, JSON, text, headers and byte tensors of safetensors, schema and all columns of
    Parquet but the numbers of tokens. Files of other kinds (pickles such as training_args.bin, logs, pictures) are
    leaks themselves, since no one can tell what they hold; so are Python files other than the package's own.

    Args:
        folder: what is to be sent.
        secrets: what must not be there, besides what looks like a path, a date, an address or an access token.
        own_code: checksums (SHA-256) of Python files that may go, by name.
    """
    folder, search = Path(folder), _Search(secrets)
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found.append(f"{name}: it is a link; only files are sent.")
        elif path.is_file():
            parts = [(f"its name {part!r}", part, False) for part in (name,)]
            try:
                parts += _READERS.get(path.suffix, _unknown)(path, own_code or {})
            except _Unsent as reason:
                found.append(f"{name}: {reason}")
                continue
            for where, text, is_cell in parts:
                found += [f"{name}: {where} holds {fault}." for fault in search.faults(text, is_cell)]
    return list(dict.fromkeys(found))


def leaks_of_words(words: str, secrets: Secrets) -> list[str]:
    """What a few words that others will see must not hold, such as those of a commit."""
    return list(_Search(secrets).faults(words, is_cell=True))


class _Unsent(Exception):
    """Why a file is not sent, whatever it holds."""


def _plain(text: str) -> str:
    """As others may write it: in one way to write accents, in lower case, with a blank for what looks like some."""
    if "\\u" in text:  # JSON within a cell
        text += " " + re.sub(r"\\+u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    if text.isascii():
        return re.sub(r"\s+", " ", text.lower())
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", UNSEEN.sub("", text)).casefold())
    return re.sub(r"\s+", " ", text)


# Signs that take no room.
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
# Letters and digits of any script in a row, and what stands between two blanks or marks.
WORDS = re.compile(r"(?:[^\W_]|\+){5,}|[^\s\"',;:|/\\]{5,}")


@dataclass
class _Search:
    secrets: Secrets
    _short: frozenset[str] = field(init=False)
    _long: frozenset[str] = field(init=False)
    _several: frozenset[str] = field(init=False)
    _texts: frozenset[str] = field(init=False)

    def __post_init__(self):
        names = {_plain(name).strip() for name in self.secrets.ids}
        names |= {name.lstrip("0") for name in names if name.isdigit()}  # as spreadsheets write them
        self._short = frozenset(name for name in names if 0 < len(name) < 5)
        self._long = frozenset(name for name in names if len(name) >= 5)
        self._several = frozenset(name for name in self._long if not name.isalnum())
        self._texts = frozenset(map(_plain, self.secrets.texts))

    def faults(self, text: str, is_cell: bool = False) -> Iterator[str]:
        """What a text must not hold, however its letters are written.

        Args:
            text: anything.
            is_cell: whether it names a subject if it is as short as one's name.
        """
        yield from _faults_of_text(text, self.secrets.allowed)
        if any(token in text for token in self.secrets.tokens):
            yield "an access token"
        text = _plain(text)
        if is_cell and text.strip() in self._short:
            yield f"the name of a subject ({_hinted(text.strip())})"
        for match in re.finditer(r"\bsub-((?:[^\W_]|\+)+)", text):
            if match[1] in self._short | self._long:
                yield f"the name of a subject ({_hinted(match[1])})"
        if self._long:
            for match in WORDS.finditer(text):
                word = match[0]
                # 03619 of arXiv 2604.03619 is no one.
                is_decimal = re.search(r"[0-9]\.$", text[max(0, match.start() - 2) : match.start()])
                parts = {word, *re.split(r"(?:[^\w+]|_)+", word)}
                # sub100307, which no checksum looks like.
                parts |= {found[1] for part in parts if (found := re.fullmatch(r"[a-z]*(\d{5,})[a-z]*", part))}
                if not is_decimal and (known := parts & self._long):
                    yield f"the name of a subject ({_hinted(min(known))})"
            for name in self._several:
                if name in text:
                    yield f"the name of a subject ({_hinted(name)})"
        for secret in self._texts:
            if secret in text:
                yield f"what only the source says ({_hinted(secret)})"


def _hinted(text: str) -> str:
    return f"{text[:3]}..., {len(text)} signs"


def _of_json(path: Path, _: Mapping[str, str]) -> list[tuple[str, str, bool]]:
    counts = _COUNTS_LEARNT_FROM if path.name == TRAINING_DATA_FILE else ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _Unsent("it is no JSON, so what it holds cannot be told.") from error

    def walk(value: Any, where: str) -> Iterator[tuple[str, str, bool]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield f"a key in {where}", str(key), False
                yield from walk(inner, str(key))
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner, where)
        elif isinstance(value, str):
            yield where, value, where.lower() in _PERSON_COLUMNS
        elif isinstance(value, int | float) and where not in counts and (number := _long_number(value)):
            yield where, number, False

    return list(walk(content, "it"))


def _long_number(value: float) -> str | None:
    """A number that may be a subject's or a day, as it is written without a fraction; 100307.0 is one."""
    return str(int(value)) if float(value).is_integer() and abs(value) >= 100_000 else None


_PERSON_COLUMNS = frozenset({"subject", "participant_id", "family", "key"})


def _of_text(path: Path, _: Mapping[str, str]) -> list[tuple[str, str, bool]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _Unsent("it is no text in UTF-8, so what it holds cannot be told.") from error
    parts = [("it", text, False)]
    if path.suffix in (".csv", ".tsv"):
        cells = {line.split("," if path.suffix == ".csv" else "\t")[0].strip('"') for line in text.splitlines()}
        parts += [("its first column", cell, True) for cell in cells]
    return parts


def _of_safetensors(path: Path, _: Mapping[str, str]) -> list[tuple[str, str, bool]]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            if not 0 < size <= min(100_000_000, path.stat().st_size):
                raise ValueError
            header = json.loads(file.read(size), object_pairs_hook=_without_doubles)
            # Between and behind the tensors nothing may stand, since no one would look there.
            place = 0
            for begin, end in sorted(value["data_offsets"] for name, value in header.items() if name != "__metadata__"):
                if begin != place or end < begin:
                    raise ValueError
                place = end
            if 8 + size + place != path.stat().st_size:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Unsent("it is no whole safetensors file, or holds more than its tensors.") from error
        parts = []
        for name, value in (header.pop("__metadata__", None) or {}).items():
            if (name, value) != ("format", "pt"):
                raise _Unsent(
                    f"its metadata hold {name!r}, and only what save_pretrained writes goes along; save it again with "
                    "save_pretrained."
                )
        for name, tensor in header.items():
            parts.append(("a tensor's name", name, False))
            if tensor["dtype"] in ("U8", "I8", "BOOL", "U16", "I16", "U32", "I32", "U64", "I64"):
                begin, end = tensor["data_offsets"]
                file.seek(8 + size + begin)
                # Numbers of any size may be letters.
                parts.append((f"the tensor {name}", _decoded(file.read(end - begin)), False))
        return parts


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values under one name Python keeps the last, and others might read the first."""
    if len(content := dict(pairs)) < len(pairs):
        raise ValueError
    return content


def _of_parquet(path: Path, _: Mapping[str, str]) -> list[tuple[str, str, bool]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tablet_hf.datasets.run_files import FIRST_ROW

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        told = dict(file.metadata.metadata or {}) | dict(schema.metadata or {})
        told |= {name: value for each in schema for name, value in (each.metadata or {}).items()}
    except (pa.ArrowException, OSError) as error:
        raise _Unsent("it is no whole Parquet file.") from error
    parts = [(f"its metadata {_decoded(key)}", _decoded(value), False)
             for key, value in told.items() if key != b"ARROW:schema"]  # fmt: skip
    parts += [("a column's name", name, False) for name in schema.names]
    for number, name in enumerate(schema.names):
        kind = schema.field(number).type
        if (name == "tokens" and _is_of_numbers(kind)) or name in _MEASURED or pa.types.is_boolean(kind):
            continue
        if pa.types.is_temporal(kind):
            raise _Unsent(f"its column {name!r} holds moments in time.")
        column = pq.read_table(path, columns=[name]).column(0)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            texts = [_decoded(cell) for cell in column.to_pylist() if cell is not None]
            if name in FIRST_ROW:  # numbers, in which a date is found by chance
                parts += [(f"the column {name}", text, False) for text in texts if text.isascii()]
                continue
        elif pa.types.is_integer(kind):
            values = [value for value in column.unique().to_pylist() if value is not None]
            if values and name not in _COUNTS and all(_is_day(value) for value in values):
                raise _Unsent(f"its column {name!r} holds dates.")
            texts = [str(value) for value in values if abs(value) >= 100_000 and name not in _COUNTS]
        elif pa.types.is_floating(kind):
            texts = list(filter(None, map(_long_number, column.drop_null().unique().to_pylist())))
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            texts = [value for value in column.unique().to_pylist() if value is not None]
        else:
            texts = [json.dumps(value, default=str) for value in column.to_pylist()]
        parts += [(f"the column {name}", text, name in _PERSON_COLUMNS) for text in texts]
    return parts


_COUNTS_LEARNT_FROM = frozenset({"people", "people_chosen_by", "runs", "frames"})
_COUNTS = frozenset({"num_bytes", "num_frames", "frame"})
_MEASURED = frozenset({"repetition_time", "intensity_scale", "clipped_share", "frame_scale"})


def _is_of_numbers(kind: Any) -> bool:
    """Whether a column holds lists of numbers and nothing else, however deep."""
    import pyarrow as pa

    while inner := getattr(kind, "storage_type", None) or getattr(kind, "value_type", None):
        kind = inner
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _of_code(path: Path, own_code: Mapping[str, str]) -> list[tuple[str, str, bool]]:
    if own_code.get(path.name) != hashlib.sha256(path.read_bytes()).hexdigest():
        raise _Unsent("it is no Python file of this package, and no other code is sent.")
    return []


def _unknown(path: Path, _: Mapping[str, str]) -> list[tuple[str, str, bool]]:
    raise _Unsent("files of this kind are never sent, since what they hold cannot be told.")


_READERS = {
    ".json": _of_json,
    ".safetensors": _of_safetensors,
    ".parquet": _of_parquet,
    ".py": _of_code,
} | dict.fromkeys(TEXT_ENDINGS, _of_text)
