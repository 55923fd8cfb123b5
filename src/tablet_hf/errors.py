"""The exception that is the user's to mend, and its sentence for what the Hub does not have."""

__all__ = ["InputError", "not_on_hub"]


class InputError(ValueError):
    """Input that could not be used.

    The message is one sentence for the person at the keyboard: it names the file, says what was found in it and what
    to do about it. Whoever works through many inputs catches this class, keeps the good results and lists the
    messages; anything else that is raised is a failure of this package.
    """


def not_on_hub(error: BaseException, name: str, kind: str, revision: str | None) -> InputError | None:
    """The sentence for a name or revision that the Hub does not have; None where something else is wrong.

    Args:
        error: of huggingface_hub, or what a library raised from it.
        kind: "model" or "dataset".
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return InputError(f"{name}: it has no revision {revision}; give a branch, tag or commit that it has.")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return InputError(
            f"{name}: there is no such folder, and the Hub has no {kind} of this name that you may read; check the "
            "name, and log in with `hf auth login` if it is private or gated."
        )
    return None
