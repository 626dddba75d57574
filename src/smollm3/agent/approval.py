"""Whether a call that may change something is made: somebody is asked first."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from smollm3.agent.tools import ToolError
from smollm3.visible import visible

_HEAD, _TAIL = 1200, 800  # characters of the arguments: what matters may stand at their end
_SHOWN = _HEAD + _TAIL


@dataclass(frozen=True)
class ApprovalRequest:
    """A call that waits: of a tool by the model, by code of the model (`from_code`), or of that
    code itself where nothing isolates it (name "python")."""

    name: str
    arguments: Mapping[str, Any]
    from_code: bool = False

    @property
    def text(self) -> str:
        """For people; nothing in it reaches the terminal as a control character."""
        code = self.arguments.get("code")
        if self.name == "python" and isinstance(code, str):
            shown = code
        else:
            shown = json.dumps(dict(self.arguments), ensure_ascii=False, indent=1, default=repr)
        if len(shown) > _SHOWN:
            left = len(shown) - _SHOWN
            shown = f"{shown[:_HEAD]}\n[... {left} characters are not shown ...]\n{shown[-_TAIL:]}"
        return visible(f"{self.name} {shown}")


# "always": this tool is not asked about again.
Decision = bool | Literal["always"]
Approve = Callable[[ApprovalRequest], Decision]


class Refused(ToolError):
    """The call was not made."""


def nobody(request: ApprovalRequest) -> NoReturn:
    """There is none to ask."""
    raise Refused(f"{request.name} was not called: it needs a person's consent, none is here")


def ask_on_terminal(request: ApprovalRequest) -> Decision:
    """Ask y, n or always; Refused where nobody sits at a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        nobody(request)
    origin = "The model's code calls" if request.from_code else "The model calls"
    sys.stdout.write(f"{origin} {request.text}\n")
    while True:
        sys.stdout.write("Allow it? [y]es, [n]o, [a]lways: ")
        sys.stdout.flush()
        try:
            line = sys.stdin.readline()  # not input(), whose lines can be called back
        except KeyboardInterrupt:
            line = ""
        if not line:
            sys.stdout.write("\n")
            return False
        answer = line.strip().lower()
        if answer in ("y", "yes"):
            return True
        if answer in ("n", "no"):
            return False
        if answer in ("a", "always"):
            return "always"


class Approvals:
    """What was allowed so far."""

    def __init__(self, approve: Approve) -> None:
        self._approve = approve
        self._always: set[str] = set()

    def check(self, request: ApprovalRequest) -> None:
        """Raises Refused, with a text for the model, unless the call may be made."""
        if request.name in self._always:
            return
        decision = self._approve(request)
        if decision == "always":
            self._always.add(request.name)
        elif not decision:
            raise Refused(f"{request.name} was not called: the user did not allow it")
