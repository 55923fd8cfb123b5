"""The exception that is the user's to mend, and its sentence for what the Hub does not have."""

__all__ = ["InputError", "not_on_hub"]


class InputError(ValueError):
    """Input that could not be used.

    The message is one sentence for the user: it names the file, says what was found in it and what
    to do about it. Whoever works through many inputs catches this class, keeps the good results and lists the
    messages; anything else that is raised is a failure of this package.
    """


def not_on_hub(
    error: BaseException, name: str, kind: str, revision: str | None, offline: str = "a folder"
) -> InputError | None:
    """The sentence for what the Hub does not have, or for a Hub out of reach; None where something else is wrong.

    Args:
        error: of huggingface_hub, or what a library raised from it.
        kind: "model" or "dataset".
        offline: what can be given where there is no network.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes, cause = [], error
    while cause is not None and len(causes) < 20:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__

    def has(cause_class: type[BaseException]) -> bool:
        return any(isinstance(cause, cause_class) for cause in causes)

    def is_refused(cause: BaseException) -> bool:
        return isinstance(cause, HfHubHTTPError) and cause.response is not None and cause.response.status_code == 401

    if has(RevisionNotFoundError):
        return InputError(f"{name}: it has no revision {revision}; give a branch, tag or commit that it has.")
    if has(RepositoryNotFoundError):
        return InputError(
            f"{name}: there is no such folder, and the Hub has no {kind} of this name that you may read; check the "
            "name, and log in with `hf auth login` if it is private or gated."
        )
    if any(map(is_refused, causes)):
        return InputError(
            f"{name}: the Hub does not know the access token that it was given; log in anew with `hf auth login`, or "
            "mend or unset the environment variable HF_TOKEN."
        )
    if has(LocalEntryNotFoundError):
        return InputError(
            f"{name}: there is no such folder, it was not downloaded before, and the Hub cannot be reached now; "
            f"connect to the network, unset HF_HUB_OFFLINE where it is set, or give {offline}."
        )
    return None
