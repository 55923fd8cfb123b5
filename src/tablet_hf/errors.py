"""The one exception that is the user's to mend."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Input that could not be used.

    The message is one sentence for the person at the keyboard: it names the file, says what was found in it and what
    to do about it. Whoever works through many inputs catches this class, keeps the good results and lists the
    messages; anything else that is raised is a failure of this package.
    """
