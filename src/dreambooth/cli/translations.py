"""Answers to flags of other trainers."""

from __future__ import annotations

from cyclopts import UnknownOptionError

from dreambooth.other_trainers import FLAGS, SENTENCES


def translated(error: UnknownOptionError) -> str | None:
    """Return the message for a flag of another trainer's, where the command has what it asks for."""
    typed = (error.token.keyword or error.token.value).partition("=")[0]
    name = typed.lstrip("-").replace("-", "_")
    flag = FLAGS.get(name, "")
    known = {each for argument in error.argument_collection for each in argument.names}
    if flag.partition(" ")[0] in known:
        return f"Unknown option: {typed}. Did you mean {flag}?"
    if name in SENTENCES and "--method" in known:
        return f"Unknown option: {typed}: {SENTENCES[name]}"
    return None
