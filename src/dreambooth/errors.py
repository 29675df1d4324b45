"""The two kinds of failure a command reports without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """The user's mistake: one line that says what is wrong, where, and how to mend it. The command exits with 2.

    Args:
        message: The line.
        allow: Name that `--allow NAME` takes to override this refusal, where it can be overridden.
    """

    def __init__(self, message: str, allow: str | None = None) -> None:
        self.allow = allow
        super().__init__(f"{message} (--allow {allow} overrides)" if allow else message)


class RunError(Exception):
    """A failure that is nobody's typing mistake (full disk, NaN loss). The command exits with 1."""


def require(holds: bool, message: str) -> None:
    """Refuse what the user asks for, unless something holds.

    Raises:
        UserError: It does not.
    """
    if not holds:
        raise UserError(message)
