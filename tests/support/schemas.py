"""Schemas of the shapes that applications send: pydantic's own, and zod's as its version 4 writes them."""

import datetime
import decimal
import enum
import ipaddress
import pathlib
import uuid
from typing import Annotated, Any, Literal

from pydantic import (
    UUID4,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    HttpUrl,
    IPvAnyAddress,
    Json,
    NonNegativeInt,
    SecretStr,
    StringConstraints,
)


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Address(BaseModel):
    street: str
    zip: Annotated[str, StringConstraints(pattern=r"^\d{5}(-\d{4})?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool = True


class Step(BaseModel):
    explanation: str
    output: str


FIELDS: dict[str, dict[str, Any]] = {
    "extraction": {"name": (str, ...), "age": (int, ...), "email": (str | None, None)},
    "classification": {"label": (Literal["spam", "ham"], ...), "score": (Annotated[float, Field(ge=0, le=1)], ...)},
    "mathematics": {"steps": (list[Step], ...), "final_answer": (str, ...)},
    "enumeration": {"colour": (Colour, ...), "others": (set[Colour], ...)},
    "nested": {"home": (Address, ...), "work": (Address | None, None), "past": (list[Address], [])},
    "recursion": {"root": (Tree, ...)},
    "tagged union": {"pet": (Annotated[Cat | Dog, Field(discriminator="kind")], ...)},
    "plain union": {"value": (int | str | list[str], ...), "pet": (Cat | Dog, ...)},
    "dates": {"day": (datetime.date, ...), "at": (AwareDatetime, ...), "lasts": (datetime.timedelta, ...)},
    "identifiers": {"id": (uuid.UUID, ...), "version": (UUID4, ...)},
    "network": {"url": (HttpUrl, ...), "address": (IPvAnyAddress, ...), "four": (ipaddress.IPv4Address, ...)},
    "paths": {"file": (pathlib.Path, ...), "secret": (SecretStr, ...), "data": (bytes, b""), "coded": (Base64Bytes, ...)},
    "money": {"amount": (decimal.Decimal, ...), "rounded": (Annotated[decimal.Decimal, Field(max_digits=8, decimal_places=2)], ...)},
    "sets": {"tags": (set[str], ...), "codes": (frozenset[int], ...)},
    "tuples": {"point": (tuple[float, float], ...), "many": (tuple[int, ...], ())},
    "mappings": {"scores": (dict[str, float], ...), "by_colour": (dict[Colour, int], ...), "any": (dict[str, Any], {})},
    "named keys": {"env": (dict[Annotated[str, StringConstraints(pattern="^[A-Z_]+$")], str], ...)},
    "long keys": {"env": (dict[Annotated[str, StringConstraints(min_length=1, max_length=8)], str], ...)},
    "whole keys": {"rows": (dict[int, str], ...)},
    "bounded": {"items": (Annotated[list[str], Field(min_length=1, max_length=5)], ...), "n": (NonNegativeInt, 0)},
    "machine numbers": {"i64": (Annotated[int, Field(ge=-(2**63), lt=2**63)], ...), "u64": (Annotated[int, Field(ge=0, le=2**64 - 1)], ...)},
    "multiples": {"step": (Annotated[int, Field(multiple_of=5)], ...), "size": (ByteSize, ...)},
    "anything": {"value": (Any, ...), "text": (Json, ...)},
    "described": {"city": (Annotated[str, Field(description="Where", examples=["Oslo"], title="City")], "Oslo")},
    "constants": {"version": (Literal[1], 1), "mode": (Literal["a", 2, None], None), "yes": (Literal[True], True)},
}  # fmt: skip


def _pydantic() -> dict[str, Any]:
    from pydantic import create_model

    made = {f"pydantic {name}": create_model("Shape", **fields) for name, fields in FIELDS.items()}
    strict = create_model("Strict", __base__=Strict, **FIELDS["extraction"])
    return {name: m.model_json_schema() for name, m in made.items()} | {
        "pydantic strict": strict.model_json_schema(),
        "pydantic serialised": made["pydantic dates"].model_json_schema(mode="serialization"),
    }


def _object(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> Any:
    needed = list(properties) if required is None else required
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
        **more,
    }


_SAFE = {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991}
_TEXT = {"type": "string"}
_OLD = {"$schema": "http://json-schema.org/draft-07/schema#"}
_EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
_UUID = (
    "^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
    "|00000000-0000-0000-0000-000000000000|ffffffff-ffff-ffff-ffff-ffffffffffff)$"
)
ZOD = {
    "whole numbers": _object({"count": _SAFE, "page": {**_SAFE, "exclusiveMinimum": 0}}),
    "e-mail": _object({"mail": {**_TEXT, "format": "email", "pattern": _EMAIL}}),
    "uuid": _object({"id": {**_TEXT, "format": "uuid", "pattern": _UUID}}),
    "url": _object({"link": {**_TEXT, "format": "uri"}}),
    "iso date": _object({"day": {**_TEXT, "format": "date", "pattern": r"^(?:(?:\d\d[2468][048]|\d\d[13579][26]|\d\d0[48]|[02468][048]00|[13579][26]00)-02-29|\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|(?:02)-(?:0[1-9]|1\d|2[0-8])))$"}}),
    "base64": _object({"data": {**_TEXT, "format": "base64", "contentEncoding": "base64", "pattern": r"^$|^(?:[0-9a-zA-Z+/]{4})*(?:(?:[0-9a-zA-Z+/]{2}==)|(?:[0-9a-zA-Z+/]{3}=))?$"}}),
    "nanoid": _object({"id": {**_TEXT, "format": "nanoid", "pattern": "^[a-zA-Z0-9_-]{21}$"}}),
    "record": _object({"map": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}}}),
    "record of enum": _object({"map": {"type": "object", "propertyNames": {"type": "string", "enum": ["a", "b"]}, "additionalProperties": {"type": "number"}, "required": ["a", "b"]}}),
    "nullable": _object({"note": {"anyOf": [_TEXT, {"type": "null"}]}}),
    "optional": _object({"a": _TEXT, "b": {"type": "boolean"}}, ["a"]),
    "passthrough": _object({"a": _TEXT}, additionalProperties={}),
    "tagged union": _object({"event": {"oneOf": [_object({"type": {**_TEXT, "const": "click"}, "x": _SAFE}), _object({"type": {**_TEXT, "const": "key"}, "code": _TEXT})]}}),
    "tuple": _object({"pair": {"type": "array", "prefixItems": [_TEXT, {"type": "number"}]}}),
    "old tuple": {**_OLD, **_object({"pair": {"type": "array", "minItems": 2, "maxItems": 2, "items": [_TEXT, {"type": "number"}]}}), **_OLD},
    "lazy": _object({"node": {"$ref": "#/$defs/__schema0"}}, **{"$defs": {"__schema0": _object({"name": _TEXT, "next": {"anyOf": [{"$ref": "#/$defs/__schema0"}, {"type": "null"}]}})}}),
    "root reference": {**_OLD, **_object({"title": _TEXT, "parts": {"type": "array", "items": {"$ref": "#"}}}), **_OLD},
    "reference to a property": {**_OLD, **_object({"from": _object({"city": _TEXT}), "to": {"$ref": "#/properties/from"}}), **_OLD},
    "definitions": {"$ref": "#/definitions/Answer", "definitions": {"Answer": _object({"ok": {"type": "boolean"}})}, **_OLD},
    "intersection": _object({"who": {"allOf": [{"type": "object", "properties": {"a": _TEXT}, "required": ["a"]}, {"type": "object", "properties": {"b": _SAFE}, "required": ["b"]}]}}),
    "literals": _object({"n": {"type": "number", "const": 3}, "u": {"enum": ["a", "b"], "type": "string"}, "nothing": {"type": "null"}}),
    "defaults": _object({"size": {"default": 10, "type": "number"}, "tags": {"default": [], "type": "array", "items": _TEXT}}),
    "password": _object({"word": {**_TEXT, "minLength": 8, "pattern": "^(?=.*[a-z])(?=.*[0-9]).*$"}}),
    "unknown": _object({"any": {}, "never": {"not": {}}}, ["any"]),
    "TypeScript's": {"type": "object", "properties": {"command": {**_TEXT, "description": "x"}, "timeout": {"type": "number", "maximum": 600000}}, "required": ["command", "explanation"]},
}  # fmt: skip

APPLICATIONS = _pydantic() | {f"zod {name}": schema for name, schema in ZOD.items()}
