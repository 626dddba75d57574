"""Requests made by chance: bodies by their schemas, and bytes by mutation. A seed gives the same."""

import json
import random

WORDS = (
    "hi",
    "",
    "tiny",
    "text",
    "user",
    "auto",
    "function",
    "a" * 300,
    "é日本",
    "\ud800",
    "\0",
    "-1",
)
DEEP = 60


def hostile(rng):
    """A value of the wrong type, length or depth."""
    depth = rng.randrange(1, DEEP)
    return rng.choice(
        (
            None,
            rng.choice((True, False)),
            rng.choice((-1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 10**30)),
            rng.choice((0.5, -0.0, 1e308, 1e-308)),
            rng.choice(WORDS),
            rng.choice(WORDS) * rng.choice((1, 50, 1000)),
            [rng.choice((1, "a", None, {}, []))] * rng.choice((0, 1, 5, 300, 5000)),
            {rng.choice(WORDS): rng.choice((1, "a", None, [], {}))},
            {f"k{i}": i for i in range(rng.choice((1, 30, 2000)))},
            json.loads("[" * depth + "]" * depth),
            json.loads('{"type":' * depth + "1" + "}" * depth),
        )
    )


class Bodies:
    """Bodies of one path of an OpenAPI document."""

    def __init__(self, document, path, rng):
        self.parts = document["components"]["schemas"]
        content = document["paths"][path]["post"]["requestBody"]["content"]
        self.schema = content["application/json"]["schema"]
        self.rng = rng

    def make(self):
        """The more seldom it is wrong, the deeper it is read."""
        self.wrong = self.rng.choice((0, 0, 0.01, 0.05, 0.2))
        return self._limited(self._value(self.schema, 0))

    def _limited(self, body):
        """Answers of a few tokens: how many is no question of the body's form."""
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"):
            if isinstance(body, dict) and isinstance(body.get(name), int) and body[name] > 2:
                body[name] = 2
        if isinstance(body, dict) and isinstance(options := body.get("options"), dict):
            options["num_predict"] = 2
        return body

    def _value(self, schema, depth):  # noqa: PLR0912
        rng = self.rng
        if depth > 12 or rng.random() < self.wrong:
            return hostile(rng)
        while "$ref" in schema:
            schema = self.parts[schema["$ref"].rpartition("/")[2]]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._value(rng.choice(schema[key]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        kinds = schema.get("type")
        match rng.choice(kinds) if isinstance(kinds, list) else kinds:
            case "object":
                return self._object(schema, depth)
            case "array":
                items = schema.get("items", {})
                count = max(schema.get("minItems", 0), rng.choice((0, 1, 1, 2, 3)))
                return [self._value(items, depth + 1) for _ in range(count)]
            case "string":
                return rng.choice(WORDS)
            case "integer":
                return rng.choice((0, 1, 2, 5, schema.get("minimum", -1), schema.get("maximum", 9)))
            case "number":
                return rng.choice((0, 0.5, 1, schema.get("minimum", -1), schema.get("maximum", 9)))
            case "boolean":
                return rng.choice((True, False))
            case "null":
                return None
        return hostile(rng)

    def _object(self, schema, depth):
        rng, found = self.rng, {}
        for name, inner in schema.get("properties", {}).items():
            if name in schema.get("required", ()) or rng.random() < 0.15:
                found[name] = self._value(inner, depth + 1)
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict) or rng.random() < self.wrong:
            found[rng.choice(WORDS)] = self._value(
                extra if isinstance(extra, dict) else {}, depth + 1
            )
        return found


def encoded(body):
    return json.dumps(body).encode()


BODY = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":1}'
TYPE = b"content-type: application/json\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n" + TYPE
SEEDS = [
    POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
    POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    POST + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY,
    b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 3,
    b"GET /v1/models HTTP/1.0\r\nhost: 127.0.0.1:8000\r\nconnection: keep-alive\r\n\r\n",
    b"OPTIONS /v1/messages HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"DELETE /v1/responses/resp_1 HTTP/1.1\r\nhost: localhost\r\nx-api-key: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]
PIECES = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"%00", b"%2e%2e/", b"\xff\xfe", b"0x", b"-1", b"+1", b"1e3",
    b"99999999999999999999", b"content-length: 0\r\n", b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n",
    b"transfer-encoding: identity\r\n", b"host: evil.example\r\n", b"host:\r\n", b"connection: close\r\n",
    b"expect: 100-continue\r\n", b"content-encoding: gzip\r\n", b"HTTP/9.9", b"CONNECT a:1", b"//", b"?" * 50, b"a" * 5000,
    b"0\r\n\r\n", b"ffffffff\r\n", b";x=y", b"GET http://a/ HTTP/1.1\r\n", b"x: y\r\n" * 200,
]  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    """A request with some of its bytes changed, left out, doubled or put in."""
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 8, 40)))
        match rng.randrange(5):
            case 0 if at < len(data):
                data[at] = rng.randrange(256)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end]
            case 3:
                data[at:at] = rng.choice(PIECES)
            case _:
                data[at:end] = rng.choice(PIECES)
    return bytes(data)
