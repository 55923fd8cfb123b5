"""The exception for unusable input, what went wrong at the Hub as one sentence, and numbers in messages."""

__all__ = ["InputError", "counted", "not_on_hub"]


class InputError(ValueError):
    """Input that cannot be used: the message names the file, what is wrong with it and what to do.

    A loop over many inputs catches this class and lists the messages; any other exception is a failure of this package.
    """


def not_on_hub(error: BaseException, name: str, kind: str = "model", revision: str | None = None) -> InputError | None:
    """Say what went wrong at the Hub, or return None where the cause is not the Hub.

    Args:
        error: raised by huggingface_hub, or by a library that called it.
        name: the Hub id or folder that the user gave.
        kind: "model" or "dataset".
        revision: the revision that was asked for.
    """
    from huggingface_hub import errors as hub

    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    status = {getattr(cause.response, "status_code", None) for cause in causes if isinstance(cause, hub.HfHubHTTPError)}

    def has(*classes: type[BaseException]) -> bool:
        return any(isinstance(cause, classes) for cause in causes)

    if has(hub.RevisionNotFoundError):
        message = f"it has no revision {revision}; give an existing branch, tag or commit."
    elif has(hub.GatedRepoError):
        message = "its owner grants access on request; ask on its page of the Hub, then log in with `hf auth login`."
    elif has(hub.RepositoryNotFoundError):
        message = (
            f"there is no such folder, and the Hub has no {kind} of this name that you may read; check the name, and "
            "log in with `hf auth login` if it is private or gated."
        )
    elif 401 in status:
        message = "the Hub does not know the access token; log in with `hf auth login`, or unset HF_TOKEN."
    elif has(hub.HFValidationError):
        message = f"there is no such folder, and {kind}s on the Hub are called owner/name."
    elif has(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError, TimeoutError):
        message = (
            "there is no such folder, it was not downloaded before, and the Hub cannot be reached now; connect to the "
            "network, unset HF_HUB_OFFLINE, or give a folder."
        )
    else:
        return None
    return InputError(f"{name}: {message}")


def counted(number: int, one: str, several: str | None = None) -> str:
    """A number of things for a message: `1 scan`, `2,000 scans`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
