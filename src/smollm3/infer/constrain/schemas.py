"""JSON schemas as grammars, with what would be ignored or rounded refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from smollm3.errors import UserError

# Python's json.dumps, and so the chat template's. Free white space would leave nothing forced, and
# small models lose themselves in it.
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MAX_CHARACTERS = 1 << 17  # of a schema, pattern or grammar


def bounded_text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: must be a text, not {value!r:.40}")
    if len(value) > MAX_CHARACTERS:
        raise UserError(f"{where}: {len(value)} characters are more than {MAX_CHARACTERS}")
    return value


def json_grammar(where: str, schema: Any) -> dict[str, Any]:
    """A grammar of JSON in our layout."""
    try:
        if isinstance(schema, str):
            schema = json.loads(bounded_text(where, schema))
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as e:
        raise UserError(f"{where}: not JSON ({e})") from None
    if not isinstance(schema, Mapping):
        raise UserError(f"{where}: must be an object, not {text:.40}")
    bounded_text(where, text)
    _check_keywords(f"{where}: ", schema)
    return {"json_schema": {**schema, "x-guidance": LAYOUT}}


# What the values of keywords are. The library refuses those that it knows but does not support;
# a schema may have other keys, which say nothing to it.
_VALUES = {
    "a schema": "additionalProperties contains else if items not propertyNames then",
    "schemas": "allOf anyOf oneOf prefixItems",
    "named schemas": "$defs definitions dependentSchemas patternProperties properties",
    "a remark": "$anchor $comment $dynamicAnchor $dynamicRef $id $schema $vocabulary "
    "additionalItems contentEncoding contentMediaType contentSchema default dependencies "
    "dependentRequired deprecated description example examples maxContains minContains nullable "
    "readOnly title unevaluatedItems unevaluatedProperties writeOnly",
    "a value": "$ref const enum exclusiveMaximum exclusiveMinimum format maxItems maxLength "
    "maxProperties maximum minItems minLength minProperties minimum multipleOf pattern required "
    "type uniqueItems",
}
_KEYWORDS = {key: kind for kind, keys in _VALUES.items() for key in keys.split()}
_EXACT = 1 << 53  # JSON readers, and the library, take larger whole numbers for rounded ones


def _check_keywords(path: str, schema: Any) -> None:
    """Raise UserError for what looks like a slip: it would be ignored without a word."""
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        here = f"{path}{key}"
        match _KEYWORDS.get(key):
            case "a schema":
                _check_keywords(f"{here}.", value)
            case "schemas" if isinstance(value, list):
                for i, item in enumerate(value):
                    _check_keywords(f"{here}[{i}].", item)
            case "named schemas" if isinstance(value, Mapping):
                for name, item in value.items():
                    _check_keywords(f"{here}.{name}.", item)
            case None if near := get_close_matches(key, _KEYWORDS, 1, cutoff=0.8):
                raise UserError(f"{here}: unknown keyword; did you mean {near[0]!r}?")
            case "a value" if not _exact(value):
                raise UserError(f"{here}: whole numbers beyond {_EXACT} lose their last digits")


def _exact(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_exact, value.values()))
    if isinstance(value, list):
        return all(map(_exact, value))
    return not isinstance(value, int) or abs(value) <= _EXACT
