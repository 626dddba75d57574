"""What the engine raises, by type: nothing is decided by the text of an error."""

from __future__ import annotations

from smollm3.errors import UserError


class EngineClosed(UserError):
    """The engine was closed; requests that ran then, and later ones, fail with this."""


class UnsupportedConstraint(UserError):
    """A constraint that cannot be had: it is wrong, unsupported, satisfied by nothing, or
    llguidance is not installed."""


class BrokenAnswer(UserError):
    """The finished answer is not what was asked for, which could not be enforced on the way."""


class ContextOverflow(UserError):
    """More tokens than the context, or the cache, has room for: `prompt` of them read, and `asked`
    more to be written (0: no prompt so long has room for an answer). most: there is room for."""

    def __init__(self, message: str, prompt: int, asked: int, most: int) -> None:
        super().__init__(message)
        self.prompt = prompt
        self.asked = asked
        self.most = most


class RequestFailed(RuntimeError):
    """A fault of the engine, or of a drafter or constraint, ended this one request."""
