"""Publishing a model, an autoencoder or a token dataset on the Hub, with its card.

prepared = prepare("sex-model/fold-1/model", "to-upload", "lab/sex", evaluation="evaluated/results.json")
publish(prepared, "lab/sex")
"""

import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import RUNS_FOLDER
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_folder, write_json
from tablet_hf.hub.cards import CardFacts, write_card
from tablet_hf.hub.privacy import Pseudonyms, published_runs
from tablet_hf.hub.published_files import (
    CARD,
    EXTRACTOR,
    kind_of,
    published_training,
    write_autoencoder,
    write_model,
    write_tokens,
)
from tablet_hf.hub.sharing import Sharing, decide
from tablet_hf.hub.training_data import TrainingData

__all__ = ["Prepared", "PublishCallback", "Sharing", "check_may_write", "prepare", "publish"]


@dataclass(frozen=True)
class Prepared:
    """A folder to upload.

    Attributes:
        folder: path of the folder.
        kind: "model", "autoencoder" or "dataset".
        sharing: the conditions, with `is_gated` and `is_restricted` decided.
        files: size in bytes of each file, by its name in the repository.
        left_behind: files of the source that are not uploaded.
    """

    folder: Path
    kind: str
    sharing: Sharing
    files: Mapping[str, int]
    left_behind: tuple[str, ...] = ()


