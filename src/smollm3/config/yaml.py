"""YAML as people expect it: 1e-3 is a number, `no` is a word, a key twice is an error."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from smollm3.config.problems import Path
from smollm3.errors import UserError, first_line

MAX_VALUES = 100_000  # a few lines of aliases to aliases stand for billions
MAX_DEPTH = 64  # the library's C code calls itself for each level, until the stack ends
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """SafeLoader with YAML 1.2's numbers and booleans; 1.1 reads 1e-3 as text and no as False."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`; what stands here wins
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not text; quote it", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' is already on line {seen[key]}", key_node.start_mark
                )
            seen[key] = line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("null", r"^(?:~|null|)$", "~n\0")
_resolve("bool", r"^(?:true|false)$", "tf")
_resolve("int", r"^[-+]?[0-9][0-9_]*$", "-+0123456789")
_resolve(
    "float",
    r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$",
    "-+.0123456789",
)
_resolve("merge", r"^<<$", "<")
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda loader, node: int(loader.construct_scalar(node).replace("_", "")),
)


def parse_yaml(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    """The value of one YAML document and the line of each path in it; `name` is for errors."""
    loader = _Loader(text)
    try:
        _check_size(text)
        node = loader.get_single_node()
        if node is None:
            raise UserError(f"{name}: the file is empty")
        lines: dict[Path, int] = {}
        _collect_lines(node, (), lines)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as e:
        line = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        raise UserError(f"{name}{line}: {e.problem or e.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise UserError(f"{name}: not valid YAML ({first_line(e)})") from None
    finally:
        loader.dispose()


def _check_size(text: str) -> None:
    """Look at the text piece by piece, before anything is made of it."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Base)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH}")
        if number > 2 * MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES:,} values")


def _collect_lines(node: yaml.Node, path: Path, lines: dict[Path, int]) -> None:
    if len(lines) > MAX_VALUES:
        raise yaml.YAMLError(f"more than {MAX_VALUES:,} values")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            lines[below] = key.start_mark.line + 1
            _collect_lines(value, below, lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[*path, i] = value.start_mark.line + 1
            _collect_lines(value, (*path, i), lines)
