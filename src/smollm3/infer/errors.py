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


class RequestFailed(RuntimeError):
    """A fault of the engine, or of a drafter or constraint, ended this one request."""
