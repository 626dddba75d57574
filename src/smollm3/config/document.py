"""A file of settings: its values, where each stands in it, and what a model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from smollm3.config.problems import Path, problems
from smollm3.config.yaml import parse_yaml
from smollm3.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


@dataclass
class Document:
    """values: a mapping that YAML has given. lines: of each path in the file `name`.

    What the command line says is set over it, and named without a line.
    """

    name: str
    values: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)

    def set(self, assignment: str) -> None:
        """`key.path=value` of the command line, the value in YAML."""
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"--set {assignment}: write it as key.path=value")
        node: Any = self.values
        *parents, last = key.split(".")
        for part in parents:
            if not isinstance(node, dict):
                raise UserError(f"--set {key}: '{part}' is inside a value, not a mapping")
            node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {key}: '{last}' is inside a value, not a mapping")
        node[last] = parse_yaml(value or "null", f"--set {key}")[0]

    def place(self, path: Path) -> str:
        """`file:line: dotted.path`, the line of the nearest ancestor that the file holds."""
        known = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        line = f":{self.lines[known]}" if known else ""
        return ": ".join(part for part in (f"{self.name}{line}", ".".join(map(str, path))) if part)

    def read(self, model: type[Model]) -> Model:
        """The values as `model`, or a UserError with the place of the first mistake."""
        return check(model, self.values, self.place)


def check(model: type[Model], values: Mapping[str, Any], place: Callable[[Path], str]) -> Model:
    """`values` as `model`; a UserError says `place(path): what is wrong (and how many more)`."""
    try:
        return model.model_validate(values)
    except ValidationError as e:
        first, *others = problems(e.errors(), values, model)
        value = f", not {first.value!r}" if first.quotes else ""
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(f"{place(first.path)}: {first.message}{value}{more}") from None


def read_document(text: str, name: str, what: str) -> Document:
    """The YAML file `name`; `what`: what it holds, for the error where it is no mapping."""
    values, lines = parse_yaml(text, name)
    if not isinstance(values, dict):
        raise UserError(f"{name}: {what}")
    return Document(name, values, lines)