def prepare(
    path: str | Path,
    out: str | Path,
    repo: str,
    sharing: Sharing | None = None,
    *,
    dataset: str | Path | None = None,
    evaluation: str | Path | None = None,
    with_code: bool = False,
    phenotypes: Collection[str] = (),
    keep_subjects: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Write a folder of what others need and nothing else, with its card.

    Args:
        path: folder of a saved model (with its feature extractor and `training_data.json`), of an autoencoder, of a
            store or of its Parquet export.
        out: folder to write; it must not exist, or be empty.
        repo: name of the repository, `owner/name`.
        sharing: the conditions; private by default, and gated where the data are restricted.
        dataset: store that a model was trained on, for a model without a record of its training data.
        evaluation: results.json of `tablet-hf evaluate`, for a model.
        with_code: whether to add the code of a model, so that it loads where this package is not installed.
        phenotypes, keep_subjects: of a token dataset, see `published_runs`.
        on_progress: called with the runs done and the number of runs of a token dataset.

    Raises:
        InputError: nothing that can be published, or conditions that forbid it; nothing is written to `out` then.
    """
    path, out, sharing = Path(path), Path(out), sharing or Sharing()
    _check_names(repo, sharing.right_to_share)
    kind = kind_of(path)
    given = {} if kind == "model" else {"--dataset": dataset, "--evaluation": evaluation, "--with-code": with_code}
    given |= {} if kind == "dataset" else {"--phenotypes": phenotypes, "--keep-subjects": keep_subjects}
    if others := [option for option, value in given.items() if value]:
        raise InputError(f"{others[0]}: not an option for the {kind} in {path}; leave it out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: it exists already; choose another folder.")
    trainings = TrainingData.read(path) if kind == "model" else ()
    source = path if kind == "dataset" else dataset
    store = None if source is None else TokenDataset.load(source)
    data = [] if store is None else [TrainingData.of_runs("tokens", store.runs, (), store.settings["is_restricted"])]
    sharing = decide(path, kind, sharing, [*trainings, *data])
    facts = CardFacts(repo, sharing, stages=[published_training(each) for each in trainings])
    facts = replace(facts, store=next(map(published_training, data), None))
    with atomic_folder(out) as folder:
        if kind == "model":
            ids = [str(dataset)] if dataset is not None and not Path(dataset).exists() else []
            facts = write_model(path, folder, replace(facts, datasets=ids), evaluation, with_code)
        elif kind == "autoencoder":
            facts = write_autoencoder(path, folder, facts)
        else:
            store.settings["is_restricted"] = bool(sharing.is_restricted)
            runs = published_runs(store, Pseudonyms.next_to(path), phenotypes, keep_subjects)
            facts = replace(write_tokens(store, runs, folder, facts, on_progress), keeps_subjects=keep_subjects)
        if not (folder / CARD).exists():
            (folder / CARD).write_text(write_card(kind, facts), encoding="utf-8")
    files = {file.relative_to(out).as_posix(): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    left_behind = {file.name for file in path.iterdir()} - {file.name for file in out.iterdir()} - {RUNS_FOLDER}
    return Prepared(out, kind, sharing, files, tuple(sorted(left_behind)))


def _check_names(repo: str, *texts: str | None) -> None:
    """Refuse what cannot be the name of a repository, and public texts with an access token in them."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        is_name = repo.count("/") == 1
    except HFValidationError:
        is_name = False
    if not is_name:
        raise InputError(f"{repo}: a repository on the Hub has a name like owner/name.")
    if any(re.search(r"hf_\w{20}", text or "") for text in texts):
        raise InputError("The text of an option has an access token in it; leave it out.")


def check_may_write(repo: str, token: str | None = None) -> None:
    """Check the access token before long work: it must be one for writing, of the owner of the repository.

    Args:
        repo: `owner/name`.
        token: see `publish`.

    Raises:
        InputError: no access token or a refused one, one for reading, another owner, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    _check_names(repo)
    with _hub_errors(repo):
        user = HfApi(token=token, library_name="tablet_hf").whoami()
    owners = [user["name"], *(each["name"] for each in user.get("orgs") or ())]
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"{repo}: the access token is for reading only; log in with one for writing (hf auth login).")
    if repo.split("/")[0].lower() not in {name.lower() for name in owners}:
        raise InputError(f"{repo}: the access token may not write there; the owner can be {' or '.join(owners)}.")


def publish(
    prepared: Prepared,
    repo: str,
    *,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> Any:
    """Upload a prepared folder in one commit, so that a repository is never seen half updated.

    An existing repository is updated: files that are not uploaded again are deleted from it. It stays private or
    gated if it is. Large files that arrived before a connection broke are not uploaded again.

    Args:
        prepared: of `prepare`.
        repo: `owner/name`.
        revision: branch, created if needed (default: main).
        tag: tag of the commit.
        message: commit message.
        token: access token (default: that of `hf auth login` or of HF_TOKEN).

    Returns:
        `huggingface_hub.CommitInfo`, with `oid` and `repo_url`.

    Raises:
        InputError: no permission to write, a public repository for what must not be public, an existing tag, or no
            connection to the Hub.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _check_names(repo, message, tag, revision)
    operations: list[Any] = [CommitOperationAdd(name, str(prepared.folder / name)) for name in prepared.files]
    kind = "dataset" if prepared.kind == "dataset" else "model"
    api = HfApi(token=token, library_name="tablet_hf")
    with _hub_errors(repo):
        _open_repository(api, repo, kind, prepared.sharing, tag)
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True)
        existing = set(api.list_repo_files(repo, repo_type=kind, revision=revision)) - {".gitattributes"}
        if gone := sorted(existing - set(prepared.files)):
            warnings.warn(f"{repo}: deleted files that are not uploaded again: {', '.join(gone)}.", stacklevel=2)
        operations += [CommitOperationDelete(name, is_folder=False) for name in gone]
        message = message or f"{prepared.kind.capitalize()} by tablet-hf"
        commit = api.create_commit(repo, operations, commit_message=message, repo_type=kind, revision=revision)
    if tag is not None:
        with _hub_errors(repo, f"it was uploaded, but without its tag {tag}"):
            api.create_tag(repo, tag=tag, revision=commit.oid, repo_type=kind)
    return commit


def _open_repository(api: Any, repo: str, kind: str, sharing: Sharing, tag: str | None) -> None:
    """Create a repository, or check an existing one; it is gated before any file is in it.

    Raises:
        InputError: a public repository for what must not be public, or an existing tag.
    """
    is_gated: Any = False
    if api.repo_exists(repo, repo_type=kind):
        info = api.repo_info(repo, repo_type=kind)
        if sharing.is_private and not info.private:
            raise InputError(f"{repo}: an existing public repository; choose another name, or --public if allowed.")
        if tag is not None and tag in {each.name for each in api.list_repo_refs(repo, repo_type=kind).tags}:
            raise InputError(f"{repo}: it has a tag {tag} already; choose another --tag.")
        is_gated = info.gated
    else:
        api.create_repo(repo, repo_type=kind, private=sharing.is_private)
    if sharing.is_gated and not is_gated:
        api.update_repo_settings(repo, repo_type=kind, gated="manual")


