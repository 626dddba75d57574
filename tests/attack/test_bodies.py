"""Whatever body comes, reading it is bounded work: of the processor, of memory, of the event loop.

Bounds of a body of 100 KiB: half a second of processor time (it was two to four) and ten times the
body, beside 16 MiB that any thread's stretch of memory may take (it was a thousand times the body).
Of the longest body allowed: /health answers meanwhile.
"""

import json

import httpx2
import pytest

from tests.attack.victim import Pulse

pytestmark = pytest.mark.xdist_group("attack")
SECONDS, TIMES, BESIDE = 0.5, 10, 16 << 20
JSON = {"content-type": "application/json"}
SAID = '"messages":[{"role":"user","content":"hi"}]'
CHAT, CLAUDE, TEXT, ITEMS = (
    "/v1/chat/completions",
    "/v1/messages",
    "/v1/completions",
    "/v1/responses",
)

RESULTS = ",".join(['{"role":"tool"}'] * 4000)

# path, an item, and the body around as many of them as there is room for (@)
LISTS = [
    (CLAUDE, "1", '{"max_tokens":3,"messages":[@]}'),
    (CLAUDE, "1", '{"max_tokens":3,"messages":[{"role":"user","content":[@]}]}'),
    (CLAUDE, '{"role":"user","content":[1]}', '{"max_tokens":3,"messages":[@]}'),
    (CLAUDE, "1", '{"max_tokens":3,HI,"tools":[@]}'),
    (CLAUDE, '{"type":"text","text":1}', '{"max_tokens":3,HI,"system":[@]}'),
    (CHAT, "1", '{"messages":[{"role":"user","content":[@]}]}'),
    (CHAT, "[]", '{"messages":[@]}'),
    (CHAT, "1", "{HI,\"tools\":[@]}"),
    (CHAT, "1", "{HI,\"stop\":[@]}"),
    (CHAT, "[]", '{HI,"response_format":{"type":"json_schema","json_schema":{"schema":{"a":[@]}}}}'),
    (CHAT, '"k#":1', "{HI,@}"),
    (CHAT, '"k#":1', '{HI,"chat_template_kwargs":{@}}'),
    (CHAT, '"k#":"x"', '{HI,"logit_bias":{@}}'),
    (CHAT, "[", '{"messages":@'),
    (CHAT, "\\ud800", '{"messages":[{"role":"user","content":"@"}]}'),
    (TEXT, '"a"', '{"prompt":[1,@]}'),
    (TEXT, "[]", '{"prompt":[@]}'),
    (TEXT, "{}", '{"prompt":[@]}'),
    (TEXT, '"ab"', '{"prompt":[@]}'),
    ("/v1/embeddings", "{}", '{"input":[@]}'),
    ("/rerank", "1", '{"query":"a","documents":[@]}'),
    ("/detokenize", '"a"', '{"tokens":[@]}'),
    ("/tokenize", "1", '{"messages":[@]}'),
    (ITEMS, "1", '{"input":[@]}'),
    (ITEMS, '{"type":"message"}', '{"input":[@]}'),
    (ITEMS, '"k#":1', '{"input":"hi","metadata":{@}}'),
    ("/v1/conversations", "1", '{"items":[@]}'),
    ("/api/chat", "1", '{"model":"tiny","messages":[@]}'),
    ("/api/generate", "1", '{"model":"tiny","prompt":"hi","images":[@]}'),
    ("/v1/tools/call", "1", '{"name":"f","arguments":[@]}'),
]  # fmt: skip


def filled(item: str, around: str, size: int) -> str:
    count = size // (len(item) + 1 + 4 * item.count("#"))
    around = around.replace("HI", SAID).replace("RESULTS", RESULTS)
    joint = "" if item in ("[", "\\ud800") else ","
    return around.replace("@", joint.join(item.replace("#", str(i)) for i in range(count)))


