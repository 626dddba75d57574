"""Finished values against their schema: what no grammar enforces while they are written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from smollm3.errors import UserError

# Of one match of a pattern: some take time exponential in the text.
BACKTRACKS = 100_000
_SHOWN = 200  # characters of a complaint


class Check:
    """Looks at values of one schema, of draft 2020-12. Raises UserError for what is no schema, or
    refers to elsewhere. where: what it is called."""

    def __init__(self, where: str, schema: Mapping[str, Any]) -> None:
        library = _library()
        self._errors = library.ValidationError
        try:
            self._validator = library.Draft202012Validator(
                dict(schema),
                pattern_options=library.FancyRegexOptions(backtrack_limit=BACKTRACKS),
                retriever=_nowhere,
            )
        except (self._errors, ValueError, TypeError) as e:
            raise UserError(f"{where}: {_line(e)}") from None

    def broken(self, text: str) -> str | None:
        """What is wrong with a value's JSON, in one line."""
        try:
            value = json.loads(text, parse_float=_finite)
            found = next(iter(self._validator.iter_errors(value)), None)
        except (self._errors, ValueError, RecursionError) as e:  # also: a pattern takes too long
            return _line(e)
        if found is None:
            return None
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in found.instance_path)
        return f"{place.lstrip('.')}: {_line(found)}".removeprefix(": ")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.20} is too large")
    return value


def _nowhere(address: str) -> Any:
    raise ValueError(f"{address} is elsewhere")


def _line(error: Any) -> str:
    return " ".join(str(getattr(error, "message", error)).split())[:_SHOWN]


def _library() -> Any:
    try:
        import jsonschema_rs
    except ImportError:
        raise UserError(
            "this schema needs jsonschema-rs: pip install 'smollm3[structured]'"
        ) from None
    return jsonschema_rs
