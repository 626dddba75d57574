"""A recipe as text of which single lines are changed, so that order and comments stay."""

from __future__ import annotations

import re
from typing import Any

import yaml

from smollm3.config.yaml import parse_yaml

Path = tuple[str | int, ...]
_ANCHOR = re.compile(r"^\s*(?:- )?(?:[\w-]+:)?\s*(&\w+ )")


class RecipeText:
    """text: the file as it now is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def set(self, path: Path, value: Any, why: str | None = None) -> None:
        """Let `path` (keys and indexes) be `value`, on its line, with `why` as that line's comment
        (None: the comment that it has). What is not there comes first in its parent.

        A value inside a mapping that stands on one line changes that line.
        """
        lines, values = self._lines(), self._values()
        places = parse_yaml(self.text, "recipe")[1]
        if path not in places and path[:-1] and not self._is_block(path[:-1], places, lines):
            self.set(path[:-1], {**(_at(values, path[:-1]) or {}), path[-1]: value}, why)
            return
        if path not in places:
            above = places[path[:-1]] if path[:-1] else 0
            indent = " " * 2 * (len(path) - 1)
            lines.insert(above, f"{indent}{path[-1]}: {flow(value)}{_comment(why)}")
            self.text = "\n".join(lines) + "\n"
            return
        start = places[path] - 1
        head = f"{path[-1]}:" if isinstance(path[-1], str) else "-"
        if not lines[start].lstrip().startswith(head):  # inside a mapping on one line
            self.set(path[:-1], {**_at(values, path[:-1]), path[-1]: value}, why)
            return
        indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
        anchor = _ANCHOR.match(lines[start])
        kept = re.search(r"  # .*$", lines[start])
        comment = _comment(why) or (kept[0] if kept else "")
        line = f"{indent}{head} {anchor[1] if anchor else ''}{flow(value)}{comment}"
        lines[start : self._end(start, lines)] = [line]
        self.text = "\n".join(lines) + "\n"

    def remove(self, path: Path) -> None:
        """Take a key or an item out, with all that stands below it."""
        lines = self._lines()
        start = parse_yaml(self.text, "recipe")[1][path] - 1
        del lines[start : self._end(start, lines)]
        self.text = "\n".join(lines) + "\n"

    def _lines(self) -> list[str]:
        return self.text.splitlines()

    def _values(self) -> Any:
        return parse_yaml(self.text, "recipe")[0]

    def _end(self, start: int, lines: list[str]) -> int:
        """The line behind the block that begins at `start`."""
        depth = _depth(lines[start])
        end = start + 1
        while end < len(lines) and lines[end].strip() and _depth(lines[end]) > depth:
            end += 1
        return end

    def _is_block(self, path: Path, places: dict[Path, int], lines: list[str]) -> bool:
        """Whether a mapping's keys stand on lines of their own."""
        start = places.get(path)
        return start is not None and self._end(start - 1, lines) > start


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _at(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key] if not isinstance(values, dict) or key in values else None
    return values


def flow(value: Any) -> str:
    """YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(why: str | None) -> str:
    return f"  # {why}" if why else ""