@pytest.mark.parametrize(("path", "item", "around"), LISTS, ids=range(len(LISTS)))
def test_lists_of_what_is_wrong(server, path, item, around):
    body = filled(item, around, 100 << 10)
    server.forget_peak()
    resident, work = server.resident, server.work
    response = httpx2.post(server.url + path, content=body, headers=JSON, timeout=60)
    assert 400 <= response.status_code < 500, response.text[:200]
    assert len(response.content) < 2000
    assert server.work - work < SECONDS
    assert server.peak - resident < TIMES * len(body) + BESIDE


@pytest.mark.parametrize("body", ['{"%s":1}', '{"messages":[{"role":"%s"}]}', '{"model":"%s",%s}'])
def test_what_is_quoted_of_a_body_is_short(server, body):
    words = ("k" * (1 << 20), SAID.partition("%")[0])
    body = body % words[: body.count("%s")]
    work = server.work
    response = httpx2.post(server.url + CHAT, content=body, headers=JSON, timeout=60)
    assert 400 <= response.status_code < 500
    assert len(response.content) < 2000
    assert server.work - work < SECONDS


@pytest.mark.parametrize(("item", "count"), [("[]", 33_000), ("1", 263_000)])
def test_values_are_counted(server, item, count):
    body = '{"prompt":[' + ",".join([item] * count) + "]}"
    response = httpx2.post(server.url + TEXT, content=body, headers=JSON, timeout=60)
    assert response.status_code == 413


def test_much_that_is_right_is_read(server):
    """Limits are beyond what conversations are."""
    said = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": "[{,"}] * 4}
        for i in range(2000)
    ]
    response = httpx2.post(server.url + CHAT, json={"messages": said}, timeout=60)
    assert "context" in response.json()["error"]["message"]
    brackets = {"messages": [{"role": "user", "content": '[{,"\\' * 200_000}]}
    response = httpx2.post(server.url + CHAT, json=brackets, timeout=60)
    assert "context" in response.json()["error"]["message"]


LONGEST = [
    (CLAUDE, '{"type":"text","text":""}', '{"max_tokens":1,"messages":[{"role":"user","content":[@]}]}', 800),
    (CHAT, '{"type":"text","text":""}', '{"messages":[{"role":"user","content":[@]}]}', 800),
    (CHAT, '{"type":"x"}', "{HI,\"tools\":[@]}", 390),
    (CHAT, '"#":1', '{HI,"structured_outputs":{"json":{@}}}', 2600),
    (CHAT, "\\ud800", '{"messages":[{"role":"user","content":"@"}]}', 4000),
    (CHAT, "[", '{"messages":@', 4000),
    (CHAT, "the ", '{"messages":[{"role":"user","content":"@"}]}', 4000),
    (TEXT, "1", '{"prompt":[@]}', 520),
    (TEXT, '"ab"', '{"prompt":[@]}', 1300),
    (TEXT, '"ab"', '{"prompt":[@]}', 4000),
    (TEXT, "the ", '{"prompt":"@","echo":true,"logprobs":1}', 4000),
    ("/v1/embeddings", "the ", '{"input":"@"}', 4000),
    ("/detokenize", "1", '{"tokens":[@]}', 520),
    ("/tokenize", "the ", '{"content":"@"}', 4000),
    ("/v1/messages/count_tokens", "the ", '{"messages":[{"role":"user","content":"@"}]}', 4000),
    (ITEMS, '{"type":"message","role":"user","content":[{"type":"input_text","text":"a"}]}', '{"input":[@]}', 310),
    ("/api/chat", '{"function":{"name":"a","arguments":{}}}',
     '{"model":"tiny","messages":[{"role":"assistant","tool_calls":[@]},RESULTS]}', 320),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("path", "item", "around", "kilobytes"), LONGEST, ids=range(len(LONGEST)))
def test_others_are_answered_meanwhile(server, path, item, around, kilobytes):
    body = filled(item, around, kilobytes * 1000)
    with Pulse(server) as pulse:
        response = httpx2.post(server.url + path, content=body, headers=JSON, timeout=60)
    assert response.status_code < 500
    assert pulse.count
    # 0.06 s where nothing else runs; a wait in which the server did little is another program's
    assert pulse.longest < 1 or pulse.work < 0.5, json.dumps(response.text[:100])
