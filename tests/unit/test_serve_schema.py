"""Requests that our OpenAPI document allows, made up by schemathesis: nothing fails, and every answer
is as the document says."""

import json
import zlib

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import CHECKS
from tests.support.serving import Keys, Settings, speaking

from smollm3.serve.app import guarded
from smollm3.serve.service import Service

HOST = {"host": "localhost"}
NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
# Operations, how many of every hundred cases they get.
SHARES = {
    "POST /v1/chat/completions": 25,
    "POST /v1/completions": 15,
    "POST /v1/responses": 20,
    "POST /v1/messages": 20,
    "POST /v1/messages/count_tokens": 5,
    "POST /tokenize": 5,
    "POST /detokenize": 5,
    "POST /apply-template": 3,
    "POST /api/chat": 10,
    "POST /api/generate": 5,
    "POST /api/embed": 3,
    "POST /api/show": 1,
    "POST /v1/embeddings": 5,
    "POST /v1/rerank": 3,
    "POST /v1/conversations": 3,
    "POST /v1/responses/input_tokens": 3,
    "POST /v1/responses/compact": 3,
    "GET /v1/responses/{name}": 2,
    "DELETE /v1/responses/{name}": 1,
    "GET /v1/models/{name}": 2,
}


@pytest.fixture(scope="module")
def schema(tokenizer, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("kept"))
    settings = Settings(max_tokens=3, aliases=("*",), files=folder)
    with speaking(tokenizer, {}) as engine:
        service = Service(engine, settings, Keys([]), "tiny")
        yield schemathesis.openapi.from_asgi("/openapi.json", guarded(service), headers=HOST)
        service.drain()


def thinned(body):
    """Most requests break some rule of another field, and the first one answers for all: so most
    keep few of them, and short answers."""
    if not isinstance(body, dict):
        return body
    seed = zlib.crc32(json.dumps(body, sort_keys=True).encode())
    needed = ("messages", "input", "prompt", "max_tokens", "tokens", "stream")
    kept = {
        k: v for i, (k, v) in enumerate(sorted(body.items())) if k in needed or seed >> i & 7 == 0
    }
    if "messages" in kept and seed % 4:
        kept["messages"] = [{"role": "user", "content": f"model {seed}"}]
    for key in {"max_tokens", "n"} & set(kept):
        if isinstance(kept[key], int) and kept[key] > 3:
            kept[key] = 1 + kept[key] % 3
    return kept


def check(schema, count):
    checks = [check for check in CHECKS.get_all() if check.__name__ in NAMES]
    assert len(checks) == len(NAMES)
    statuses, labels = {}, set()
    for found in schema.get_all_operations():
        operation = found.ok()
        labels.add(operation.label)
        share = max(1, SHARES.get(operation.label, 0) * count // 100)

        def one(case):
            case.body = thinned(case.body)
            response = case.call(headers=HOST)
            key = case.operation.label, response.status_code
            statuses[key] = statuses.get(key, 0) + 1
            case.validate_response(response, checks=checks)

        run = hypothesis.given(case=operation.as_strategy())(one)
        hypothesis.settings(
            max_examples=share,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )(run)()
    assert set(SHARES) <= labels
    return statuses


def good(statuses):
    return {label for label, status in statuses if status == 200}


def test_a_hundred_cases(schema):
    statuses = check(schema, 100)
    assert sum(statuses.values()) >= 90
    # Few made-up cases may all be refused, where there are few.
    assert {label for label, share in SHARES.items() if share >= 15} <= good(statuses), statuses


@pytest.mark.slow
def test_two_thousand_cases(schema):
    statuses = check(schema, 2000)
    assert sum(statuses.values()) >= 1800, statuses
    assert {label for label in SHARES if "{name}" not in label} <= good(statuses), statuses