@contextmanager
def _hub_errors(repo: str, state: str = "nothing was changed") -> Iterator[None]:
    """Raise what goes wrong at the Hub as an InputError, without the access token and without addresses."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except InputError:
        raise
    # The bases of HfHubHTTPError are OSError and the error of the HTTP client. Errors of large files are RuntimeErrors.
    except (ValueError, RuntimeError, *HfHubHTTPError.__bases__) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, HfHubHTTPError):
            cause = cause.__cause__
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        problem = f"no connection to the Hub; {state}. Unset HF_HUB_OFFLINE if it is set, and run the same again."
        if status in (401, 403, 404) or isinstance(cause, LocalTokenNotFoundError):
            problem = "no permission to write; log in with an access token of its owner for writing (hf auth login)."
        elif status is not None or isinstance(cause, ValueError):
            problem = f"the Hub refused it ({status or type(cause).__name__}); {state}."
        raise InputError(f"{repo}: {problem}") from None


class PublishCallback(TrainerCallback):
    """Publish each checkpoint of a `Trainer` by the rules of `prepare`; a failed upload is a warning.

        Trainer(model, arguments, ..., callbacks=[PublishCallback(windows, repo="lab/sex")])

    Args:
        training: windows that the model is trained on.
        validation: windows that the model is selected by.
        repo: `owner/name`; None uploads nothing, and writes the record of training data next to the weights only.
        sharing: the conditions; private by default.
    """

    def __init__(self, training: Any, validation: Any = None, repo: str | None = None, sharing: Sharing | None = None):
        self.windows, self.repo, self.sharing = (training, validation), repo, sharing or Sharing()
        self.source = getattr(training, "store", training)
        self.stages: tuple[TrainingData, ...] = ()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Record the training data, and check the conditions before hours of training."""
        if args.push_to_hub:
            raise InputError("push_to_hub uploads everything in the output folder; leave it out with PublishCallback.")
        training, validation = map(_runs_of, self.windows)
        before = TrainingData.of_model(model.name_or_path) if model.name_or_path else ()
        task = model.config.target_name or "masked token modeling"
        is_restricted = self.source.settings["is_restricted"]
        this = TrainingData.of_runs(task, training, validation, is_restricted, model.name_or_path or None)
        self.stages = (*before, this)
        if self.repo is not None and state.is_world_process_zero:
            decide(args.output_dir, "model", self.sharing, self.stages)
            check_may_write(self.repo)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete a checkpoint with its feature extractor and its record of training data, and publish it."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._complete(folder)
        if self.repo is None:
            return
        try:
            with tempfile.TemporaryDirectory() as scratch:
                prepared = prepare(folder, Path(scratch) / "to-upload", self.repo, self.sharing)
                publish(prepared, self.repo, message=f"Training in progress, step {state.global_step}")
        except InputError as error:
            warnings.warn(f"A checkpoint was not published: {error}", stacklevel=2)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete the output folder, where `Trainer.save_model` writes."""
        if state.is_world_process_zero:
            self._complete(Path(args.output_dir))

    def _complete(self, folder: Path) -> None:
        write_json(folder / EXTRACTOR, self.source.settings["preprocessing"], indent=2)
        TrainingData.write(folder, self.stages)


def _runs_of(windows: Any) -> list[Any]:
    """The runs that windows are cut from; `MaskedWindows` wrap such windows."""
    if windows is None:
        return []
    windows = windows if hasattr(windows, "runs") else windows.windows
    store = getattr(windows, "store", None)
    return list(windows.runs.values()) if store is None else [store.runs[index] for index in windows.runs]
