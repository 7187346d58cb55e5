"""Errors that a person can act on.

A `UserError` says in one line what is wrong and what to do. The command line prints that line and exits with
code 2; every other exception is a bug and keeps its stack trace.
"""


class UserError(Exception):
    """A mistake, or a state of the machine, that the user can put right.

    The message is one line: what is wrong and what to do.
    """


def brief(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite; the message names the step and the last good checkpoint."""
