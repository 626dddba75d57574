"""How a field of a model is spelled on the command line. Imports nothing, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """Annotates a field that is also an option: `port: Annotated[int, Option("...")] = 8000`.

    help: a phrase that makes sense alone; the field's default is added to it.
    flag: its name, if that is not the field's. metavar: what a value is called.
    default: what the help says of it where the field's value would tell a user nothing.
    repeated: it may be given several times, though the field also takes one value.
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    default: str | None = None
    repeated: bool = False
