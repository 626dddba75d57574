"""JSON schemas as grammars: what a grammar cannot say is kept for a check of the finished value.

A schema is read in two steps: older drafts' words become those of 2020-12 (`modern`), and of that
is made what llguidance holds an answer to while it is written (`_Reader`). Each step may narrow
what is allowed; whatever would widen it is named, and the finished value is checked for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from urllib.parse import unquote

from smollm3.errors import UserError
from smollm3.infer.constrain.checks import Check
from smollm3.infer.constrain.patterns import rust_pattern

# Python's json.dumps, and so the chat template's. Free white space would leave nothing forced, and
# small models lose themselves in it.
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MAX_CHARACTERS = 1 << 17  # of a schema, pattern or grammar


@dataclass(frozen=True)
class JsonGrammar:
    """grammar: in llguidance's form. unenforced: what it leaves out, each with its place; `check`
    looks for that in the finished value. None: nothing is left out."""

    grammar: Mapping[str, Any]
    unenforced: tuple[str, ...] = ()
    check: Check | None = None


def bounded_text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: must be a text, not {value!r:.40}")
    if len(value) > MAX_CHARACTERS:
        raise UserError(f"{where}: {len(value)} characters are more than {MAX_CHARACTERS}")
    return value


def json_grammar(where: str, schema: Any) -> JsonGrammar:
    """A grammar of JSON in our layout. UserError for what is no schema, misspelled, or has no
    finite value."""
    try:
        if isinstance(schema, str):
            schema = json.loads(bounded_text(where, schema))
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as e:
        raise UserError(f"{where}: not JSON ({e})") from None
    if not isinstance(schema, Mapping):
        raise UserError(f"{where}: must be an object, not {text:.40}")
    bounded_text(where, text)
    try:
        told = modern(schema)
        _check_references(where, told)
        reader = _Reader(where, told)
        reduced = reader.read("", told)
        if not _has_finite(reduced):
            raise UserError(f"{where}: no finite value satisfies it")
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    grammar = {"json_schema": {**reduced, "x-guidance": LAYOUT}}
    if not reader.left:
        return JsonGrammar(grammar)
    return JsonGrammar(grammar, tuple(dict.fromkeys(reader.left)), Check(where, told))


# What the values of keywords are. A schema may have other keys, which say nothing.
_VALUES = {
    "a schema": "additionalProperties contains else if items not propertyNames then "
    "unevaluatedItems unevaluatedProperties",
    "schemas": "allOf anyOf oneOf prefixItems",
    "named schemas": "$defs definitions dependentSchemas patternProperties properties",
    "a remark": "$comment $schema $vocabulary contentEncoding contentMediaType contentSchema "
    "default deprecated description discriminator example examples id nullable readOnly title "
    "writeOnly",
    "a value": "$anchor $dynamicAnchor $dynamicRef $id $recursiveAnchor $recursiveRef $ref const "
    "dependentRequired enum exclusiveMaximum exclusiveMinimum format maxContains maxItems "
    "maxLength maxProperties maximum minContains minItems minLength minProperties minimum "
    "multipleOf pattern required type uniqueItems",
}
_KEYWORDS = {key: kind for kind, keys in _VALUES.items() for key in keys.split()}
_SAME = re.compile(r"(allOf|anyOf|oneOf|not|if|then|else|dependentSchemas)\b")  # about the value
_INSIDE = re.compile(r"#(/|$)")  # a reference within the schema
_OLDER = ("additionalItems", "dependencies")
_EXACT = (1 << 53) - 1  # JSON readers, and the library, take larger whole numbers for rounded ones
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
)
_UUID = "^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"


def _is_remark(key: str) -> bool:
    return _KEYWORDS.get(key, "a remark") == "a remark"


def _each(schema: Mapping[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """The schema with each schema directly in it changed; `change` is given its place too."""
    out = dict(schema)
    for key, value in schema.items():
        match _KEYWORDS.get(key):
            case "a schema":
                out[key] = change(key, value)
            case "schemas" if isinstance(value, list):
                out[key] = [change(f"{key}[{i}]", item) for i, item in enumerate(value)]
            case "named schemas" if isinstance(value, Mapping):
                out[key] = {name: change(f"{key}.{name}", item) for name, item in value.items()}
    return out


def modern(schema: Any) -> Any:
    """The schema in the words of draft 2020-12."""
    if not isinstance(schema, Mapping):
        return schema
    out = {key: value for key, value in schema.items() if key not in ("$schema", *_OLDER)}
    if isinstance(schema.get("items"), list):
        out["prefixItems"] = out.pop("items")
        if "additionalItems" in schema:
            out["items"] = schema["additionalItems"]
    for kind, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(out.get(kind), bool) and out.pop(kind) and bound in out:
            out[kind] = out.pop(bound)
    for name, needed in _named(schema.get("dependencies")):
        key = "dependentRequired" if isinstance(needed, list) else "dependentSchemas"
        out[key] = {**out.get(key, {}), name: needed}
    return _each(out, lambda _, value: modern(value))


def _named(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, Mapping) else ()


@dataclass
class _Reader:
    """left: what the finished value is checked for."""

    where: str
    root: Any
    left: list[str] = field(default_factory=list)

    def read(self, path: str, schema: Any) -> Any:
        """What the grammar is made of. Raises UserError for what looks like a slip: it would be
        ignored without a word."""
        if not isinstance(schema, Mapping):
            return schema
        self._check_keywords(path, schema)
        out = {key: value for key, value in schema.items() if not _is_remark(key)}
        for step in (self._values, self._strings, self._arrays, self._objects, self._branches):
            step(path, out)
        return _each(out, lambda key, value: self.read(f"{path}{key}.", value))

    def _leave(self, path: str, keyword: str) -> None:
        self.left.append(f"{path}{keyword}")

    def _check_keywords(self, path: str, schema: Mapping[str, Any]) -> None:
        for key, value in schema.items():
            here = f"{self.where}: {path}{key}"
            kind = _KEYWORDS.get(key)
            if kind is None and (near := get_close_matches(key, _KEYWORDS, 1, cutoff=0.8)):
                raise UserError(f"{here}: unknown keyword; did you mean {near[0]!r}?")
            if kind == "a value" and "imum" not in key.lower() and not _exact(value):
                raise UserError(f"{here}: whole numbers beyond {_EXACT} lose their last digits")

    def _values(self, path: str, out: dict[str, Any]) -> None:
        """Bounds at the ends of a machine's numbers are narrowed to what JSON holds exactly."""
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            value = out.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            beyond = -value if "Min" in key or key == "minimum" else value
            if beyond > _EXACT:
                out[key] = int(math.copysign(_EXACT, value))
            elif beyond < -_EXACT:
                raise UserError(f"{self.where}: {path}{key}: {value} is beyond exact numbers")

    def _strings(self, path: str, out: dict[str, Any]) -> None:
        kind = out.get("format")
        if kind not in _FORMATS:
            out.pop("format", None)  # by itself an annotation
        if isinstance(kind, str) and kind[:4] == "uuid" and kind[4:] in set("12345678"):
            out.setdefault("pattern", _UUID.format(kind[4:]))
        if isinstance(out.get("pattern"), str):
            out["pattern"], exact = rust_pattern(out["pattern"])
            # The library's e-mail addresses have no dots that follow each other, or come first.
            if not exact and out.get("format") != "email":
                self._leave(path, "pattern")
        named = out.get("patternProperties")
        if isinstance(named, Mapping):
            found: dict[str, Any] = {}
            for pattern, value in named.items():
                simple, exact = rust_pattern(pattern)
                if not exact:
                    self._leave(path, f"patternProperties.{pattern}")
                found[pattern if exact else simple] = value
            out["patternProperties"] = found

    def _arrays(self, path: str, out: dict[str, Any]) -> None:
        if out.pop("uniqueItems", False) is True and out.get("maxItems", 2) > 1:
            self._leave(path, "uniqueItems")
        bounds = (out.pop("minContains", 1), out.pop("maxContains", None))
        if "contains" in out:
            out.pop("contains")
            if bounds != (0, None):
                self._leave(path, "contains")

    def _objects(self, path: str, out: dict[str, Any]) -> None:
        names = out.pop("propertyNames", True)
        if names not in (True, {}) and not self._names(out, names):
            self._leave(path, "propertyNames")
        for key in ("dependentRequired", "dependentSchemas"):
            if out.pop(key, None):
                self._leave(path, key)
        required = out.get("required")
        needed = len(set(required)) if isinstance(required, list) else 0
        declared = out.get("properties")
        optional = bool(set(declared) - set(required or ())) if declared else False
        if out.get("minProperties", 0) > needed:
            self._leave(path, "minProperties")  # names may come twice
        else:
            out.pop("minProperties", None)
        if optional and "maxProperties" in out and out.pop("maxProperties") >= needed:
            self._leave(path, "maxProperties")
        if optional:
            out.pop("minProperties", None)

    def _names(self, out: dict[str, Any], names: Any) -> bool:
        """Whether `properties` and the like can say what the names must be; then they do."""
        if not isinstance(names, Mapping):
            return False
        says = {key: value for key, value in names.items() if not _is_remark(key)}
        if says.pop("type", "string") != "string":
            return False
        if not says:
            return True
        declared, others = out.get("properties") or {}, out.get("additionalProperties", True)
        if out.get("patternProperties") or "$ref" in says:
            return False
        if says.keys() == {"enum"} and isinstance(says["enum"], list):
            texts = [text for text in says["enum"] if isinstance(text, str)]
            known = {name: declared.get(name, others) for name in texts}
            out["properties"] = {**dict.fromkeys(declared, False), **known}
            out["additionalProperties"] = False
            return True
        pattern, exact = "", True
        if says.keys() == {"pattern"}:
            pattern, exact = rust_pattern(str(says["pattern"]))
        elif says.keys() <= {"minLength", "maxLength"}:
            pattern = f"^[\\s\\S]{{{says.get('minLength', 0)},{says.get('maxLength', '')}}}$"
        if not pattern or declared or others is False:
            return False
        out["patternProperties"], out["additionalProperties"] = {pattern: others}, False
        return exact

    def _branches(self, path: str, out: dict[str, Any]) -> None:
        if out.pop("not", False) is not False:
            self._leave(path, "not")
        then, otherwise = out.pop("then", True), out.pop("else", True)
        if "if" in out:
            out.pop("if")
            if (then, otherwise) != (True, True):
                self._leave(path, "if")
        wide = {"$ref", "allOf", "anyOf", "oneOf"} & out.keys()
        for key, plain in (
            ("unevaluatedProperties", "additionalProperties"),
            ("unevaluatedItems", "items"),
        ):
            if key in out:
                value = out.pop(key)
                if wide and value not in (True, {}):
                    self._leave(path, key)
                else:
                    out.setdefault(plain, value)
        choices = out.pop("oneOf", None)
        if choices is None:
            return
        if not self._exclude_each_other(choices):
            self._leave(path, "oneOf")
        if "anyOf" in out:
            out["allOf"] = [*out.get("allOf", ()), {"anyOf": choices}]
        else:
            out["anyOf"] = choices

    # whether a value can be only one of several

    def _exclude_each_other(self, choices: Any) -> bool:
        if not isinstance(choices, list):
            return True  # the library says what is wrong
        found = [_resolved(self.root, choice) for choice in choices]
        pairs = ((a, b) for i, a in enumerate(found) for b in found[:i])
        return all(_apart(a, b) or self._apart_by_property(a, b) for a, b in pairs)

    def _apart_by_property(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        """Both need a property that cannot be the same in both, as unions with a tag do."""
        if not _types(a) == _types(b) == {"object"}:
            return False
        one, other = a.get("properties") or {}, b.get("properties") or {}
        shared = {*(a.get("required") or ())} & {*(b.get("required") or ())}
        return any(
            _apart(_resolved(self.root, one.get(n)), _resolved(self.root, other.get(n)))
            for n in shared
        )


def _resolved(root: Any, schema: Any) -> Mapping[str, Any]:
    """What a reference within the root leads to; {} where that is nothing we know of."""
    for _ in range(8):
        ref = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(ref, str) or not _INSIDE.match(ref):
            break
        schema = _target(root, ref)
    return schema if isinstance(schema, Mapping) else {}


def _target(root: Any, ref: str) -> Any:
    """What stands at the reference, None if nothing does."""
    for step in ref.split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(root, list):
            root = root[int(name)] if name.isdigit() and int(name) < len(root) else None
        else:
            root = root.get(name) if isinstance(root, Mapping) else None
    return root


def _types(schema: Mapping[str, Any]) -> set[str] | None:
    """JSON's types that its values have, if it says so; whole numbers are numbers."""
    given = schema.get("type")
    found = {given} if isinstance(given, str) else set(given or ())
    return {"number" if kind == "integer" else kind for kind in found} or None


def _apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether no value is of both, by their types or constants."""
    types, others = _types(a), _types(b)
    if types is not None and others is not None and not types & others:
        return True
    values, known = _constants(a), _constants(b)
    return values is not None and known is not None and not any(v in known for v in values)


def _constants(schema: Mapping[str, Any]) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _exact(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_exact, value.values()))
    if isinstance(value, list):
        return all(map(_exact, value))
    return not isinstance(value, int) or abs(value) <= _EXACT + 1


# whether it can be written to its end


def _has_finite(root: Mapping[str, Any]) -> bool:
    """Whether some finite value may satisfy the schema, where references may need themselves: the
    least fixed point over what they lead to."""
    targets = {ref: _resolved(root, {"$ref": ref}) for ref in _references(root)}
    known: set[str] = set()
    while new := {r for r, t in targets.items() if r not in known and _finite(t, known)}:
        known |= new
    return _finite(root, known)


def _check_references(where: str, root: Mapping[str, Any]) -> None:
    """Raise UserError for one that leads nowhere, or to itself about the same value."""
    same = {ref: _references(_target(root, ref), deeper=False) for ref in _references(root)}
    for ref, reached in same.items():
        if _target(root, ref) is None:
            raise UserError(f"{where}: $ref: there is no {ref!r:.80}")
        seen: set[str] = set()
        new = reached
        while new := new - seen:
            seen |= new
            new = {one for step in new for one in same[step]}
        if ref in seen:
            raise UserError(f"{where}: $ref: {ref!r:.80} leads to itself")


def _references(schema: Any, deeper: bool = True) -> set[str]:
    """References within the schema. deeper: also those about parts of its values."""
    if not isinstance(schema, Mapping):
        return set()
    ref = schema.get("$ref")
    found = {ref} if isinstance(ref, str) and _INSIDE.match(ref) else set()

    def add(place: str, value: Any) -> None:
        if deeper or re.match(_SAME, place):
            found.update(_references(value, deeper))

    _each(schema, add)
    return found


def _finite(schema: Any, known: set[str]) -> bool:
    """known: references to what has finite values. Of `false` the library tells."""
    if not isinstance(schema, Mapping):
        return True
    every = [*(schema.get("allOf") or ())]
    if _references({"$ref": schema.get("$ref")}) - known:
        return False
    some = schema.get("anyOf") or [True]
    if not (all(_finite(s, known) for s in every) and any(_finite(s, known) for s in some)):
        return False
    types = _types(schema)
    if _constants(schema) is not None or types is None or types - {"object", "array"}:
        return True
    needed: list[Any] = []
    if "object" in types:
        named = schema.get("properties") or {}
        needed = [named.get(name) for name in schema.get("required") or ()]
    elif least := schema.get("minItems", 0):
        items = [*(schema.get("prefixItems") or ()), schema.get("items")]
        needed = items[: least if isinstance(least, int) else 0]
    return all(_finite(s, known) for s in needed)
